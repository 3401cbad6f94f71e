"""An upstream that answers as a script says: the shipped provider of kind `scripted`.

It speaks chat, completions, embeddings, responses and Anthropic messages on a TCP port or a unix socket. By default it
answers correctly; a script can make it misbehave, down to single bytes. So failover, budgets, routers and cascades can
be tried, demonstrated and tested over real sockets without a provider's key.

    python -m gateway.providers.scripted --port 9000 --scripts '{"flaky": [{"status": 503}, {"text": "ok"}]}'

    async with ScriptedServer({"flaky": [{"status": 503}, {"text": "ok"}]}) as server:
        server.url  # http://127.0.0.1:PORT/v1

GET /_seen reports the requests that it received. It checks no credentials.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, cast

import msgspec
from httptools import HttpParserError, HttpRequestParser

from gateway.providers.scripted_batch import Batches
from gateway.providers.scripted_play import (
    Act,
    Frame,
    dialect_of,
    error_body,
    file_answer,
    json_answer,
    play,
    whole_answer,
)
from gateway.providers.scripted_script import Scripts, Seen, Step
from gateway.upstream.endpoint import unix_url

RECENT = 100
"""How many of the last requests GET /_seen reports."""
RECENT_BYTES = 64 * 1024
"""Most bytes of each reported request's body."""
_LINGER_0 = struct.pack("ii", 1, 0)


class ScriptedServer:
    """Serves while its context is open. `url` is its base URL, `seen` what it has received."""

    def __init__(
        self,
        scripts: Mapping[str, object] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        uds: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.scripts = Scripts(scripts)
        self.seen = Seen()
        self.batches = Batches(self._batch_line)
        self._answered: dict[str, tuple[Step, str]] = {}
        self.url = ""
        self._host, self._port, self._uds, self._tls = host, port, uds, tls
        self._server: asyncio.Server | None = None
        self.connections: set[_Connection] = set()

    async def __aenter__(self) -> ScriptedServer:
        loop = asyncio.get_running_loop()
        if self._uds:
            self._server = await loop.create_unix_server(lambda: _Connection(self), self._uds, ssl=self._tls)
            self.url = unix_url(self._uds, "/v1")
        else:
            self._server = await loop.create_server(
                lambda: _Connection(self), self._host, self._port, ssl=self._tls, backlog=1024
            )
            port = self._server.sockets[0].getsockname()[1]
            self.url = f"{'https' if self._tls else 'http'}://{self._host}:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop listening and close every connection."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.act(Act.CLOSE)
        self._server = None

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Iterator[Frame]:
        if self.batches.serves(path):
            status, answer = self.batches.answer(method, path, headers, body)
            return iter([file_answer(answer) if isinstance(answer, bytes) else json_answer(status, answer)])
        if method == "GET":
            return iter([self._page(path)])
        dialect = dialect_of(path)
        if dialect is None:
            return iter([json_answer(404, error_body("chat", 404, Step()))])
        try:
            request = msgspec.json.decode(body)
            assert isinstance(request, dict)
        except (msgspec.DecodeError, AssertionError):
            return iter(
                [json_answer(400, error_body(dialect, 400, Step(error="the body is not a JSON object")))]
            )
        model = str(request.setdefault("model", _deployment(path)))
        self._record(path, headers, model, body)
        step, answer_id = self._next_step(headers.get("idempotency-key", ""), model)
        return play(request, dialect, step, answer_id)

    def _batch_line(self, path: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to a line of a batch, which follows the same scripts as a live call."""
        model = str(request.setdefault("model", "default"))
        dialect = dialect_of(path) or "chat"
        self._record(path, {}, model, b"")
        return whole_answer(request, dialect, self.scripts.next(model), f"scripted-{self.seen.requests}")

    def _next_step(self, key: str, model: str) -> tuple[Step, str]:
        """The script's next step and the answer's id. A request whose idempotency key was answered before gets the same
        again, and isn't billed.
        """
        known = self._answered.get(key)
        if known is not None:
            self.seen.repeated += 1
            return known
        step, answer_id = self.scripts.next(model), f"scripted-{self.seen.requests}"
        if key and step.status == 200 and not step.fault:
            self._answered[key] = step, answer_id
        return step, answer_id

    def _page(self, path: str) -> bytes:
        if path == "/_seen":
            self.seen.open = len(self.connections)
            return json_answer(200, msgspec.to_builtins(self.seen))
        if path.endswith("/models"):
            models = [
                {"id": m, "object": "model", "created": 0, "owned_by": "scripted"}
                for m in self.scripts.models
            ]
            return json_answer(200, {"object": "list", "data": models})
        return json_answer(200 if path == "/healthz" else 404, {"status": "ok"})

    def _record(self, path: str, headers: dict[str, str], model: str, body: bytes) -> None:
        seen = self.seen
        seen.requests += 1
        seen.by_model[model] = seen.by_model.get(model, 0) + 1
        text = body[:RECENT_BYTES].decode("utf-8", "replace")
        seen.recent.append(
            {"path": path, "headers": headers, "model": model, "bytes": len(body), "body": text}
        )
        del seen.recent[:-RECENT]


def _deployment(path: str) -> str:
    """The deployment that Azure's paths name; `default` for other paths."""
    return path.partition("/deployments/")[2].partition("/")[0] or "default"


class _Connection(asyncio.Protocol):
    """Reads requests and writes the frames of their answers in order; while the socket is full it pauses."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server
        self.parser = HttpRequestParser(self)
        self.transport: asyncio.Transport | None = None
        self.path = b""
        self.headers: dict[str, str] = {}
        self.body: list[bytes] = []
        self.requests: list[Iterator[Frame]] = []
        self.playing: Iterator[Frame] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.paused = False
        self.closed_by_us = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.connections.add(self)
        self.server.seen.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        if self.timer is not None:
            self.timer.cancel()
        if self.playing is not None and not self.closed_by_us:
            self.server.seen.disconnects += 1
        self.transport = self.playing = None

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserError:
            self.act(Act.CLOSE)

    def on_url(self, url: bytes) -> None:
        self.path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        method = self.parser.get_method().decode("latin-1")
        path, headers, body = self.path.decode("latin-1"), self.headers, b"".join(self.body)
        self.path, self.headers, self.body = b"", {}, []
        self.requests.append(self.server.answer(method, path, headers, body))
        if self.playing is None:
            self.play()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.timer is None:
            self.play()

    def play(self) -> None:
        """Write frames until there are no more, the socket is full, or a frame is a time to wait."""
        self.timer = None
        while self.transport is not None and not self.paused:
            if self.playing is None:
                if not self.requests:
                    return
                self.playing = self.requests.pop(0)
            frame: Any = next(self.playing, None)
            if frame is None:
                self.playing = None
            elif isinstance(frame, bytes):
                self.transport.write(frame)
            elif isinstance(frame, Act):
                self.act(frame)
                return
            elif frame > 0:
                self.timer = asyncio.get_running_loop().call_later(frame, self.play)
                return

    def act(self, act: Act) -> None:
        if self.transport is None or act is Act.STALL:
            return
        self.closed_by_us = True
        if act is Act.RESET:
            raw = self.transport.get_extra_info("socket")
            if raw.family != socket.AF_UNIX:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
            self.transport.abort()
        else:
            self.transport.close()


async def _serve(arguments: argparse.Namespace) -> None:
    server = ScriptedServer(
        json.loads(arguments.scripts), host=arguments.host, port=arguments.port, uds=arguments.uds
    )
    stopped = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopped.set)
    async with server:
        if not arguments.uds:
            print(server.url, flush=True)
        while not stopped.is_set() and (not arguments.parent or os.getppid() == arguments.parent):
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), 0.5)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m gateway.providers.scripted", description="A scripted upstream."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port; the base URL is printed")
    parser.add_argument("--uds", default="", help="listen on a unix socket instead")
    parser.add_argument("--parent", type=int, default=0, help="exit once this process is no longer the parent")
    parser.add_argument("--scripts", default="{}", help="JSON object: each model's list of steps")
    arguments = parser.parse_args(argv)
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(arguments))
    else:
        uvloop.run(_serve(arguments))


if __name__ == "__main__":
    main()
