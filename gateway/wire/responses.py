"""The Responses API's object, its input items, and what of a turn is stored for the next one.

A conversation is kept turn by turn, each as its items, input and output in order; `previous_response_id` means the
items of the turns before come first. Instructions are of one turn only, as the API has it.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.errors import CallerError
from gateway.wire.body import Raw, encode_json, read
from gateway.wire.citations import cited
from gateway.wire.tools import meant, text_of
from gateway.wire.usage import Usage

Item = dict[str, Any]
Items = list[Item]
REFERENCE = "item_reference"
_PLACED = re.compile(r"[a-z]+_([0-9a-f]{32})[0-9a-f]{4}")
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": None,
    "conversation": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def new_id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex


def input_items(raw: Raw) -> Items:
    """The request's input as items: a bare string is a user message."""
    given = raw.get("input")
    if given is None:
        raise CallerError(
            "Missing required parameter: 'input'.", param="input", code="missing_required_parameter"
        )
    value: str | Items = read(raw, "input", str | list[dict[str, Any]], "")  # type: ignore[arg-type]
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    return value


class Turn(msgspec.Struct):
    """A request as a conversation's next turn."""

    raw: Raw
    """With the turns before it."""
    previous: str = ""
    """What it continues: a response, or a conversation as it was then."""
    conversation: str = ""
    """The conversation that it is added to."""
    before: bytes = b"[]"
    """The items of the turns before it, as JSON."""
    own: bytes = b""
    """What it adds, as JSON, where it continues one."""

    @property
    def stored(self) -> bytes:
        """Its own items. Where that isn't all, in a shape that a release which takes it for all can't read."""
        return b'{"adds":%b}' % self.own if self.previous else input_json(self.raw)


class _Adds(msgspec.Struct):
    adds: list[msgspec.Raw]


_decode_turn = msgspec.json.Decoder(list[msgspec.Raw] | _Adds).decode


def turn_items(stored: bytes) -> list[msgspec.Raw]:
    """A stored turn's own items."""
    told = _decode_turn(stored)
    return told.adds if isinstance(told, _Adds) else told


def input_json(raw: Raw) -> bytes:
    """A request's items as JSON, as they came where they came as such."""
    told = bytes(raw["input"])
    return told if told.lstrip().startswith(b"[") else encode_json(input_items(raw))


def responses_input(previous: Sequence[Item | msgspec.Raw], raw: Raw) -> Raw:
    """The request with the items of earlier turns first; `previous_response_id` stays, to be echoed."""
    if not previous:
        return raw
    return {**raw, "input": msgspec.Raw(encode_json([*previous, *input_items(raw)]))}


def response_object(
    request: Raw, *, response_id: str, model: str, created_s: int, status: str = "in_progress"
) -> dict[str, Any]:
    """The response as it stands before any output, the request's settings echoed."""
    echoed = {name: request.get(name, default) for name, default in _ECHOED.items()}
    for name in ("metadata", "parallel_tool_calls", "tool_choice", "tools", "text", "reasoning"):
        if isinstance(echoed[name], msgspec.Raw) and bytes(echoed[name]).strip() == b"null":
            echoed[name] = _ECHOED[name]
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_s,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        **echoed,
        "usage": None,
    }


def as_asked(body: bytes, request: Raw, id: str) -> bytes:
    """An upstream's response with what it was not told: it takes every turn for a first one that nobody keeps. `id`: of
    ours, since upstreams may call many responses the same.
    """
    response = msgspec.json.decode(body, type=Raw)
    response["id"] = msgspec.Raw(encode_json(id))
    for name in ("previous_response_id", "conversation", "store"):
        response[name] = request.get(name, msgspec.Raw(encode_json(_ECHOED[name])))
    return encode_json(response)


def finish_response(
    response: dict[str, Any], output: Items, finish_reason: str, usage: Usage, service_tier: Any
) -> dict[str, Any]:
    """The response with its output: completed, or incomplete for a limit or a filter. `service_tier`: the upstream's,
    which need not be the one that was asked for.
    """
    incomplete = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish_reason)
    return {
        **response,
        "status": "incomplete" if incomplete else "completed",
        "completed_at": None if incomplete else int(time.time()),
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "output": output,
        "usage": usage.to_responses() if usage.known else None,
        "service_tier": service_tier if isinstance(service_tier, str) else None,
    }


def placed(item: Item, response_id: str, index: int) -> Item:
    """The item as the response's at that place: its id says so, to whoever is referred to it."""
    return {**item, "id": f"{item['id']}{response_id.removeprefix('resp_')}{index:04x}"}


def owner_of(item_id: str) -> str:
    """The response whose item that is; empty where it is none of ours."""
    match = _PLACED.fullmatch(item_id)
    return f"resp_{match.group(1)}" if match else ""


def message_item(
    text: str, refusal: str, status: str = "completed", logprobs: list[Any] | None = None, annotations: Any = None
) -> Item:
    content: Items = []
    if text or not refusal:
        part = {"type": "output_text", "text": text, "annotations": cited(annotations), "logprobs": logprobs or []}
        content.append(part)
    if refusal:
        content.append({"type": "refusal", "refusal": refusal})
    return {
        "id": "msg_",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def call_item(call_id: str, name: str, arguments: str, request: Raw, status: str = "completed") -> Item:
    tool = meant(name, request)
    if tool["type"] == "custom_tool_call":
        return {"id": "ctc_", "status": status, "call_id": call_id, **tool, "input": text_of(arguments)}
    return {"id": "fc_", "status": status, "call_id": call_id, **tool, "arguments": arguments}


def sealed_item(sealed: str) -> Item:
    """A thought that only who had it can read."""
    return {"id": "rs_", "type": "reasoning", "summary": [], "encrypted_content": sealed, "status": "completed"}


def reasoning_item(text: str) -> Item:
    content = [{"type": "reasoning_text", "text": text}]
    return {
        "id": "rs_",
        "type": "reasoning",
        "summary": [],
        "content": content,
        "status": "completed",
    }
