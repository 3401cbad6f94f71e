"""The HTTP server of workers and of control: it ends without closing a connection that a client is about to use."""

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
    """Leaves signals to us: uvicorn raises them again at its end, before we have closed anything.

    Draining tells each connection with its next answer that it ends; one on which nothing is asked within `linger_s`
    is closed.
    """

    def __init__(self, config: uvicorn.Config, linger_s: float) -> None:
        super().__init__(config)
        self.servers = []
        self.ready_fd: int | None = None
        """Where to say that connections are accepted."""
        self.on_drain: Callable[[], None] = lambda: None
        self.patience_s = 0.0
        """How long what is under way may take, from the signal on."""
        self._linger_s = linger_s

    def drain(self, patience_s: float) -> None:
        """Accept nothing new from now on, finish what is under way."""
        self.patience_s = patience_s
        self.should_exit = True
        for listener in self.servers:
            listener.close()

    async def renew(self, context: ssl.SSLContext) -> None:
        """New connections speak TLS by this context and resume nothing of the one before; open ones stay."""
        config, loop = self.config, asyncio.get_running_loop()
        config.ssl = context
        if self.should_exit or not self.started:
            return
        made: Any = config.http_protocol_class
        protocol = partial(made, config=config, server_state=self.server_state, app_state=self.lifespan.state)
        for number, before in enumerate(self.servers):
            sock = socket.socket(fileno=os.dup(before.sockets[0].fileno()))
            renewed = await loop.create_server(protocol, sock=sock, ssl=context, backlog=config.backlog)
            self.servers[number] = renewed
            (before if before.is_serving() else renewed).close()  # it was drained meanwhile

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        fd, self.ready_fd = self.ready_fd, None
        if fd is not None:
            with suppress(OSError):  # whoever waited for it is gone
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
                connection.shutdown()  # closes after this answer
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
