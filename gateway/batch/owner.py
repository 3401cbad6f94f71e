"""The worker's part in /v1/batches and /v1/messages/batches: it claims jobs that no one runs, plans them, and runs them
to their end.

Any worker of any replica may claim any job; the job's lease makes sure that only one runs it. The jobs of a worker that
dies are claimed by others; a worker that drains releases them. Jobs share the worker's ledger, limits, breakers and
connections with live traffic, so that a key has one budget for both.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from gateway.batch import results
from gateway.batch.context import open_context
from gateway.batch.endpoint import ProviderEndpoints
from gateway.batch.execute import PLANS, execute, forget_plan
from gateway.batch.files import named_in
from gateway.batch.jobs import Job, Progress, owner_name
from gateway.batch.lease import LostLease, RunnerOptions, kept
from gateway.batch.message_results import each_once, left_out, lines_of, result_line
from gateway.batch.origin import ANTHROPIC, SERVED
from gateway.batch.plan import PlanOptions, plan_job
from gateway.batch.read import ReadOptions
from gateway.batch.results import Result
from gateway.batch.run import Runner
from gateway.batch.types import PLAN_FILE, BadJob, Plan, Problem
from gateway.batch.view import KEPT_S, errors_of
from gateway.errors import CallerError, HeadgateError, NotFound
from gateway.journal.durable import OutageLog
from gateway.keys import ANYONE, MASTER, Caller
from gateway.services import Services
from gateway.wire.describe import CHARS_PER_TOKEN

log = logging.getLogger("headgate.batch")

LOOK_EVERY_S = 1.0
MOST_JOBS = 4
"""Jobs that one worker runs at once."""
BAD_LINE = "this request is not valid; send it alone to /v1/messages to see the reason"
"""Error of a bad line beyond the number of faults that a plan keeps."""


async def keep_batches(services: Services) -> None:
    """Claim jobs and run them until cancelled; jobs under way are then released."""
    owner = Owner(services)
    try:
        await owner.run()
    finally:
        await owner.close()


class Owner:
    """Runs the jobs of one worker."""

    def __init__(self, services: Services) -> None:
        self.s = services
        self.store = services.batches
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.runners: dict[str, Runner] = {}
        self.closing = False

    async def run(self) -> None:
        complaint = OutageLog(log, "batches")
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):  # wait_for could lose a cancellation at a job's end
                    await self.store.asked.wait()
            self.store.asked.clear()
            try:
                if self.store.marker.exists():
                    await self.look()
                complaint.works()
            except (SQLAlchemyError, HeadgateError, OSError) as fault:
                complaint.fails(fault)

    async def look(self) -> None:
        """Claim every job that can be claimed; release paused ones, so that others get their turn."""
        for runner in self.runners.values():
            if runner.wish == "pause" and not (runner.tasks or runner.parts):
                runner.stop()
        for job, gone in self.refresh_keys():
            await self.cancel_keyless(job, gone)
        jobs = await asyncio.to_thread(lambda: self.store.jobs.unfinished(*SERVED))
        if not jobs and not self.tasks:
            self.store.marker.unlink(missing_ok=True)
            jobs = await asyncio.to_thread(lambda: self.store.jobs.unfinished(*SERVED))  # one may have been made
            if jobs:
                self.store.mark()
        for job in jobs:
            if job.id in self.tasks or len(self.tasks) >= MOST_JOBS or job.wish == "pause":
                continue
            claimed = await asyncio.to_thread(self.store.jobs.claim, job.id, owner_name(), self.s.clock())
            if claimed is not None:
                task = self.tasks[job.id] = asyncio.create_task(self.own(claimed))
                task.add_done_callback(lambda _, id=job.id: self._ended(id))  # type: ignore[misc]

    def refresh_keys(self) -> list[tuple[Job, CallerError]]:
        """Give running jobs the present permissions of their keys. Returns the jobs whose key is gone, which make no
        more calls.
        """
        keyless = []
        for runner in self.runners.values():
            try:
                runner.go_by(self.caller_of(runner.job))
            except CallerError as gone:
                runner.lease.wish = "cancel"
                keyless.append((runner.job, gone))
        return keyless

    def _ended(self, id: str) -> None:
        self.tasks.pop(id, None)
        self.runners.pop(id, None)
        self.store.asked.set()

    async def close(self) -> None:
        """Stop and release the jobs under way."""
        self.closing = True
        for runner in self.runners.values():
            runner.stop(self.store.drain_s)
        for task in self.tasks.values():
            if not any(id in self.runners for id, one in self.tasks.items() if one is task):
                task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    async def own(self, job: Job) -> None:
        """Run one claimed job to its end. Any error fails or releases the job, and never stops the worker."""
        try:
            caller = await self.caller_at_start(job)
            options = RunnerOptions(drain_s=self.s.config.server.drain_timeout_s, clock=self.s.clock)
            plan = await self.planned(job, caller, options)
            start = lambda runner: self._started(job.id, runner)  # noqa: E731
            await execute(
                self.s, self.store.jobs, job, plan, caller, StoredFiles(self.s, self.folder(job)), options,
                ProviderEndpoints(self.s), start,
            )  # fmt: skip
        except LostLease:
            log.warning("%s is run by another worker now", job.id)
        except (BadJob, CallerError) as error:
            await self.fail(job, error)
        except (SQLAlchemyError, OSError, HeadgateError) as error:
            log.warning("%s waits: %s", job.id, error)
            with suppress(SQLAlchemyError):
                await asyncio.to_thread(self.store.jobs.release, job, job.progress)
        except Exception as error:
            log.exception("%s failed inside the gateway", job.id)
            await self.fail(job, CallerError(f"internal error ({type(error).__name__})", code="internal_error"))

    def _started(self, id: str, runner: Runner) -> None:
        self.runners[id] = runner
        if self.closing:
            runner.stop(self.store.drain_s)

    def caller_of(self, job: Job) -> Caller:
        """The caller whose account pays for the job. Raises CallerError where its key is disabled, expired or deleted.
        """
        key_id = job.card.key_id
        for caller in (MASTER, ANYONE, *self.s.keyring.callers):
            usable = caller.expires_s is None or caller.expires_s > self.s.clock()
            if caller.key_id == key_id and not caller.disabled and usable:
                return caller
        raise CallerError("the key that made this batch is revoked or has expired", code="invalid_api_key")

    async def caller_at_start(self, job: Job) -> Caller:
        """The job's caller. Where its key is gone, a job that has begun is cancelled but keeps its answers; for any
        other job CallerError is raised.
        """
        try:
            return self.caller_of(job)
        except CallerError as gone:
            if not is_begun(job):
                raise
            await self.cancel_keyless(job, gone)
            return Caller(job.card.key_id, "gone", tenant=job.tenant)

    async def cancel_keyless(self, job: Job, gone: CallerError) -> None:
        """Cancel a job whose key is gone."""
        if job.wish != "cancel":
            job.card.errors = [_error(gone)]
            job.wish = (await asyncio.to_thread(self.store.jobs.ask, job.id, "cancel", self.s.clock())).wish

    def folder(self, job: Job) -> Path:
        return self.store.run_dir.resolve() / PLANS / job.id

    async def planned(self, job: Job, caller: Caller, options: RunnerOptions) -> Plan:
        """The plan that was made before on this machine, or a new one. Raises BadJob, or CallerError."""
        folder = self.folder(job)
        if (folder / PLAN_FILE).exists():
            with suppress(BadJob):  # damaged, or of another release
                return await asyncio.to_thread(Plan.load, folder)
        async with kept(self.store.jobs, job, job.progress, options):
            return await asyncio.to_thread(self._plan, job, caller, folder)

    def _plan(self, job: Job, caller: Caller, folder: Path) -> Plan:
        card, server = job.card, self.s.config.server
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / "input.jsonl"
        try:
            self.store.files.find(card.input_file, job.files_of)
        except NotFound as gone:
            raise CallerError(f"the input file {card.input_file} was deleted", code="file_not_found") from gone
        with source.open("wb") as file:
            file.writelines(self.store.files.read(card.input_file))
        left_s = math.inf if card.deadline_s is None else max(1.0, card.deadline_s - self.s.clock())
        reading = ReadOptions(
            route=card.route, floor=card.floor, url=card.endpoint, max_messages=server.max_messages,
            max_body_bytes=server.max_body_bytes, file_tokens=self._file_tokens(source, job.tenant),
        )  # fmt: skip
        options = PlanOptions(
            reading=reading, budget_usd=card.budget_usd, deadline_s=left_s, skip_bad=card.skip_bad or is_begun(job),
            cascade=True, concurrency=card.concurrency, tenant=job.tenant, limits=caller.limits, kind="jsonl",
            metadata=card.metadata,
        )  # fmt: skip
        plan = plan_job(source, folder, options, open_context(self.s.config, self.s.book))
        source.unlink()
        card.total = len(plan.prompts) + len(plan.duplicates)
        card.errors = errors_of(plan.problems)
        job.progress = Progress(total=card.total)
        return plan

    def _file_tokens(self, source: Path, tenant: str) -> dict[str, int]:
        """Estimated tokens of the text files that the lines name, by id."""
        named = self.store.files.named(named_in(source), tenant).values()
        return {file.id: int(file.bytes / CHARS_PER_TOKEN) for file in named if file.mime_type.startswith("text/")}

    async def fail(self, job: Job, error: CallerError) -> None:
        """End a job that can't be run."""
        problems = error.problems if isinstance(error, BadJob) else ()
        job.card.errors = errors_of(problems)
        if not job.card.errors:
            job.card.errors = [_error(error)]
        with suppress(SQLAlchemyError):
            if job.origin == ANTHROPIC:
                await asyncio.to_thread(StoredFiles(self.s, self.folder(job)).refuse, job, problems, error)
            await asyncio.to_thread(self.store.jobs.end, job, "failed", job.progress, self.s.clock())
        await asyncio.to_thread(forget_plan, self.folder(job), self.store.run_dir)


def is_begun(job: Job) -> bool:
    """Whether some prompts may be answered and paid for, so that lines that have become bad since must not fail the
    job.
    """
    return "running" in job.card.times


def _error(error: CallerError) -> dict[str, Any]:
    """An error of the whole job, in the format of the API's `errors`."""
    return {"code": error.code, "message": error.message, "param": error.param, "line": None}


class StoredFiles:
    """Stores results as files: for OpenAI's API answers and errors as files of the tenant; for Anthropic's API one file
    that belongs to the batch.
    """

    def __init__(self, services: Services, folder: Path) -> None:
        self.s, self.folder = services, folder

    def write(self, job: Job, found: Iterable[Result]) -> None:
        if job.origin == ANTHROPIC:
            self._write_messages(job, found, left_out(job.id, "completed", "invalid_request", BAD_LINE))
            return
        out, errors = self.folder / "output.jsonl", self.folder / "errors.jsonl"
        answered, failed = results.write(found, out, errors)
        card = job.card
        card.output_file = self._keep(job, out, "output") if answered else ""
        card.error_file = self._keep(job, errors, "errors") if failed else ""

    def refuse(self, job: Job, problems: Iterable[Problem], error: CallerError) -> None:
        """Write the results of a message batch that can't be run: in that API only requests have errors, not batches.
        """
        found = (Result(one.line, one.custom_id, job.id, None, "failed", fault=one) for one in problems if one.line)
        self._write_messages(job, found, left_out(job.id, "failed", error.code or "", error.message))

    def _write_messages(self, job: Job, found: Iterable[Result], rest: Result) -> None:
        card, path, counts = job.card, self.folder / "results.jsonl", Counter[str]()
        lines = lines_of(self.s.batches.files.read(card.input_file))
        self.folder.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for result in each_once(found, lines, card.requests, rest):
                kind, line = result_line(result)
                counts[kind] += 1
                file.write(line)
        card.results = dict(counts)
        card.output_file = self._keep(job, path, "results", f"{job.id}_results", job.created_s + KEPT_S)

    def _keep(self, job: Job, path: Path, what: str, id: str = "", expires_s: float = 0.0) -> str:
        """Store the file under an id that follows from the job, so that a repetition replaces it. Returns the id."""
        now, name = self.s.clock(), f"{job.id}_{what}.jsonl"
        id = id or f"file-{job.id}-{what}"
        expires_s = expires_s or now + (job.card.output_expires_s or KEPT_S)
        with path.open("rb") as lines:
            self.s.batches.files.add(job.files_of, "batch_output", name, lines, now, id=id, expires_s=expires_s)
        path.unlink()
        return id
