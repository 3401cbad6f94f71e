"""Ids of tool calls: the signatures that are carried in them, and the forms that upstreams accept.

Gemini's chat API signs a call (`extra_content`) and wants the signature back with the call. In Anthropic's and the
Responses API the only field that every client returns is the call's id, so there the signature is sealed into the id,
and any worker unseals it before the id goes to an upstream. A signature that comes after the id has been sent, and that
of a text, goes where a model's encrypted thoughts would be: in a `redacted_thinking` block, or in the
`encrypted_content` of a reasoning item. Mistral accepts only ids of nine letters and digits; other ids are hashed, in
calls and in results.
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
"""How an upstream's chat takes calls. `any`: without `extra_content`; `nine`: so too, with ids of nine characters;
`kept`: with the `extra_content` that it sent; `signed`: so too, and every first call of a turn must have one.
"""
MARK = "__extra__"
UNSIGNED = {"google": {"thought_signature": "skip_thought_signature_validator"}}
"""Google's signature of a call that another model made."""
_MARK, _CALLS, _EXTRA = MARK.encode(), b'"tool_call', b'"extra_content"'
_SHORT = re.compile(r"[a-zA-Z0-9]{9}")
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MISTRAL = re.compile(r"[sx]tral", re.IGNORECASE)
_GEMINI = re.compile(r"gemini(-[12]\b)?", re.IGNORECASE)


def style_of(stated: str, upstream_name: str) -> Style:
    """The configured style; `auto` chooses by the model's name, since Gemini demands signatures from version 3 on."""
    if stated != "auto":
        return stated  # type: ignore[return-value]
    if (gemini := _GEMINI.search(upstream_name)) is not None:
        return "kept" if gemini.group(1) else "signed"
    return "nine" if _MISTRAL.search(upstream_name) else "any"


def seal(call_id: str, extra: Json | None) -> str:
    """The id with `extra` sealed into it, in characters that every API accepts in an id."""
    return f"{call_id}{MARK}{urlsafe_b64encode(encode_json(extra)).decode().rstrip('=')}" if extra else call_id


def unseal(call_id: str) -> tuple[str, Json | None]:
    """The id as its upstream gave it, and the `extra_content` that was sealed into it; None where there is none."""
    plain, mark, encoded = call_id.rpartition(MARK)
    if not mark:
        return call_id, None
    try:
        extra = msgspec.json.decode(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except BAD_JSON:
        return call_id, None
    return (plain, extra) if isinstance(extra, dict) else (call_id, None)


def carrier(of_text: Json | None, of_calls: Json) -> str:
    """A text for an encrypted thought that carries the `extra_content` of a text, and that of calls by their ids. Empty
    where there is neither.
    """
    content = {name: value for name, value in (("said", of_text), ("calls", of_calls)) if value}
    return seal("", content) if content else ""


def restore(turn: Json, thought: Any) -> None:
    """Restore the `extra_content` of a turn and its calls from a `carrier`; any other thought is ignored."""
    content = unseal(thought)[1] if is_carrier(thought) else None
    if content is None:
        return
    if isinstance(of_text := content.get("said"), dict):
        turn["extra_content"] = of_text
    of_calls = content.get("calls")
    for call in turn.get("tool_calls") or ():
        if isinstance(of_calls, dict) and isinstance(extra := of_calls.get(call["id"]), dict):
            call["extra_content"] = extra


def is_carrier(thought: Any) -> bool:
    return isinstance(thought, str) and thought.startswith(MARK)


def holds_sealed(body: bytes) -> bool:
    return _MARK in body


def call_of(call_id: str, name: Any, arguments: Any) -> Json:
    """A function call in chat's form; `extra_content` is restored from a sealed id."""
    plain, extra = unseal(call_id)
    call = {"id": plain, "type": "function", "function": {"name": name, "arguments": arguments}}
    return {**call, "extra_content": extra} if extra else call


def suited(messages: msgspec.Raw, style: Style) -> msgspec.Raw:
    """A chat's messages with tool calls in the style of the upstream; the same object where nothing changes."""
    body = memoryview(messages).tobytes()
    if style == "kept" or (_CALLS not in body and _EXTRA not in body):
        return messages
    turns: Any = msgspec.json.decode(body)
    changed = [_suit(turn, style) for turn in turns if isinstance(turn, dict)]
    return msgspec.Raw(encode_json(turns)) if any(changed) else messages


def _suit(turn: Json, style: Style) -> bool:
    tool_calls = turn.get("tool_calls")
    calls = [call for call in tool_calls if isinstance(call, dict)] if isinstance(tool_calls, list) else []
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
    id = holder.get(name)
    if not isinstance(id, str) or _SHORT.fullmatch(id):
        return False
    number = int.from_bytes(sha256(id.encode()).digest())
    holder[name] = "".join(_DIGITS[number // 62**place % 62] for place in range(9))
    return True
