"""The Responses API's object, its input items, and the part of a turn that is stored for the next one.

A conversation is stored turn by turn, each as its input and output items in order. With `previous_response_id` the
items of the earlier turns come first. Instructions belong to one turn only, as in the API.
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
from gateway.wire.citations import response_annotations
from gateway.wire.tools import target_of, text_of
from gateway.wire.usage import Usage

Item = dict[str, Any]
Items = list[Item]
REFERENCE = "item_reference"
_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})[0-9a-f]{4}")
_REPEATED: dict[str, Any] = {
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
    """The request's input as items; a bare string is a user message. Raises CallerError."""
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
    """A request as the next turn of a conversation."""

    raw: Raw
    """The request, with the items of earlier turns."""
    previous: str = ""
    """Id of the response that it continues, or of the conversation's state; empty for a first turn."""
    conversation: str = ""
    """Id of the conversation that it is added to; empty for none."""
    before: bytes = b"[]"
    """The items of the earlier turns, as JSON."""
    own: bytes = b""
    """Its own items, as JSON, where it continues a turn."""

    @property
    def stored(self) -> bytes:
        """Its own items as they are stored. Those of a continued turn are in an object, so that an older release, which
        would take them for the whole input, can't read them.
        """
        return b'{"adds":%b}' % self.own if self.previous else input_json(self.raw)


class _Adds(msgspec.Struct):
    adds: list[msgspec.Raw]


_decode_turn = msgspec.json.Decoder(list[msgspec.Raw] | _Adds).decode


def turn_items(stored: bytes) -> list[msgspec.Raw]:
    """The items of a stored turn."""
    turn = _decode_turn(stored)
    return turn.adds if isinstance(turn, _Adds) else turn


def input_json(raw: Raw) -> bytes:
    """A request's input items as JSON, in their original bytes unless the input is a string."""
    body = bytes(raw["input"])
    return body if body.lstrip().startswith(b"[") else encode_json(input_items(raw))


def responses_input(previous: Sequence[Item | msgspec.Raw], raw: Raw) -> Raw:
    """The request with the items of earlier turns first; `previous_response_id` stays, since responses repeat it."""
    if not previous:
        return raw
    return {**raw, "input": msgspec.Raw(encode_json([*previous, *input_items(raw)]))}


def response_object(
    request: Raw, *, response_id: str, model: str, created_s: int, status: str = "in_progress"
) -> dict[str, Any]:
    """The response before any output, with the request's settings."""
    repeated = {name: request.get(name, default) for name, default in _REPEATED.items()}
    for name in ("metadata", "parallel_tool_calls", "tool_choice", "tools", "text", "reasoning"):
        if isinstance(repeated[name], msgspec.Raw) and bytes(repeated[name]).strip() == b"null":
            repeated[name] = _REPEATED[name]
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
        **repeated,
        "usage": None,
    }


def as_requested(body: bytes, request: Raw, id: str) -> bytes:
    """An upstream's response with the fields of the client's request that the upstream didn't get, as it is sent every
    turn as a first one that isn't stored. `id`: the gateway's own, since an upstream's ids may not be unique.
    """
    response = msgspec.json.decode(body, type=Raw)
    response["id"] = msgspec.Raw(encode_json(id))
    for name in ("previous_response_id", "conversation", "store"):
        response[name] = request.get(name, msgspec.Raw(encode_json(_REPEATED[name])))
    return encode_json(response)


def finish_response(
    response: dict[str, Any], output: Items, finish_reason: str, usage: Usage, service_tier: Any
) -> dict[str, Any]:
    """The response with its output: completed, or incomplete because of a limit or filter. `service_tier`: the one
    that the upstream used, which may differ from the requested one.
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
    """The item with an id that names its response and its place there, so that references to it can be resolved."""
    return {**item, "id": f"{item['id']}{response_id.removeprefix('resp_')}{index:04x}"}


def owner_of(item_id: str) -> str:
    """Id of the response that an item belongs to; empty for ids that the gateway didn't assign."""
    match = _ITEM_ID.fullmatch(item_id)
    return f"resp_{match.group(1)}" if match else ""


def message_item(
    text: str, refusal: str, status: str = "completed", logprobs: list[Any] | None = None, annotations: Any = None
) -> Item:
    content: Items = []
    if text or not refusal:
        listed = response_annotations(annotations)
        content.append({"type": "output_text", "text": text, "annotations": listed, "logprobs": logprobs or []})
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
    target = target_of(name, request)
    if target["type"] == "custom_tool_call":
        return {"id": "ctc_", "status": status, "call_id": call_id, **target, "input": text_of(arguments)}
    return {"id": "fc_", "status": status, "call_id": call_id, **target, "arguments": arguments}


def sealed_item(sealed: str) -> Item:
    """A reasoning item with an encrypted thought."""
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
