"""The way back to the client: headers once, then bytes, then the end. What was sent can't be taken back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Reply:
    """One response over ASGI. `send` None: a subclass has a way of its own."""

    __slots__ = ("_send", "committed", "ended", "left", "sent_bytes", "task")

    def __init__(self, send: Send | None) -> None:
        self._send = send or _nowhere
        self.left = False
        """True: the client has gone, and so its request was cancelled."""
        self.task: asyncio.Task[None] | None = None
        """What answers, where a client's leaving is to end it."""
        self.committed = False
        """True once headers are out: from here on only finish or abort."""
        self.ended = False
        self.sent_bytes = 0

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Status, headers and the whole body at once."""
        self.committed = self.ended = True
        headers.append((b"content-length", b"%d" % len(body)))
        self.sent_bytes = len(body)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

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

    def leave(self) -> None:
        """The client has gone: nobody waits for the answer."""
        self.left = True
        if self.task is not None:
            self.task.cancel()


async def _nowhere(message: dict[str, Any]) -> None:
    raise NotImplementedError
