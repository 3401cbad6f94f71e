"""The HTTP protocol of clients' connections, over real sockets: writes, closing and disconnects."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.http_protocol import HttpProtocol
from tests.live import Live, live
from tests.until import until

BODY = b'{"model":"echo","messages":[{"role":"user","content":"hello there"}]}'


def request(*, close: bool = False) -> bytes:
    last = b"connection: close\r\n" if close else b""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n" % (last, len(BODY))
    return head + BODY


class Talker(asyncio.Protocol):
    """Keeps each piece of data that was received."""

    def __init__(self) -> None:
        self.reads: list[bytes] = []
        self.came = asyncio.Event()
        self.gone = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.reads.append(data)
        self.came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()


async def talk(gateway: Live) -> tuple[asyncio.Transport, Talker]:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    return await asyncio.get_running_loop().create_connection(Talker, host, int(port))


class Counted:
    """A transport that counts its writes."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport, self._writes = transport, writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def test_a_whole_answer_leaves_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers and body are written to the socket together, which halves the system calls and takes one packet."""
    writes: list[bytes] = []
    made = HttpProtocol.connection_made
    monkeypatch.setattr(HttpProtocol, "connection_made", lambda self, one: made(self, Counted(one, writes)))  # type: ignore[arg-type]
    async with live(tmp_path) as gateway:
        transport, talker = await talk(gateway)
        transport.write(request())
        await talker.came.wait()
        transport.close()
        await gateway.rest()
    assert len(writes) == 1
    head, _, body = writes[0].partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head and b"hello there" in body


CHUNK = b'{"id":"c1","model":"m","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":%b}]}'
EVENTS = [*(CHUNK % (b"so", b"null"),) * 9, CHUNK % (b"", b'"stop"'), b"[DONE]"]
BURST = b"".join(b"data: %b\n\n" % one for one in EVENTS)
BURST_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(BURST)


async def burst(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An upstream that sends a whole stream at once."""
    with suppress(asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
            writer.write(BURST_HEAD + BURST)


async def test_a_stream_that_came_at_once_leaves_in_one_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does its replay from the cache. Both times its record has been written before."""
    writes: list[bytes] = []
    made = HttpProtocol.connection_made
    monkeypatch.setattr(HttpProtocol, "connection_made", lambda self, one: made(self, Counted(one, writes)))  # type: ignore[arg-type]
    server = await asyncio.start_server(burst, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    providers = [{"name": "burst", "kind": "openai", "base_url": url}]
    routes = [{"name": "auto", "models": ["b"], "router": "cheapest", "cache": "exact"}]
    models = [{"name": "b", "provider": "burst"}]
    async with server, live(tmp_path, models=models, routes=routes, providers=providers) as gateway:
        for cache in ("miss", "hit"):
            body = BODY.replace(b'"echo"', b'"auto","stream":true')
            async with httpx.AsyncClient() as client:
                answer = await client.post(f"{gateway.url}/v1/chat/completions", content=body)
            assert answer.headers["x-headgate-cache"] == cache
            said = [json.loads(line[6:]) for line in answer.text.split("\n\n")[:-2]]
            assert "".join(one["choices"][0]["delta"].get("content", "") for one in said) == "so" * 9
            assert answer.text.endswith("data: [DONE]\n\n")
            await gateway.decision(answer.headers["x-headgate-decision-id"])
        await gateway.rest()
    assert len(writes) == 2


async def test_a_client_that_wants_to_close_gets_its_answer_first(tmp_path: Path) -> None:
    """With `connection: close` the answer is sent whole, then the connection ends, and pipelined requests are dropped.
    """
    async with live(tmp_path) as gateway:
        transport, talker = await talk(gateway)
        transport.write(request(close=True) + request())
        await talker.gone.wait()
        await gateway.rest()
        assert gateway.upstream.seen.requests == 1
    assert b"".join(talker.reads).count(b"HTTP/1.1 200") == 1


async def test_an_idle_connection_is_closed_so_long_after_its_last_answer(tmp_path: Path) -> None:
    """The timer runs on while requests are answered: it closes nothing then, nor before the time has passed."""
    async with live(tmp_path) as gateway:
        gateway.server.config.timeout_keep_alive = 3600
        transport, talker = await talk(gateway)
        transport.write(request())
        await talker.came.wait()
        (front,) = gateway.server.server_state.connections
        assert isinstance(front, HttpProtocol)
        await until(lambda: front.timeout_keep_alive_task is not None)
        front._unset_keepalive_if_required()

        transport.write(request()[:50])
        await until(lambda: front._unread_bytes > 0)
        front.timeout_keep_alive_handler()
        assert front.timeout_keep_alive_task is None and not front.transport.is_closing()

        talker.came.clear()
        transport.write(request()[50:])
        await talker.came.wait()
        await until(lambda: front.timeout_keep_alive_task is not None)
        front._unset_keepalive_if_required()
        front.timeout_keep_alive_handler()
        timer = front.timeout_keep_alive_task
        assert isinstance(timer, asyncio.TimerHandle) and not front.transport.is_closing()
        assert timer.when() <= asyncio.get_running_loop().time() + 3600

        timer.cancel()
        front.timeout_keep_alive = 0
        front.timeout_keep_alive_handler()
        await talker.gone.wait()
        await until(lambda: front.timeout_keep_alive_task is None)


async def test_the_time_of_an_idle_connection_begins_with_its_first_answer(tmp_path: Path) -> None:
    """It is closed by its timer, and not before it was answered."""
    async with live(tmp_path) as gateway:
        gateway.server.config.timeout_keep_alive = 0.05  # type: ignore[assignment]
        transport, talker = await talk(gateway)
        transport.write(request())
        await talker.gone.wait()
        assert b"hello there" in b"".join(talker.reads)


async def test_pipelined_requests_are_answered_in_turn(tmp_path: Path) -> None:
    """Two requests in one write get two whole answers."""
    async with live(tmp_path) as gateway:
        transport, talker = await talk(gateway)
        transport.write(request() + request(close=True))
        await talker.gone.wait()
        await gateway.rest()
    assert b"".join(talker.reads).count(b"hello there") == 2


@pytest.mark.parametrize("last", [b"", b", close"])
@pytest.mark.parametrize("pieces", [1, 9])
@pytest.mark.parametrize("path", [b"/v1/chat/completions", b"/openai/v1/chat/completions"])
async def test_a_request_to_upgrade_the_protocol_is_answered_without_it(
    tmp_path: Path, path: bytes, pieces: int, last: bytes
) -> None:
    """Java's client offers HTTP/2 with its first request: the offer is ignored, and the body and later requests are
    read.
    """
    offer = b"connection: upgrade, http2-settings%b\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n" % last
    asked = request().replace(b"host: x\r\n", b"host: x\r\n" + offer).replace(b"/v1/chat/completions", path)
    if not last:
        asked += request(close=True)
    async with live(tmp_path) as gateway:
        transport, talker = await talk(gateway)
        for n in range(pieces):
            transport.write(asked[n * len(asked) // pieces : (n + 1) * len(asked) // pieces])
            await asyncio.sleep(0.002)
        await talker.gone.wait()
        await gateway.rest()
    said = b"".join(talker.reads)
    assert said.count(b"HTTP/1.1 200") == said.count(b"hello there") == (1 if last else 2)


async def test_many_requests_to_upgrade_are_answered_in_turn(tmp_path: Path) -> None:
    """They are answered however many arrive in one packet."""
    offer = b"host: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    asked = request().replace(b"host: x\r\n", offer)
    async with live(tmp_path) as gateway:
        transport, talker = await talk(gateway)
        transport.write(asked * 1200 + request(close=True))
        await talker.gone.wait()
        await gateway.rest()
    assert b"".join(talker.reads).count(b"HTTP/1.1 200") == 1201


async def test_connect_is_refused(tmp_path: Path) -> None:
    """CONNECT asks for a tunnel: it is refused and the connection ends."""
    async with live(tmp_path) as gateway:
        transport, talker = await talk(gateway)
        transport.write(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n")
        await talker.gone.wait()
    assert b"".join(talker.reads).startswith(b"HTTP/1.1 400")


async def test_a_client_that_leaves_ends_its_request(tmp_path: Path) -> None:
    """The gateway doesn't wait for the upstream's answer, and nothing is left held."""
    scripts = {"echo": [{"text": "late", "delay_s": 30}]}
    async with live(tmp_path, scripts=scripts) as gateway:
        transport, _ = await talk(gateway)
        transport.write(request())
        await until(lambda: gateway.upstream.seen.requests)
        transport.abort()
        await gateway.rest(within_s=15)  # half of what the upstream takes
