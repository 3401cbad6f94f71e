"""A scripted upstream's answers in Anthropic's Messages API, whole or as a stream's events."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.providers.scripted_answer import Answer, Json, encode, tokenize

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def usage_anthropic(answer: Answer) -> Json:
    written, hour = answer.cache_write_tokens, answer.cache_write_1h_tokens
    usage: Json = {
        "input_tokens": answer.input_tokens - answer.cached_tokens - written,
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": answer.cached_tokens,
        "output_tokens": answer.output_tokens + answer.reasoning_tokens,
    }
    if written:
        usage["cache_creation"] = {"ephemeral_5m_input_tokens": written - hour, "ephemeral_1h_input_tokens": hour}
    if answer.web_searches:
        usage["server_tool_use"] = {"web_search_requests": answer.web_searches, "web_fetch_requests": 0}
    return usage


def messages(answer: Answer) -> Json:
    content = [*_searches(answer), *_runs(answer)]
    if answer.text or not answer.tool_calls:
        content.append({"type": "text", "text": answer.text})
    content += [_tool_use(answer, i, call.arguments) for i, call in enumerate(answer.tool_calls)]
    body = _message(answer) | {"content": content, "stop_reason": _stop_reason(answer), "container": _container(answer)}
    if answer.tells_usage:
        body["usage"] = usage_anthropic(answer)
    return body


def _searches(answer: Answer) -> Iterator[Json]:
    """The blocks of each web search: its query, then its result."""
    for number in range(answer.web_searches):
        id = f"srvtoolu_{answer.id}_{number}"
        yield {"type": "server_tool_use", "id": id, "name": "web_search", "input": {"query": answer.text[:40]}}
        page = {"type": "web_search_result", "url": "https://example.org", "title": "A page", "page_age": None,
                "encrypted_content": "sealed"}  # fmt: skip
        yield {"type": "web_search_tool_result", "tool_use_id": id, "content": [page]}


def _runs(answer: Answer) -> Iterator[Json]:
    """The blocks of each run of another hosted tool: its input, then its result."""
    for number, kind in enumerate(answer.ran):
        id = f"srvtoolu_{answer.id}_ran_{number}"
        name = {"code_execution": "bash_code_execution"}.get(kind, kind)
        tool_input = {"url": "https://example.org"} if kind == "web_fetch" else {"command": "ls"}
        failed = {"type": f"{name}_tool_result_error", "error_code": "unavailable"}
        yield {"type": "server_tool_use", "id": id, "name": name, "input": tool_input}
        yield {"type": f"{name}_tool_result", "tool_use_id": id, "content": failed}


def _container(answer: Answer) -> Json | None:
    ran = "code_execution" in answer.ran
    return {"id": "container_1", "expires_at": "2026-01-01T00:00:00Z"} if ran else None


def _message(answer: Answer) -> Json:
    return {"id": answer.id, "type": "message", "role": "assistant", "model": answer.model, "content": [],
            "stop_reason": None, "stop_sequence": None}  # fmt: skip


def _tool_use(answer: Answer, index: int, arguments: dict[str, object]) -> Json:
    call = answer.tool_calls[index]
    return {"type": "tool_use", "id": f"toolu_{answer.id}_{index}", "name": call.name, "input": arguments}


def _stop_reason(answer: Answer) -> str:
    return _STOP_REASONS.get(answer.finish_reason, answer.finish_reason)


def message_events(answer: Answer) -> Iterator[Json]:
    """All events of a stream, including `message_stop`, which ends it."""
    opened = _message(answer)
    if answer.tells_usage:
        opened["usage"] = usage_anthropic(answer) | {"output_tokens": 1, "server_tool_use": None}
    yield {"type": "message_start", "message": opened}
    index = 0
    for block in (*_searches(answer), *_runs(answer)):
        yield _block(index, block)
        yield {"type": "content_block_stop", "index": index}
        index += 1
    if answer.tokens or not answer.tool_calls:
        yield _block(index, {"type": "text", "text": ""})
        yield {"type": "ping"}
        for token in answer.tokens:
            yield _delta(index, {"type": "text_delta", "text": token})
        yield {"type": "content_block_stop", "index": index}
        index += 1
    for number, call in enumerate(answer.tool_calls):
        yield _block(index, _tool_use(answer, number, {}))
        for piece in tokenize(encode(call.arguments).decode()):
            yield _delta(index, {"type": "input_json_delta", "partial_json": piece})
        yield {"type": "content_block_stop", "index": index}
        index += 1
    ended: Json = {
        "type": "message_delta",
        "delta": {"stop_reason": _stop_reason(answer), "stop_sequence": None, "container": _container(answer)},
    }
    if answer.tells_usage:
        ended["usage"] = usage_anthropic(answer)
        ended["usage"].pop("cache_creation", None)  # sent only at the start
    yield ended
    yield {"type": "message_stop"}


def _block(index: int, block: Json) -> Json:
    return {"type": "content_block_start", "index": index, "content_block": block}


def _delta(index: int, delta: Json) -> Json:
    return {"type": "content_block_delta", "index": index, "delta": delta}
