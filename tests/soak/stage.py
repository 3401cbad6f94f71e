"""The gateway under soak: one worker with its control process, the scripted upstream, limits, budgets, cache and
journal.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.live import served
from tests.ports import free_port
from tests.soak.load import SCRIPTS

KEY = "hg-soak"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
REST_S = 30.0
GAUGES = {
    "headgate_in_flight_requests": "requests in flight", "headgate_holds_outstanding": "holds of money",
    "headgate_deployment_in_flight": "attempts under way", "headgate_pool_connections": "upstream connections in use",
}  # fmt: skip
"""Metrics that must be zero at rest."""


@dataclass(slots=True)
class Soaking:
    """A gateway under soak."""

    url: str
    port: int
    worker: int
    """The worker's process id."""

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.worker}/statm").read_text().split()[1]) * PAGE_BYTES

    def files(self) -> int:
        """Number of open files and sockets."""
        return len(os.listdir(f"/proc/{self.worker}/fd"))

    async def left(self) -> dict[str, float]:
        """What is still in use."""
        async with httpx.AsyncClient(base_url=self.url) as client:
            text = (await client.get("/metrics")).text
        found = dict.fromkeys(GAUGES.values(), 0.0) | {"tasks": 0.0, "idle connections": 0.0}
        for line in text.splitlines():
            name, _, value = line.rpartition(" ")
            bare = name.partition("{")[0]
            if bare == "headgate_tasks":
                found["tasks"] += float(value)
            elif 'state="idle"' in name:
                found["idle connections"] += float(value)
            elif bare in GAUGES:
                found[GAUGES[bare]] += float(value)
        return found

    async def at_rest(self) -> dict[str, float]:
        """What is left when no request is sent any more; waits for requests in flight to end."""
        deadline = asyncio.get_running_loop().time() + REST_S
        while True:
            left = await self.left()
            if not any(left[name] for name in GAUGES.values()) or asyncio.get_running_loop().time() > deadline:
                return left
            await asyncio.sleep(0.1)


@asynccontextmanager
async def soaking(folder: Path) -> AsyncIterator[Soaking]:
    port = free_port()
    config = folder / "headgate.toml"
    config.write_text(settings(folder, port))
    async with served(config) as process:
        yield Soaking(f"http://127.0.0.1:{port}", port, worker_of(process.pid))


def worker_of(pid: int) -> int:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            if b"gateway.serve.worker" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                return int(child)
    raise RuntimeError("no worker")


def settings(folder: Path, port: int) -> str:
    scripts = "".join(f"{name} = {_inline(steps)}\n" for name, steps in SCRIPTS.items())
    models = "".join(
        f'[[models]]\nname = "{name}"\nprovider = "script"\ninput_usd_per_mtok = 0.1\noutput_usd_per_mtok = 0.4\n'
        f"logprobs = true\n"
        for name in SCRIPTS
    )
    return f"""
[server]
port = {port}
admin_port = {free_port()}
run_dir = "{folder}/run"
cache_bytes = 4000000
drain_timeout_s = 5
[storage]
url = "sqlite:///{folder}/journal.db"
[telemetry]
log_level = "error"
[[providers]]
name = "script"
kind = "scripted"
[providers.options.scripts]
{scripts}
{models}
[[routes]]
name = "auto"
models = ["quick", "slow"]
router = "default"
explore = 0.2
rpm = 100000000
[[routes]]
name = "kept"
models = ["quick"]
router = "cheapest"
cache = "exact"
[[routes]]
name = "cascade"
models = ["quick", "slow"]
router = "cheapest"
cascade = "confidence"
fallback = ["quick"]
[[auth.keys]]
name = "soak"
key = "{KEY}"
rpm = 100000000
tpm = 2000000000
budget_usd = 1000000
"""


def _inline(steps: object) -> str:
    """A list of tables in TOML's inline form."""
    assert isinstance(steps, list)
    tables = (", ".join(f"{name} = {json.dumps(value)}" for name, value in one.items()) for one in steps)
    return "[" + ", ".join(f"{{{table}}}" for table in tables) + "]"
