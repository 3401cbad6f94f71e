"""The client's side of the wire: uvicorn's protocol, which tells a request when its client has left.

ASGI tells it to whoever waits for the next message, so every request would need a task that waits. Here it is
a call.
"""

from __future__ import annotations

from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
