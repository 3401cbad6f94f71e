"""Real processes, killed: no answered request loses its decision, no acknowledged feedback is lost."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from gateway.journal.schema import open_engine
from gateway.journal.tables import decisions, feedback
from tests.faults.endings import read_stream
from tests.faults.talk import Heard, ask, hear, question
from tests.live import served, workers_of
from tests.ports import free_port
from tests.until import until


def write_config(folder: Path, *, workers: int, drain_timeout_s: float = 60) -> tuple[Path, int]:
    """A gateway in front of a managed scripted upstream that answers slowly."""
    port, admin_port = free_port(), free_port()
    path = folder / "headgate.toml"
    path.write_text(f"""
[server]
port = {port}
admin_port = {admin_port}
workers = {workers}
run_dir = "{folder}/run"
drain_timeout_s = {drain_timeout_s}
[storage]
url = "sqlite:///{folder}/journal.db"
[telemetry]
log_level = "error"
[[providers]]
name = "script"
kind = "scripted"
[providers.options.scripts]
quick = [{{ text = "a b c d e f", delay_s = 0.01 }}]
slow = [{{ text = "a b c d e f", gap_s = 0.05, delay_s = 0.2 }}]
patient = [{{ text = "a b c d e f", gap_s = 0.05, delay_s = 4 }}]
[[models]]
name = "quick"
provider = "script"
input_usd_per_mtok = 0.1
output_usd_per_mtok = 0.4
[[models]]
name = "slow"
provider = "script"
input_usd_per_mtok = 0.1
output_usd_per_mtok = 0.4
[[models]]
name = "patient"
provider = "script"
input_usd_per_mtok = 0.1
output_usd_per_mtok = 0.4
""")
    return path, port


@dataclass(slots=True)
class Load:
    """Clients that send requests, record complete answers, and retry when their worker dies."""

    url: str
    answered: list[str] = field(default_factory=list)
    """Ids of decisions whose answer was seen to its end."""
    acknowledged: list[str] = field(default_factory=list)
    """Ids of feedback that was acknowledged."""
    broken: int = 0
    """Requests whose worker died before they were answered."""

    async def client(self, number: int, requests: int) -> None:
        """As many answers as that, however often a request must be sent again."""
        draw = random.Random(number)
        for turn in range(requests):
            while not await self.one(draw, stream=bool((number + turn) % 2)):
                await asyncio.sleep(0.05)

    async def one(self, draw: random.Random, *, stream: bool) -> bool:
        """Whether a request got a complete answer."""
        surface = draw.choice(("chat", "messages"))
        model = draw.choice(("quick", "quick", "slow"))
        try:
            heard = await ask(self.url, surface, question(surface, model, stream=stream))
        except ConnectionRefusedError:
            return False
        except ConnectionError:
            heard = Heard()
        if heard.status != 200 or not heard.whole:
            self.broken += 1
            return False
        if stream:
            assert read_stream(heard.body).terminals == 1
        self.answered.append(heard.decision_id)
        if draw.random() < 0.4:
            await self.give_feedback(heard.decision_id)
        return True

    async def give_feedback(self, decision_id: str) -> None:
        with suppress(ConnectionError):
            heard = await ask(self.url, "feedback", {"decision_id": decision_id, "score": 1.0})
            if heard.status == 200 and heard.whole:
                self.acknowledged.append(heard.json["id"])


async def kill_worker(pid: int, draw: random.Random) -> int:
    """Send SIGKILL to one of the processes, as soon as there is one; returns which."""
    victim = draw.choice(await until(lambda: workers_of(pid)))
    os.kill(victim, signal.SIGKILL)
    return victim


@asynccontextmanager
async def started(folder: Path, *, workers: int) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Ready in all its parts."""
    config, port = write_config(folder, workers=workers)
    async with served(config) as process:
        await until(lambda: (folder / "journal.db").exists())
        yield process, f"http://127.0.0.1:{port}"


async def run_with_kills(folder: Path, *, clients: int, requests: int, kills: int, workers: int) -> None:
    draw = random.Random(7)
    async with started(folder, workers=workers) as (process, url):
        load = Load(url)
        loading = asyncio.gather(*(load.client(number, requests) for number in range(clients)))
        victims = []
        for kill in range(kills):
            share = (kill + 0.3 + 0.4 * draw.random()) / kills * clients * requests * 0.8
            await until(lambda: len(load.answered) >= share)
            victims.append(await kill_worker(process.pid, draw))
        await loading
        assert len(set(victims)) == kills
        assert len(load.answered) == clients * requests and load.acknowledged and load.broken
        await find_all(url, load.answered)
        assert len(workers_of(process.pid)) == workers
    assert process.returncode == 0
    check_store(folder, load)


async def find_all(url: str, ids: list[str]) -> None:
    """Check that the restarted worker finds every decision."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        for id in ids:
            answer = await client.get(f"/v1/decisions/{id}")
            assert answer.status_code == 200, (id, answer.text)
            assert answer.json()["status"] == 200


def check_store(folder: Path, load: Load) -> None:
    """Check that after the shutdown everything is in the database exactly once."""
    engine = open_engine(f"sqlite:///{folder}/journal.db")
    with engine.connect() as connection:
        stored = list(connection.execute(sa.select(decisions.c.id)).scalars())
        kept = set(connection.execute(sa.select(feedback.c.id)).scalars())
    engine.dispose()
    assert len(stored) == len(set(stored))
    assert set(load.answered) <= set(stored)
    assert set(load.acknowledged) <= kept


async def test_a_killed_worker_loses_nothing_it_answered(tmp_path: Path) -> None:
    """After two kills under load, each decision whose answer arrived and each acknowledged feedback is stored."""
    await run_with_kills(tmp_path, clients=30, requests=10, kills=2, workers=1)


@pytest.mark.slow
async def test_many_kills_of_several_workers(tmp_path: Path) -> None:
    """The same with more load, more workers and more kills."""
    await run_with_kills(tmp_path, clients=60, requests=60, kills=8, workers=3)


async def test_draining_refuses_the_new_and_finishes_the_old(tmp_path: Path) -> None:
    """After SIGTERM answers in flight are completed, new connections are refused, and nothing is left."""
    async with started(tmp_path, workers=1) as (process, url):
        asking = [
            asyncio.create_task(ask(url, surface, question(surface, "patient", stream=stream)))
            for surface in ("chat", "messages", "responses", "completions")
            for stream in (True, False)
        ]
        await in_flight(url, len(asking))
        process.terminate()
        await until(lambda: refuses(url))
        heards = await asyncio.gather(*asking)
        await asyncio.wait_for(process.wait(), 60)
    assert process.returncode == 0
    for heard in heards:
        assert heard.status == 200 and heard.whole
    assert sum(b"[DONE]" in heard.body or b"message_stop" in heard.body or b"response.completed" in heard.body
               for heard in heards) == 4  # fmt: skip
    load = Load(url, answered=[heard.decision_id for heard in heards])
    check_store(tmp_path, load)


async def test_a_killed_supervisor_takes_its_children_along(tmp_path: Path) -> None:
    """The children of a killed supervisor end, so the next supervisor gets the port at once, and nothing is lost."""
    async with started(tmp_path, workers=2) as (process, url):
        load = Load(url)
        await load.client(1, 3)
        children = [int(one) for one in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(children) == 4
        process.kill()
        await until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))
    async with served(tmp_path / "headgate.toml"):
        await load.client(2, 3)
        await find_all(url, load.answered)


async def in_flight(url: str, count: int) -> None:
    """Wait until this many requests are in flight at the worker."""
    async with httpx.AsyncClient(base_url=url) as client:

        async def as_many() -> bool:
            return f"headgate_in_flight_requests {count}.0" in (await client.get("/metrics")).text

        await until(as_many)


async def refuses(url: str) -> bool:
    """Whether a new connection is refused."""
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:
        return True
    writer.close()
    with suppress(ConnectionError):
        await hear(reader)
    return False
