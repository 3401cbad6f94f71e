"""The client's side of the wire, over real sockets: writes, closing, and clients that leave."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.live import Live, live

BODY = b'{"model":"echo","messages":[{"role":"user","content":"hello there"}]}'


def request(*, close: bool = False) -> bytes:
    last = b"connection: close\r\n" if close else b""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%bcontent-length: %d\r\n\r\n" % (last, len(BODY))
    return head + BODY


class Talker(asyncio.Protocol):
    """Keeps what each read brought."""

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


async def test_a_whole_answer_leaves_in_one_write(tmp_path: Path) -> None:
    """Headers and body come with a single read."""
    async with live(tmp_path) as gateway:
        transport, talker = await talk(gateway)
        transport.write(request())
        await talker.came.wait()
        transport.close()
        await gateway.rest()
    assert len(talker.reads) == 1
    head, _, body = talker.reads[0].partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head and b"hello there" in body


async def test_a_client_that_wants_to_close_gets_its_answer_first(tmp_path: Path) -> None:
    """With `connection: close` the answer is whole, then the connection ends, and what was pipelined isn't asked."""
    async with live(tmp_path) as gateway:
        transport, talker = await talk(gateway)
        transport.write(request(close=True) + request())
        await talker.gone.wait()
        await gateway.rest()
        assert gateway.upstream.seen.requests == 1
    assert b"".join(talker.reads).count(b"HTTP/1.1 200") == 1


async def test_pipelined_requests_are_answered_in_turn(tmp_path: Path) -> None:
    """Two requests in one write get two whole answers."""
    async with live(tmp_path) as gateway:
        transport, talker = await talk(gateway)
        transport.write(request() + request(close=True))
        await talker.gone.wait()
        await gateway.rest()
    assert b"".join(talker.reads).count(b"hello there") == 2


async def test_a_client_that_leaves_ends_its_request(tmp_path: Path) -> None:
    """The upstream's answer is not waited for, and nothing is left held."""
    scripts = {"echo": [{"text": "late", "delay_s": 30}]}
    async with live(tmp_path, scripts=scripts) as gateway:
        transport, _ = await talk(gateway)
        transport.write(request())
        while not gateway.upstream.seen.requests:
            await asyncio.sleep(0.002)
        transport.abort()
        await gateway.rest(within_s=10)
