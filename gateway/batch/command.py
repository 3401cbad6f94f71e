"""What `headgate batch run` does: find the job it is about or plan a new one, then carry it in this process."""

from __future__ import annotations

import asyncio
import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from gateway.batch.context import open_context
from gateway.batch.endpoint import ProviderEndpoints
from gateway.batch.execute import PLANS, LocalFiles, execute, forget_plan
from gateway.batch.jobs import Card, Job, Progress, owner_name
from gateway.batch.lease import RunnerOptions
from gateway.batch.plan import PlanOptions, plan_job
from gateway.batch.read import ReadOptions
from gateway.batch.run import Runner
from gateway.batch.runtime import JobRuntime, job_runtime
from gateway.batch.types import PLAN_FILE, BadJob, Plan
from gateway.batch.view import errors_of
from gateway.config import Config
from gateway.errors import CallerError, HeadgateError
from gateway.journal.durable import database_said
from gateway.journal.record import new_id
from gateway.keys import Caller


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The command's words."""

    source: Path
    """The prompts, or a plan's folder where `planned`."""
    planned: bool = False
    out: Path | None = None
    errors_out: Path | None = None
    budget_usd: float | None = None
    deadline_s: float = math.inf
    route: str = "auto"
    floor: float = 0.0
    samples: tuple[int, ...] = ()
    cascade: bool = False
    skip_bad: bool = False
    concurrency: int = 16
    engine: str = "embedded"
    workers: int = 2
    tenant: str = "default"


async def run_job(
    config: Config, wanted: RunOptions, stop: asyncio.Event, on_progress: Callable[[Progress], None]
) -> Job:
    """To its end, or until `stop`. The same words after a crash resume the job."""
    async with job_runtime(config) as runtime:
        job, plan = await asyncio.to_thread(found_or_planned, runtime, wanted)
        caller = Caller("command", "batch", tenant=job.tenant, explore=False)
        options = RunnerOptions(drain_s=config.server.drain_timeout_s, on_progress=on_progress)
        if wanted.engine == "ray":
            from gateway.batch.engine_ray import execute_on_ray

            return await execute_on_ray(runtime, config, job, plan, caller, options, wanted.workers, stop)
        waiting = list[asyncio.Task[None]]()

        def start(runner: Runner) -> None:
            waiting.append(asyncio.create_task(_stop_when(stop, runner)))

        try:
            with resumable():
                return await execute(
                    runtime.services, runtime.jobs, job, plan, caller, LocalFiles(), options,
                    ProviderEndpoints(runtime.services), start,
                )  # fmt: skip
        finally:
            for task in waiting:
                task.cancel()


@contextmanager
def resumable() -> Iterator[None]:
    """A database that is away ends a command, but no job."""
    try:
        yield
    except SQLAlchemyError as fault:
        if not (said := database_said(fault)):
            raise
        raise HeadgateError(
            f"the database can't be used: {said}. Every answer is kept: run the same command again to go on"
        ) from fault


async def _stop_when(stop: asyncio.Event, runner: Runner) -> None:
    await stop.wait()
    runner.stop()


def found_or_planned(runtime: JobRuntime, wanted: RunOptions) -> tuple[Job, Plan]:
    """The unfinished job of these files, else a new one; claimed. Raises CallerError where that can't be."""
    out, errors_out = places(wanted)
    print_of = fingerprint(wanted.source / PLAN_FILE if wanted.planned else wanted.source)
    for job in runtime.jobs.unfinished("command"):
        if job.card.out == str(out):
            return _resumed(runtime, wanted, job, print_of)
    refuse_places(out, errors_out)
    plan = _plan(runtime, wanted)
    budget = plan.budget_usd if math.isfinite(plan.budget_usd) else None
    now = time.time()
    card = Card(
        source=plan.source, route=plan.route, folder=str(plan.prompts.path.parent.resolve()), out=str(out),
        errors_out=str(errors_out), fingerprint=print_of, budget_usd=budget,
        deadline_s=now + plan.deadline_s if math.isfinite(plan.deadline_s) else None,
        concurrency=wanted.concurrency, cascade=wanted.cascade, engine=wanted.engine,
        total=len(plan.prompts) + len(plan.duplicates), metadata=plan.metadata, errors=errors_of(plan.problems),
    )  # fmt: skip
    job = runtime.jobs.add(wanted.tenant, "command", card, now)
    claimed = runtime.jobs.claim(job.id, owner_name(), time.time())
    assert claimed is not None, "nobody else knows of it yet"
    _refuse_rivals(runtime, claimed, plan)
    return claimed, plan


def _refuse_rivals(runtime: JobRuntime, job: Job, plan: Plan) -> None:
    """Another command that planned the same meanwhile. Each looks once its own job is in the list, so that never two
    go on.
    """
    for other in runtime.jobs.unfinished("command"):
        if other.id != job.id and other.card.out == job.card.out:
            runtime.jobs.drop(job)
            forget_plan(plan.prompts.path.parent, Path(runtime.services.config.server.run_dir))
            raise CallerError(f"{other.id} is being run by {other.owner} and writes {job.card.out} too",
                              code="batch_running")  # fmt: skip


def _resumed(runtime: JobRuntime, wanted: RunOptions, job: Job, print_of: str) -> tuple[Job, Plan]:
    if job.card.fingerprint != print_of:
        raise CallerError(
            f"{job.id} is not finished and its input has changed since: restore it, cancel the job, or name "
            "another --out", code="input_changed",
        )  # fmt: skip
    claimed = runtime.jobs.claim(job.id, owner_name(), time.time())
    if claimed is None:
        raise CallerError(f"{job.id} is being run by {job.owner}", code="batch_running")
    try:
        return claimed, Plan.load(Path(job.card.folder))
    except BadJob:
        if wanted.planned:
            raise
    plan = _plan(runtime, replace(wanted, skip_bad=True))  # what was good when it began is no reason to end it
    claimed.card.folder = str(plan.prompts.path.parent.resolve())
    runtime.jobs.change(claimed, claimed.state, time.time())
    return claimed, plan


def _plan(runtime: JobRuntime, wanted: RunOptions) -> Plan:
    if wanted.planned:
        return Plan.load(wanted.source)
    server = runtime.services.config.server
    reading = ReadOptions(
        route=wanted.route, floor=wanted.floor, max_messages=server.max_messages, max_body_bytes=server.max_body_bytes
    )
    options = PlanOptions(
        reading=reading, budget_usd=wanted.budget_usd, deadline_s=wanted.deadline_s, skip_bad=wanted.skip_bad,
        samples=wanted.samples, cascade=wanted.cascade, concurrency=wanted.concurrency, tenant=wanted.tenant,
    )  # fmt: skip
    folder = Path(server.run_dir).resolve() / PLANS / new_id("plan")
    return plan_job(wanted.source, folder, options, open_context(runtime.services.config, runtime.services.book))


def places(wanted: RunOptions) -> tuple[Path, Path]:
    """Where answers and errors go."""
    stem = wanted.source.resolve()
    out = (wanted.out or stem.with_name(f"{stem.stem}.answers.jsonl")).resolve()
    errors_out = wanted.errors_out or out.with_name(f"{out.stem}.errors{out.suffix}")
    return out, errors_out.resolve()


def refuse_places(out: Path, errors_out: Path) -> None:
    """Where nothing can be written, before anything is spent. Raises CallerError, or OSError."""
    if out == errors_out:
        raise CallerError("--out and --errors name the same file: answers and errors go to one each")
    for path in (out, errors_out):
        if path.exists():
            name = "--out" if path == out else "--errors"
            raise CallerError(f"{path} is there already: name another {name}, or move it away", code="output_exists")
        if path.name in ("-", "-.errors") or path.suffix in (".csv", ".tsv"):
            raise CallerError(f"{path}: answers are written as JSONL or Parquet, to a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f"{path.name}.", suffix=".new"):
            pass


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises CallerError where it can't be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CallerError(f"{path}: {error.strerror}") from None
    return digest.hexdigest()
