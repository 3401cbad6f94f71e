"""Splits a byte stream, which may be cut anywhere, into server-sent events.

Events are returned in the bytes they came in, terminator included, so a relay can pass them on unchanged. Lines end
with LF, CRLF or CR (HTML standard, 9.2.6). An event longer than `max_event_bytes` is refused, so that a peer that never
ends one can't fill the memory.
"""

from __future__ import annotations

import re

MAX_EVENT_BYTES = 8 * 1024 * 1024
_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")  # atomic: the CR and LF of one CRLF are not two line ends
BOM = b"\xef\xbb\xbf"
COMMENT = b": still here\n\n"
"""A comment that keeps the connection alive; readers of events ignore it."""
_LINE = re.compile(rb"\r\n|\n|\r")


class EventTooLong(ValueError):
    """An event is longer than `max_event_bytes`."""


class Splitter:
    """Splits incrementally: `feed` returns the events that are now complete, and raises EventTooLong."""

    __slots__ = ("_held", "_max_bytes", "_scanned")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._held = b""
        self._scanned = 0
        self._max_bytes = max_event_bytes

    def feed(self, data: bytes) -> list[bytes]:
        if self._held:
            data = self._held + data
        elif data[-2:] == b"\n\n" and b"\r" not in data and len(data) <= self._max_bytes:
            if data.find(b"\n\n") == len(data) - 2:
                return [data]
            if b"\n\n\n" not in data:
                return [event + b"\n\n" for event in data[:-2].split(b"\n\n")]
        return self._cut(data)

    def _cut(self, data: bytes) -> list[bytes]:
        events = []
        start, scan = 0, self._scanned
        while (end := _END.search(data, scan)) is not None:
            if end.end() == len(data) and data.endswith(b"\r"):
                break  # the LF of this CR may still be on its way
            events.append(self._bounded(data[start : end.end()]))
            start = scan = end.end()
        self._held = self._bounded(data[start:])
        self._scanned = max(0, len(self._held) - 4)
        return events

    def _bounded(self, event: bytes) -> bytes:
        if len(event) > self._max_bytes:
            raise EventTooLong(f"an event of the stream exceeds {self._max_bytes} bytes")
        return event

    def flush(self) -> bytes:
        """The rest at the end of the stream: an event without its blank line, or b""."""
        held, self._held, self._scanned = self._held, b"", 0
        return held


def data_of(event: bytes) -> bytes | None:
    """The event's data, with lines joined by LF; None where it has none (a comment, or a bare `event:`)."""
    start = 6
    if event.startswith(b"event: "):
        start += event.find(b"\n") + 1
    if (
        event.startswith(b"data: ", start - 6)
        and event.find(b"\n", start) == len(event) - 2
        and b"\r" not in event
    ):
        return event[start:-2]
    data = [value for name, value in _fields(event) if name == b"data"]
    return b"\n".join(data) if data else None


def name_of(event: bytes) -> bytes:
    """The event's `event:` field; empty where it has none."""
    return next((value for name, value in _fields(event) if name == b"event"), b"")


def _fields(event: bytes) -> list[tuple[bytes, bytes]]:
    fields = []
    for line in _LINE.split(event.removeprefix(BOM)):
        name, _, value = line.partition(b":")
        if name:
            fields.append((name, value.removeprefix(b" ")))
    return fields


def frame(payload: bytes, name: str = "") -> bytes:
    """Encode one event. The payload is JSON without line ends."""
    if name:
        return b"event: " + name.encode() + b"\ndata: " + payload + b"\n\n"
    return b"data: " + payload + b"\n\n"
