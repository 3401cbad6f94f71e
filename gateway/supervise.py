"""`headgate serve`: starts the workers, the control process and the servers we manage; restarts what dies.

The supervisor itself serves nothing and holds no state, so it has nothing to lose.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway.config import Config, Server
from gateway.errors import ConfigError
from gateway.providers.managed import managed, wait_ready

log = logging.getLogger("headgate.serve")

FIRST_RESTART_S = 0.2
LONGEST_RESTART_S = 10.0
STEADY_S = 30.0
"""A child that ran this long gets its next restart at once."""
READY_TIMEOUT_S = 120.0
ONE_CORE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""For workers: a decision's products are too small to share, and idle threads that spin cost more than they give."""


@dataclass(slots=True)
class Child:
    """A process to keep alive."""

    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0

    async def keep(self) -> None:
        """Run it, again and again, until cancelled; then let it drain."""
        delay_s = FIRST_RESTART_S
        try:
            while True:
                started = time.monotonic()
                self.process = await asyncio.create_subprocess_exec(
                    *self.command,
                    env={**os.environ, **self.environment},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=sys.stderr,
                )
                status = await self.process.wait()
                ran_s = time.monotonic() - started
                delay_s = FIRST_RESTART_S if ran_s > STEADY_S else min(delay_s * 2, LONGEST_RESTART_S)
                log.error("%s ended with status %s after %.0f s; starting it again", self.name, status, ran_s)
                self.restarts += 1
                await asyncio.sleep(delay_s)
        finally:
            await self.stop()

    async def stop(self) -> None:
        process = self.process
        if process is not None and process.returncode is None:
            process.terminate()
            await process.wait()


async def serve(config: Config, path: str | None, on_ready: Callable[[], None], *, workers: int) -> None:
    """Until SIGINT or SIGTERM. Raises ConfigError where the port is taken."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    with reserve(config.server):
        groups = children(config, path, workers)
        keepers = [[asyncio.create_task(child.keep()) for child in group] for group in groups]
        ready = asyncio.create_task(announce(config, on_ready))
        try:
            await stop.wait()
        finally:
            ready.cancel()
            for group in reversed(keepers):
                await finish(group)


async def finish(keepers: list[asyncio.Task[None]]) -> None:
    """Stop these and wait until they are gone."""
    for keeper in keepers:
        keeper.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)


def children(config: Config, path: str | None, workers: int) -> tuple[list[Child], list[Child], list[Child]]:
    """In the order of need, so stopped from behind: workers end while upstreams still answer and control ships."""
    run_dir = Path(config.server.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    where = ["--config", path] if path else []
    upstreams = [
        Child(f"provider {one.provider}", one.command, one.environment)
        for provider in config.providers
        if (one := managed(provider, config.server)) is not None
    ]
    control = [Child("control", [sys.executable, "-m", "gateway.control", *where])]
    serving = [
        Child(f"worker {index}", [sys.executable, "-m", "gateway.worker", "--index", str(index), *where], ONE_CORE)
        for index in range(workers)
    ]
    return upstreams, control, serving


def reserve(server: Server) -> socket.socket:
    """Bind the port without listening, so that a port in use is found out here and not by every worker."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((server.host, server.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((server.host, server.port))
    except OSError as error:
        sock.close()
        raise ConfigError([f"server.port: {server.host}:{server.port}: {error.strerror}"]) from None
    return sock


async def announce(config: Config, on_ready: Callable[[], None]) -> None:
    """Say so once a worker accepts connections and every managed server answers; never where none does."""
    warn_at = time.monotonic() + READY_TIMEOUT_S
    while not await _connects(config.server):
        if time.monotonic() >= warn_at:
            log.error("no worker answers after %.0f s; what they said is above", READY_TIMEOUT_S)
            warn_at += READY_TIMEOUT_S
        await asyncio.sleep(0.05)
    for provider in config.providers:
        one = managed(provider, config.server)
        if one is not None and not await wait_ready(one.socket, timeout_s=READY_TIMEOUT_S):
            log.error("provider %s is not ready after %.0f s", provider.name, READY_TIMEOUT_S)
    on_ready()


async def _connects(server: Server) -> bool:
    host = "127.0.0.1" if server.host in ("0.0.0.0", "") else server.host  # noqa: S104
    try:
        _, writer = await asyncio.open_connection(host, server.port)
    except OSError:
        return False
    writer.close()
    return True
