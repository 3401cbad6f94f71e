"""`headgate batch run`, `status`, `pause`, `resume`, `cancel`: runs batch jobs and controls them."""

from __future__ import annotations

import asyncio
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from gateway.commands.batch_options import (
    PROMPTS,
    Budget,
    Cascade,
    Deadline,
    MinQuality,
    Out,
    RouteName,
    Samples,
    SkipBad,
    Tenant,
    counts,
)
from gateway.commands.options import DATABASE, ConfigPath, Json, print_json, read_config
from gateway.errors import CallerError
from gateway.money.prices import dollars

if TYPE_CHECKING:
    from gateway.batch.command import RunOptions
    from gateway.batch.jobs import Job
    from gateway.batch.jobs import Progress as JobProgress

JobId = Annotated[str, typer.Argument(help="Id of the job (see `batch status`).")]


def add_to(group: typer.Typer) -> None:
    """Register these commands in `headgate batch`."""
    for command in (run, status, pause, resume, cancel):
        group.command()(command)


def run(
    prompts: Annotated[Path | None, PROMPTS] = None,
    config: ConfigPath = None,
    plan: Annotated[Path | None, typer.Option(help="Run this plan (see `batch plan`) instead of making one.")] = None,
    out: Out = None,
    errors: Annotated[Path | None, typer.Option(help="File for the errors; default: beside the answers.")] = None,
    budget: Budget = None,
    deadline: Deadline = None,
    route: RouteName = "auto",
    min_quality: MinQuality = 0.0,
    samples: Samples = "",
    cascade: Cascade = False,
    skip_bad: SkipBad = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Most calls at once, over all models.")] = 16,
    engine: Annotated[str, typer.Option(help="Where calls run: embedded (here) or ray (extra `ray`).")] = "embedded",
    workers: Annotated[int, typer.Option(min=1, help="Actors of the ray engine.")] = 2,
    tenant: Tenant = "default",
    json: Json = False,
) -> None:
    """Answer all prompts of a file within budget and deadline. After a crash, the same command continues the job."""
    from gateway.batch.command import RunOptions, run_job

    if (prompts is None) == (plan is None):
        raise CallerError("name a file of prompts, or a plan with --plan")
    if engine not in ("embedded", "ray"):
        raise CallerError(f"--engine must be embedded or ray, not {engine!r}")
    source = plan if prompts is None else prompts
    assert source is not None
    options = RunOptions(
        source=source, planned=plan is not None, out=out, errors_out=errors,
        budget_usd=budget, deadline_s=math.inf if deadline is None else deadline,
        route=route, floor=min_quality, samples=counts(samples), cascade=cascade,
        skip_bad=skip_bad, concurrency=concurrency, engine=engine, workers=workers, tenant=tenant,
    )  # fmt: skip
    started = time.monotonic()
    with problems_shown(Console(stderr=True), json):
        job = asyncio.run(_run_with_progress(read_config(config), options, run_job, json))
    _report(job, time.monotonic() - started, json)
    succeeded = job.state == "completed" and not job.progress.failed
    raise typer.Exit(0 if succeeded else 1)


@contextmanager
def problems_shown(console: Console, json: bool) -> Iterator[None]:
    """Report an input that can't be planned, with its faulty lines, and exit with status 2; nothing was spent."""
    from gateway.batch.plan_report import impossible_json, problems_json, show_problems
    from gateway.batch.types import BadJob, Impossible

    try:
        yield
    except BadJob as bad:
        if json:
            print_json(problems_json(bad.message, bad.problems))
        else:
            console.print(bad.message, style="red", markup=False, highlight=False, soft_wrap=True)
            show_problems(bad.problems if len(bad.problems) > 1 else (), console)
        raise typer.Exit(2) from None
    except Impossible as impossible:
        if not json:
            raise
        print_json(impossible_json(impossible))
        raise typer.Exit(2) from None


async def _run_with_progress(config: Any, options: RunOptions, run_job: Callable[..., Any], json: bool) -> Job:
    """Run a job with a progress bar on a terminal. SIGINT and SIGTERM stop it, so that it can be continued later."""
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[detail]}"),
        console=Console(file=sys.stderr), disable=json or not sys.stderr.isatty(),
    )  # fmt: skip
    with bar:
        task = bar.add_task("planning", total=None, detail="")
        job: Job = await run_job(config, options, stop, lambda now: _advance(bar, task, now))
    return job


def _advance(bar: Progress, task: TaskID, now: JobProgress) -> None:
    completed = now.done + now.failed
    eta = "" if now.eta_s is None else f", {_span(now.eta_s)} left"
    failed = f", {now.failed} failed" if now.failed else ""
    detail = f"${now.spent_nanousd / 1e9:.4f} of about ${now.expected_nanousd / 1e9:.4f}{failed}{eta}"
    if now.warning:
        detail += f"  [yellow]{now.warning}[/]"
    bar.update(task, description="answering", total=now.total, completed=completed, detail=detail)


def _report(job: Job, took_s: float, json: bool) -> None:
    if json:
        print_json({**_view(job), "bad_lines": job.card.errors, "seconds": took_s})
        return
    now = job.progress
    typer.echo(f"{job.id} is {job.state}: {now.done} of {now.total} answered, {now.failed} failed, "
               f"${now.spent_nanousd / 1e9:.6f} spent in {_span(took_s)}")
    if bad := job.card.errors:
        first = f"line {bad[0]['line']}: {bad[0]['message']}"
        typer.secho(f"{len(bad)} bad line(s), see the errors; the first: {first}", fg="yellow")
    if job.state in ("completed", "expired", "cancelled"):
        typer.echo(f"answers: {job.card.out}\nerrors:  {job.card.errors_out}")
    else:
        typer.echo("run the same command again to continue")
    if now.warning:
        typer.secho(now.warning, fg="yellow")


def status(
    job: Annotated[str, typer.Argument(help="Only this job; default: the latest ones.")] = "",
    config: ConfigPath = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs to list.")] = 20,
    json: Json = False,
) -> None:
    """Show the progress and cost of batch jobs."""
    jobs = _jobs(config)
    found = [jobs.find(job)] if job else jobs.page(limit=limit)
    if json:
        views = [_view(one) for one in found]
        print_json(views[0] if job else views)
        return
    for one in found:
        now, budget = one.progress, one.card.budget_usd
        most = "" if budget is None else f" of {dollars(budget)}"
        left = f", {_span(now.eta_s)} left" if one.state == "running" and now.eta_s is not None else ""
        lines = f"{now.done}/{now.total or one.card.total} answered, {now.failed} failed"
        money = f"${now.spent_nanousd / 1e9:.6f}{most}"
        typer.echo(f"{one.id}  {one.state:<10}  {lines}, {money}{left}  {one.card.source}")
        if now.warning:
            typer.secho(f"  {now.warning}", fg="yellow")
    if not found:
        typer.echo("there is no batch job")


def pause(job: JobId, config: ConfigPath = None) -> None:
    """Start no more calls of a job; those under way are finished."""
    _ask(config, job, "pause")


def resume(job: JobId, config: ConfigPath = None) -> None:
    """Continue a paused job."""
    _ask(config, job, "")


def cancel(job: JobId, config: ConfigPath = None) -> None:
    """End a job, keeping the answers it has."""
    _ask(config, job, "cancel")


def _ask(config: Path | None, job: str, wish: Literal["", "pause", "cancel"]) -> None:
    jobs = _jobs(config)
    found = jobs.ask(job, wish, time.time())
    effect = "its runner will follow within seconds"
    if found.origin == "command" and not jobs.is_held(found, time.time()):
        effect = "it is not running now, so this takes effect when the same `batch run` is started again"
    typer.echo(f"{found.id}: {wish or 'resume'} requested; {effect}")


def _jobs(config: Path | None) -> Any:
    from gateway.batch.runtime import open_jobs

    return open_jobs(read_config(config, DATABASE))


def _view(job: Job) -> dict[str, Any]:
    """A job in the shape of `--json` and the admin API."""
    from gateway.batch.view import job_view

    return job_view(job)


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
