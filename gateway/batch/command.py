"""`headgate batch run`: finds the unfinished job of the same files, or plans a new one, and runs it in this process."""

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
from gateway.config.types import Config
from gateway.errors import CallerError, HeadgateError
from gateway.journal.durable import database_said
from gateway.journal.record import new_id
from gateway.keys import Caller


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of the command."""

    source: Path
    """The file of prompts, or the folder of a plan where `planned`."""
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
    config: Config, options: RunOptions, stop: asyncio.Event, on_progress: Callable[[Progress], None]
) -> Job:
    """Run the job to its end, or until `stop` is set. After a crash, the same options resume the job."""
    async with job_runtime(config) as runtime:
        job, plan = await asyncio.to_thread(find_or_plan, runtime, options)
        caller = Caller("command", "batch", tenant=job.tenant, explore=False)
        runner_options = RunnerOptions(drain_s=config.server.drain_timeout_s, on_progress=on_progress)
        if options.engine == "ray":
            from gateway.batch.engine_ray import execute_on_ray

            return await execute_on_ray(runtime, config, job, plan, caller, runner_options, options.workers, stop)
        waiting = list[asyncio.Task[None]]()

        def start(runner: Runner) -> None:
            waiting.append(asyncio.create_task(_stop_when(stop, runner)))

        try:
            with resumable():
                return await execute(
                    runtime.services, runtime.jobs, job, plan, caller, LocalFiles(), runner_options,
                    ProviderEndpoints(runtime.services), start,
                )  # fmt: skip
        finally:
            for task in waiting:
                task.cancel()


@contextmanager
def resumable() -> Iterator[None]:
    """Turn a database failure into an error that says how to resume the job."""
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


def find_or_plan(runtime: JobRuntime, options: RunOptions) -> tuple[Job, Plan]:
    """Claim the unfinished job that writes the same output file, or plan a new one. Raises CallerError where that job
    is run by another process, its input has changed, or an output file exists.
    """
    out, errors_out = output_paths(options)
    digest = fingerprint(options.source / PLAN_FILE if options.planned else options.source)
    for job in runtime.jobs.unfinished("command"):
        if job.card.out == str(out):
            return _resumed(runtime, options, job, digest)
    check_output_paths(out, errors_out)
    plan = _plan(runtime, options)
    budget = plan.budget_usd if math.isfinite(plan.budget_usd) else None
    now = time.time()
    card = Card(
        source=plan.source, route=plan.route, folder=str(plan.prompts.path.parent.resolve()), out=str(out),
        errors_out=str(errors_out), fingerprint=digest, budget_usd=budget,
        deadline_s=now + plan.deadline_s if math.isfinite(plan.deadline_s) else None,
        concurrency=options.concurrency, cascade=options.cascade, engine=options.engine,
        total=len(plan.prompts) + len(plan.duplicates), metadata=plan.metadata, errors=errors_of(plan.problems),
    )  # fmt: skip
    job = runtime.jobs.add(options.tenant, "command", card, now)
    claimed = runtime.jobs.claim(job.id, owner_name(), time.time())
    assert claimed is not None, "no other process knows of the new job yet"
    _refuse_rivals(runtime, claimed, plan)
    return claimed, plan


def _refuse_rivals(runtime: JobRuntime, job: Job, plan: Plan) -> None:
    """Raise CallerError where another command has planned a job with the same output file meanwhile. Each command
    checks once its own job is in the list, so two never continue.
    """
    for other in runtime.jobs.unfinished("command"):
        if other.id != job.id and other.card.out == job.card.out:
            runtime.jobs.drop(job)
            forget_plan(plan.prompts.path.parent, Path(runtime.services.config.server.run_dir))
            raise CallerError(f"{other.id} is being run by {other.owner} and writes to {job.card.out} too: wait until "
                              "it has ended, or name another --out", code="batch_running")  # fmt: skip


def _resumed(runtime: JobRuntime, options: RunOptions, job: Job, digest: str) -> tuple[Job, Plan]:
    if job.card.fingerprint != digest:
        raise CallerError(
            f"{job.id} is not finished and its input has changed since it began: restore the file, cancel the "
            "job, or name another --out", code="input_changed",
        )  # fmt: skip
    claimed = runtime.jobs.claim(job.id, owner_name(), time.time())
    if claimed is None:
        raise CallerError(f"{job.id} is being run by {job.owner}", code="batch_running")
    try:
        return claimed, Plan.load(Path(job.card.folder))
    except BadJob:
        if options.planned:
            raise
    plan = _plan(runtime, replace(options, skip_bad=True))  # a line that has become bad since must not end the job
    claimed.card.folder = str(plan.prompts.path.parent.resolve())
    runtime.jobs.change(claimed, claimed.state, time.time())
    return claimed, plan


def _plan(runtime: JobRuntime, options: RunOptions) -> Plan:
    if options.planned:
        return Plan.load(options.source)
    server = runtime.services.config.server
    reading = ReadOptions(
        route=options.route, floor=options.floor, max_messages=server.max_messages, max_body_bytes=server.max_body_bytes
    )
    plan_options = PlanOptions(
        reading=reading, budget_usd=options.budget_usd, deadline_s=options.deadline_s, skip_bad=options.skip_bad,
        samples=options.samples, cascade=options.cascade, concurrency=options.concurrency, tenant=options.tenant,
    )  # fmt: skip
    folder = Path(server.run_dir).resolve() / PLANS / new_id("plan")
    context = open_context(runtime.services.config, runtime.services.book)
    return plan_job(options.source, folder, plan_options, context)


def output_paths(options: RunOptions) -> tuple[Path, Path]:
    """Paths of the files for answers and for errors."""
    stem = options.source.resolve()
    out = (options.out or stem.with_name(f"{stem.stem}.answers.jsonl")).resolve()
    errors_out = options.errors_out or out.with_name(f"{out.stem}.errors{out.suffix}")
    return out, errors_out.resolve()


def check_output_paths(out: Path, errors_out: Path) -> None:
    """Check, before anything is spent, that both files can be written. Raises CallerError, or OSError."""
    if out == errors_out:
        raise CallerError("--out and --errors name the same file: name two different ones")
    for path in (out, errors_out):
        if path.exists():
            name = "--out" if path == out else "--errors"
            message = f"{path} is there already: name another {name}, or move the file away"
            raise CallerError(message, code="output_exists")
        if path.name in ("-", "-.errors") or path.suffix in (".csv", ".tsv"):
            raise CallerError(f"{path}: answers are only written to a file, as JSONL or Parquet")
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
