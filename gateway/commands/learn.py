"""`headgate train`, `evaluate`, `probe` and `keep`: training routers on outcome data, and evaluating them."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands.options import DataFolder, Json, Tasks, drawable, listed, read_config, writable
from gateway.learn import evaluation
from gateway.progress_bar import progress_bar
from routers.artifact import Card
from routers.features import Featurizer, shipped_featurizer
from routers.fit import described, fit_router
from routers.outcomes import read_outcomes
from routers.parallel import ParallelMap, serial_map
from routers.registry import save_router

_SHOWN = (
    "aiq", "max_quality", "quality_at_10", "quality_at_50",
    "cost_saved_100", "cost_saved_99", "cost_saved_95", "apgr", "cpt50", "cpt80",
)  # fmt: skip

Embedding = Annotated[
    Path | None, typer.Option(help="Configuration whose `embedding` section names the embedder; default: shipped one.")
]
Engine = Annotated[str, typer.Option(help="Where folds and resamples run: embedded (here) or ray (extra `ray`).")]
Workers = Annotated[int, typer.Option(min=1, help="Workers, where the ray engine starts its own cluster.")]


def add_to(app: typer.Typer) -> None:
    """Register these commands in `app`."""
    for command in (train, evaluate, probe, keep):
        app.command()(command)


def _featurizer(config: Path | None) -> Featurizer:
    """The featurizer with the embedder that the configuration's [embedding] names, or the shipped one."""
    if config is None:
        return shipped_featurizer()
    from gateway.embedders import open_embedder

    return open_embedder(read_config(config, ["embedding.api_key"]).embedding) or shipped_featurizer()


def _parallel_map(engine: str, workers: int) -> ParallelMap:
    """The engine that runs independent tasks. Raises ValueError where there is no such engine."""
    if engine == "embedded":
        return serial_map
    if engine != "ray":
        raise ValueError(f"--engine must be embedded or ray, not {engine!r}")
    from gateway.learn.on_ray import on_ray

    return on_ray(workers)


def _refuse(error: Exception) -> typer.Exit:
    """Print an error as one line on standard error; the exit (status 2) to raise."""
    typer.echo(f"headgate: {error}", err=True)
    return typer.Exit(2)


def evaluate(
    data: DataFolder,
    router: Annotated[str, typer.Option(help="Name of a learned router, or a trained router's file.")] = "default",
    train_data: Annotated[Path | None, typer.Option(help="Train on this folder and test on all of --data.")] = None,
    models: Annotated[str, typer.Option(help="Only these, comma-separated; default: all well covered ones.")] = "",
    tasks: Tasks = "",
    train_rows: Annotated[int, typer.Option(min=0, help="Training rows to use, drawn at random; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sample, the fit and the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=0, help="Bootstrap resamples behind each interval.")] = 400,
    beside: Annotated[str, typer.Option(help="Routers to compare it with, such as knn,linear,factor.")] = "",
    embedding: Embedding = None,
    engine: Engine = "embedded",
    workers: Workers = 2,
    costs: Annotated[str, typer.Option(help="Each model's cost per call in place of the data's: NAME=COST,...")] = "",
    trained_on: Annotated[
        str, typer.Option(help="Learn from these models' scores instead of those of --models: best for best.")
    ] = "",
    cascade: Annotated[str, typer.Option(help="Evaluate a cascade instead; the only one is: routing.")] = "",
    plot: Annotated[Path | None, typer.Option(help="Draw the cost-quality frontiers into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a router on test data, beside the zero router, the task mean, the best single model and the oracle."""
    if plot is not None:
        drawable(plot)
    try:
        with progress_bar("evaluating"):
            if cascade and costs:
                raise ValueError("--costs can't be combined with --cascade, whose costs are those of the data")
            if cascade and trained_on:
                raise ValueError("--trained-on can't be combined with --cascade, which reads its models' own answers")
            if cascade:
                from gateway.learn import cascaded

                report, policies, bench = cascaded.evaluated(
                    cascade, data, tasks=listed(tasks), router=router, seed=seed, resamples=resamples,
                    parallel_map=_parallel_map(engine, workers),
                )  # fmt: skip
            else:
                report, policies, bench = evaluation.evaluated(
                    router, data, train_data=train_data, models=listed(models), tasks=listed(tasks),
                    limit=train_rows, seed=seed, resamples=resamples, featurizer=_featurizer(embedding),
                    parallel_map=_parallel_map(engine, workers), beside=listed(beside),
                    costs=_per_model("--costs", costs, "COST"), stand_ins=listed(trained_on),
                )  # fmt: skip
    except ValueError as error:
        raise _refuse(error) from error
    typer.echo(json.dumps(report) if as_json else as_table(report))
    if plot is not None:
        evaluation.draw(report, policies, bench, plot)


def train(
    data: DataFolder,
    router: Annotated[str, typer.Option(help="Name of a learned router.")] = "default",
    out: Annotated[Path, typer.Option(help="File to write the trained router to.")] = Path("router.safetensors"),
    version: Annotated[str, typer.Option(help="Version to write into that file.")] = "1",
    seed: Annotated[int, typer.Option(help="Seed of the fit.")] = 0,
    embedding: Embedding = None,
    engine: Engine = "embedded",
    workers: Workers = 2,
    as_json: Json = False,
) -> None:
    """Train a router on all rows whose split is not test, and write it to a file with its cross-validated scores."""
    writable(out)
    featurizer = _featurizer(embedding)
    try:
        outcomes = evaluation.to_train_on(read_outcomes(data))
        with progress_bar("training"):
            x = described(outcomes, featurizer)
            learned = fit_router(router, outcomes, x, featurizer, version=version, seed=seed)
            metrics = evaluation.cross_validated(
                router, outcomes, x, featurizer.layout, learned.learned, _parallel_map(engine, workers)
            )
    except ValueError as error:
        raise _refuse(error) from error
    card = Card(
        router, version, featurizer.version, outcomes.models,
        data_checksum=outcomes.checksum(), trained_on=(data.name,), metrics=metrics,
    )  # fmt: skip
    save_router(out, learned, card)
    found = {"out": str(out), "n_train": len(x), "models": list(outcomes.models), "metrics": metrics}
    typer.echo(json.dumps(found) if as_json else _trained(found))


def _trained(found: dict[str, Any]) -> str:
    known = {name.replace("_", " "): value for name, value in found["metrics"].items() if value is not None}
    scores = ", ".join(f"{name} {value:.4g}" for name, value in known.items())
    return "\n".join(
        (
            f"{found['out']}: from {found['n_train']:,} queries, for {', '.join(found['models'])}",
            f"cross-validated: {scores}",
            f"serve it with: headgate promote ROUTE {found['out']}",
        )
    )


def probe(
    data: DataFolder,
    models: Annotated[str, typer.Option(help="Models to compare, new ones too; default: the data's.")] = "",
    outcomes: Annotated[int, typer.Option(min=1, help="Most outcomes to buy.")] = 100,
    out: Annotated[Path | None, typer.Option(help="Write them to this CSV file as query_id,model.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of the queries.")] = 0,
    as_json: Json = False,
) -> None:
    """Select which queries to send to which models next, so that few outcomes are enough to find the best model."""
    from gateway.learn.probes import plan_of

    try:
        with progress_bar("planning"):
            plan = plan_of(data, listed(models), outcomes, seed)
    except ValueError as error:
        raise _refuse(error) from error
    if out is not None:
        plan.write(out)
    found = plan.as_dict()
    typer.echo(json.dumps(found) if as_json else _planned(found))


def _planned(found: dict[str, Any]) -> str:
    lines = [
        f"{name:40s} {one['asked']:7d} asked  "
        + (f"{one['mean']:.3f} +- {2 * one['error']:.3f}" if one["asked"] else "      unknown")
        + (f"   buy {one['buy']}" if one["buy"] else "")
        for name, one in found["models"].items()
    ]
    certainty = "significantly better than all others" if found["settled"] else "not significantly better yet"
    return "\n".join([*lines, f"best so far: {found['leader']}, {certainty}; {found['outcomes']} outcomes to buy"])


def keep(
    data: DataFolder,
    most: Annotated[int, typer.Option(min=1, help="Most models loaded at once.")] = 4,
    mean_cost_usd: Annotated[float | None, typer.Option(help="Most dollars per query, on average.")] = None,
    mean_latency_s: Annotated[float | None, typer.Option(help="Most seconds per query, on average.")] = None,
    sizes: Annotated[str, typer.Option(help="Memory that each model needs: NAME=GB,NAME=GB,...")] = "",
    memory_gb: Annotated[float, typer.Option(help="Memory for all loaded models together.")] = inf,
    router: Annotated[str, typer.Option(help="Name of the estimator that predicts each model's quality.")] = "linear",
    as_json: Json = False,
) -> None:
    """Select the models to keep loaded where memory is limited, and show what each set loses against all models."""
    from gateway.learn.keeping import SubsetLimits, as_dicts, subsets_of
    from gateway.learn.keeping import as_table as subsets_table

    means = {"cost_usd": mean_cost_usd, "latency_s": mean_latency_s}
    try:
        stated = {name: mean for name, mean in means.items() if mean is not None}
        limits = SubsetLimits(most, stated, _per_model("--sizes", sizes, "GB"), memory_gb)
        with progress_bar("choosing"):
            found = subsets_of(data, router, limits)
    except ValueError as error:
        raise _refuse(error) from error
    typer.echo(json.dumps(as_dicts(found)) if as_json else subsets_table(found))


def _per_model(option: str, text: str, unit: str) -> dict[str, float]:
    """Parse NAME=NUMBER pairs, separated by commas. Raises ValueError for anything else, or a number below 0."""
    found = {}
    for one in listed(text):
        name, _, number = one.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            raise ValueError(f"{option}: {one!r} is not NAME={unit}") from None
        if not 0.0 <= found[name] < inf:
            raise ValueError(f"{option}: the number in {one!r} must be finite and at least 0")
    return found


def as_table(report: dict[str, Any]) -> str:
    """The report as text: one line per figure, one column per policy."""
    known = ("cascade", "router", "task_mean", "zero_router", "best_single", "oracle")
    others = [name.removeprefix("router_minus_") for name in report if name.startswith("router_minus_")]
    policies = [name for name in dict.fromkeys((*known, *others)) if name in report]
    lines = [
        f"{report['n_queries']} test queries, {report['n_train']} training queries, "
        f"{len(report['models'])} models; best single: {report['best_single_model']}",
        f"{'':16s}" + "".join(f"{name:>26s}" for name in policies),
    ]
    lines += [
        f"{figure:16s}" + "".join(f"{_cell(report[name].get(figure)):>26s}" for name in policies)
        for figure in _SHOWN
        if figure in report["router"]
    ]
    point = report["operating_point"]
    lines += [
        *(f"{name.replace('_', ' ')}, AIQ: {_cell(report[name]['aiq'])}" for name in report if "_minus_" in name),
        "operating point fixed on training rows, against the best single model: quality "
        f"{_cell(point['quality_difference'])}, cost ratio {_cell(point['cost_ratio'])}, "
        f"mean cost {_cell(point['mean_cost'], '.4g')}, "
        f"kept with a cheaper one {_cell(point['kept_cheaper'])}",
        *_left_out(report["left_out"]),
    ]
    return "\n".join(lines)


def _left_out(left_out: dict[str, Any]) -> list[str]:
    """Lines on the data that the comparison leaves out, and on test queries that were also trained on; maybe none."""
    models, queries, repeated, recurring = (left_out.get(x) for x in ("models", "queries", "repeated", "recurring"))
    parts = [
        f"{repeated} training queries that are test queries too" if repeated else "",
        f"{queries} queries that not every model was scored on" if queries else "",
        f"models with too few scores or costs: {', '.join(models)}" if models else "",
    ]
    lines = [f"left out: {'; '.join(part for part in parts if part)}"] if any(parts) else []
    if recurring:
        lines.append(f"{recurring} training queries are test queries too, so the figures are for recurring queries")
    return lines


def _cell(figure: dict[str, float | None] | None, form: str = ".4f") -> str:
    if figure is None or figure["value"] is None:
        return "-"
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:{form}}"
    return f"{figure['value']:{form}} [{figure['low']:{form}}, {figure['high']:{form}}]"
