"""Whole answers: read for billing and routing without being rewritten, and translated into another dialect by way of
chat's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.errors import UpstreamError
from gateway.wire.assemble import arguments_json
from gateway.wire.body import Raw, encode_json
from gateway.wire.call_ids import carrier, seal
from gateway.wire.chunk import (
    BAD_JSON,
    FAILED_FINISHES,
    FINISHES,
    Choice,
    Chunk,
    Delta,
    LogprobSummary,
    Peek,
    failure_of,
    join_parts,
    read_chunk,
)
from gateway.wire.citations import annotations_of, citations_of
from gateway.wire.errors import classify_in_stream
from gateway.wire.hosted_tools import Runs
from gateway.wire.messages_writer import stop_reason
from gateway.wire.pass_through import PASSED, peek_passed
from gateway.wire.readers import STOP_TO_FINISH
from gateway.wire.responses import (
    as_requested,
    call_item,
    finish_response,
    message_item,
    new_id,
    placed,
    reasoning_item,
    response_object,
    sealed_item,
)
from gateway.wire.responses_reader import CALLS, finish_of, is_search
from gateway.wire.seen import Seen
from gateway.wire.usage import Usage, speed_of
from gateway.wire.web_search import search_item, searches_in

Json = dict[str, Any]


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    content: list[_Block] | str | None = None
    stop_reason: str | None = None
    usage: Json | None = None
    type: str = ""
    error: Any = None
    container: Any = None


_decode_message = msgspec.json.Decoder(_Message).decode


def peek(body: bytes, dialect: str) -> Peek:
    """Read an answer of the upstream. Raises UpstreamError where the body is an error, or (bad_response) where it isn't
    an answer in the dialect.
    """
    try:
        if dialect == "messages":
            return _peek_message(body)
        if dialect == "responses":
            return _peek_response(body)
        if dialect in PASSED:
            return peek_passed(body, dialect)
        return _peek_chunk(read_chunk(body), dialect)
    except BAD_JSON as error:
        raise _bad(f"the upstream's answer can't be read: {error}") from None


def _peek_chunk(chunk: Chunk, dialect: str) -> Peek:
    """A whole answer is read as a single chunk whose choices have a message in place of a delta."""
    if chunk.error is not None and not chunk.choices:
        raise classify_in_stream(chunk.error)
    if dialect != "embeddings" and not chunk.choices:
        raise _bad("the upstream's answer has no choices")
    if len(chunk.choices) == 1 and (message := chunk.choices[0].message) is not None and not message.tool_calls:
        if chunk.choices[0].finish_reason in FAILED_FINISHES:
            raise classify_in_stream(failure_of(chunk.choices[0]))
        return _peek_single(chunk, chunk.choices[0], message)
    seen = Seen()
    for choice in chunk.choices:
        choice.delta, choice.message = choice.message, None
        for index, tool in enumerate((choice.delta.tool_calls if choice.delta else None) or ()):
            tool.index = index
    seen.take(chunk)
    if chunk.error is not None:
        raise classify_in_stream(chunk.error)
    return seen.peek()


def _peek_single(chunk: Chunk, choice: Choice, message: Delta) -> Peek:
    """A faster way for one choice without tool calls, as nearly every answer is: nothing has to be accumulated."""
    logprobs = LogprobSummary()
    if choice.logprobs is not None:
        logprobs.take(choice.logprobs.values())
    usage = Usage.from_openai(chunk.usage)
    if message.executed_tools:
        runs = Runs()
        runs.executed(message.executed_tools)
        usage = usage.with_runs(runs)
    return Peek(
        chunk.id or "",
        chunk.model or "",
        choice.finish_reason or "",
        message.content or "",
        message.refusal or "",
        message.thought or "",
        usage,
        logprobs,
        tier=chunk.tier if chunk.service_tier else "",
    )


def _peek_message(body: bytes) -> Peek:
    message = _decode_message(body)
    if message.error is not None:
        raise classify_in_stream(message.error)
    if message.type != "message":
        raise _bad("the upstream's answer is no message")
    blocks = message.content or []
    if isinstance(blocks, str):
        blocks = [_Block("text", blocks)]
    tools = [block for block in blocks if block.type == "tool_use"]
    finish = STOP_TO_FINISH.get(message.stop_reason or "", "stop")
    text = "".join(block.text or "" for block in blocks if block.type == "text")
    return Peek(
        message.id or "",
        message.model or "",
        finish if message.stop_reason else "",
        text,
        text if message.stop_reason == "refusal" else "",
        "".join(block.thinking or "" for block in blocks),
        Usage.from_anthropic(message.usage).with_runs(_runs_in(message, blocks)),
        tier=speed_of(message.usage or {}),
        tool_names=[tool.name or "" for tool in tools],
        tool_arguments=[bytes(tool.input).decode() for tool in tools],
    )


def _runs_in(message: _Message, blocks: list[_Block]) -> Runs:
    runs = Runs()
    for place, block in enumerate(blocks):
        runs.block(place, block.type, block.name)
    if message.container is not None:
        runs.container()
    return runs


class _OutputPart(msgspec.Struct):
    type: str = ""
    text: str = ""
    refusal: str = ""


class _Output(msgspec.Struct):
    type: str = ""
    content: list[_OutputPart] | None = None
    summary: list[_OutputPart] | None = None
    name: str | None = None
    arguments: Any = None
    action: Any = None
    status: Any = None
    container_id: Any = None
    environment: Any = None


class _Response(msgspec.Struct):
    id: str = ""
    object: str = ""
    model: str = ""
    status: str = ""
    output: list[_Output] = []
    error: Any = None
    incomplete_details: Json | None = None
    usage: Json | None = None
    service_tier: Any = None


def _peek_response(body: bytes) -> Peek:
    response = msgspec.json.decode(body, type=_Response)
    if response.error is not None:
        raise classify_in_stream(response.error)
    if response.object != "response":
        raise _bad("the upstream's answer is no response")
    parts = [part for item in response.output if item.type == "message" for part in item.content or ()]
    calls = [item for item in response.output if item.type in CALLS]
    thoughts = [part for item in response.output if item.type == "reasoning"
                for part in (*(item.summary or ()), *(item.content or ()))]  # fmt: skip
    runs = Runs()
    for place, item in enumerate(response.output):
        runs.item(place, item)
    reason = (response.incomplete_details or {}).get("reason", "") if response.status == "incomplete" else None
    finish = finish_of(reason, any(item.type in CALLS for item in response.output))
    return Peek(
        response.id,
        response.model,
        finish,
        "".join(part.text for part in parts if part.type == "output_text"),
        "".join(part.refusal for part in parts),
        "".join(part.text for part in thoughts),
        Usage.from_responses(response.usage, sum(map(is_search, response.output))).with_runs(runs),
        tier=response.service_tier if isinstance(response.service_tier, str) else "",
        tool_names=[call.name or "" for call in calls],
        tool_arguments=[str(call.arguments or "") for call in calls],
    )


def strip_logprobs(body: bytes) -> bytes:
    """A chat or completions body with its choices' logprobs set to null; all else stays byte for byte."""
    raw = msgspec.json.decode(body, type=Raw)
    choices = msgspec.json.decode(raw["choices"], type=list[Raw]) if "choices" in raw else []
    if not any("logprobs" in choice for choice in choices):
        return body
    for choice in choices:
        if "logprobs" in choice:
            choice["logprobs"] = msgspec.Raw(b"null")
    raw["choices"] = msgspec.Raw(encode_json(choices))
    return encode_json(raw)


def translate_answer(
    body: bytes | Json, src: str, dst: str, *, model: str, request: Raw, strip: bool = False
) -> bytes:
    """Translate an answer from the upstream's dialect `src` to the client's `dst`. Where they are equal the bytes are
    kept, except for logprobs (`strip`) and what `as_requested` sets in a response.

    `model` is the name in a translated answer. Raises UpstreamError (bad_response) where the body can't be read.
    """
    try:
        if src == dst:
            same = body if isinstance(body, bytes) else encode_json(body)
            if src == "responses":
                return as_requested(same, request, new_id("resp_"))
            return strip_logprobs(same) if strip else same
        answer: Json = msgspec.json.decode(body) if isinstance(body, bytes) else body
        chat = message_to_chat(answer) if src == "messages" else answer
        if strip:
            chat = {**chat, "choices": [{**choice, "logprobs": None} for choice in chat["choices"]]}
        if dst == "responses":
            return encode_json(chat_to_response(chat, model, request, searches_in(answer) if src == "messages" else ()))
        return encode_json(_from_chat(chat, dst, model))
    except (*BAD_JSON, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _bad(f"the upstream's answer can't be translated: {error!r}") from None


def _from_chat(chat: Json, dst: str, model: str) -> Json:
    if dst == "chat":
        return {**chat, "model": model or chat.get("model") or ""}
    if dst == "completions":
        return chat_to_completion(chat, model)
    if dst == "messages":
        return chat_to_message(chat, model)
    raise ValueError(f"there is no surface {dst!r}")


def message_to_chat(message: Json) -> Json:
    """Translate Anthropic's message into a chat completion; thinking becomes `reasoning_content`."""
    blocks = message.get("content") or []
    if isinstance(blocks, str):
        blocks = [{"type": "text", "text": blocks}]
    texts: list[str] = []
    annotations: list[Json] = []
    for block in blocks:
        if block.get("type") == "text":
            begins, text = sum(map(len, texts)), block["text"] or ""
            texts.append(text)
            annotations += annotations_of(block.get("citations"), begins, begins + len(text))
    thoughts = [block["thinking"] for block in blocks if block.get("type") == "thinking"]
    calls = [_chat_call(block) for block in blocks if block.get("type") == "tool_use"]
    answer: Json = {"role": "assistant", "content": "".join(texts) if texts else None, "refusal": None}
    if thoughts:
        answer["reasoning_content"] = "".join(thoughts)
    if annotations:
        answer["annotations"] = annotations
    if calls:
        answer["tool_calls"] = calls
    usage = Usage.from_anthropic(message.get("usage"))
    finish = STOP_TO_FINISH.get(message.get("stop_reason") or "", "stop")
    chat: Json = {
        "id": message.get("id") or new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": message.get("model") or "",
        "choices": [{"index": 0, "message": answer, "logprobs": None, "finish_reason": finish}],
    }
    if usage.known:
        chat["usage"] = usage.to_openai()
    if message.get("stop_sequence"):
        chat["stop_sequence"] = message["stop_sequence"]
    return chat


def _chat_call(block: Json) -> Json:
    function = {"name": block["name"], "arguments": encode_json(block.get("input") or {}).decode()}
    return {"id": block["id"], "type": "function", "function": function}


def chat_to_completion(chat: Json, model: str) -> Json:
    choices = [
        {
            "index": index if choice.get("index") is None else choice["index"],
            "text": _answer_of(choice).get("content") or "",
            "logprobs": None,
            "finish_reason": "stop" if choice.get("finish_reason") == "tool_calls" else choice.get("finish_reason"),
        }
        for index, choice in enumerate(chat["choices"])
    ]
    kept: Json = {
        name: chat[name] for name in ("id", "created", "usage", "system_fingerprint") if name in chat
    }
    return {
        **kept,
        "object": "text_completion",
        "model": model or chat.get("model") or "",
        "choices": choices,
    }


def chat_to_message(chat: Json, model: str) -> Json:
    choice = chat["choices"][0]
    answer = _answer_of(choice)
    blocks: list[Json] = []
    if thought := answer.get("reasoning_content") or answer.get("reasoning"):
        blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
    if text := (answer.get("content") or "") + (answer.get("refusal") or ""):
        citations = citations_of(answer.get("annotations"))
        blocks.append({"type": "text", "text": text, **({"citations": citations} if citations else {})})
    for call in answer.get("tool_calls") or ():
        function = call["function"]
        arguments, call_id = _arguments(arguments_json(function.get("arguments"))), call.get("id") or new_id("toolu_")
        call_id = seal(call_id, call.get("extra_content"))
        blocks.append({"type": "tool_use", "id": call_id, "name": function["name"], "input": arguments})
    if thought := carrier(answer.get("extra_content"), {}):
        blocks.append({"type": "redacted_thinking", "data": thought})
    sequence = chat.get("stop_sequence")
    reason = stop_reason(_finish_of(choice), sequence, bool(answer.get("tool_calls")))
    return {
        "id": chat.get("id") or new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model or chat.get("model") or "",
        "content": blocks,
        "stop_reason": "refusal" if answer.get("refusal") else reason,
        "stop_sequence": sequence,
        "usage": Usage.from_openai(chat.get("usage")).to_anthropic(),
    }


def _answer_of(choice: Json) -> Json:
    """The choice's message, with content in parts joined into a text."""
    answer: Json = choice["message"]
    return {**answer, **join_parts(answer["content"])} if isinstance(answer.get("content"), list) else answer


def _finish_of(choice: Json) -> str:
    finish = choice.get("finish_reason") or ""
    return FINISHES.get(finish, finish)


def _arguments(text: str) -> Json:
    """The input of Anthropic's tool_use block, which must be an object; arguments that are none go into `_raw`."""
    try:
        value = msgspec.json.decode(text or "{}")
    except BAD_JSON:
        return {"_raw": text}
    return value if isinstance(value, dict) else {"_raw": text}


def chat_to_response(chat: Json, model: str, request: Raw, searches: Iterable[tuple[str, bool]] = ()) -> Json:
    """Translate a chat completion into a response. `searches`: the query of each web search that the provider ran, and
    whether it succeeded.
    """
    choice = chat["choices"][0]
    answer = _answer_of(choice)
    finish = _finish_of(choice) or "stop"
    status = "incomplete" if finish in ("length", "content_filter") else "completed"
    calls = answer.get("tool_calls") or ()
    output = []
    if thought := answer.get("reasoning_content") or answer.get("reasoning"):
        output.append(reasoning_item(thought))
    output += [search_item(query, succeeded) for query, succeeded in searches]
    text, refusal = answer.get("content") or "", answer.get("refusal") or ""
    if text or refusal or not calls:
        logprobs = (choice.get("logprobs") or {}).get("content")
        output.append(message_item(text, refusal, status, logprobs, answer.get("annotations")))
    output += [_call_item(call, request, status) for call in calls]
    if sign := carrier(answer.get("extra_content"), {}):
        output.append(sealed_item(sign))
    created = chat.get("created")
    created_s = int(created) if isinstance(created, int | float) and created else int(time.time())
    name = model or chat.get("model") or ""
    response = response_object(request, response_id=new_id("resp_"), model=name, created_s=created_s)
    output = [placed(item, response["id"], index) for index, item in enumerate(output)]
    usage, tier = Usage.from_openai(chat.get("usage")), chat.get("service_tier")
    return finish_response(response, output, finish, usage, tier)


def _call_item(call: Json, request: Raw, status: str) -> Json:
    function = call["function"]
    call_id, arguments = call.get("id") or new_id("call_"), arguments_json(function.get("arguments"))
    call_id = seal(call_id, call.get("extra_content"))
    return call_item(call_id, function["name"], arguments, request, status)


def _bad(message: str) -> UpstreamError:
    return UpstreamError("bad_response", message)


__all__ = ["Peek", "peek", "strip_logprobs", "translate_answer"]


def with_text(body: bytes, dialect: str, text: str) -> bytes:
    """The same answer with the first choice's text replaced; all else stays as it was."""
    answer: Json = msgspec.json.decode(body)
    if dialect == "messages":
        others = [block for block in answer["content"] if block.get("type") != "text"]
        answer["content"] = [*others, {"type": "text", "text": text}]
    elif dialect == "completions":
        answer["choices"][0]["text"] = text
    elif dialect == "responses":
        others = [item for item in answer["output"] if item.get("type") != "message"]
        answer["output"] = [*others, placed(message_item(text, ""), answer["id"], len(others))]
    else:
        message = answer["choices"][0]["message"]
        message["content"] = text
        message.pop("annotations", None)
    return encode_json(answer)
