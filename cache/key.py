"""What makes two requests the same question.

The exact key covers the whole request as it will be forwarded: fields are taken away by a list of those that
cannot change the answer, never picked by a list of those that can, so a parameter nobody has heard of yet
separates two requests instead of mixing them up. The partition key covers everything but the last user text;
only within one partition may the semantic cache compare texts. Both refuse to guess: a body that cannot be
canonicalised is keyed by its bytes, a request without one plain last user text has no partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

KEY_BYTES = 16
_SCHEMA = 1
"""Raised when the meaning of a key changes, so that older stores miss."""

TRANSPORT_FIELDS = frozenset(
    {
        "stream",
        "stream_options",
        "user",
        "metadata",
        "store",
        "headgate",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "background",
    }
)
"""How an answer is delivered, billed or filed: never what it says."""

_TURNS = {"chat": "messages", "messages": "messages", "completions": "prompt", "responses": "input"}
_TEXT_PARTS = ("text", "input_text")

_encode = msgspec.json.Encoder().encode
_canonical = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder().decode

Body = Mapping[str, msgspec.Raw | bytes]
"""A request's top-level fields, each still the bytes the client sent."""


class Partition(NamedTuple):
    """The partition in which a question may be compared with others, and its text."""

    key: bytes
    text: str
    """The last user text: what the partition key leaves out."""


def exact_key(*, tenant: str, scope: str, surface: str, body: Body) -> bytes:
    """Hash everything that can change the answer; `scope` names the route and the policy behind it.

    Order of keys and white space do not count, every value does (1 and 1.0 differ, so do "a" and "a ").
    """
    blob = _forwarded(body)
    try:
        canonical = _canonical([_SCHEMA, tenant, scope, surface, _decode(blob)])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        canonical = _encode([_SCHEMA, tenant, scope, surface]) + blob
    return blake2b(canonical, digest_size=KEY_BYTES).digest()


def canonical(value: bytes) -> bytes:
    """A JSON value in the canonical form that keys are made of, without regard to the order of keys and white space.
    What is not JSON is returned as it is.
    """
    try:
        return _canonical(_decode(value))
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return value


def partition_key(
    *, tenant: str, scope: str, surface: str, body: Body, embedder: str
) -> Partition | None:
    """Fingerprint all but the last user text; None where the request does not end in one plain user text."""
    field = _TURNS.get(surface)
    if field is None or field not in body:
        return None
    try:
        tree = _decode(_forwarded(body))
        text = _blank_last_text(tree, field)
        if text is None:
            return None
        canonical = _canonical([_SCHEMA, "partition", embedder, tenant, scope, surface, tree])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return Partition(blake2b(canonical, digest_size=KEY_BYTES).digest(), text)


def _forwarded(body: Body) -> bytes:
    """The fields that count, as one JSON object of the client's own bytes."""
    fields = {
        name: value if isinstance(value, msgspec.Raw) else msgspec.Raw(value)
        for name, value in body.items()
        if name not in TRANSPORT_FIELDS
    }
    return _encode(fields)


def _blank_last_text(tree: dict[str, Any], field: str) -> str | None:
    """Take the last user text out of `tree` (null in its place) and return it."""
    turns = tree[field]
    if isinstance(turns, str):
        tree[field] = None
        return turns
    if not isinstance(turns, list) or not turns or not isinstance(turns[-1], dict):
        return None
    last = turns[-1]
    if last.get("role") != "user":
        return None
    return _blank_content(last)


def _blank_content(turn: dict[str, Any]) -> str | None:
    content = turn.get("content")
    if isinstance(content, str):
        turn["content"] = None
        return content
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        return None
    part = content[0]
    text = part.get("text")
    if part.get("type") not in _TEXT_PARTS or not isinstance(text, str):
        return None
    part["text"] = None
    return text
