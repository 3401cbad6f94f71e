"""The faults: how each begins and ends. Each states which effects on requests are allowed, and no other may occur."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.stage import World, signal_all
from tests.until import until

Act = Callable[[World], Awaitable[None]]
SLOW_S = 0.03
JUMP_S = 3 * 86_400
BALLAST = "ballast"


async def nothing(world: World) -> None:
    """Does nothing: the fault is over at once."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`begin` and `end` act on the world; the load runs before, during and after the fault."""

    name: str
    begin: Act
    end: Act = nothing
    breaks: bool = False
    """Whether requests in flight may break off, because their worker dies."""
    keeps_journal: bool = True
    """False if decisions may be lost meanwhile, because there is no disk for them; they are counted and alarmed."""
    needs: str = ""
    """Name of an attribute of the world that must not be None."""

    @property
    def purse(self) -> str:
        """The key whose budget is spent while this fault lasts."""
        return "purse-" + "-".join(self.name.lower().replace("+", "").split())


async def kill_redis(world: World) -> None:
    os.kill(world.redis.pid, signal.SIGKILL)
    await asyncio.to_thread(world.redis.stop)


async def start_redis(world: World) -> None:
    """Empty, as one without persistence comes back."""
    await asyncio.to_thread(world.redis.start)


async def stop_redis(world: World) -> None:
    os.kill(world.redis.pid, signal.SIGSTOP)


async def continue_redis(world: World) -> None:
    os.kill(world.redis.pid, signal.SIGCONT)


async def restart_redis(world: World) -> None:
    await kill_redis(world)
    await start_redis(world)


async def slow_redis(world: World) -> None:
    world.redis_wire.delay_s = SLOW_S


async def quicken_redis(world: World) -> None:
    world.redis_wire.delay_s = 0.0


async def cut_redis(world: World) -> None:
    world.redis_wire.cut()


async def kill_postgres(world: World) -> None:
    pid = world.postgres.pid
    signal_all(pid, signal.SIGKILL)
    await until(lambda: not Path(f"/proc/{pid}").exists())


async def start_postgres(world: World) -> None:
    await asyncio.to_thread(world.postgres.start)


async def stop_postgres(world: World) -> None:
    signal_all(world.postgres.pid, signal.SIGSTOP)


async def continue_postgres(world: World) -> None:
    signal_all(world.postgres.pid, signal.SIGCONT)


async def slow_postgres(world: World) -> None:
    world.postgres_wire.delay_s = SLOW_S


async def quicken_postgres(world: World) -> None:
    world.postgres_wire.delay_s = 0.0


async def cut_postgres(world: World) -> None:
    world.postgres_wire.cut()


async def kill_one(world: World, module: str) -> None:
    while not (running := world.processes(module)):
        await asyncio.sleep(0.01)
    os.kill(random.Random(5).choice(running), signal.SIGKILL)


async def kill_worker(world: World) -> None:
    await kill_one(world, "gateway.serve.worker")


async def kill_control(world: World) -> None:
    await kill_one(world, "gateway.serve.control")


async def kill_everything(world: World) -> None:
    """Redis, PostgreSQL, a worker and the control process, at once."""
    await kill_redis(world)
    await kill_postgres(world)
    await kill_worker(world)
    await kill_control(world)


async def start_servers(world: World) -> None:
    await start_redis(world)
    await start_postgres(world)


def fill(disk: Path) -> None:
    """Fill the disk until no page is left; existing files may still be overwritten."""
    with (disk / BALLAST).open("wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(4096)) == 4096:
            pass


async def fill_disk(world: World) -> None:
    assert world.disk is not None
    fill(world.disk)


async def empty_disk(world: World) -> None:
    assert world.disk is not None
    (world.disk / BALLAST).unlink()


async def jump_ahead(world: World) -> None:
    assert world.clock is not None
    world.clock.write_text(f"+{JUMP_S}\n")


async def jump_back(world: World) -> None:
    assert world.clock is not None
    world.clock.write_text(f"-{JUMP_S}\n")


async def right_clock(world: World) -> None:
    assert world.clock is not None
    world.clock.write_text("+0\n")


FAULTS = (
    Fault("Redis killed, back empty", kill_redis, start_redis),
    Fault("Redis restarted empty at once", restart_redis),
    Fault("Redis stopped (SIGSTOP)", stop_redis, continue_redis),
    Fault("Redis slow", slow_redis, quicken_redis),
    Fault("Redis connections cut", cut_redis),
    Fault("PostgreSQL killed", kill_postgres, start_postgres),
    Fault("PostgreSQL stopped (SIGSTOP)", stop_postgres, continue_postgres),
    Fault("PostgreSQL slow", slow_postgres, quicken_postgres),
    Fault("PostgreSQL connections cut", cut_postgres),
    Fault("worker killed (kill -9)", kill_worker, breaks=True),
    Fault("control killed (kill -9)", kill_control),
    Fault("disk full", fill_disk, empty_disk, keeps_journal=False, needs="disk"),
    Fault("clock 3 days ahead", jump_ahead, right_clock, needs="clock"),
    Fault("clock 3 days back", jump_back, right_clock, needs="clock"),
    Fault("all of them killed at once", kill_everything, start_servers, breaks=True),
)
SHORT = (
    "Redis restarted empty at once", "PostgreSQL killed", "worker killed (kill -9)", "disk full", "clock 3 days ahead",
)
