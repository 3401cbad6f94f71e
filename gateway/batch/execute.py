"""Runs a claimed job to its end, in any process: takes over what the journal records, runs, and writes the results."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from gateway.batch import results
from gateway.batch.files import named_in
from gateway.batch.jobs import ENDED, Job, Jobs, State
from gateway.batch.lease import RunnerOptions, kept
from gateway.batch.prompt_queue import DONE, FAILED
from gateway.batch.results import Result
from gateway.batch.run import Endpoints, Runner
from gateway.batch.types import Plan
from gateway.errors import HeadgateError
from gateway.journal.durable import OutageLog, database_said
from gateway.journal.frames import SUFFIX
from gateway.journal.ship import Shipper, shipped_bytes
from gateway.keys import Caller
from gateway.services import Services

log = logging.getLogger("headgate.batch")

POLL_S = 0.05
STORE_RETRY_S = 1.0
PLANS = "plans"
"""Folder, within the run folder, of the plans that runners make; a plan is deleted with the end of its job."""


class Sink(Protocol):
    """Writes the results of a job."""

    def write(self, job: Job, results: Iterable[Result]) -> None:
        """Write all results or none. It is called again where the process that called it first has died. Blocks."""
        ...


class LocalFiles:
    """Writes results to the files that the job names."""

    def write(self, job: Job, found: Iterable[Result]) -> None:
        try:
            results.write(found, Path(job.card.out), Path(job.card.errors_out))
        except OSError as error:
            raise HeadgateError(
                f"{error.filename or job.card.out}: {error.strerror or error}. Every answer is kept: correct that, and "
                "run the same command again to write them"
            ) from error


async def execute(
    services: Services, jobs: Jobs, job: Job, plan: Plan, caller: Caller, sink: Sink, options: RunnerOptions,
    endpoints: Endpoints | None = None, on_start: Callable[[Runner], None] | None = None,
) -> Job:  # fmt: skip
    """Run a claimed job to its end, or until its runner is stopped. Raises LostLease where another runner has taken it.
    """
    runner = await take_over(services, jobs, job, plan, caller, options)
    if on_start is not None:
        on_start(runner)
    await runner.run(endpoints)
    if runner.stopped and not runner.over_for_good:
        await asyncio.to_thread(jobs.release, job, runner.last)
        return await asyncio.to_thread(jobs.find, job.id)
    await finish(services, jobs, job, plan, runner, sink)
    return await asyncio.to_thread(jobs.find, job.id)


async def take_over(
    services: Services, jobs: Jobs, job: Job, plan: Plan, caller: Caller, options: RunnerOptions
) -> Runner:
    """A runner with the state that earlier runners of this job have recorded."""
    async with kept(jobs, job, job.progress, options):
        await shipped(services.spool_dir, jobs.engine)
    at_risk = await asyncio.to_thread(jobs.write_off, job)
    spent = await asyncio.to_thread(jobs.spent, job.id)
    items = await asyncio.to_thread(lambda: list(jobs.items(job.id)))
    parts = await asyncio.to_thread(jobs.parts, job.id)
    state: State = "running" if not job.wish else job.state
    await asyncio.to_thread(jobs.change, job, state, options.clock())
    sizes = await asyncio.to_thread(_file_bytes, services, plan, caller.tenant)
    runner = Runner(services, jobs, job, plan, caller, options, spent + at_risk)
    runner.asker.file_bytes = sizes
    runner.resume(items, parts)
    return runner


def _file_bytes(services: Services, plan: Plan, tenant: str) -> dict[str, int]:
    """Sizes of the tenant's files that the prompts name, by id."""
    ids = named_in(plan.prompts.path)
    return {id: file.bytes for id, file in services.batches.files.named(ids, tenant).items()} if ids else {}


async def finish(services: Services, jobs: Jobs, job: Job, plan: Plan, runner: Runner, sink: Sink) -> None:
    """Write the results and then the job's last state, once every answer is in the database. While the database can't
    be reached this waits for it; a runner that is stopped waits no longer than `drain_s`, and the next one goes on.
    """
    complaint = OutageLog(log, f"the results of {job.id}")
    while True:
        try:
            await _finish(jobs, job, plan, runner, sink)
            break
        except SQLAlchemyError as fault:
            if runner.stopped or not database_said(fault):
                raise
            complaint.fails(fault)
        await asyncio.sleep(STORE_RETRY_S)
    complaint.works()
    if job.state in ENDED:
        await asyncio.to_thread(forget_plan, plan.prompts.path.parent, Path(services.config.server.run_dir))


async def _finish(jobs: Jobs, job: Job, plan: Plan, runner: Runner, sink: Sink) -> None:
    clock = runner.options.clock
    outcome: State = "cancelled" if runner.wish == "cancel" else "expired" if runner.left_s <= 0 else "completed"
    state = runner.queue.state
    if outcome == "expired" and ((state == DONE) | (state == FAILED)).all():
        outcome = "completed"
    async with kept(jobs, job, runner.last, runner.options):
        await asyncio.to_thread(jobs.change, job, "finalizing", clock())
        stored = await _stored(jobs, job, runner)
        if stored:
            await asyncio.to_thread(sink.write, job, results.results(jobs, job.id, plan, outcome))
    if stored:
        await asyncio.to_thread(jobs.end, job, outcome, runner.last, clock())
    else:
        await asyncio.to_thread(jobs.release, job, runner.last)


async def _stored(jobs: Jobs, job: Job, runner: Runner) -> bool:
    """Wait until every answer is in the database; False where a stopped runner has no time left to wait."""
    state = runner.queue.state
    ended = int(((state == DONE) | (state == FAILED)).sum()) + runner.ended_elsewhere
    patience_s = runner.options.drain_s
    while await asyncio.to_thread(jobs.ended_count, job.id) < ended:
        await asyncio.sleep(POLL_S)  # another thread or process ships the spools
        patience_s -= POLL_S if runner.stopped else 0.0
        if patience_s <= 0 or runner.lost:
            return False
    return True


def forget_plan(folder: Path, run_dir: Path) -> None:
    """Delete a plan's folder where a runner made it; a plan that a user made stays."""
    if folder.parent == run_dir.resolve() / PLANS:
        shutil.rmtree(folder, ignore_errors=True)


async def shipped(directory: Path, engine: sa.Engine) -> None:
    """Wait until everything that is in the spools now is in the database."""
    marks = await asyncio.to_thread(_marks, directory)
    while marks:
        marks = await asyncio.to_thread(_unshipped, marks, engine)
        if marks:
            await asyncio.sleep(POLL_S)


def _unshipped(marks: dict[Path, int], engine: sa.Engine) -> dict[Path, int]:
    with engine.connect() as connection:
        return {
            path: size for path, size in marks.items() if path.exists() and shipped_bytes(connection, path.stem) < size
        }


def _marks(directory: Path) -> dict[Path, int]:
    """Size in bytes of each segment of the spools; empty ones are left out."""
    sizes = {}
    for path in directory.glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):
            sizes[path] = os.stat(path).st_size
    return {path: size for path, size in sizes.items() if size}


@asynccontextmanager
async def shipping(directory: Path, engine: sa.Engine) -> AsyncIterator[None]:
    """Ship the spools of this folder while the context lasts, where no control process does it already."""
    stop = threading.Event()
    shipper = Shipper(directory, engine)
    thread = threading.Thread(target=shipper.run, args=(stop,), kwargs={"pause_s": POLL_S}, name="batch-shipper")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        await asyncio.to_thread(thread.join)
