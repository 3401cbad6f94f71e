"""Ids of tool calls: what travels in them, and what an upstream takes for one.

Gemini's chat gives a call a signature (`extra_content`) and wants it back with it. Anthropic's and the Responses API
have no place for one that every client returns, but the call's id: so it goes there, and whoever the conversation goes
on with, on whichever worker, is told the id as it was. What comes when the id has been told, and the signature of a
text, goes where a model's own sealed thoughts would: a `redacted_thinking` block, a reasoning item's
`encrypted_content`. Mistral takes ids of nine letters and digits only: others are
hashed, calls and results alike.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import Any, Literal

import msgspec

from gateway.wire.body import encode_json
from gateway.wire.chunk import BAD_JSON

Json = dict[str, Any]
Style = Literal["any", "nine", "kept", "signed"]
"""What an upstream's chat wants: no `extra_content`; that and short ids; it back; it back, and nowhere without it."""
MARK = "__extra__"
UNSIGNED = {"google": {"thought_signature": "skip_thought_signature_validator"}}
"""Google's word for a call that another model made."""
_MARK, _CALLS, _EXTRA = MARK.encode(), b'"tool_call', b'"extra_content"'
_SHORT = re.compile(r"[a-zA-Z0-9]{9}")
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MISTRALS = re.compile(r"[sx]tral", re.IGNORECASE)
_GEMINI = re.compile(r"gemini(-[12]\b)?", re.IGNORECASE)


def style_of(stated: str, upstream_name: str) -> Style:
    """`auto` goes by the name: Gemini demands signatures since version 3."""
    if stated != "auto":
        return stated  # type: ignore[return-value]
    if (gemini := _GEMINI.search(upstream_name)) is not None:
        return "kept" if gemini.group(1) else "signed"
    return "nine" if _MISTRALS.search(upstream_name) else "any"


def sealed(call_id: str, extra: Json | None) -> str:
    """The id with what came beside the call in it, in signs that every API takes in one."""
    return f"{call_id}{MARK}{urlsafe_b64encode(encode_json(extra)).decode().rstrip('=')}" if extra else call_id


def opened(call_id: str) -> tuple[str, Json | None]:
    """The id as its upstream gave it, and what came beside the call."""
    plain, mark, told = call_id.rpartition(MARK)
    if not mark:
        return call_id, None
    try:
        extra = msgspec.json.decode(urlsafe_b64decode(told + "=" * (-len(told) % 4)))
    except BAD_JSON:
        return call_id, None
    return (plain, extra) if isinstance(extra, dict) else (call_id, None)


def carrier(said: Json | None, calls: Json) -> str:
    """What came beside a text, and beside calls by their ids, as a thought that nobody else reads; empty: nothing."""
    told = {name: value for name, value in (("said", said), ("calls", calls)) if value}
    return sealed("", told) if told else ""


def give_back(turn: Json, thought: Any) -> None:
    """What a `carrier` holds to the turn that it came with; nothing where that is another's thought."""
    told = opened(thought)[1] if is_carrier(thought) else None
    if told is None:
        return
    if isinstance(said := told.get("said"), dict):
        turn["extra_content"] = said
    late = told.get("calls")
    for call in turn.get("tool_calls") or ():
        if isinstance(late, dict) and isinstance(extra := late.get(call["id"]), dict):
            call["extra_content"] = extra


def is_carrier(thought: Any) -> bool:
    return isinstance(thought, str) and thought.startswith(MARK)


def holds_sealed(told: bytes) -> bool:
    return _MARK in told


def call_of(call_id: str, name: Any, arguments: Any) -> Json:
    """Chat's call of a function, whose id may be a sealed one."""
    plain, extra = opened(call_id)
    call = {"id": plain, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {**call, "extra_content": extra} if extra else call


def suited(messages: msgspec.Raw, style: Style) -> msgspec.Raw:
    """A chat's turns with calls as that upstream takes them; the same object where they are so."""
    told = memoryview(messages).tobytes()
    if style == "kept" or (_CALLS not in told and _EXTRA not in told):
        return messages
    turns: Any = msgspec.json.decode(told)
    changed = [_suit(turn, style) for turn in turns if isinstance(turn, dict)]
    return msgspec.Raw(encode_json(turns)) if any(changed) else messages


def _suit(turn: Json, style: Style) -> bool:
    told = turn.get("tool_calls")
    calls = [call for call in told if isinstance(call, dict)] if isinstance(told, list) else []
    if style == "signed":
        if not calls or any(call.get("extra_content") for call in calls):
            return False
        calls[0]["extra_content"] = UNSIGNED
        return True
    changed = turn.pop("extra_content", None) is not None
    for call in calls:
        changed |= call.pop("extra_content", None) is not None
    if style == "nine":
        for holder, name in (*((call, "id") for call in calls), (turn, "tool_call_id")):
            changed |= _shorten(holder, name)
    return changed


def _shorten(holder: Json, name: str) -> bool:
    given = holder.get(name)
    if not isinstance(given, str) or _SHORT.fullmatch(given):
        return False
    number = int.from_bytes(sha256(given.encode()).digest())
    holder[name] = "".join(_DIGITS[number // 62**place % 62] for place in range(9))
    return True
