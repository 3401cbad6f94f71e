"""Prepares requests for an upstream that serves the Responses API itself."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.wire.body import Raw, is_set, read, to_raw
from gateway.wire.call_ids import holds_sealed, is_carrier, unseal
from gateway.wire.responses import input_items
from gateway.wire.to_chat import refuse_set

ENCRYPTED = "reasoning.encrypted_content"
_OWN_FIELDS = ("previous_response_id", "conversation", "store", "include", "input")


def to_responses(raw: Raw) -> Raw:
    """The request with `store` set to false, since turns are stored by the gateway, so that any model may answer the
    next one.

    Encrypted reasoning is requested where the model reasons and its answer is stored. Reasoning items that no upstream
    can read are left out.
    """
    refuse_set(raw, ("background",), "isn't supported.")
    fields: dict[str, Any] = {"store": False}
    include = read(raw, "include", list[str], [])
    if is_kept(raw) and is_set(raw, "reasoning") and ENCRYPTED not in include:
        include = [*include, ENCRYPTED]
    if include:
        fields["include"] = include
    fields["input"] = _readable(raw)
    return {name: value for name, value in raw.items() if name not in _OWN_FIELDS} | to_raw(fields)


def to_compact(raw: Raw) -> Raw:
    """A request to compact a conversation, with the conversation in its `input` alone."""
    kept = {name: value for name, value in raw.items() if name not in ("previous_response_id", "conversation")}
    return kept | to_raw({"input": _readable(raw)}) if "input" in raw else kept


def _readable(raw: Raw) -> Any:
    """The input without reasoning items that no upstream can read, and with the calls' original ids."""
    text = memoryview(raw["input"]).tobytes()
    if b'"reasoning"' in text or holds_sealed(text):
        return [_with_plain_id(item) for item in input_items(raw) if _is_readable(item)]
    return raw["input"]


def is_kept(raw: Raw) -> bool:
    """Whether the answer is to be stored, as it is by default."""
    return raw.get("store") != msgspec.Raw(b"false")


def _with_plain_id(item: dict[str, Any]) -> dict[str, Any]:
    call_id = item.get("call_id")
    return {**item, "call_id": unseal(call_id)[0]} if isinstance(call_id, str) else item


def _is_readable(item: dict[str, Any]) -> bool:
    sealed = item.get("encrypted_content")
    return item.get("type") != "reasoning" or (bool(sealed) and not is_carrier(sealed))
