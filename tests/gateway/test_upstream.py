"""The pool against real sockets: framing, keep-alive, time limits, back-pressure, cancellation, leaks."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import UpstreamError
from gateway.providers.scripted import ScriptedServer
from gateway.providers.scripted_script import Fault
from gateway.upstream import Endpoint, Pool, Response, lookup
from gateway.upstream.connection import HIGH_WATER_BYTES
from gateway.upstream.endpoint import client_context
from tests.until import until

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
LOOPS: list[type[asyncio.AbstractEventLoopPolicy]] = [asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy]

pytestmark = pytest.mark.filterwarnings("ignore:Overriding the")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Every test of this file runs on both event loops."""
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


def open_pool(url: str, *, most: int = 8, idle_s: float = 55.0, tls: ssl.SSLContext | None = None) -> Pool:
    endpoint = Endpoint.parse(url, tls=tls)
    return Pool(endpoint, max_connections=most, connect_timeout_s=60.0, idle_s=idle_s)


def ask(model: str = "m", text: str = "one two three", *, stream: bool = False) -> bytes:
    request = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    return json.dumps(request).encode()


async def take_all(response: Response, stall_s: float = 60.0) -> bytes:
    taken = b""
    while piece := await response.chunk(stall_s):
        taken += piece
    return taken


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(int(head.rpartition(b"content-length: ")[2]))


@asynccontextmanager
async def raw_server(handler: Handler) -> AsyncIterator[str]:
    """A server of bytes; yields its URL."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await until(lambda: not any(not w.transport.is_closing() for w in writers))


# ---- framing


@pytest.mark.parametrize("framing", ["length", "chunked", "eof"])
@pytest.mark.parametrize("stream", [False, True])
async def test_reads_every_framing(framing: str, stream: bool) -> None:
    """A body that ends by length, by chunks or by the end of the connection arrives whole."""
    async with ScriptedServer({"m": [{"text": "a b c", "framing": framing}]}) as server:
        pool = open_pool(server.url)
        response = await pool.send(HEAD, ask(stream=stream), timeout_s=60)
        body = await take_all(response)
        assert response.status == 200
        assert body.endswith(b"data: [DONE]\n\n") if stream else json.loads(body)["usage"]["completion_tokens"] == 3
        assert pool.in_use == 0
        await pool.aclose()


async def test_answer_without_body() -> None:
    """204 ends with its head and keeps the connection."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with raw_server(handler) as url:
        pool = open_pool(url)
        for _ in range(2):
            response = await pool.send(HEAD, b"{}", timeout_s=60)
            assert (response.status, await response.read(10)) == (204, b"")
        assert pool.connects == 1
        await pool.aclose()


async def test_skips_informational_answers() -> None:
    """100 and 103 before the answer are not the answer, and their headers are not its headers."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
        writer.write(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok")
        await reader.read()

    async with raw_server(handler) as url:
        pool = open_pool(url)
        response = await pool.send(HEAD, b"{}", timeout_s=60)
        assert (response.status, await response.read(10)) == (201, b"ok")
        assert b"link" not in response.headers
        await pool.aclose()


HYPOTHESIS_BODY = b"data: one\n\ndata: two \xff\r\n\r\ndata: [DONE]\n\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nX-Empty:\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(
    b"%x\r\n%b\r\n" % (len(p), p) for p in (HYPOTHESIS_BODY[:7], HYPOTHESIS_BODY[7:8], HYPOTHESIS_BODY[8:])
)
WIRES = [
    CHUNKED + b"0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX-Empty:\r\ncontent-length: %d\r\n\r\n%b" % (len(HYPOTHESIS_BODY), HYPOTHESIS_BODY),
]


@settings(max_examples=60, deadline=None)
@given(wire=st.sampled_from(WIRES), cuts=st.sets(st.integers(1, 150), max_size=12), whole=st.booleans())
def test_any_split_of_an_answer_reads_the_same(wire: bytes, cuts: set[int], whole: bool) -> None:
    """However the bytes of an answer are cut into packets, status, headers and body are the same."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            edges = sorted({0, *(c for c in cuts if c < len(wire)), len(wire)})
            for start, end in itertools.pairwise(edges):
                writer.write(wire[start:end])
                await asyncio.sleep(0)

    async def main() -> None:
        async with raw_server(handler) as url:
            pool = open_pool(url)
            for _ in range(2):
                response = await pool.send(HEAD, b"{}", timeout_s=60)
                body = await (response.read(1000) if whole else take_all(response))
                assert (response.status, body, response.headers[b"x-empty"]) == (200, HYPOTHESIS_BODY, b"")
            assert pool.connects == 1
            await pool.aclose()

    asyncio.run(main())


@settings(max_examples=60, deadline=None)
@given(wire=st.sampled_from(WIRES), data=st.data())
def test_any_truncation_of_an_answer_is_an_error(wire: bytes, data: st.DataObject) -> None:
    """An answer cut at any byte before its end is a reset, never a clean end."""
    keep = data.draw(st.integers(0, len(wire) - 1))

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(wire[:keep])

    async def main() -> None:
        async with raw_server(handler) as url:
            pool = open_pool(url)
            with pytest.raises(UpstreamError) as caught:
                await take_all(await pool.send(HEAD, b"{}", timeout_s=60))
            assert caught.value.failure == "reset"
            await pool.aclose()
            assert pool.stats.open == 0

    asyncio.run(main())


@pytest.mark.parametrize("encoding", [b"identity", b"Identity", b""])
async def test_an_answer_that_says_it_is_not_compressed_is_read(encoding: bytes) -> None:
    """Every way to say "not compressed" is accepted."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: %b\r\ncontent-length: 3\r\n\r\nabc" % encoding)

    async with raw_server(handler) as url:
        pool = open_pool(url)
        assert await take_all(await pool.send(HEAD, b"{}", timeout_s=60)) == b"abc"
        await pool.aclose()


BAD_HEADS = {
    "both framings": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    "other encoding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
    "compressed": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
    "upgrade": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\nabc",
    "not HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
}


@pytest.mark.parametrize("head", BAD_HEADS.values(), ids=BAD_HEADS.keys())
async def test_refuses_ambiguous_answers(head: bytes) -> None:
    """A head that two readers could read in two ways is a bad response, and its connection is not kept."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(head)
        await reader.read()

    async with raw_server(handler) as url:
        pool = open_pool(url)
        with pytest.raises(UpstreamError) as caught:
            await pool.send(HEAD, b"{}", timeout_s=60)
        assert caught.value.failure == "bad_response"
        await pool.aclose()


async def test_refuses_endless_headers() -> None:
    """Headers over the limit are a bad response."""
    async with ScriptedServer({"m": [{"fault": "big_head"}]}) as server:
        pool = open_pool(server.url)
        with pytest.raises(UpstreamError, match="headers are over"):
            await pool.send(HEAD, ask(), timeout_s=60)
        assert pool.in_use == 0
        await pool.aclose()


@pytest.mark.parametrize("framing", ["length", "chunked", "eof"])
async def test_body_over_the_limit(framing: str) -> None:
    """`read` refuses a body over its limit and gives the connection up or back, but never keeps it."""
    async with ScriptedServer({"m": [{"body_bytes": 3_000_000, "framing": framing}]}) as server:
        pool = open_pool(server.url)
        response = await pool.send(HEAD, ask(), timeout_s=60)
        with pytest.raises(UpstreamError, match="longer than"):
            await response.read(100_000)
        assert pool.in_use == 0
        await pool.aclose()


# ---- keep-alive


async def test_connects_equal_concurrency_over_a_thousand_requests() -> None:
    """Connections are reused: 1,000 requests by 8 clients make 8 connections."""
    async with ScriptedServer() as server:
        pool = open_pool(server.url, most=16)

        async def client(number: int) -> None:
            for turn in range(125):
                response = await pool.send(HEAD, ask(stream=turn % 5 == number % 5), timeout_s=60)
                await (take_all(response) if turn % 2 else response.read(100_000))

        await asyncio.gather(*(client(number) for number in range(8)))
        assert server.seen.requests == 1000
        assert pool.connects == server.seen.connections == 8
        assert (pool.stats.idle, pool.stats.in_use, pool.stats.open) == (8, 0, 8)
        await pool.aclose()


async def test_last_used_connection_is_used_first() -> None:
    """After a burst only one connection stays warm, so the others can expire."""
    async with ScriptedServer() as server:
        pool = open_pool(server.url)
        answers = await asyncio.gather(*(pool.send(HEAD, ask(stream=True), timeout_s=60) for _ in range(3)))
        await asyncio.gather(*map(take_all, answers))
        coldest = pool._idle[0]
        for _ in range(5):
            await (await pool.send(HEAD, ask(), timeout_s=60)).read(10_000)
        assert pool._idle[0] is coldest
        assert coldest.served == 1
        await pool.aclose()


async def test_idle_connections_expire() -> None:
    """A connection that rested for `idle_s` is closed."""
    async with ScriptedServer() as server:
        pool = open_pool(server.url, idle_s=0.02)
        await (await pool.send(HEAD, ask(), timeout_s=60)).read(10_000)
        assert pool.stats.idle == 1
        await until(lambda: pool.stats.open == 0)
        await pool.aclose()


async def test_server_closes_idle_connection() -> None:
    """An upstream that closes a resting connection costs nothing: the next request opens another."""
    async with ScriptedServer({"m": [{"fault": "close_after"}]}) as server:
        pool = open_pool(server.url)
        for _ in range(3):
            await (await pool.send(HEAD, ask(), timeout_s=60)).read(10_000)
            await until(lambda: pool.stats.open == 0)
        assert pool.connects == 3
        await pool.aclose()


async def test_stale_connection_is_retried_once() -> None:
    """A kept-alive connection that dies before a byte of the answer is replaced silently."""
    served: list[int] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(served)
        served.append(0)
        while True:
            await read_request(reader)
            served[number] += 1
            if number == 0 and served[0] == 2:
                return
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with raw_server(handler) as url:
        pool = open_pool(url)
        for _ in range(3):
            assert await (await pool.send(HEAD, b"{}", timeout_s=60)).read(10) == b"ok"
        assert served == [2, 2]
        assert pool.stats.open == 1
        await pool.aclose()


async def test_fresh_connection_is_not_retried() -> None:
    """A new connection that dies without an answer is a reset: the request may have been carried out."""
    async with ScriptedServer({"m": [{"fault": "close"}]}) as server:
        pool = open_pool(server.url)
        with pytest.raises(UpstreamError) as caught:
            await pool.send(HEAD, ask(), timeout_s=60)
        assert (caught.value.failure, server.seen.requests) == ("reset", 1)
        await pool.aclose()


async def test_received_bytes_forbid_a_retry() -> None:
    """A kept-alive connection that dies after the first byte of the answer is a reset."""
    count = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        while True:
            await read_request(reader)
            count += 1
            if count == 2:
                writer.write(b"H")
                return
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with raw_server(handler) as url:
        pool = open_pool(url)
        await (await pool.send(HEAD, b"{}", timeout_s=60)).read(10)
        with pytest.raises(UpstreamError, match="closed the connection"):
            await pool.send(HEAD, b"{}", timeout_s=60)
        assert count == 2
        await pool.aclose()


async def test_bytes_nobody_asked_for() -> None:
    """Bytes after an answer or on an idle connection close it; they are never taken for the next answer."""
    async with ScriptedServer({"m": [{"fault": "extra_bytes"}]}) as server:
        pool = open_pool(server.url)
        for _ in range(3):
            body = await (await pool.send(HEAD, ask(), timeout_s=60)).read(10_000)
            assert json.loads(body)["choices"][0]["message"]["content"] == "one two three"
            await until(lambda: pool.stats.open == 0)
        await pool.aclose()


# ---- limits


async def test_waiters_are_served_in_order() -> None:
    """At the limit requests wait, first come first served, and no further connection is made."""
    async with ScriptedServer() as server:
        pool = open_pool(server.url, most=2)
        order: list[int] = []

        async def client(number: int) -> None:
            await (await pool.send(HEAD, ask(), timeout_s=60)).read(10_000)
            order.append(number)

        await asyncio.gather(*(client(number) for number in range(20)))
        assert order == sorted(order)
        assert pool.connects == 2
        await pool.aclose()


async def test_waiting_has_an_end() -> None:
    """A request that gets no connection within its time is a timeout and leaves the line."""
    async with ScriptedServer({"m": [{"fault": "stall", "after": 1}]}) as server:
        pool = open_pool(server.url, most=1)
        holder = await pool.send(HEAD, ask(stream=True), timeout_s=60)
        with pytest.raises(UpstreamError, match="stayed busy"):
            await pool.send(HEAD, ask(), timeout_s=0.02)
        assert pool.stats.waiting == 0
        holder.cancel()
        await until(lambda: pool.stats.open == 0)
        await pool.aclose()


@pytest.mark.parametrize("given", ["slot", "connection", "closed connection"])
async def test_a_request_cancelled_when_its_turn_comes_passes_it_on(given: str) -> None:
    """What a waiting request was given in the moment it was cancelled, a slot or a connection, isn't lost."""
    may_end = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no")
            await may_end.wait()
            writer.write(b"k")

    async with raw_server(handler) as url:
        pool = open_pool(url, most=1)
        holder = await pool.send(HEAD, b"{}", timeout_s=60)
        waiting = asyncio.create_task(pool.send(HEAD, b"{}", timeout_s=60))
        await until(lambda: pool.stats.waiting == 1)
        may_end.set()
        if given == "slot":
            holder.cancel()
        while pool.stats.waiting:
            await asyncio.sleep(0)
        if given == "closed connection":
            (connection,) = pool._busy
            connection.close()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: pool.in_use == 0)
        assert await (await pool.send(HEAD, b"{}", timeout_s=60)).read(10) == b"ok"
        assert (pool.stats.open, pool.in_use, pool.stats.waiting) == (1, 0, 0)
        assert pool.connects == (1 if given == "connection" else 2)
        await pool.aclose()


async def test_a_refused_address_frees_its_slot_once() -> None:
    """An address that may not be reached fails as `connect` before a byte leaves, and as often as it is tried."""
    async with ScriptedServer() as server:
        endpoint = replace(Endpoint.parse(server.url), inner=False)
        pool = Pool(endpoint, max_connections=1, connect_timeout_s=60.0)
        for _ in range(3):
            with pytest.raises(UpstreamError, match="is not a public address"):
                await pool.send(HEAD, ask(), timeout_s=60)
            for _ in range(5):  # the transport tells of its end a few turns later
                await asyncio.sleep(0)
            assert (pool.stats.open, pool.in_use) == (0, 0)
        assert server.seen.requests == 0
        await pool.aclose()


async def test_a_dead_connection_hands_its_slot_on() -> None:
    """When a connection breaks, the first in line opens another in its place."""
    async with ScriptedServer({"bad": [{"fault": "rst"}]}) as server:
        pool = open_pool(server.url, most=1)
        bad, good = await asyncio.gather(
            pool.send(HEAD, ask("bad"), timeout_s=60),
            pool.send(HEAD, ask("good"), timeout_s=60),
            return_exceptions=True,
        )
        assert isinstance(bad, UpstreamError)
        assert isinstance(good, Response)
        await good.read(10_000)
        assert pool.connects == 2
        await pool.aclose()


async def test_no_answer_in_time() -> None:
    """An upstream that says nothing is a timeout; its connection is aborted and seen as left."""
    async with ScriptedServer({"m": [{"text": "x"}, {"fault": "silent"}]}) as server:
        pool = open_pool(server.url)
        await (await pool.send(HEAD, ask(), timeout_s=60)).read(10_000)  # so that no dial runs out of time below
        with pytest.raises(UpstreamError) as caught:
            await pool.send(HEAD, ask(), timeout_s=0.03)
        assert caught.value.failure == "timeout"
        await until(lambda: pool.stats.open == 0 and server.seen.disconnects == 1)
        with pytest.raises(UpstreamError, match="in time"):  # also after the timer has run out with nothing to watch
            await pool.send(HEAD, ask(), timeout_s=0.3)
        await pool.aclose()


@pytest.mark.parametrize("stream", [False, True])
async def test_silence_inside_an_answer(stream: bool) -> None:
    """Silence inside a body is `stream_stalled`; what came before it was delivered."""
    async with ScriptedServer({"m": [{"fault": "stall", "after": 2}]}) as server:
        pool = open_pool(server.url)
        response = await pool.send(HEAD, ask(stream=stream), timeout_s=60)
        assert await response.chunk(60)
        with pytest.raises(UpstreamError) as caught:
            await take_all(response, stall_s=0.03)
        assert caught.value.failure == "stream_stalled"
        assert pool.in_use == 0
        await pool.aclose()


async def test_a_slow_reader_is_not_a_stall() -> None:
    """Time the reader spends elsewhere does not count as the upstream's silence."""
    begin, go_on = asyncio.Event(), asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n")
        await begin.wait()
        writer.write(b"one")
        await go_on.wait()
        writer.write(b" two")

    async with raw_server(handler) as url:
        pool = open_pool(url)
        response = await pool.send(HEAD, b"{}", timeout_s=60)
        asyncio.get_running_loop().call_soon(begin.set)
        taken = await response.chunk(1.0)
        await asyncio.sleep(1.2)  # past the moment the limit for that piece was set to
        go_on.set()
        assert taken + await take_all(response) == b"one two"
        await pool.aclose()


async def test_a_body_has_its_time_limit() -> None:
    """`read` fails when the rest of the body does not come in time."""
    async with ScriptedServer({"m": [{"fault": "stall"}]}) as server:
        pool = open_pool(server.url)
        response = await pool.send(HEAD, ask(), timeout_s=60)
        with pytest.raises(UpstreamError) as caught:
            await response.read(10_000, timeout_s=0.02)
        assert (caught.value.failure, caught.value.status) == ("timeout", 504)
        await pool.aclose()


# ---- poured straight from the socket


async def test_a_poured_body_arrives_whole() -> None:
    """Parts come in order, and the message's end is told apart from a taker that has had enough."""
    text = " ".join(str(number) for number in range(2_000))
    async with ScriptedServer({"m": [{"text": text}]}) as server:
        pool = open_pool(server.url)
        response = await pool.send(HEAD, ask(stream=True), timeout_s=60)
        chunks = await take_all(response)
        response = await pool.send(HEAD, ask(stream=True), timeout_s=60)
        parts: list[bytes] = []

        def a_few(part: bytes) -> bool:
            parts.append(part)
            return len(parts) % 3 != 0

        pauses = 0
        while not await response.pour(a_few, 60):
            pauses += 1
            await asyncio.sleep(0)
        events = b"".join(parts).split(b"\n\n")
        assert [json.loads(one[6:])["choices"] for one in events[:-2]] == [
            json.loads(one[6:])["choices"] for one in chunks.split(b"\n\n")[:-2]
        ]
        assert pauses == len(parts) // 3 and pool.stats.idle == 1
        await pool.aclose()


async def test_a_taker_that_pauses_stops_the_upstream() -> None:
    """What arrives during the pause is bounded, and is there when the taker goes on."""
    async with ScriptedServer({"m": [{"text": "word " * 40_000, "coalesce": True}]}) as server:
        pool = open_pool(server.url)
        response = await pool.send(HEAD, ask(text="x", stream=True), timeout_s=60)
        taken: list[int] = []

        def take(part: bytes) -> bool:
            taken.append(len(part))
            return False

        assert not await response.pour(take, 60)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert response.unread < 4 * HIGH_WATER_BYTES
        while not await response.pour(take, 60):
            pass
        assert sum(taken) > 40_000 * 100
        await pool.aclose()


async def test_a_taker_may_pause_after_any_part() -> None:
    """Also after one that comes while it is waited for, straight from the socket."""
    async with ScriptedServer({"m": [{"text": "a b c d", "gap_s": 0.02}]}) as server:
        pool = open_pool(server.url)
        response = await pool.send(HEAD, ask(stream=True), timeout_s=60)
        parts: list[bytes] = []
        pauses = 0

        def take(part: bytes) -> bool:
            parts.append(part)
            return False

        while not await response.pour(take, 60):
            pauses += 1
        assert pauses == len(parts) >= 3 and parts[-1].endswith(b"[DONE]\n\n")
        await pool.aclose()


async def test_a_taker_that_fails_ends_its_own_answer_only() -> None:
    """Its exception is raised where the answer is awaited; the connection is closed, and the pool serves on."""
    async with ScriptedServer({"m": [{"text": "a b c", "gap_s": 0.005}]}) as server:
        pool = open_pool(server.url)
        response = await pool.send(HEAD, ask(stream=True), timeout_s=60)

        def broken(part: bytes) -> bool:
            raise ZeroDivisionError

        assert await response.chunk(60)
        with pytest.raises(ZeroDivisionError):
            await response.pour(broken, 60)
        response.cancel()
        await until(lambda: pool.stats.open == 0)
        assert (await take_all(await pool.send(HEAD, ask(stream=True), timeout_s=60))).endswith(b"[DONE]\n\n")
        await pool.aclose()


async def test_a_part_grants_time_for_the_next() -> None:
    """Without a grant the first time limit holds for all that follows; with one, each part has its own."""
    script = {"m": [{"text": "a b c d e f", "gap_s": 0.25}]}
    async with ScriptedServer(script) as server:
        pool = open_pool(server.url)
        response = await pool.send(HEAD, ask(stream=True), timeout_s=60)
        with pytest.raises(UpstreamError) as caught:
            while not await response.pour(lambda part: True, 1.0):
                pass
        assert caught.value.failure == "stream_stalled"
        response = await pool.send(HEAD, ask(stream=True), timeout_s=60)

        def granting(part: bytes) -> bool:
            response.grant(time.monotonic() + 10)
            return True

        assert await response.pour(granting, 1.0)
        await pool.aclose()


async def test_nobody_listens() -> None:
    """A refused connection, a missing socket and an unknown host are all `connect`."""
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    for url in (f"http://127.0.0.1:{port}", "unix:/nowhere/at/all.sock", "http://name.invalid"):
        pool = open_pool(url)
        with pytest.raises(UpstreamError) as caught:
            await pool.send(HEAD, b"{}", timeout_s=60)
        assert caught.value.failure == "connect"
        assert pool.stats.open == 0
        await pool.aclose()


@pytest.fixture
def dead_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names under dead.test that a resolver looks for without an end; filled with each look, in order."""
    sought, over, look_up = list[str](), threading.Event(), socket.getaddrinfo

    def look(host: str, *words: Any, **named: Any) -> Any:
        if host.endswith("dead.test"):
            sought.append(host)
            over.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "no nameserver answered")
        return look_up(host, *words, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    yield sought
    over.set()


async def test_names_that_nobody_finds_delay_nobody_else(dead_names: list[str]) -> None:
    """However many they are, neither other upstreams nor other users of threads wait, and each name is looked up once.
    """
    names = [f"a{number}.dead.test" for number in range(40)]
    pools = [Pool(Endpoint.parse(f"http://{name}"), max_connections=8, connect_timeout_s=0.5) for name in names]
    asking = [asyncio.create_task(pool.send(HEAD, b"{}", timeout_s=60)) for pool in pools for _ in range(3)]
    await until(lambda: len(dead_names) == len(pools))
    async with ScriptedServer({"m": [{"text": "ok"}]}) as server:
        pool = open_pool(server.url.replace("127.0.0.1", "localhost"))
        answers = asyncio.gather(pool.send(HEAD, ask(), timeout_s=60), asyncio.to_thread(lambda: "read"))
        answer, read = await asyncio.wait_for(answers, 60)
        assert (answer.status, read) == (200, "read")
        answer.cancel()
        await pool.aclose()
    for told in await asyncio.gather(*asking, return_exceptions=True):
        assert isinstance(told, UpstreamError) and told.failure == "connect"
        assert "was not found by a nameserver in time" in str(told)
    assert sorted(dead_names) == sorted(names)
    for pool in pools:
        await pool.aclose()


async def test_a_lookup_that_is_lost_is_followed_by_few_others(
    dead_names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a lost look-up the nameserver is tried again, yet no name uses thread after thread."""
    name = lookup.Name("lost.dead.test")
    for fresh_s, sought in ((60.0, 1), (0.0, lookup.MAX_THREADS)):
        monkeypatch.setattr(lookup, "FRESH_S", fresh_s)
        for _ in range(6):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await name.addresses()
        assert len(dead_names) == sought


async def test_an_address_that_takes_no_connection_is_followed_by_the_names_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.2", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    async with ScriptedServer({"m": [{"text": "ok"}]}) as server:
        pool = open_pool(server.url.replace("127.0.0.1", "two.test"))
        answer = await pool.send(HEAD, ask(), timeout_s=60)
        assert answer.status == 200 and await answer.read(10**6)
        await pool.aclose()
    pool = open_pool(server.url.replace("127.0.0.1", "two.test"))
    with pytest.raises(UpstreamError, match=r"127\.0\.0\.2.*127\.0\.0\.1"):
        await pool.send(HEAD, ask(), timeout_s=60)
    await pool.aclose()


# ---- volume


@pytest.mark.parametrize("whole", [False, True])
async def test_unread_bytes_are_bounded(whole: bool) -> None:
    """A reader who does not read stops the upstream; when it reads on, everything is there."""
    text = "word " * 40_000
    async with ScriptedServer({"m": [{"text": text, "coalesce": True}]}) as server:
        pool = open_pool(server.url)
        request = ask(text="x", stream=True)
        response = await pool.send(HEAD, request, timeout_s=60)
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert response.unread < 4 * HIGH_WATER_BYTES
        total = 0
        while piece := await (response.read(1 << 30, timeout_s=60) if whole else response.chunk(60)):
            total += len(piece)
        assert total > 40_000 * 100
        assert pool.stats.idle == 1
        await pool.aclose()


async def test_large_bodies_are_written_as_the_upstream_takes_them() -> None:
    """A body far over the transport's buffer arrives whole, without being buffered whole."""
    body = random.Random(7).randbytes(20_000_000)
    received = b""
    most_buffered = 0
    pool: Pool

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received, most_buffered
        while True:
            for connection in pool._busy:
                assert connection._transport is not None
                most_buffered = max(most_buffered, connection._transport.get_write_buffer_size())
            head = await reader.readuntil(b"\r\n\r\n")
            received = await reader.readexactly(int(head.rpartition(b"content-length: ")[2]))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with raw_server(handler) as url:
        pool = open_pool(url)
        for _ in range(2):
            assert await (await pool.send(HEAD, body, timeout_s=60)).read(10) == b"ok"
            assert received == body
        assert pool.connects == 1
        assert most_buffered < 1_000_000
        await pool.aclose()


async def test_an_answer_before_the_request_is_written() -> None:
    """A 413 while the body is on its way is the answer, and the connection is not used again."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await asyncio.sleep(5)

    async with raw_server(handler) as url:
        pool = open_pool(url)
        response = await pool.send(HEAD, bytes(30_000_000), timeout_s=60)
        assert (response.status, await response.read(10)) == (413, b"big")
        await until(lambda: pool.stats.open == 0)
        await pool.aclose()


# ---- leaving


async def test_cancel_leaves_the_upstream() -> None:
    """A cancelled answer aborts its connection at once; cancelling twice does no more."""
    async with ScriptedServer({"m": [{"fault": "stall"}]}) as server:
        pool = open_pool(server.url)
        response = await pool.send(HEAD, ask(stream=True), timeout_s=60)
        response.cancel()
        response.cancel()
        assert pool.in_use == 0
        await until(lambda: server.seen.disconnects == 1 and pool.stats.open == 0)
        with pytest.raises(UpstreamError):
            await take_all(response)
        await pool.aclose()


@pytest.mark.parametrize("fault", ["silent", "stall"])
async def test_cancelling_the_task_leaves_the_upstream(fault: str) -> None:
    """A task cancelled while it waits for the head or for a chunk takes its connection with it."""
    async with ScriptedServer({"m": [{"fault": fault}]}) as server:
        pool = open_pool(server.url)

        async def client() -> None:
            await take_all(await pool.send(HEAD, ask(stream=True), timeout_s=60))

        task = asyncio.create_task(client())
        await until(lambda: server.seen.requests == 1)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool.in_use == 0
        await until(lambda: server.seen.disconnects == 1 and pool.stats.open == 0)
        await pool.aclose()


async def test_late_cancel_does_not_touch_the_next_exchange() -> None:
    """Cancelling an answer that has ended leaves the connection, now used by another request, alone."""
    async with ScriptedServer() as server:
        pool = open_pool(server.url, most=1)
        first = await pool.send(HEAD, ask(), timeout_s=60)
        await until(lambda: pool.stats.idle == 1)
        second = await pool.send(HEAD, ask(stream=True), timeout_s=60)
        first.cancel()
        assert (await take_all(second)).endswith(b"[DONE]\n\n")
        assert json.loads(await first.read(10_000))["object"] == "chat.completion"
        await pool.aclose()


@settings(max_examples=40, deadline=None)
@given(
    turns=st.lists(st.integers(0, 30), min_size=6, max_size=6),
    most=st.integers(1, 3),
    use_uvloop=st.booleans(),
)
def test_slots_survive_cancellation_at_any_turn(turns: list[int], most: int, use_uvloop: bool) -> None:
    """Tasks cancelled at any turn of the loop give every slot back exactly once."""

    async def main() -> None:
        async with ScriptedServer() as server:
            pool = open_pool(server.url, most=most)

            async def client(stream: bool) -> None:
                await take_all(await pool.send(HEAD, ask(stream=stream), timeout_s=60))

            async def killer(task: asyncio.Task[None], after: int) -> None:
                for _ in range(after):
                    await asyncio.sleep(0)
                task.cancel()

            tasks = [asyncio.create_task(client(bool(number % 2))) for number in range(len(turns))]
            killers = [asyncio.create_task(killer(t, n)) for t, n in zip(tasks, turns, strict=True)]
            results = await asyncio.gather(*tasks, *killers, return_exceptions=True)
            assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results
            assert (pool.in_use, pool.stats.waiting) == (0, 0)
            assert await asyncio.gather(*(client(False) for _ in range(2 * most))) == [None] * (2 * most)
            assert pool.stats.open <= most
            await pool.aclose()
            assert pool.stats.open == 0

    (uvloop.run if use_uvloop else asyncio.run)(main())


FAULTS = ["", *(fault for fault in get_args(Fault) if fault not in ("", "loris", "big_head"))]


def open_sockets() -> int:
    links = list(Path("/proc/self/fd").iterdir())
    count = 0
    for link in links:
        try:
            count += str(link.readlink()).startswith("socket:")
        except OSError:
            pass
    return count


async def test_two_hundred_faults_leak_nothing() -> None:
    """After 200 mixed faults: no slot in use, no task, no open socket."""
    scripts = {fault or "none": [{"fault": fault, "after": 1}] for fault in FAULTS}
    dice = random.Random(3)
    before, tasks_before = open_sockets(), len(asyncio.all_tasks())
    async with ScriptedServer(scripts) as server:
        pool = open_pool(server.url, most=12)

        async def client(number: int) -> str:
            fault = FAULTS[number % len(FAULTS)] or "none"
            try:
                wait_s = 0.2 if fault in ("silent", "stall") else 60  # a limit only where silence is the fault
                response = await pool.send(HEAD, ask(fault, stream=bool(number % 2)), timeout_s=wait_s)
                if dice.random() < 0.2:
                    response.cancel()
                elif dice.random() < 0.5:
                    await response.read(100_000, timeout_s=wait_s)
                else:
                    await take_all(response, stall_s=wait_s)
            except UpstreamError as error:
                return error.failure
            return "ok"

        seen = set(await asyncio.gather(*(client(number) for number in range(200))))
        assert {"ok", "reset", "bad_response", "stream_stalled", "timeout"} <= seen
        assert (pool.in_use, pool.stats.waiting) == (0, 0)
        await (await pool.send(HEAD, ask("none"), timeout_s=60)).read(10_000)
        await pool.aclose()
        assert pool.stats.open == 0
    await until(lambda: open_sockets() <= before and len(asyncio.all_tasks()) == tasks_before)


async def test_closing_a_pool_ends_everything() -> None:
    """`aclose` fails those who wait, aborts those who read and leaves no connection."""
    async with ScriptedServer({"m": [{"fault": "stall"}]}) as server:
        pool = open_pool(server.url, most=1)
        response = await pool.send(HEAD, ask(stream=True), timeout_s=60)
        await response.chunk(60)
        reader = asyncio.create_task(take_all(response))
        queued = asyncio.create_task(pool.send(HEAD, ask(), timeout_s=60))
        await until(lambda: pool.stats.waiting == 1)
        await pool.aclose()
        for task in (reader, queued):
            with pytest.raises(UpstreamError, match="closed"):
                await task
        assert tuple(pool.stats)[:4] == (0, 0, 0, 0)
        with pytest.raises(UpstreamError):
            await pool.send(HEAD, ask(), timeout_s=60)


# ---- transports


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-made certificate for localhost, with its key in one file."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    return both


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_tls_keeps_alive_and_streams(certificate: Path, server_tls: ssl.SSLContext) -> None:
    """Over TLS with a known certificate everything works as without, large bodies included."""
    tls = client_context()
    tls.load_verify_locations(certificate)
    async with ScriptedServer(tls=server_tls) as server:
        pool = open_pool(server.url, tls=tls)
        for stream in (False, True, False):
            response = await pool.send(HEAD, ask(text=("w" * 49 + " ") * 10_000, stream=stream), timeout_s=60)
            assert len(await take_all(response)) > 500_000
        assert pool.connects == 1
        await pool.aclose()


async def test_tls_refuses_an_unknown_certificate(server_tls: ssl.SSLContext) -> None:
    """A certificate that nothing vouches for is a failed connection, unless checking is switched off."""
    async with ScriptedServer({"m": [{"text": "x"}]}, tls=server_tls) as server:
        pool = open_pool(server.url)
        with pytest.raises(UpstreamError, match=r"(?i)certificate"):
            await pool.send(HEAD, ask(), timeout_s=60)
        await pool.aclose()
        trusting = open_pool(server.url, tls=client_context(verify=False))
        assert await (await trusting.send(HEAD, ask(), timeout_s=60)).read(10_000)
        await trusting.aclose()


async def test_tls_reports_a_cut_stream(certificate: Path, server_tls: ssl.SSLContext) -> None:
    """A stream cut over TLS is a reset as well."""
    async with ScriptedServer({"m": [{"fault": "cut"}]}, tls=server_tls) as server:
        pool = open_pool(server.url, tls=client_context(verify=False))
        with pytest.raises(UpstreamError) as caught:
            await take_all(await pool.send(HEAD, ask(stream=True), timeout_s=60))
        assert caught.value.failure == "reset"
        await pool.aclose()


async def test_unix_socket(tmp_path: Path) -> None:
    """A unix socket is an endpoint like any other, whatever the name of its folder."""
    folder = tmp_path / "größe: 5%41"
    folder.mkdir()
    async with ScriptedServer(uds=str(folder / "s.sock")) as server:
        pool = open_pool(server.url)
        for _ in range(3):
            assert await (await pool.send(HEAD, ask(), timeout_s=60)).read(10_000)
        assert pool.connects == 1
        assert pool.endpoint.base_path == "/v1"
        await pool.aclose()


# ---- base URLs


@pytest.mark.parametrize(
    ("url", "authority", "base_path"),
    [
        ("http://h/v1/", "h", "/v1"),
        ("https://h:443", "h", ""),
        ("http://h:9000/a/b", "h:9000", "/a/b"),
        ("http://[::1]:80/v1", "[::1]", "/v1"),
        ("unix:/run/x.sock", "localhost", ""),
        ("unix:///run/x.sock:/v1", "localhost", "/v1"),
    ],
)
def test_base_urls(url: str, authority: str, base_path: str) -> None:
    """Base URLs of every kind are read into a Host header and a path."""
    endpoint = Endpoint.parse(url)
    assert (endpoint.authority, endpoint.base_path) == (authority, base_path)


@pytest.mark.parametrize(
    "url",
    ["", "h/v1", "ftp://h", "file:///etc/passwd", "gopher://h:70/_x", "http://", "http://user:pw@h", "http://h?x=1",
     "http://h#x", "http://h/\r\nx: y", "http://h /", "unix:relative.sock", "unix:/x.sock:v1", "http://h:port"],
)  # fmt: skip
def test_refused_base_urls(url: str) -> None:
    """Other schemes, credentials, queries, white space and control characters are refused."""
    with pytest.raises(ValueError, match=r".+"):
        Endpoint.parse(url)
