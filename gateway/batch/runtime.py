"""The runtime of a process that runs jobs without serving: gateway services, managed servers, and a journal shipper."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.app import build, close
from gateway.batch.execute import shipping
from gateway.batch.jobs import Jobs
from gateway.config.extras import missing_extras
from gateway.config.types import Config
from gateway.errors import ConfigError, HeadgateError
from gateway.journal.schema import check_schema, migrate, open_engine
from gateway.money.budgets import restore
from gateway.providers.managed import is_ready, managed, wait_ready
from gateway.serve.processes import Child, Keeper
from gateway.services import Services

log = logging.getLogger("headgate.batch")

READY_TIMEOUT_S = 120.0


@dataclass(slots=True)
class JobRuntime:
    services: Services
    jobs: Jobs


def open_jobs(config: Config) -> Jobs:
    """The job list. An SQLite database is migrated here; a PostgreSQL database must be migrated before. Raises
    ConfigError.
    """
    Path(config.server.run_dir).mkdir(parents=True, exist_ok=True)
    url = str(config.storage.url)
    if url.startswith("sqlite"):
        migrate(url)
    engine = open_engine(url)
    check_schema(engine)
    return Jobs(engine)


@asynccontextmanager
async def job_runtime(config: Config) -> AsyncIterator[JobRuntime]:
    """Everything that a job needs while the context lasts. Raises ConfigError."""
    jobs = await asyncio.to_thread(open_jobs, config)
    async with AsyncExitStack() as stack:
        stack.callback(jobs.engine.dispose)
        await _start_managed(config, stack)
        app = build(config)
        services = app.services
        await stack.enter_async_context(shipping(services.spool_dir, jobs.engine))
        stack.push_async_callback(close, app)
        try:
            await asyncio.to_thread(restore, services)
        except (OSError, HeadgateError) as error:
            log.warning("what was spent before can't be read yet: %s", error)
        chores = [asyncio.create_task(chore()) for chore in services.chores]
        stack.callback(lambda: [chore.cancel() for chore in chores])
        yield JobRuntime(services, jobs)


async def _start_managed(config: Config, stack: AsyncExitStack) -> None:
    """Start the servers that `headgate serve` would start, except those that are already running."""
    for provider in config.providers:
        one = managed(provider, config.server)
        if one is None or await is_ready(one.socket):
            continue
        if problems := missing_extras(config):
            raise ConfigError(problems)
        command = [*one.command, "--parent", str(os.getpid())]
        keeper = Keeper(Child(f"provider {one.provider}", command, one.environment), lambda: 0)
        stack.push_async_callback(_stop, asyncio.create_task(keeper.keep()))
        if not await wait_ready(one.socket, timeout_s=READY_TIMEOUT_S):
            raise ConfigError([f"providers.{provider.name}: not ready after {READY_TIMEOUT_S:.0f} s"])


async def _stop(keeping: asyncio.Task[None]) -> None:
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
