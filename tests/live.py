"""A gateway on a real socket for tests: in this event loop, where tests inspect its parts, or as real processes.

    async with live(scripts={"flaky": [{"status": 503}, {"text": "ok"}]}, models=["flaky"]) as gateway:
        gateway.url, gateway.services, gateway.upstream
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from gateway.app import build, close
from gateway.asgi import App
from gateway.config.load import parse
from gateway.journal.record import DecisionRecord
from gateway.providers.scripted import ScriptedServer
from gateway.serve.listen import listen
from gateway.serve.worker import server_config
from gateway.services import Services
from tests.until import until


@dataclass(slots=True)
class Live:
    """A running gateway and the scripted upstreams behind it."""

    url: str
    """Base URL without /v1."""
    app: App
    upstream: ScriptedServer
    server: uvicorn.Server

    @property
    def services(self) -> Services:
        return self.app.services

    async def decision(self, id: str) -> DecisionRecord:
        """The journal's record of a request, by any of its ids."""
        record = await self.services.journal.decision(id)
        assert record is not None, f"no decision {id}"
        return record

    def assert_at_rest(self) -> None:
        """Assert that no money is held, and no request, attempt or upstream connection is in use."""
        services = self.services
        assert services.ledger.outstanding == 0
        assert services.metrics.in_flight == 0
        assert self.app.in_flight == 0
        assert len(services.cache.flight) == 0
        for deployment in services.fleet.all():
            assert deployment.in_flight == 0, deployment.id
        for name, provider in services.driver.sender.providers.items():
            assert provider.pool.in_use == 0, name

    async def rest(self, within_s: float = 60.0) -> None:
        """Wait until `assert_at_rest` passes."""
        deadline = asyncio.get_running_loop().time() + within_s
        while True:
            try:
                self.assert_at_rest()
            except AssertionError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.005)
            else:
                return


def table(upstream_url: str, folder: Path, models: Sequence[Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as decoded from TOML, with the providers `up` (OpenAI's dialect) and `claude` (Anthropic's).

    UPSTREAM in another provider's base URL is replaced by the scripted server's URL.
    """
    base = {
        "server": {"run_dir": str(folder / "run"), **extra.get("server", {})},
        "storage": {"url": f"sqlite:///{folder}/journal.db", **extra.get("storage", {})},
        "providers": [
            {"name": "up", "kind": "openai", "base_url": upstream_url, "api_key": "${UP_KEY}"},
            {"name": "claude", "kind": "anthropic", "base_url": upstream_url, "api_key": "${UP_KEY}"},
            *(
                {**provider, "base_url": provider.get("base_url", "").replace("UPSTREAM", upstream_url)}
                for provider in extra.get("providers", ())
            ),
        ],
        "models": [
            {"provider": "up", "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 4.0,
             **({"name": model} if isinstance(model, str) else model)}
            for model in models
        ],
    }
    for section in ("routes", "auth", "telemetry", "embedding"):
        if section in extra:
            base[section] = extra[section]
    return base


class PromptServer(uvicorn.Server):
    """Shuts down as soon as its last connection ends; uvicorn's own server checks only every tenth of a second."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await until(lambda: not self.server_state.connections and not self.server_state.tasks)
        for server in self.servers:
            await server.wait_closed()


@asynccontextmanager
async def listening(config: uvicorn.Config) -> AsyncIterator[tuple[int, uvicorn.Server]]:
    """Run a server in this event loop; yields its port and the server."""
    sock = listen("127.0.0.1", 0)
    server = PromptServer(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup([sock])
    try:
        yield sock.getsockname()[1], server
    finally:
        await server.shutdown()


@asynccontextmanager
async def live(
    tmp_path: Path,
    *,
    scripts: Mapping[str, object] | None = None,
    models: Sequence[Any] = ("echo",),
    **extra: Any,
) -> AsyncIterator[Live]:
    """Run a gateway in this event loop. `extra`: sections of its configuration (`routes=[...]`, `auth={...}`)."""
    async with ScriptedServer(scripts) as upstream:
        config, problems = parse(table(upstream.url, tmp_path, models, extra), {"UP_KEY": "sk-upstream-secret"})
        assert config is not None, problems
        app = build(config)
        try:
            async with listening(server_config(app, config.server)) as (port, server):
                yield Live(f"http://127.0.0.1:{port}", app, upstream, server)
        finally:
            await close(app)


@asynccontextmanager
async def served(config: Path, *words: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `headgate serve` as real processes, in a process group as a shell starts them; yields when it answers, and
    stops it with SIGTERM.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "serve", "--config", str(config), *words,
        stdout=asyncio.subprocess.PIPE, env={**os.environ, **environment}, process_group=0,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 300)
        assert b"answers on" in line, line
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def workers_of(pid: int) -> list[int]:
    """Ids of the supervisor's worker processes. `pid`: the supervisor's."""
    workers = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            if b"gateway.serve.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                workers.append(int(child))
    return workers
