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

from gateway.batch.carry import PLANS, Paths, carry, forget_plan
from gateway.batch.endpoint import Upstreams
from gateway.batch.jobs import Card, Job, Progress, owner_name
from gateway.batch.lease import Terms
from gateway.batch.plan import Order, plan_job
from gateway.batch.read import Terms as ReadTerms
from gateway.batch.room import Room, room
from gateway.batch.run import Runner
from gateway.batch.shop import open_shop
from gateway.batch.types import PLAN_FILE, BadJob, Plan
from gateway.batch.view import errors_of
from gateway.config import Config
from gateway.errors import CallerError, HeadgateError
from gateway.journal.durable import database_said
from gateway.journal.record import new_id
from gateway.keys import Caller


@dataclass(frozen=True, slots=True)
class Wanted:
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
    config: Config, wanted: Wanted, stop: asyncio.Event, on_progress: Callable[[Progress], None]
) -> Job:
    """To its end, or until `stop`. The same words after a crash resume the job."""
    async with room(config) as home:
        job, plan = await asyncio.to_thread(found_or_planned, home, wanted)
        caller = Caller("command", "batch", tenant=job.tenant, explore=False)
        terms = Terms(drain_s=config.server.drain_timeout_s, on_progress=on_progress)
        if wanted.engine == "ray":
            from gateway.batch.engine_ray import carry_on_ray

            return await carry_on_ray(home, config, job, plan, caller, terms, wanted.workers, stop)
        waiting = list[asyncio.Task[None]]()

        def start(runner: Runner) -> None:
            waiting.append(asyncio.create_task(_stop_when(stop, runner)))

        try:
            with resumable():
                return await carry(
                    home.services, home.jobs, job, plan, caller, Paths(), terms, Upstreams(home.services), start
                )
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


def found_or_planned(home: Room, wanted: Wanted) -> tuple[Job, Plan]:
    """The unfinished job of these files, else a new one; claimed. Raises CallerError where that can't be."""
    out, errors_out = places(wanted)
    print_of = fingerprint(wanted.source / PLAN_FILE if wanted.planned else wanted.source)
    for job in home.jobs.unfinished("command"):
        if job.card.out == str(out):
            return _resumed(home, wanted, job, print_of)
    refuse_places(out, errors_out)
    plan = _plan(home, wanted)
    budget = plan.budget_usd if math.isfinite(plan.budget_usd) else None
    now = time.time()
    card = Card(
        source=plan.source, route=plan.route, folder=str(plan.prompts.path.parent.resolve()), out=str(out),
        errors_out=str(errors_out), fingerprint=print_of, budget_usd=budget,
        deadline_s=now + plan.deadline_s if math.isfinite(plan.deadline_s) else None,
        concurrency=wanted.concurrency, cascade=wanted.cascade, engine=wanted.engine,
        total=len(plan.prompts) + len(plan.duplicates), metadata=plan.metadata, errors=errors_of(plan.problems),
    )  # fmt: skip
    job = home.jobs.add(wanted.tenant, "command", card, now)
    claimed = home.jobs.claim(job.id, owner_name(), time.time())
    assert claimed is not None, "nobody else knows of it yet"
    _refuse_rivals(home, claimed, plan)
    return claimed, plan


def _refuse_rivals(home: Room, job: Job, plan: Plan) -> None:
    """Another command that planned the same meanwhile. Each looks once its own job is in the list, so that never two
    go on.
    """
    for other in home.jobs.unfinished("command"):
        if other.id != job.id and other.card.out == job.card.out:
            home.jobs.drop(job)
            forget_plan(plan.prompts.path.parent, Path(home.services.config.server.run_dir))
            raise CallerError(f"{other.id} is being run by {other.owner} and writes {job.card.out} too",
                              code="batch_running")  # fmt: skip


def _resumed(home: Room, wanted: Wanted, job: Job, print_of: str) -> tuple[Job, Plan]:
    if job.card.fingerprint != print_of:
        raise CallerError(
            f"{job.id} is not finished and its input has changed since: restore it, cancel the job, or name "
            "another --out", code="input_changed",
        )  # fmt: skip
    claimed = home.jobs.claim(job.id, owner_name(), time.time())
    if claimed is None:
        raise CallerError(f"{job.id} is being run by {job.owner}", code="batch_running")
    try:
        return claimed, Plan.load(Path(job.card.folder))
    except BadJob:
        if wanted.planned:
            raise
    plan = _plan(home, replace(wanted, skip_bad=True))  # what was good when it began is no reason to end it
    claimed.card.folder = str(plan.prompts.path.parent.resolve())
    home.jobs.change(claimed, claimed.state, time.time())
    return claimed, plan


def _plan(home: Room, wanted: Wanted) -> Plan:
    if wanted.planned:
        return Plan.load(wanted.source)
    server = home.services.config.server
    reading = ReadTerms(
        route=wanted.route, floor=wanted.floor, max_messages=server.max_messages, max_body_bytes=server.max_body_bytes
    )
    order = Order(
        terms=reading, budget_usd=wanted.budget_usd, deadline_s=wanted.deadline_s, skip_bad=wanted.skip_bad,
        samples=wanted.samples, cascade=wanted.cascade, concurrency=wanted.concurrency, tenant=wanted.tenant,
    )  # fmt: skip
    folder = Path(server.run_dir).resolve() / PLANS / new_id("plan")
    return plan_job(wanted.source, folder, order, open_shop(home.services.config, home.services.book))


def places(wanted: Wanted) -> tuple[Path, Path]:
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
