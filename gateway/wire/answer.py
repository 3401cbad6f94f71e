"""Translates whole answers into another dialect, by way of chat's."""

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
    FINISHES,
    join_parts,
)
from gateway.wire.citations import annotations_of, citations_of
from gateway.wire.messages_writer import stop_reason
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
from gateway.wire.usage import Usage
from gateway.wire.web_search import search_item, searches_in

Json = dict[str, Any]


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
        raise UpstreamError("bad_response", f"the upstream's answer can't be translated: {error!r}") from None


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
