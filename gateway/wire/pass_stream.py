"""A streamed answer that is passed through: sound, or events with pictures and text.

The last event is kept back until the answer is settled, as at the end of any stream. Sound has no events: there the end
of the HTTP message shows that the answer is complete, and only a broken connection that it isn't.
"""

from __future__ import annotations

from msgspec.structs import replace

from gateway.errors import HeadgateError, UpstreamError
from gateway.wire.chunk import Peek
from gateway.wire.errors import render_error
from gateway.wire.pass_through import COUNTED, read_passing, usage_of
from gateway.wire.relay import Relay
from gateway.wire.sse import COMMENT, EventTooLong, Splitter, data_of, frame
from gateway.wire.usage import Usage

_ENDS = (".completed", ".done")
"""How the types of final events end."""


class PassStream(Relay):
    """Has the interface of `Relay`, without reading or translating the content."""

    __slots__ = ("_done", "_held", "_of_events", "_surface", "_usage")

    def __init__(self, surface: str, content_type: bytes) -> None:
        self._surface = surface
        self._of_events = content_type.lower().startswith(b"text/event-stream")
        self._splitter = Splitter()
        self._usage = Usage()
        self._held = b""
        self._done = False
        self.unread = b""
        self.events = 0
        self.fault = self.cause = None

    def feed(self, data: bytes) -> bytes:
        if self.fault is not None or self._done:
            return b""
        if not self._of_events:
            self.events += 1
            return data
        try:
            events = self._splitter.feed(data)
        except EventTooLong as error:
            return self._fail("stream_malformed", UpstreamError("stream_malformed", str(error)))
        self.events += len(events)
        return b"".join([self._pass_on(event) for event in events])

    def _pass_on(self, event: bytes) -> bytes:
        if self.fault is not None:
            return b""
        payload = data_of(event)
        if payload is None:
            return event
        try:
            answer = read_passing(payload)
        except UpstreamError as error:
            return self._fail("stream_error", error)
        if answer is not None:
            self._count(usage_of(answer, self._surface))
        is_end = payload.strip() == b"[DONE]" if answer is None else str(answer.type).endswith(_ENDS)
        if not is_end:
            return event
        before, self._held = self._held, event
        return before

    def _count(self, new: Usage) -> None:
        """Token counts are cumulative, so the last one counts; pictures are reported one by one, and added."""
        units = self._usage.units + new.units if self._surface in COUNTED else max(self._usage.units, new.units)
        self._usage = replace(new if new.total else self._usage, units=units, known=self._usage.known or new.known)

    def end(self) -> str | None:
        if self.fault is None and self._of_events and not self._held:
            self._fail("stream_cut", UpstreamError("stream_cut", "the upstream's stream ended without its end"))
        self._done = self.fault is None
        return self.fault

    def tail(self) -> bytes:
        return self._held

    def error(self, exc: HeadgateError) -> bytes | None:
        return frame(render_error(exc, self._surface)) if self._of_events else None

    def answer(self) -> bytes:
        """Empty: such answers are not stored."""
        return b""

    @property
    def sign(self) -> bytes:
        """A keep-alive comment; empty for sound, which has none."""
        return COMMENT if self._of_events else b""

    @property
    def started(self) -> bool:
        return self.events > 0

    @property
    def finished(self) -> bool:
        return self._done

    @property
    def paused(self) -> bool:
        return False

    @property
    def over(self) -> bool:
        return self._done or self.fault is not None

    @property
    def usage(self) -> Usage:
        return self._usage

    @property
    def counted(self) -> bool:
        return True

    def peek(self) -> Peek:
        return Peek(usage=self._usage)

    def part(self) -> Peek:
        return self.peek()
