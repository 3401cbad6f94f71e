"""What chaos is made in: two workers and a control process, real Redis and PostgreSQL behind wires, one upstream.

The upstream runs in this process and says again what it was asked, so an answer is right or wrong to the
letter, and what was really bought is counted at the seller.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from gateway.journal.schema import migrate, open_engine
from gateway.journal.tables import decisions, feedback
from gateway.providers.scripted import ScriptedServer
from tests.chaos.wire import Wire, wire_to
from tests.gateway.redis_server import RedisServer
from tests.live import served
from tests.ports import free_port
from tests.postgres_server import PostgresServer, binaries, running_postgres

WORKERS = 2
OUTPUT_TOKENS = 64
USD_PER_MTOK = 4.0
ANSWER_NANOUSD = round(OUTPUT_TOKENS * USD_PER_MTOK * 1e3)
"""The cost of an answer of a `poor` model; its prompts are free."""
FAKETIME = next((str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), "")
"""Path of Debian's libfaketime, or an empty text."""
REDIS_TIMEOUT_S = 1.0
"""A long timeout, because a busy machine is no outage."""
DISK_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class World:
    """Everything that a fault may act on."""

    folder: Path
    url: str
    admin_url: str
    gateway: asyncio.subprocess.Process
    upstream: ScriptedServer
    redis: RedisServer
    postgres: PostgresServer
    redis_wire: Wire
    postgres_wire: Wire
    database: str
    """PostgreSQL's own URL, without the wire."""
    clock: Path | None
    """The file with the time for the gateway's processes; None without libfaketime."""
    disk: Path | None
    """A small disk with the gateway's run_dir; None if this user can't mount one."""

    def processes(self, module: str) -> list[int]:
        """The supervisor's child processes that run this module."""
        found = []
        pid = self.gateway.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with suppress(OSError):
                if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(child))
        return found

    def stored(self) -> tuple[list[str], set[str]]:
        """Ids of the decisions and of the feedback in the database."""
        engine = open_engine(self.database)
        try:
            with engine.connect() as connection:
                told = list(connection.execute(sa.select(decisions.c.id)).scalars())
                return told, set(connection.execute(sa.select(feedback.c.id)).scalars())
        finally:
            engine.dispose()


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for one in found:
        with suppress(OSError):
            for thread in Path(f"/proc/{one}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def signal_all(pid: int, signum: int) -> None:
    for one in family(pid):
        with suppress(ProcessLookupError):
            os.kill(one, signum)


def missing() -> str:
    """Why chaos can't run on this machine, or an empty text."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed"
    return "" if binaries() else "PostgreSQL is not installed"


@asynccontextmanager
async def world(folder: Path, purses: Sequence[str], budget_answers: int, away: str) -> AsyncIterator[World]:
    """`purses` are names of keys, each with a budget of this many answers of a model of its own. `away` is
    storage.redis_away.
    """
    programs = binaries()
    assert programs is not None
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(running_postgres(programs))
        (folder / "redis").mkdir()
        redis = RedisServer(folder / "redis")
        await asyncio.to_thread(redis.start)
        stack.callback(redis.stop)
        redis_wire = await stack.enter_async_context(wire_to(redis.port))
        postgres_wire = await stack.enter_async_context(wire_to(postgres.port))
        database = postgres.new_database()
        await asyncio.to_thread(migrate, database)
        upstream = await stack.enter_async_context(ScriptedServer(scripts(purses)))
        disk = small_disk(stack, folder / "disk")
        clock = start_clock(folder)
        run_dir = (disk or folder) / "run"
        port, admin_port = free_port(), free_port()
        config = folder / "headgate.toml"
        wired = database.replace(f":{postgres.port}/", f":{postgres_wire.port}/")
        config.write_text(
            settings(purses, budget_answers)
            + f'[server]\nport = {port}\nadmin_port = {admin_port}\nworkers = {WORKERS}\nrun_dir = "{run_dir}"\n'
            f'drain_timeout_s = 10\n[storage]\nurl = "{wired}"\n'
            f'redis_url = "redis://127.0.0.1:{redis_wire.port}/0"\nredis_away = "{away}"\n'
            f"redis_timeout_s = {REDIS_TIMEOUT_S}\n"
            f'[[providers]]\nname = "up"\nkind = "openai"\nbase_url = "{upstream.url}"\napi_key = "sk"\n'
        )
        gateway = await stack.enter_async_context(served(config, **faked(clock)))
        yield World(
            folder, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}", gateway, upstream, redis,
            postgres, redis_wire, postgres_wire, database, clock, disk,
        )  # fmt: skip


def scripts(purses: Sequence[str]) -> dict[str, object]:
    whole = [{"output_tokens": OUTPUT_TOKENS, "delay_s": 0.004, "gap_s": 0.002}]
    return {"quick": whole, "slow": [{"delay_s": 0.05, "gap_s": 0.03}], **dict.fromkeys(purses, whole)}


def settings(purses: Sequence[str], budget_answers: int) -> str:
    """Models, routes and keys."""
    budget_usd = budget_answers * ANSWER_NANOUSD / 1e9
    models = "".join(
        f'[[models]]\nname = "{name}"\nprovider = "up"\noutput_usd_per_mtok = {USD_PER_MTOK}\n'
        for name in ("quick", "slow", *purses)
    )
    keys = "".join(
        f'[[auth.keys]]\nname = "{name}"\nkey = "hg-{name}"\ntenant = "{name}"\nbudget_usd = {budget_usd:.9f}\n'
        f'budget_period = "total"\n'
        for name in purses
    )
    return f"""
[auth]
master_key = "hg-master"
[telemetry]
log_level = "warning"
{models}
[[routes]]
name = "fresh"
models = ["quick", "slow"]
router = "weighted"
[[routes]]
name = "kept"
models = ["quick"]
router = "cheapest"
cache = "exact"
[[auth.keys]]
name = "rich"
key = "hg-rich"
tenant = "rich"
budget_usd = 100000
[[auth.keys]]
name = "other"
key = "hg-other"
tenant = "other"
budget_usd = 100000
{keys}
"""


def small_disk(stack: AsyncExitStack, folder: Path) -> Path | None:
    """A file system of a few megabytes, if this user may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "headgate-chaos", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return None
    stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], capture_output=True, check=False)
    return folder


def start_clock(folder: Path) -> Path | None:
    if not FAKETIME:
        return None
    clock = folder / "clock"
    clock.write_text("+0\n")
    return clock


def faked(clock: Path | None) -> dict[str, str]:
    """The environment in which wall clocks follow the file and monotonic ones go on."""
    if clock is None:
        return {}
    return {
        "LD_PRELOAD": FAKETIME, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1",
        "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1",
    }  # fmt: skip
