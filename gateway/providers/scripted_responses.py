"""A scripted upstream's answers in the Responses API. It stores no response, and refuses input that refers to one, as
OpenAI's does where `store` is false.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.providers.scripted_answer import CREATED, Answer, Json, encode, tokenize
from gateway.providers.scripted_openai import token_logprob

ENCRYPTED = "reasoning.encrypted_content"


def as_chat(request: Json) -> Json:
    """The request with the fields that `compose` reads under their names in chat. Raises ValueError for what OpenAI's
    API refuses.
    """
    given = request["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if request.get("previous_response_id"):
        raise ValueError(f"previous response {request['previous_response_id']!r} not found")
    for item in items:
        if item.get("type") == "item_reference":
            raise ValueError(f"item {item['id']!r} not found: items aren't persisted when `store` is false")
        if item.get("type") == "reasoning" and not item.get("encrypted_content"):
            raise ValueError(f"item {item['id']!r} not found: it was not encrypted, and nothing is kept")
    form = (request.get("text") or {}).get("format") or {}
    names: Json = {
        "messages": items,
        "max_tokens": request.get("max_output_tokens"),
        "response_format": {"type": "json_schema", "json_schema": form} if "schema" in form else form or None,
        "logprobs": "message.output_text.logprobs" in (request.get("include") or ()),
    }
    return {name: value for name, value in request.items() if name != "input"} | names


def response(request: Json, answer: Answer) -> Json:
    """The whole response."""
    cut = answer.finish_reason == "length"
    body = _begun(request, answer) | {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": [item for item, _ in _items(request, answer)],
    }
    if answer.tells_usage:
        body["usage"] = _usage(answer)
    return body


def response_events(request: Json, answer: Answer) -> Iterator[Json]:
    """The stream's events, numbered in order; the last one holds the whole response."""
    for number, event in enumerate(_events(request, answer)):
        yield {**event, "sequence_number": number}


def _events(request: Json, answer: Answer) -> Iterator[Json]:
    begun = _begun(request, answer)
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, (item, inside) in enumerate(_items(request, answer)):
        empty = {name: type(item[name])() for name in ("content", "arguments", "input") if name in item}
        yield {"type": "response.output_item.added", "output_index": index,
               "item": {**item, **empty, "status": "in_progress"}}  # fmt: skip
        for event in inside:
            yield {**event, "item_id": item["id"], "output_index": index}
        yield {"type": "response.output_item.done", "output_index": index, "item": item}
    whole = response(request, answer)
    yield {"type": f"response.{whole['status']}", "response": whole}


def _begun(request: Json, answer: Answer) -> Json:
    return {"id": f"resp_{answer.id}", "object": "response", "created_at": CREATED, "status": "in_progress",
            "error": None, "incomplete_details": None, "model": answer.model, "output": [],
            "tools": request.get("tools") or [], "tool_choice": request.get("tool_choice") or "auto",
            "parallel_tool_calls": True, "metadata": request.get("metadata") or {}, "store": request.get("store", True),
            "previous_response_id": None, "usage": None}  # fmt: skip


def _items(request: Json, answer: Answer) -> Iterator[tuple[Json, list[Json]]]:
    """Each item of the output, with the events between its beginning and its end."""
    if request.get("reasoning"):
        reasoned: Json = {"id": f"rs_{answer.id}", "type": "reasoning", "summary": []}
        if ENCRYPTED in (request.get("include") or ()):
            reasoned["encrypted_content"] = f"sealed-{answer.id}"
        yield reasoned, []
    for number in range(answer.web_searches):
        kinds = ("in_progress", "searching", "completed")
        action = {"type": "search", "query": answer.text[:40]}
        item = {"id": f"ws_{answer.id}_{number}", "type": "web_search_call", "status": "completed", "action": action}
        yield item, [{"type": f"response.web_search_call.{kind}"} for kind in kinds]
    for number, kind in enumerate(answer.ran):
        yield _ran(f"{answer.id}_{number}", kind)
    if answer.tokens or not answer.tool_calls:
        yield _message(answer)
    for number, call in enumerate(answer.tool_calls):
        yield _call(request, f"{answer.id}_{number}", call.name, encode(call.arguments).decode())


def _ran(id: str, kind: str) -> tuple[Json, list[Json]]:
    """The item of a hosted tool's run."""
    fields: dict[str, Json] = {
        "code_interpreter": {"container_id": "cntr_1", "code": "1 + 1", "outputs": None},
        "file_search": {"queries": ["rain"], "results": None},
        "image_generation": {"result": "aGk="},
        "mcp": {"name": "look", "server_label": "sky", "arguments": "{}", "output": "rain"},
        "shell": {"call_id": f"call_{id}", "action": {"commands": ["ls"]},
                  "environment": {"type": "container_reference", "container_id": "cntr_1"}},
    }  # fmt: skip
    return {"id": f"{kind}_{id}", "type": f"{kind}_call", "status": "completed", **fields[kind]}, []


def _message(answer: Answer) -> tuple[Json, list[Json]]:
    tokens = [token_logprob(token, answer.logprob) for token in answer.tokens] if answer.wants_logprobs else []
    part: Json = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": tokens}
    item = {"id": f"msg_{answer.id}", "type": "message", "status": "completed", "role": "assistant", "content": [part]}
    place: Json = {"content_index": 0}
    empty = {**part, "text": "", "logprobs": []}
    deltas = [{"type": "response.output_text.delta", **place, "delta": token, "logprobs": tokens[at : at + 1]}
              for at, token in enumerate(answer.tokens)]  # fmt: skip
    return item, [
        {"type": "response.content_part.added", **place, "part": empty},
        *deltas,
        {"type": "response.output_text.done", **place, "text": answer.text, "logprobs": tokens},
        {"type": "response.content_part.done", **place, "part": part},
    ]


def _call(request: Json, id: str, name: str, arguments: str) -> tuple[Json, list[Json]]:
    """The call of a function, or of a custom tool, whose input is free text."""
    is_custom = any(tool.get("type") == "custom" and tool.get("name") == name for tool in request.get("tools") or ())
    kind, field, prefix = ("custom_tool_call", "input", "ctc") if is_custom else ("function_call", "arguments", "fc")
    item = {"id": f"{prefix}_{id}", "type": kind, "status": "completed", "call_id": f"call_{id}", "name": name,
            field: arguments}  # fmt: skip
    event = f"response.{kind}_{field}" if is_custom else "response.function_call_arguments"
    deltas: list[Json] = [{"type": f"{event}.delta", "delta": piece} for piece in tokenize(arguments)]
    return item, [*deltas, {"type": f"{event}.done", field: arguments}]


def _usage(answer: Answer) -> dict[str, Any]:
    output = answer.output_tokens + answer.reasoning_tokens
    return {
        "input_tokens": answer.input_tokens,
        "input_tokens_details": {"cached_tokens": answer.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": answer.input_tokens + output,
    }
