"""Clients that disconnect or read slowly: the upstream is cancelled, its work is billed, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from gateway.journal.record import DecisionRecord
from gateway.serve import listen
from tests.faults.endings import read_stream
from tests.faults.stage import PRICES, decisions, nothing_left
from tests.faults.talk import asked, hear, question
from tests.live import Live, live
from tests.until import until

SURFACES = [(s, p) for s in ("chat", "messages", "responses", "completions") for p in ("up", "claude")]
LONG = " ".join(["x" * 20_000] * 400)
"""A text larger than the sockets' buffers."""
LEAVES = {  # what the upstream is doing when the client leaves
    "before the headers": {"fault": "silent"},
    "before the first chunk": {"fault": "stall", "after": 0},
    "in the middle": {"fault": "stall", "after": 2, "text": "one two three"},
}


def models(scripts: Iterable[str]) -> list[dict[str, object]]:
    return [
        {"name": f"{provider}-{name}", "upstream_name": name, "provider": provider, **PRICES}
        for name in scripts
        for provider in ("up", "claude")
    ]


async def leave(gateway: Live, surface: str, model: str, *, stream: bool, reads: int) -> None:
    """Send a request, read this many bytes of the answer's events, and disconnect."""
    async with asked(gateway.url, surface, question(surface, model, stream=stream)) as (reader, _):
        if reads:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(reads)
        else:
            await asyncio.sleep(0)


def check_left(record: DecisionRecord, cost_at_least: int = 1) -> None:
    assert (record.status, record.error) == (499, "cancelled")
    assert [attempt.failure for attempt in record.attempts] == ["cancelled"]
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) >= cost_at_least


@pytest.mark.parametrize("when", LEAVES)
async def test_a_client_that_leaves_a_stream(tmp_path: Path, when: str) -> None:
    """Whenever the client disconnects, its upstream is cancelled, and the work until then is billed."""
    scripts = {"m": [LEAVES[when]]}
    async with nothing_left():
        async with live(tmp_path, scripts=scripts, models=models(scripts)) as gateway:
            for _ in range(2):  # the second time on a pool that has been through the first
                await leave_all(gateway, stream=True, reads=10 if when == "in the middle" else 0)
            records = decisions(gateway)
        assert not gateway.upstream.connections
    assert len(records) == 2 * len(SURFACES)
    for record in records:
        check_left(record)
        if when == "in the middle":
            assert record.attempts[0].usage["output"] >= 2, "text that came is billed"


async def test_a_client_that_leaves_before_a_whole_answer(tmp_path: Path) -> None:
    """Without streaming, too, the upstream is cancelled and its input billed."""
    scripts = {"m": [{"fault": "silent"}]}
    async with nothing_left(), live(tmp_path, scripts=scripts, models=models(scripts)) as gateway:
        await leave_all(gateway, stream=False, reads=0)
        records = decisions(gateway)
    assert len(records) == len(SURFACES)
    for record in records:
        check_left(record)


async def leave_all(gateway: Live, *, stream: bool, reads: int) -> None:
    """All at once; each leaves only after its upstream has begun."""
    seen = gateway.upstream.seen
    asked_before, left_before = seen.requests, seen.disconnects
    async with asyncio.TaskGroup() as clients:
        for surface, provider in SURFACES:
            clients.create_task(stay_a_while(gateway, surface, f"{provider}-m", stream, reads, asked_before))
    await gateway.rest()
    await until(lambda: seen.disconnects == left_before + len(SURFACES))


async def stay_a_while(
    gateway: Live, surface: str, model: str, stream: bool, reads: int, asked_before: int
) -> None:
    async with asked(gateway.url, surface, question(surface, model, stream=stream)) as (reader, _):
        if reads:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(reads)
        await until(lambda: gateway.upstream.seen.requests == asked_before + len(SURFACES))


async def test_a_client_that_leaves_during_a_back_off(tmp_path: Path) -> None:
    """The wait between two attempts ends when the client disconnects."""
    scripts = {"m": [{"status": 429, "retry_after_s": 20}]}
    async with nothing_left(), live(tmp_path, scripts=scripts, models=models(scripts)) as gateway:
        async with asked(gateway.url, "chat", question("chat", "up-m")):
            await until(lambda: gateway.upstream.seen.requests == 1)
            await until(lambda: gateway.services.fleet.deployments("up-m")[0].in_flight == 0)
        await gateway.rest()
        (record,) = decisions(gateway)
    assert (record.status, record.cost_nanousd) == (499, 0)
    assert [attempt.failure for attempt in record.attempts] == ["rate_limited"]


async def test_a_client_that_leaves_its_own_request_unfinished(tmp_path: Path) -> None:
    """For an incomplete request nothing is held and nothing recorded."""
    async with nothing_left(), live(tmp_path) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        for sent in (b"POST /v1/chat/completions HTTP/1.1\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
                     b"content-length: 100\r\n\r\n{\"model\":"):  # fmt: skip
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            await until(lambda: bool(gateway.server.server_state.connections))
            writer.transport.abort()
            await until(lambda: not gateway.server.server_state.connections)
        await gateway.rest()
        assert decisions(gateway) == []
        assert gateway.upstream.seen.requests == 0


@pytest.mark.parametrize("surface", ["chat", "messages"])
async def test_a_client_that_reads_slowly(tmp_path: Path, surface: str) -> None:
    """A slow client pauses the upstream and doesn't fill the memory, and isn't counted as the upstream's silence."""
    scripts = {"m": [{"text": LONG, "coalesce": True}]}
    server = {"stall_timeout_s": 1.5}
    async with (
        nothing_left(),
        live(tmp_path, scripts=scripts, models=models(scripts), server=server) as gateway,
        asked(gateway.url, surface, question(surface, "up-m", stream=True, max_tokens=100_000)) as (reader, writer),
    ):
        writer.transport.pause_reading()
        await asyncio.sleep(2.0)
        assert gateway.app.in_flight == 1, "the stream is held back, not cut"
        writer.transport.resume_reading()
        seen = read_stream((await hear(reader)).body)
        await gateway.rest()
        (record,) = decisions(gateway)
    assert (seen.terminals, seen.errors) == (1, 0)
    assert seen.text == LONG
    assert record.status == 200 and gateway.services.fleet.all()[0].failures == 0


async def test_a_client_that_never_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that keeps its connection and reads nothing counts as gone after a while; its upstream is cancelled."""
    monkeypatch.setattr(listen, "UNREAD_S", 1.0)
    scripts = {"m": [{"text": LONG, "coalesce": True}]}
    async with nothing_left(), live(tmp_path, scripts=scripts, models=models(scripts)) as gateway:
        asking = question("chat", "up-m", stream=True, max_tokens=100_000)
        async with asked(gateway.url, "chat", asking) as (reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.pause_reading()
            await gateway.rest()
        (record,) = decisions(gateway)
    check_left(record, cost_at_least=4000)


async def test_a_slow_reader_that_leaves(tmp_path: Path) -> None:
    """A disconnect is noticed while the gateway waits for the client to read."""
    scripts = {"m": [{"text": LONG, "coalesce": True}]}
    async with nothing_left(), live(tmp_path, scripts=scripts, models=models(scripts)) as gateway:
        asking = question("chat", "up-m", stream=True, max_tokens=100_000)
        async with asked(gateway.url, "chat", asking) as (reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.pause_reading()
            await asyncio.sleep(0.1)
        await gateway.rest()
        (record,) = decisions(gateway)
    check_left(record, cost_at_least=4000)
