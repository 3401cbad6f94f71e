"""Reads the events of a stream that differ from an earlier one in nothing but their text, without decoding their JSON.

Most upstreams repeat everything else (id, model, time) in each event. A template is learned from an event that was
decoded. An event that doesn't fit it, or whose text has characters that JSON escapes, is decoded as ever.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import msgspec

_KEYS = (b'"content":', b'"text":')


class EventTemplate:
    """What events have before and after their text, the quotation marks included."""

    __slots__ = ("_after", "_before", "_cut", "_least", "_passed", "_text")

    def __init__(self, before: bytes, after: bytes, passed: tuple[bytes, bytes] | None) -> None:
        """`passed`: what the client gets before and after the text; None if it gets the event as it is."""
        self._before, self._after, self._passed = before, after, passed
        self._text = slice(len(before), -len(after))
        self._cut = itemgetter(self._text)
        self._least = len(before) + len(after)

    def text_of(self, event: bytes) -> str | None:
        """The event's text; None if the event doesn't fit, or might not be valid JSON."""
        if event.startswith(self._before) and event.endswith(self._after) and len(event) >= self._least:
            raw = event[self._text]
            if b'"' not in raw and b"\\" not in raw:
                try:
                    text = raw.decode()
                except UnicodeDecodeError:
                    return None
                if text.isprintable():
                    return text
        return None

    def passed(self, event: bytes) -> bytes:
        """What the client gets of an event that fits."""
        if self._passed is None:
            return event
        before, after = self._passed
        return before + event[self._text] + after

    def take(self, events: list[bytes]) -> tuple[str, bytes] | None:
        """The text of several events together, and what the client gets of them; None unless all of them fit.

        The cost of a further event is that of copying it, so this is for bursts.
        """
        before, after = self._before, self._after
        if not (events[0].startswith(before) and events[-1].endswith(after)):
            return None
        raws = list(map(self._cut, events))
        whole = b"".join(events)
        if before + (after + before).join(raws) + after != whole:
            return None
        marked = b'"'.join(raws)  # the marks keep apart what is no character by itself
        if b"\\" in marked or marked.count(b'"') != len(raws) - 1:
            return None
        try:
            text = marked.decode().replace('"', "")
        except UnicodeDecodeError:
            return None
        if not text.isprintable():
            return None
        if self._passed is None:
            return text, whole
        before, after = self._passed
        return text, before + (after + before).join(raws) + after

    def event(self, text: str) -> bytes:
        """An event with this text, which must consist of texts of events that fit."""
        return self._before + text.encode() + self._after


def learn(event: bytes, payload: bytes, passed: bytes) -> EventTemplate | None:
    """The template of a decoded event of a chat or of Anthropic's API; None where the event may have more than text, or
    its text's place in it isn't certain. `passed`: what the client gets of it.
    """
    text = _only_text(msgspec.json.decode(payload))
    if not text:
        return None
    parts, passed_parts = _around(event, text), _around(passed, text)
    if parts is None or passed_parts is None:
        return None
    return EventTemplate(*parts, None if passed == event else passed_parts)


def _around(event: bytes, text: str) -> tuple[bytes, bytes] | None:
    """What the event has before and after its text; None where that is not the only string of this content."""
    string = b'"' + text.encode(errors="replace") + b'"'
    before, found, after = event.partition(string)
    if not found or string in after or not before.rstrip(b" ").endswith(_KEYS):
        return None
    return before + b'"', b'"' + after


def _only_text(value: dict[str, Any]) -> str | None:
    """The text of an event that has nothing else that adds up from event to event."""
    delta = value.get("delta")
    if value.get("type") == "content_block_delta" and isinstance(delta, dict):
        text = delta.get("text")
        return text if delta == {"type": "text_delta", "text": text} and isinstance(text, str) else None
    choices = value.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return None
    choice, counted = choices[0], (value.get("usage"), value.get("error"), value.get("x_groq"))
    delta = choice.get("delta")
    ends = (choice.get("finish_reason"), choice.get("logprobs"), choice.get("text"), choice.get("error"))
    if choice.get("index", 0) != 0 or any((*counted, *ends)) or not isinstance(delta, dict):
        return None
    text = delta.get("content")
    others = (other for name, other in delta.items() if name not in ("content", "role"))
    return text if isinstance(text, str) and all(other is None for other in others) else None
