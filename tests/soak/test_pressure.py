"""Streams are neither collected in memory nor reconnected: back-pressure in both directions, and keep-alive under load.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.talk import ask, asked, question
from tests.live import live, served
from tests.ports import free_port
from tests.soak.stage import PAGE_BYTES, worker_of

CLIENTS = 12
EVENT_BYTES = 60_000
EVENTS = 400
"""Events of a stream, together 24 MB. A gateway without back-pressure would hold the 288 MB of 12 streams in memory."""


@dataclass(slots=True)
class Tap:
    """An upstream with large streams that are sent as fast as they are read, or one event at a time."""

    sent: int = 0
    """Number of events that the gateway's socket has accepted."""
    gates: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    """With `lockstep` an event is sent for each item."""
    lockstep: bool = False
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for number in range(5 if self.lockstep else EVENTS):
                if self.lockstep:
                    await self.gates.get()
                writer.write(event(f"{number} ", "~" * (0 if self.lockstep else EVENT_BYTES)))
                await writer.drain()
                self.sent += 1
            writer.write(event("", "", "stop") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def event(text: str, padding: str, finish: str | None = None) -> bytes:
    """`padding` is a field that is passed on unchanged; an answer's text is kept until its end, for billing and checks.
    """
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    whole = {"id": "x", "model": "m", "choices": [choice], "padding": padding}
    return chunk(b"data: %b\n\n" % json.dumps(whole).encode())


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def tap() -> AsyncIterator[Tap]:
    found = Tap()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield found
    finally:
        server.close()


async def test_a_client_that_does_not_read_costs_no_memory(tmp_path: Path) -> None:
    """For clients that don't read streams of 288 MB the upstream is paused, and later all of it arrives."""
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(tap())
        port = free_port()
        config = tmp_path / "headgate.toml"
        config.write_text(
            f'[server]\nport = {port}\nadmin_port = {free_port()}\nrun_dir = "{tmp_path}/run"\n'
            f'[storage]\nurl = "sqlite:///{tmp_path}/journal.db"\n[telemetry]\nlog_level = "error"\n'
            f'[[providers]]\nname = "up"\nkind = "openai"\nbase_url = "{source.url}"\n'
            f'[[models]]\nname = "m"\nprovider = "up"\n'
        )
        process = await stack.enter_async_context(served(config))
        worker = worker_of(process.pid)
        before = rss(worker)
        url = f"http://127.0.0.1:{port}"
        talks = [
            await stack.enter_async_context(asked(url, "chat", question("chat", "m", stream=True)))
            for _ in range(CLIENTS)
        ]
        for reader, _ in talks:
            await reader.readuntil(b"\r\n\r\n")
            reader._transport.pause_reading()  # type: ignore[attr-defined]
        await quiet(source)
        assert source.sent < 0.75 * CLIENTS * EVENTS, "the upstream was never held back"
        assert rss(worker) - before < 60e6, f"{(rss(worker) - before) / 1e6:.0f} MB for clients that read nothing"
        for reader, _ in talks:
            reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert await asyncio.gather(*(padding_of(reader) for reader, _ in talks)) == [EVENTS * EVENT_BYTES] * CLIENTS
        assert rss(worker) - before < 60e6


async def padding_of(reader: asyncio.StreamReader) -> int:
    """Number of padding bytes up to the stream's proper end."""
    count, tail = 0, b""
    while b"[DONE]" not in tail:
        data = await reader.read(65536)
        assert data, "the stream broke off"
        count += data.count(b"~")
        tail = (tail + data)[-200:]
    return count


async def quiet(source: Tap) -> None:
    """Waits until the upstream can send nothing for a while."""
    sent, still = -1, 0
    while still < 10:
        still = still + 1 if source.sent == sent else 0
        sent = source.sent
        await asyncio.sleep(0.1)


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


async def test_every_event_is_passed_on_before_the_next_is_made(tmp_path: Path) -> None:
    """A slow upstream's events aren't collected: each reaches the client before the next one exists."""
    async with tap() as source:
        source.lockstep = True
        providers = [{"name": "tap", "kind": "openai", "base_url": source.url, "api_key": "k"}]
        models = [{"name": "m", "provider": "tap"}]
        async with (
            live(tmp_path, models=models, providers=providers) as gateway,
            asked(gateway.url, "chat", question("chat", "m", stream=True)) as (reader, _),
        ):
            for number in range(5):
                source.gates.put_nowait(None)
                await asyncio.wait_for(reader.readuntil(f'"{number} "'.encode()), 20)
            await asyncio.wait_for(reader.readuntil(b"[DONE]"), 20)
            await gateway.rest()


async def test_keep_alive_is_never_lost(tmp_path: Path) -> None:
    """With whole answers, streams and refusals on four concurrent connections the upstream never gets a fifth
    connection.
    """
    steps = [
        {"text": "a b c"}, {"status": 429, "retry_after_s": 0.001}, {"text": "d"}, {"status": 500}, {"status": 404},
        {"text": "e f g h", "gap_s": 0.001}, {"status": 400}, {"text": "i", "framing": "chunked"},
    ]  # fmt: skip
    async with live(tmp_path, scripts={"m": steps * 60}, models=["m"]) as gateway:

        async def client(number: int) -> None:
            for turn in range(30):
                surface = ("chat", "messages", "responses", "completions")[(number + turn) % 4]
                await ask(gateway.url, surface, question(surface, "m", stream=bool(turn % 2)))

        await asyncio.gather(*(client(number) for number in range(4)))
        await gateway.rest()
        assert gateway.upstream.seen.requests >= 120
        assert gateway.upstream.seen.connections <= 4, gateway.upstream.seen.connections
