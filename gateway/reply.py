"""The way back to the client: headers once, then bytes, then the end. What was sent can't be taken back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gateway.front import send_at_once

Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Reply:
    """One response over ASGI."""

    __slots__ = ("_send", "committed", "ended", "sent_bytes")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.committed = False
        """True once headers are out: from here on only finish or abort."""
        self.ended = False
        self.sent_bytes = 0

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Status, headers and the whole body at once."""
        self.committed = self.ended = True
        headers.append((b"content-length", b"%d" % len(body)))
        self.sent_bytes = len(body)
        start = {"type": "http.response.start", "status": status, "headers": headers}
        await send_at_once(self._send, start, {"type": "http.response.body", "body": body})

    async def begin(self, status: int, headers: Headers) -> None:
        """Commit to a stream."""
        self.committed = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def push(self, data: bytes) -> None:
        """Part of a stream; waits while the client reads slowly."""
        self.sent_bytes += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Last bytes of a stream."""
        self.ended = True
        self.sent_bytes += len(data)
        await self._send({"type": "http.response.body", "body": data})
