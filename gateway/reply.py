"""The response to a client: headers once, then bytes, then the end. Bytes that were sent can't be taken back."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json")
EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Reply(ABC):
    """One response on its way to a client."""

    __slots__ = ("committed", "left", "task")

    def __init__(self) -> None:
        self.committed = False
        """True once headers are sent: from then on the response can only finish or abort."""
        self.left = False
        """True once the client has disconnected and its request was cancelled."""
        self.task: asyncio.Task[None] | None = None
        """The task that answers; None where it goes on when the client disconnects."""

    @abstractmethod
    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send status, headers and the whole body at once."""

    @abstractmethod
    async def begin(self, status: int, headers: Headers) -> None:
        """Start a stream. Its status and headers may wait for its first bytes; `room` sends them at the latest."""

    @abstractmethod
    def push(self, data: bytes) -> bool:
        """Send part of a stream. Where it returns False, await `room` before sending more."""

    def sign(self, data: bytes) -> None:  # noqa: B027
        """Send a keep-alive `data` while the stream is silent; does nothing where no connection can time out."""

    @abstractmethod
    async def room(self) -> None:
        """Send what is held back, and wait until a slow client has caught up."""

    @abstractmethod
    async def end(self, data: bytes = b"") -> None:
        """Send the stream's last bytes and end it."""

    def leave(self) -> None:
        """Note that the client has disconnected, and cancel the task that answers it."""
        self.left = True
        if self.task is not None:
            self.task.cancel()


class AsgiReply(Reply):
    """Sends ASGI messages."""

    __slots__ = ("_pushed", "_send", "_signing")

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send
        self._pushed = b""
        self._signing: asyncio.Task[None] | None = None

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.committed = True
        headers.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, status: int, headers: Headers) -> None:
        self.committed = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def push(self, data: bytes) -> bool:
        self._pushed += data
        return not self._pushed

    def sign(self, data: bytes) -> None:
        if not self._pushed:
            self._pushed = data
            self._signing = asyncio.create_task(self._send_sign())

    async def _send_sign(self) -> None:
        if self._pushed:  # otherwise a later part has already taken it along
            await self.room()

    async def room(self) -> None:
        pushed, self._pushed = self._pushed, b""
        await self._send({"type": "http.response.body", "body": pushed, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        pushed, self._pushed = self._pushed, b""
        await self._send({"type": "http.response.body", "body": pushed + data})


class Heard(Reply):
    """Keeps the answer in memory, for requests that the gateway makes itself."""

    __slots__ = ("body", "headers", "status")

    def __init__(self) -> None:
        super().__init__()
        self.status = 0
        self.headers: Headers = []
        self.body = bytearray()

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.begin(status, headers)
        self.body += body

    async def begin(self, status: int, headers: Headers) -> None:
        self.committed = True
        self.status, self.headers = status, headers

    def push(self, data: bytes) -> bool:
        self.body += data
        return True

    async def room(self) -> None:
        pass

    async def end(self, data: bytes = b"") -> None:
        self.body += data

    @property
    def retry_after_s(self) -> float:
        """Seconds to wait before trying again, by `retry-after-ms`; 0 where the answer doesn't say."""
        return float(dict(self.headers).get(b"retry-after-ms", 0)) / 1e3


async def give(reply: Reply, status: int, headers: Headers, answer: bytes | AsyncIterator[bytes]) -> None:
    """Send an answer: bytes at once, an iterator as a stream."""
    if isinstance(answer, bytes):
        await reply.whole(status, headers, answer)
        return
    await reply.begin(status, headers)
    await reply.room()
    async for piece in answer:
        if not reply.push(piece):
            await reply.room()
    await reply.end()
