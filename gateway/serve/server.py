"""The HTTP server of workers and of the control process, which drains without closing a connection that a client is
about to use.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn

DRAIN_EVERY_S = 0.02


class HttpServer(uvicorn.Server):
    """A uvicorn server that leaves signals to its caller: uvicorn would raise them again before the caller has cleaned
    up.

    While it drains, the next answer on each connection says `connection: close`; a connection without a request for
    `linger_s` seconds is closed.
    """

    def __init__(self, config: uvicorn.Config, linger_s: float) -> None:
        super().__init__(config)
        self.servers = []
        self.ready_fd: int | None = None
        """File descriptor that gets one byte when connections are accepted; None where nobody waits for it."""
        self.on_drain: Callable[[], None] = lambda: None
        self.patience_s = 0.0
        """Seconds that requests in flight may take from the signal on."""
        self._linger_s = linger_s

    def drain(self, patience_s: float) -> None:
        """Accept no new connection from now on, and finish requests in flight within `patience_s` seconds."""
        self.patience_s = patience_s
        self.should_exit = True
        for listener in self.servers:
            listener.close()

    async def renew(self, context: ssl.SSLContext) -> None:
        """Use this TLS context for new connections, which resume no session of the old one; open connections stay."""
        config, loop = self.config, asyncio.get_running_loop()
        config.ssl = context
        if self.should_exit or not self.started:
            return
        protocol_class: Any = config.http_protocol_class
        protocol = partial(protocol_class, config=config, server_state=self.server_state, app_state=self.lifespan.state)
        for number, old in enumerate(self.servers):
            sock = socket.socket(fileno=os.dup(old.sockets[0].fileno()))
            renewed = await loop.create_server(protocol, sock=sock, ssl=context, backlog=config.backlog)
            self.servers[number] = renewed
            (old if old.is_serving() else renewed).close()  # an old one that doesn't serve was drained meanwhile

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        fd, self.ready_fd = self.ready_fd, None
        if fd is not None:
            with suppress(OSError):  # the process that waited for it has ended
                os.write(fd, b"1")
            os.close(fd)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        began_s, state = time.monotonic(), self.server_state
        self.on_drain()
        for listener in self.servers:
            listener.close()
        for sock in sockets or []:
            sock.close()
        state.default_headers.append((b"connection", b"close"))
        for connection in list(state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                connection.shutdown()  # closes it after this answer
        while state.connections and not self.force_exit:
            passed_s = time.monotonic() - began_s
            if passed_s >= min(self._linger_s, self.patience_s):
                for connection in list(state.connections):
                    connection.shutdown()
            if passed_s >= self.patience_s:
                break
            await asyncio.sleep(DRAIN_EVERY_S)
        for task in list(state.tasks):
            task.cancel()
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=1.0)
        await self.lifespan.shutdown()
