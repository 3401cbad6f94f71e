"""The client's side of the wire: uvicorn's protocol, made cheaper where ASGI's messages cost.

ASGI tells that a client has left to whoever waits for the next message, so every request would need a task
that waits: here it is a call. And an answer that is whole leaves in one write instead of two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

FRONT = "headgate.front"
"""Where a request's scope holds its connection."""


class Front(HttpToolsProtocol):
    """One connection of a client. Its requests are answered one after the other."""

    _leave: Callable[[], None] | None = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[FRONT] = self  # type: ignore[literal-required]

    def watch(self, leave: Callable[[], None]) -> None:
        """Call `leave` when the client goes; to see it go, the socket must be read."""
        self._leave = leave
        if not self.pipeline:
            self.flow.resume_reading()

    def unwatch(self) -> None:
        self._leave = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


class Gathered:
    """Stands in for a transport while an answer is put together."""

    __slots__ = ("parts", "transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.parts.append(data)

    def flush(self) -> None:
        if self.parts:
            self.transport.write(b"".join(self.parts))
            self.parts = []

    def close(self) -> None:
        self.flush()
        self.transport.close()


async def send_at_once(
    send: Callable[[dict[str, Any]], Awaitable[None]], start: dict[str, Any], body: dict[str, Any]
) -> None:
    """Both messages of a whole answer in one write; under another server than ours, one after the other."""
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle):
        await send(start)
        await send(body)
        return
    gathered = Gathered(cycle.transport)
    cycle.transport = gathered  # type: ignore[assignment]
    try:
        await send(start)
        await send(body)
    finally:
        cycle.transport = gathered.transport
        gathered.flush()
