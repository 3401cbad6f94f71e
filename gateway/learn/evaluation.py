"""The report of `headgate evaluate`: a router on a folder of outcomes, beside its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.config.check import is_path
from routers import evaluate, frontier, prior
from routers.cores import one_core
from routers.estimators.base import Matrix, Rows, observed_mean
from routers.estimators.general import General
from routers.estimators.task_mean import TaskMean
from routers.evaluate import Bench, PolicyFamily
from routers.features import Featurizer, Layout, shipped_featurizer
from routers.fit import described, fit_learned, out_of_fold, predicted
from routers.outcomes import DataError, Outcomes, read_outcomes
from routers.parallel import ParallelMap, serial_map
from routers.plugin import Learned
from routers.registry import estimator_named, load_router
from routers.types import Candidate

_STYLES = {"task_mean": "--", "zero_router": ":", "oracle": "-."}

STATED = "as stated per call"
"""The report's `cost` where costs were given by the caller and not by the data."""
UNITS = {"cost_usd": "dollars", STATED: "stated cost"}

COVERED = 0.95
"""A model must have been scored (and priced, where the data has prices) on this share of the queries."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The parts of the data that the comparison leaves out."""

    models: tuple[str, ...] = ()
    """Scored, or priced, on too few queries."""
    queries: int = 0
    """Queries not scored, or not priced, on every remaining model."""
    repeated: int = 0
    """Training queries left out because a test query has the same text."""
    recurring: int = 0
    """Training queries with the text of a test query that were kept, because most training queries are such."""


@dataclass(frozen=True, slots=True)
class TrainTestSplit:
    """Training and test rows of one comparison, with their feature vectors."""

    train: Outcomes
    test: Outcomes
    train_x: Rows
    test_x: Rows
    priced: bool
    left_out: LeftOut = LeftOut()


def rows_of(
    data: Path, train_data: Path | None, models: Sequence[str], featurizer: Featurizer, tasks: Sequence[str] = (),
    costs: Mapping[str, float] | None = None, stand_ins: Sequence[str] = (),
) -> TrainTestSplit:  # fmt: skip
    """Read the data and split it. With `train_data`, all its rows are for training and all rows of `data` for testing.
    `costs`: cost of a call of a model, which replaces the data's. `stand_ins`: models whose scores are learnt in place
    of those of `models`. Raises DataError where either side is empty or fewer than two models are covered.
    """
    whole = _stated(read_outcomes(data), costs)
    if train_data is None and not ((whole.splits == "test").any() and (whole.splits == "train").any()):
        raise DataError("queries.parquet: field split: needs rows of train and of test")
    whole = _of_tasks(whole, tasks)
    known = _complete(whole, [*models, *stand_ins])
    if train_data is None:
        held = known.splits == "test"
        trained, tested = known.rows(~held), known.rows(held)
        incomplete = len(whole.texts) - len(known.texts)
    else:
        others = _stated(read_outcomes(train_data), costs)
        trained, tested = _complete(others, known.models), known
        incomplete = len(whole.texts) + len(others.texts) - len(known.texts) - len(trained.texts)
    for part, name in ((trained, "train"), (tested, "test")):
        if not part.texts:
            raise DataError(f"queries.parquet: field split: no row of {name} was scored on every model")
    if stand_ins:
        trained, tested = _stood_in(trained, models, stand_ins), tested.columns(models)
    kept = fresh(trained, tested)
    trained = trained.rows(kept)
    priced = bool(np.isfinite(tested.cost_usd).all() and np.isfinite(trained.cost_usd).all())
    absent = () if models else tuple(sorted(set(whole.models) - set(known.models)))
    left_out = LeftOut(absent, incomplete, int((~kept).sum()), int(repeating(trained, tested).sum()))
    return TrainTestSplit(
        trained, tested, described(trained, featurizer), described(tested, featurizer), priced, left_out
    )


def _stood_in(data: Outcomes, models: Sequence[str], stand_ins: Sequence[str]) -> Outcomes:
    """The data in which each model has the scores of the stand-in of the same rank by mean score. Raises DataError
    where the numbers of models differ or a model is its own stand-in.
    """
    if len(stand_ins) != len(models) or set(stand_ins) & set(models):
        raise DataError(f"--trained-on {','.join(stand_ins)}: as many models as --models names, and none of those")
    own, others = data.columns(models), data.columns(stand_ins)
    scores = np.empty_like(own.scores)
    scores[:, own.scores.mean(0).argsort()] = others.scores[:, others.scores.mean(0).argsort()]
    return replace(own, scores=scores)


def _stated(data: Outcomes, costs: Mapping[str, float] | None) -> Outcomes:
    """The data with the given costs. Raises DataError where the data doesn't have one of the models."""
    if not costs:
        return data
    data.columns(list(costs))
    cost_usd = data.cost_usd.copy()
    for model, cost in costs.items():
        cost_usd[:, data.models.index(model)] = cost
    return replace(data, cost_usd=cost_usd)


def to_train_on(data: Outcomes) -> Outcomes:
    """The rows whose split is not test, without those that repeat a test query. Raises DataError where there are none.
    """
    held = data.splits == "test"
    if held.all():
        raise DataError("queries.parquet: field split: every row is test, none is left to train on")
    trained = data.rows(~held)
    return trained.rows(fresh(trained, data.rows(held)))


def fresh(trained: Outcomes, tested: Outcomes) -> NDArray[np.bool_]:
    """Training rows that repeat no test query; all rows where most of them do, because then queries recur in practice.
    """
    kept = ~repeating(trained, tested)
    return kept if 2 * kept.sum() >= len(kept) else np.ones(len(kept), bool)


def repeating(trained: Outcomes, tested: Outcomes) -> NDArray[np.bool_]:
    """Training rows with the same text as a test row, apart from case and spaces."""
    asked = {_plain(text) for text in tested.texts} - {""}
    return np.array([_plain(text) in asked for text in trained.texts], bool)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _of_tasks(data: Outcomes, tasks: Sequence[str]) -> Outcomes:
    if not tasks:
        return data
    kept = np.array([task in tasks or task.split("/")[0] in tasks for task in data.tasks])
    if not kept.any():
        raise DataError(f"queries.parquet: field task: no row of {', '.join(tasks)}")
    return data.rows(kept)


def _complete(data: Outcomes, models: Sequence[str]) -> Outcomes:
    """The data of the named models (or the well covered ones), on rows where each of them was scored and priced."""
    log = len(data.models) > 1 and bool((np.isfinite(data.scores).sum(1) <= 1).all())
    if models:
        data = data.columns(models)
    seen = np.isfinite(data.scores)
    priced = np.isfinite(data.cost_usd)
    if priced.mean(0).max() >= COVERED:
        seen = seen & priced
    if not models:
        data = data.columns([m for m, share in zip(data.models, seen.mean(0), strict=True) if share >= COVERED])
        seen = seen[:, seen.mean(0) >= COVERED]
    if len(data.models) < 2:
        hint = "; a log of one answer a query is valued by `headgate whatif --data DIR --router FILE`" if log else ""
        raise DataError(f"outcomes.parquet: {len(data.models)} model(s) scored on {COVERED:.0%} of the queries{hint}")
    if not seen.all(1).any():
        raise DataError("outcomes.parquet: no query was scored on every model")
    return data.rows(np.asarray(seen.all(1)))


def evaluated(
    router: str, data: Path, *, train_data: Path | None = None, models: Sequence[str] = (),
    tasks: Sequence[str] = (), limit: int = 0, seed: int = 0, resamples: int = evaluate.RESAMPLES,
    featurizer: Featurizer | None = None, parallel_map: ParallelMap = serial_map, beside: Sequence[str] = (),
    costs: Mapping[str, float] | None = None, stand_ins: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, PolicyFamily], Bench]:  # fmt: skip
    """The report, and the policies and bench for a plot. `limit` keeps that many training rows, at random;
    `parallel_map` runs folds and resamples; `beside`: other routers, trained on the same rows and compared with it;
    `costs`: of a call of each model, in any one unit; `stand_ins`: learnt from in the place of `models`.
    """
    featurizer = featurizer or shipped_featurizer()
    artifact = _artifact(router)
    for other in beside:
        estimator_named(other)  # raises before the work begins
    rows = limited(rows_of(data, train_data, models, featurizer, tasks, costs, stand_ins), limit, seed)
    learned, unseen = _learned(artifact, router, rows, featurizer.layout, seed, parallel_map)
    bench, train_bench = _bench(rows, rows.test), _bench(rows, rows.train)
    rates = evaluate.rates_for(train_bench.costs)
    quality, cost = _predicted(learned, router, rows)
    policies = {
        "router": _swept(rows, quality, cost, bench, rates),
        "task_mean": _task_mean(rows, bench),
        "zero_router": evaluate.singles(bench),
        "best_single": evaluate.best_single(bench),
        "oracle": evaluate.oracle(bench),
    }
    for other in dict.fromkeys(beside):
        its = fit_learned(estimator_named(other), rows.train, rows.train_x, featurizer.layout, seed)
        policies[other] = _swept(rows, *_predicted(its, other, rows), bench, rates)
    chosen = evaluate.rate_matching(_swept(rows, *unseen, train_bench, rates), train_bench)
    report = _report(rows, policies, bench, seed, resamples, parallel_map) | {
        "operating_point": evaluate.operating_point(policies["router"], chosen, bench, seed, resamples)
        | {"rate": float(rates[chosen])},
        "calibration": evaluate.calibration(quality, bench.scores),
        "router_name": router,
        **({"cost": STATED} if costs else {}),
    }
    return report, policies, bench


def limited(rows: TrainTestSplit, limit: int, seed: int) -> TrainTestSplit:
    """At most `limit` training rows, at random; 0: all."""
    n = len(rows.train_x)
    if not 0 < limit < n:
        return rows
    kept = np.sort(np.random.default_rng(seed).permutation(n)[:limit])
    return replace(rows, train=rows.train.rows(kept), train_x=rows.train_x[kept])


def _artifact(router: str) -> Learned | None:
    """The predictors of the artefact at that path; None where it is the name of a router to train. Raises ValueError
    where it is neither.
    """
    try:
        estimator_named(router)
    except ValueError:
        if is_path(router) or Path(router).is_file():
            return load_router(Path(router)).learned
        raise
    return None


def _learned(
    artifact: Learned | None, router: str, rows: TrainTestSplit, layout: Layout, seed: int, parallel_map: ParallelMap
) -> tuple[Learned, tuple[Matrix, Matrix]]:
    """An artefact's predictors, else the named estimator fitted on the training rows; and quality and cost of those
    rows, out of fold where they were fitted on.
    """
    if artifact is not None:
        return artifact, _known(artifact, rows.train, rows.train_x)
    name = "decided" if router == "default" else router
    learned = fit_learned(estimator_named(name), rows.train, rows.train_x, layout, seed)
    return learned, out_of_fold(
        name, rows.train, rows.train_x, layout, seed=seed, parallel_map=parallel_map, like=learned.quality
    )


def _predicted(learned: Learned, name: str, rows: TrainTestSplit) -> tuple[Matrix, Matrix]:
    """Quality and cost on the test rows."""
    return _known(learned, rows.test, rows.test_x, rows.test.tasks if name == "task-mean" else None)


def _bench(rows: TrainTestSplit, part: Outcomes) -> Bench:
    """The bench of some rows. Without prices, a call of the best single model costs 1 and any other 0, as in RouteLLM.
    """
    best = int(rows.train.scores.mean(0).argmax())
    costs = part.cost_usd
    if not rows.priced:
        costs = np.zeros_like(part.scores)
        costs[:, best] = 1.0
    return Bench(part.scores, costs, best)


def _swept(
    rows: TrainTestSplit, quality: Matrix, cost: Matrix, bench: Bench, rates: NDArray[np.float64]
) -> PolicyFamily:
    return evaluate.swept(quality, cost if rows.priced else bench.costs, bench, rates)


def _known(learned: Learned, data: Outcomes, x: Rows, labels: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
    """Predictions in the data's order of models. Raises DataError where the router was not trained on one of them."""
    missing = [model for model in data.models if model not in learned.place]
    if missing and isinstance(learned.quality, General):
        return _by_price(learned, learned.quality, data, x)
    if missing:
        raise DataError(f"outcomes.parquet: the router knows no model {missing[0]!r}")
    places = [learned.place[model] for model in data.models]
    quality, cost = predicted(learned, x, labels)
    return quality[:, places], cost[:, places]


def _by_price(learned: Learned, quality: General, data: Outcomes, x: Rows) -> tuple[Matrix, Matrix]:
    """The shipped default's predictions for models it was not trained on, by their price (here their mean cost) and the
    query's easiness.
    """
    price = data.cost_usd.mean(0) if np.isfinite(data.cost_usd).all() else np.ones(len(data.models))
    skill = prior.skills([Candidate(m, output_usd_per_mtok=p * 1e6) for m, p in zip(data.models, price, strict=True)])
    ease = quality.easiness(learned.projection.coordinates(x))
    return 1.0 / (1.0 + np.exp(-ease[:, None] - skill)), np.tile(price, (len(x), 1))


def _task_mean(rows: TrainTestSplit, bench: Bench) -> PolicyFamily:
    """The policies that choose by the mean score and cost of the query's task, whose label is known."""
    tables = []
    for matrix in (rows.train.scores, _bench(rows, rows.train).costs):
        table = TaskMean(prior_count=0.01).fit_matrix(matrix, rows.train.tasks)
        tables.append(table.predict(rows.test_x.astype(np.float64), rows.test.tasks)[0])
    return evaluate.swept(tables[0], tables[1], bench)


def _report(
    rows: TrainTestSplit, policies: dict[str, PolicyFamily], bench: Bench, seed: int, resamples: int,
    parallel_map: ParallelMap,
) -> dict[str, Any]:  # fmt: skip
    with one_core():
        point, drawn = evaluate.compared(bench, policies, seed, resamples, parallel_map)
    return {
        "n_queries": len(bench.scores),
        "n_train": len(rows.train_x),
        "left_out": asdict(rows.left_out),
        "models": list(rows.test.models),
        "best_single_model": rows.test.models[bench.best],
        "cost": "cost_usd" if rows.priced else "share of calls to the best single model",
        **evaluate.tabled(point, drawn),
        **{
            f"router_minus_{name}": evaluate.paired(point, drawn, "router", name)
            for name in policies
            if name not in ("router", "best_single", "oracle")
        },
    }


def draw(report: dict[str, Any], policies: dict[str, PolicyFamily], bench: Bench, target: Path) -> None:
    """Draw the frontiers into a file; its ending gives the format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for name, policy in policies.items():
        if name != "best_single":  # one of the single models
            chain = frontier.hull(policy.points())
            axes.plot(chain[:, 0] * 1000, chain[:, 1], _STYLES.get(name, "-"), label=name.replace("_", " "))
    alone = bench.singles()
    axes.plot(alone[:, 0] * 1000, alone[:, 1], "k.", label="single models")
    for model, (cost, quality) in zip(report["models"], alone, strict=True):
        side = "right" if cost == alone[:, 0].max() > alone[:, 0].min() else "left"
        axes.annotate(
            model, (cost * 1000, quality), (0, -10), textcoords="offset points", ha=side, fontsize=7, color="#444444"
        )
    axes.set_xscale("log" if (alone[:, 0] > 0).all() else "linear")
    unit = UNITS.get(report["cost"].partition(" where")[0], "calls to the best single model")
    axes.set_xlabel(f"{unit} per 1,000 queries")
    axes.set_ylabel("quality (mean score)")
    axes.set_title(f"{report['n_queries']:,} test queries", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=150)
    pyplot.close(figure)


def cross_validated(
    router: str, data: Outcomes, x: Rows, layout: Layout, learned: Learned | None, parallel_map: ParallelMap
) -> dict[str, float | None]:
    """Metrics of out-of-fold predictions on the training rows, for the artefact's card. `learned`: the same router,
    fitted on all rows.
    """
    seen = np.asarray(np.isfinite(data.scores))
    if len(x) < 8:
        return {"rows": float(len(x))}
    like = learned.quality if learned is not None else None
    quality, _ = out_of_fold(router, data, x, layout, parallel_map=parallel_map, like=like)
    error = (quality - data.scores)[seen]
    base = (np.broadcast_to(observed_mean(data.scores), data.scores.shape) - data.scores)[seen]
    auroc = evaluate.auroc(quality[seen], data.scores[seen] >= 0.5)
    return {
        "rows": float(len(x)),
        "brier": float((error**2).mean()),
        "brier_of_means": float((base**2).mean()),
        "auroc": auroc if np.isfinite(auroc) else None,  # every answer is right, or none is
    }
