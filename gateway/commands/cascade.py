"""`headgate cascade`: evaluates, trains and certifies cascades."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console

from gateway.commands.options import (
    DATABASE,
    ConfigPath,
    DataFolder,
    Json,
    Tasks,
    listed,
    open_journal,
    print_json,
    read_config,
    ship,
    writable,
)
from gateway.errors import CallerError
from gateway.progress_bar import progress_bar

if TYPE_CHECKING:
    from cascade.artifact import TrainedCascade
    from cascade.logs import Logged
    from cascade.rows import TrainingSettings
    from gateway.journal.store import Store

cascade = typer.Typer(help="Evaluate, train and certify cascades, and test what is certified.", no_args_is_help=True)

Depth = Annotated[int, typer.Option(min=1, max=3, help="Most answers that are checked before the last model.")]
Floor = Annotated[float, typer.Option(help="Share of the reference model's quality to promise, in (0, 1].")]
Sure = Annotated[float, typer.Option(help="Confidence of that promise, in (0, 1).")]
Estimator = Annotated[str, typer.Option(help="Router that predicts quality before any model is called.")]
Reference = Annotated[str, typer.Option(help="Reference model; default: the most expensive one.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands in `app`."""
    app.add_typer(cascade, name="cascade")


@cascade.command()
def evaluate(
    data: DataFolder,
    tasks: Tasks = "",
    splits: Annotated[int, typer.Option(min=1, help="Random 70/30 train/test splits to average over.")] = 8,
    depth: Depth = 1,
    router: Estimator = "ensemble",
    as_json: Json = False,
) -> None:
    """Compare a cascade's quality and cost with the best single model, at operating points chosen on training rows."""
    from cascade.evaluate import evaluate as evaluated

    logged = _read(data, tasks)
    with progress_bar("splits") as progress, _refusing():
        report = evaluated(logged, splits=splits, setting=_setting(depth, router), progress=progress)
    _print(report, as_json)


@cascade.command()
def train(
    data: DataFolder,
    out: Annotated[Path, typer.Option(help="File to write the trained cascade to.")] = Path("cascade.safetensors"),
    tasks: Tasks = "",
    depth: Depth = 1,
    router: Estimator = "ensemble",
    plan: Annotated[
        str,
        typer.Option(
            help="routing: any model may be next; frugal: a fixed chain with learned thresholds; verify: each model "
            "checks its own draft."
        ),
    ] = "routing",
    version: Annotated[str, typer.Option(help="Version to write into that file.")] = "1",
    as_json: Json = False,
) -> None:
    """Train a cascade on all rows whose split is not test."""
    from cascade.artifact import save_cascade
    from cascade.train import train_cascade

    writable(out)
    logged = _read(data, tasks)
    logged = logged.rows(logged.data.splits != "test")
    with progress_bar("training"), _refusing():
        trained = train_cascade(logged, _setting(depth, router), plan)
    save_cascade(out, trained, version=version, data_checksum=logged.data.checksum())
    report = {"out": str(out), "n_train": len(logged.answers), "models": list(logged.data.models), "plan": plan}
    _print({**report, "best_single_quality": trained.best_single, "points": _points(trained)}, as_json)


def _points(trained: TrainedCascade) -> list[dict[str, Any]]:
    """The cascade's operating points, with their cost and quality on the training rows."""
    from cascade.frugal import FrugalCascade
    from cascade.routing import RoutedCascade

    if isinstance(trained, RoutedCascade):
        return [{"cost_usd": float(cost_usd), "quality": float(quality)} for cost_usd, quality in trained.held_out]
    if isinstance(trained, FrugalCascade):
        names = trained.posterior.space.models
        return [
            {"cost_usd": c.cost_usd, "quality": c.quality, "models": [names[j] for j in c.models],
             "accept_at": list(c.accept_at)}
            for c in trained.chains
        ]  # fmt: skip
    return [
        {"cost_usd": p.cost_usd, "quality": p.quality, "draft": p.draft, "escalate": p.escalate} for p in trained.pairs
    ]


@cascade.command()
def certify(
    data: DataFolder,
    floor: Floor = 0.97,
    confidence: Sure = 0.95,
    horizon: Annotated[int, typer.Option(help="Requests whose mean is promised; 0: the long-run mean.")] = 0,
    reference: Reference = "",
    tasks: Tasks = "",
    depth: Depth = 1,
    router: Estimator = "ensemble",
    as_json: Json = False,
) -> None:
    """Train a cascade and certify a quality floor for it, or refuse. No row is judged by rules trained on it."""
    from cascade.calibrate import Certificate
    from cascade.guarantee import certified

    logged = _read(data, tasks)
    with progress_bar("certifying"), _refusing():
        result = certified(
            logged, floor, confidence, horizon=horizon or None, setting=_setting(depth, router), reference=reference,
            issued=datetime.now(UTC).date().isoformat(),
        )  # fmt: skip
    _print({"certified": isinstance(result, Certificate), **asdict(result)}, as_json)
    if not isinstance(result, Certificate):
        raise typer.Exit(1)


@cascade.command()
def guarantee(
    data: DataFolder,
    floors: Annotated[str, typer.Option(help="Floors to test, comma-separated.")] = "0.90,0.95,0.97",
    confidence: Sure = 0.95,
    splits: Annotated[int, typer.Option(min=1, help="Random calibration/test splits.")] = 200,
    trainings: Annotated[int, typer.Option(min=1, help="How often to train the rules, each time on other folds.")] = 2,
    calibrated: Annotated[float, typer.Option(min=0.1, max=0.95, help="Share of the rows to calibrate on.")] = 0.9,
    reference: Reference = "",
    long_run: Annotated[
        bool, typer.Option("--long-run", help="Certify the long-run mean, by a bound valid at any sample size.")
    ] = False,
    tasks: Tasks = "",
    depth: Depth = 1,
    router: Estimator = "ensemble",
    as_json: Json = False,
) -> None:
    """Count how often certified floors are broken over many random calibration/test splits, and what they cost."""
    from cascade.guarantee import guarantee as counted

    shares = [float(floor) for floor in floors.split(",")]
    with _refusing():
        report = counted(
            _read(data, tasks), floors=shares, confidence=confidence, splits=splits, trainings=trainings,
            setting=_setting(depth, router), realised=not long_run, calibrated=calibrated, reference=reference,
        )  # fmt: skip
    _print(report, as_json)


@cascade.command()
def tiny(
    queries: Annotated[int, typer.Option(min=60, help="Questions to measure on; as many more to learn from.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the questions.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure every strategy (cascade, voting, examples, refining, steps) on the two shipped models, over real HTTP."""
    import asyncio

    from gateway.tiny.climbs import measure

    _print(asyncio.run(measure(queries, seed=seed, console=Console(stderr=True))), as_json)


@cascade.command()
def floors(
    config: ConfigPath = None,
    step: Annotated[
        bool, typer.Option(help="First do one step of the control process: read the journal, certify, watch.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the quality floors of certified routes, their evidence, and whether they have held since."""
    from gateway.learn.promises import Promises, standings

    chosen = read_config(config, DATABASE)
    store = open_journal(chosen)
    if step:
        ship(chosen, store)
        Promises(chosen, store).step(time.time())
    by_route = {one["route"]: one for one in standings(chosen, store)}
    _print(by_route, as_json)
    if not by_route and not as_json:
        typer.echo('no route has a certified floor: none has cascade = "certified"')
    store.close()


@cascade.command()
def solved(
    route: Annotated[str, typer.Option(help="Route whose questions to take; it needs `store_text`.")],
    out: Annotated[Path, typer.Option(help="File to write, for a route's key `solved`.")] = Path("cases.jsonl"),
    config: ConfigPath = None,
    least: Annotated[float, typer.Option(min=0.0, max=1.0, help="Least feedback score of a right answer.")] = 0.9,
    as_json: Json = False,
) -> None:
    """Collect questions with answers scored right, to be shown to weaker models; report what that gained so far."""
    from gateway.learn.solved import solved_cases
    from routers.artifact import write_whole

    writable(out)
    chosen = read_config(config, DATABASE)
    store = open_journal(chosen)
    with progress_bar("reading the journal"):
        cases = solved_cases(store, route, least=least)
        gain = _gain_of_cases(store, route)
    store.close()
    write_whole(out, b"".join(msgspec.json.encode(case) + b"\n" for case in cases))
    _print({"out": str(out), "cases": len(cases), **gain}, as_json)


def _gain_of_cases(store: Store, route: str) -> dict[str, Any]:
    from gateway.learn.cases_worth import CasesWorth, scores_by_cases
    from gateway.learn.dataset import NothingLogged, read_log

    try:
        found = scores_by_cases(read_log(store.engine, route=route))
    except NothingLogged:
        found = CasesWorth()
    return {
        "scored_with_cases": found.shown_rounds,
        "scored_with_cases_withheld": found.withheld_rounds,
        "score_with_cases": found.shown,
        "score_with_cases_withheld": found.withheld,
        "score_gained_by_cases_so_far": found.gained.as_dict() if found.gained else None,
    }


def _setting(depth: int, router: str) -> TrainingSettings:
    from cascade.rows import TrainingSettings

    return TrainingSettings(router=router, depth=depth)


def _read(data: Path, tasks: str) -> Logged:
    from cascade.logs import read_logged

    with _refusing():
        return read_logged(data, listed(tasks))


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn a ValueError about data or arguments into CallerError, which ends the command with one line."""
    try:
        yield
    except ValueError as error:
        raise CallerError(str(error)) from error


def _print(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    for line in _lines(report):
        typer.echo(line)


def _lines(report: dict[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in report.items():
        if isinstance(value, dict) and set(value) == {"mean", "sd"}:
            yield f"{indent}{name:34s} {value['mean']:.4f} +- {value['sd']:.4f}"
        elif isinstance(value, dict) and set(value) == {"value", "low", "high"}:
            figure, low, high = (_number(value[part]) for part in ("value", "low", "high"))
            yield f"{indent}{name:34s} {figure} ({low} to {high})"
        elif isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name:34s} {'none' if value is None else value}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
