"""`headgate batch plan`: plans a batch job, and shows its cost and quality before it is run."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands.batch_options import (
    PROMPTS,
    Budget,
    Cascade,
    Deadline,
    MinQuality,
    RouteName,
    Samples,
    SkipBad,
    counts,
    dollars,
)
from gateway.commands.options import ConfigPath, Json, drawable, print_json, read_config
from gateway.config.types import Config
from gateway.errors import CallerError

batch = typer.Typer(name="batch", help="Jobs of many prompts, planned before any money is spent.", no_args_is_help=True)

_UNPLANNED = (
    "no escalation is in this plan: either none gains anything, or the route has no cascade that this version trained "
    "for routing; `batch run --cascade` may still send poorly answered prompts to a better model, within the budget"
)
_PARALLEL_BYTES = 8 << 20
"""An input smaller than this is read faster by one process."""


def add_to(app: typer.Typer) -> None:
    """Register these commands in `app`."""
    from gateway.commands import batch_run

    batch_run.add_to(batch)
    app.add_typer(batch)


@batch.command("plan")
def plan(
    prompts: Annotated[Path, PROMPTS],
    budget: Budget = None,
    deadline: Deadline = None,
    route: RouteName = "auto",
    config: ConfigPath = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the plan; default: the input's name with .plan.")] = None,
    skip_bad: SkipBad = False,
    min_quality: MinQuality = 0.0,
    ignore_models: Annotated[bool, typer.Option(help="Send lines that name a model to the route too.")] = False,
    dedupe: Annotated[str, typer.Option(help="Share answers: route (as its cache allows), exact, none.")] = "route",
    samples: Samples = "",
    cascade: Cascade = False,
    concurrency: Annotated[int, typer.Option(help="Most calls at once to plan for; 0: any number.", min=0)] = 0,
    pilot: Annotated[int, typer.Option(help="Prompts to send to every model first. This costs money.", min=0)] = 0,
    pilot_budget: Annotated[
        float | None,
        typer.Option(parser=dollars, metavar="USD", help="Most dollars for that pilot; default: 2 % of the budget."),
    ] = None,
    pilot_check: Annotated[str, typer.Option(help="Command that exits 0 if the answer it reads is right.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw the cost-quality frontier into this file.")] = None,
    processes: Annotated[int, typer.Option(help="Processes that read the input; 0: one per core.", min=0)] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Pay for the pilot without asking first.")] = False,
    json: Json = False,
) -> None:
    """Plan which model answers each prompt, within budget and deadline, and show what that costs and is worth."""
    from rich.console import Console

    from gateway.batch.plan import PlanOptions, plan_job
    from gateway.batch.plan_report import as_json, draw, show
    from gateway.batch.read import ReadOptions
    from gateway.commands.batch_run import problems_shown

    if plot is not None:
        drawable(plot)
    chosen = read_config(config)
    console = Console(stderr=json)
    folder = out or Path(f"{prompts.stem}.plan")
    options = PlanOptions(
        ReadOptions(route, min_quality, ignore_models, "", chosen.server.max_messages, chosen.server.max_body_bytes),
        budget,
        math.inf if deadline is None else deadline,
        skip_bad,
        _mode(dedupe),
        counts(samples),
        cascade,
        concurrency,
        processes or _processes(prompts),
    )
    pilot_run = _pilot(chosen, options.budget_usd, pilot, pilot_budget, pilot_check, yes or json)
    with problems_shown(Console(stderr=True), json), _progress(prompts, console) as on_progress, _clean_stdout(json):
        made = plan_job(prompts, folder, options, context_of(chosen), pilot=pilot_run, on_progress=on_progress)
    if plot is not None:
        draw(made, plot)
    if json:
        print_json(as_json(made, folder))
    else:
        show(made, folder, console)
        if cascade and all(arm.rule < 0 for arm in made.estimates.arms):
            console.print(_UNPLANNED, style="yellow", highlight=False)


def context_of(config: Config) -> Any:
    """The routes of the configuration, with the routers that serve them now."""
    from gateway.app import open_book
    from gateway.batch.context import open_context
    from gateway.config.settings import read_settings

    return open_context(config, open_book(config, read_settings(config.server.run_dir)))


def _mode(text: str) -> Any:
    if text not in ("route", "exact", "none"):
        raise typer.BadParameter(f"--dedupe must be route, exact or none, not {text!r}")
    return text


def _processes(path: Path) -> int:
    if not path.is_file() or path.stat().st_size < _PARALLEL_BYTES:
        return 1
    return os.cpu_count() or 1


@contextmanager
def _progress(path: Path, console: Any) -> Iterator[Any]:
    """A progress bar over the bytes of the input, shown on a terminal only. Yields its callback (lines, bytes)."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    size = path.stat().st_size if path.is_file() else 0
    bar = Progress(
        TextColumn("reading"), BarColumn(), TextColumn("{task.fields[lines]:,} lines"), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("reading", total=size or None, lines=0)
        lines = 0

        def on_progress(count: int, read: int) -> None:
            nonlocal lines
            lines += count
            bar.update(task, advance=read, lines=lines)

        yield on_progress


@contextmanager
def _clean_stdout(wanted: bool) -> Iterator[None]:
    """Send what the solver's library prints to standard error, so that it can't mix with JSON on standard output."""
    if not wanted:
        yield
        return
    libc = ctypes.CDLL(None)
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        libc.fflush(None)
        os.dup2(stdout, 1)
        os.close(stdout)


def _pilot(
    config: Config, budget_usd: float | None, prompts: int, limit_usd: float | None, check: str, agreed: bool
) -> Any:
    """The pilot to run before planning; None without one. Asks for confirmation unless `agreed`. Raises CallerError."""
    if not prompts:
        return None
    from gateway.batch.pilot import PILOT_SHARE, Sample, pilot_of

    if limit_usd is None and budget_usd is not None:
        limit_usd = PILOT_SHARE * budget_usd
    if limit_usd is None:
        raise CallerError("a pilot without --budget needs --pilot-budget", param="pilot-budget")
    if not agreed:
        typer.confirm(f"The pilot may spend up to ${limit_usd:,.4g}. Go on?", abort=True)
    return pilot_of(config, Sample(prompts, limit_usd, check))
