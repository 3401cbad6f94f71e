"""Requests for an upstream that serves the Responses API itself."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.wire.body import Raw, is_set, read, to_raw
from gateway.wire.call_ids import holds_sealed, is_carrier, opened
from gateway.wire.responses import input_items
from gateway.wire.to_chat import refuse_set

ENCRYPTED = "reasoning.encrypted_content"
_HERE = ("previous_response_id", "conversation", "store", "include", "input")


def to_responses(raw: Raw) -> Raw:
    """The same request, of which the upstream keeps nothing: turns are kept here, so that any model may take the next.

    What was reasoned goes along encrypted, where the request is for a model that reasons and its answer is kept;
    what no upstream can read any more is left out.
    """
    refuse_set(raw, ("background",), "isn't served here.")
    fields: dict[str, Any] = {"store": False}
    include = read(raw, "include", list[str], [])
    if is_kept(raw) and is_set(raw, "reasoning") and ENCRYPTED not in include:
        include = [*include, ENCRYPTED]
    if include:
        fields["include"] = include
    fields["input"] = _readable(raw)
    return {name: value for name, value in raw.items() if name not in _HERE} | to_raw(fields)


def to_compact(raw: Raw) -> Raw:
    """A request that its conversation be made shorter, in items alone."""
    kept = {name: value for name, value in raw.items() if name not in ("previous_response_id", "conversation")}
    return kept | to_raw({"input": _readable(raw)}) if "input" in raw else kept


def _readable(raw: Raw) -> Any:
    """The input without what no upstream can read."""
    told = memoryview(raw["input"]).tobytes()
    if b'"reasoning"' in told or holds_sealed(told):
        return [_plain(item) for item in input_items(raw) if _is_readable(item)]
    return raw["input"]


def is_kept(raw: Raw) -> bool:
    """Whether the client wants the answer stored, as it does when it doesn't say."""
    return raw.get("store") != msgspec.Raw(b"false")


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    call_id = item.get("call_id")
    return {**item, "call_id": opened(call_id)[0]} if isinstance(call_id, str) else item


def _is_readable(item: dict[str, Any]) -> bool:
    sealed = item.get("encrypted_content")
    return item.get("type") != "reasoning" or (bool(sealed) and not is_carrier(sealed))
