"""What planning a job is worth and what it takes.

    python -m tests.bench.batch [--data DIR ... [--splits N] [--within]] [--scale N] [--lines N]

--data: on real outcomes. The default router is trained on the rows whose split is train and a job is planned by it over
the test rows, at five budgets; --splits: over the data's own split and that many drawn at random, and their mean;
--within: over such splits of the training rows alone, which is what settings are chosen by.
Beside it, at the job's own realised spend, the best per-query threshold router: of all pairs of models (the stronger
where its predicted gain passes a threshold) and of all floors (the cheapest model whose predicted quality passes one),
the one that was best at that spend on training rows (`gain`), and the one that turned out best on the test rows, which
nobody could have picked (`gain_on_hindsight`); they read the same estimates. And the job's own optimum in hindsight:
the models whose outcomes score most in all, at that spend. `reached` and `reached_on_hindsight` are the shares of its
gain over either rule that the job reached; the rest is not for any router to have, for it counts the luck of single
answers too. Where the data shows evidence (confidences, answers), a second job is planned with a cascade trained on the
training rows, as `batch plan --cascade` does.
Intervals are paired bootstraps over test rows, and of the mean over splits those of its standard error (splits share
rows: it is a guide).
--scale: that many prompts by 20 models, from estimates to assignment, with a budget alone and with five limits.
--lines: an OpenAI batch file of that many lines, from file to saved plan.
Time is wall and processor seconds, memory the peak of the process (and of the largest child).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.app import open_routers
from gateway.batch.assign import assign
from gateway.batch.frontier import point_of
from gateway.batch.plan import PlanContext, PlanOptions, plan_job
from gateway.batch.types import Arm, Estimates
from gateway.config.load import parse
from gateway.config.settings import Settings
from gateway.learn.evaluation import TrainTestSplit, rows_of
from gateway.routes import RouteBook
from routers.estimators.base import Rows, folds, row_keys
from routers.estimators.ensemble import FOLDS, Ensemble
from routers.features import shipped_featurizer
from routers.fit import fit_learned, predicted
from routers.intervals import Interval, mean_interval, percentile_interval, resampled_counts
from routers.outcomes import Outcomes
from routers.plugin import Learned
from routers.registry import estimator_named, open_router
from tests.bench.batch_climbs import Climbs, evidence_of
from tests.bench.batch_thresholds import THRESHOLDS, Side, Thresholds, pairs_of
from tests.gateway.batch.planned import capacities, estimates, range_usd

Matrix = NDArray[np.float64]
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Budgets: so far from the cheapest model's cost to the cost of the one that was best on training rows."""
GAINS = ("gain", "gain_on_hindsight", "reached", "reached_on_hindsight")
RESAMPLES = 2_000
_BISECTIONS, _DEAREST = 60, 1e15
MODELS = 20


# -- on real outcomes


def sides(rows: TrainTestSplit) -> tuple[Side, Side]:
    """Training rows (predicted by folds that did not see them) and test rows."""
    featurizer = shipped_featurizer()
    learned = fit_learned(estimator_named("default"), rows.train, rows.train_x, featurizer.layout)
    test = _side(learned, rows.test, rows.test_x)
    said = learned.quality.parameters()
    fold = folds(row_keys(rows.train_x), FOLDS, 0)
    parts = []
    for part in range(FOLDS):
        seen, held = fold != part, fold == part
        weighed = Ensemble(**said)
        learned = fit_learned(weighed, rows.train.rows(seen), rows.train_x[seen], featurizer.layout)
        parts.append(_side(learned, rows.train.rows(held), rows.train_x[held]))
    return Side(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Side))), test


def _side(learned: Learned, data: Outcomes, x: Rows) -> Side:
    _, cost = predicted(learned, x)
    quality, sd = learned.quality.for_jobs().predict(learned.projection.coordinates(x))
    return Side(quality, sd, cost, data.scores, data.cost_usd)


def drawn(own: TrainTestSplit, seed: int) -> TrainTestSplit:
    """The same rows split otherwise, by chance; 0: as they are."""
    if not seed:
        return own
    n = len(own.train_x) + len(own.test_x)
    data, x = joined(own.train, own.test), np.concatenate([own.train_x, own.test_x])
    held = np.zeros(n, bool)
    held[np.random.default_rng(seed).choice(n, len(own.test_x), replace=False)] = True
    return TrainTestSplit(data.rows(~held), data.rows(held), x[~held], x[held], own.priced)


def joined(one: Outcomes, other: Outcomes) -> Outcomes:
    """The rows of both."""
    rows: dict[str, Any] = {
        f.name: one.models
        if f.name == "models"
        else np.concatenate([getattr(one, f.name), getattr(other, f.name)])
        if isinstance(getattr(one, f.name), np.ndarray)
        else (*getattr(one, f.name), *getattr(other, f.name))
        for f in fields(Outcomes)
    }
    return Outcomes(**rows)


def estimates_of(side: Side) -> Estimates:
    n, m = side.quality.shape
    single = np.float32
    return Estimates(
        tuple(Arm(str(place)) for place in range(m)),
        side.quality.astype(single), side.quality_sd.astype(single), side.cost.astype(single),
        np.zeros((n, m), single), np.zeros((n, m), single), np.zeros(n, single), np.zeros(n, single),
        np.full(m, 0.02, single), np.full(m, 0.05, single),
    )  # fmt: skip


def on_sides(train: Side, test: Side, climbs: Climbs | None = None) -> list[dict[str, Any]]:
    """A job over the test rows at every budget, beside the threshold routers; `climbs`: its answers may be asked again
    of better models.
    """
    pairs = pairs_of(train)
    levels = np.quantile(train.quality.max(1), np.linspace(0, 1, THRESHOLDS))
    rivals = Thresholds(test, levels)
    known, hindsight = Thresholds(train, levels).curves(pairs), rivals.curves(pairs)
    best = int(train.score.mean(0).argmax())
    least, most = test.cost.min(1).sum(), test.cost[:, best].sum()
    places = np.arange(len(test.score))
    table = []
    for share in SHARES:
        budget = float(least + share * (most - least))
        job = estimates_of(test)
        job = job if climbs is None else climbs.widen(job, budget)
        plan = assign(job, budget)
        point = point_of(job, plan, budget)
        if climbs is None:
            spent, scored = test.paid[places, plan.arm], test.score[places, plan.arm]
        else:
            spent, scored = climbs.outcomes(job, plan.arm)
        usd = float(spent.mean())
        rival, luckiest = (max(curves, key=lambda pair: curves[pair].at(usd)) for curves in (known, hindsight))
        other, lucky = rivals.at(rival, usd), rivals.at(luckiest, usd)
        most_score = optimum(test.score, test.paid, float(spent.sum()))
        table.append({
            "job": "single models" if climbs is None else "cascade",
            "budget_share": share, "budget_usd": budget, "spent_usd": float(spent.sum()),
            "quality": float(scored.mean()), "threshold_router": float(other.mean()), "gain": _interval(scored - other),
            "best_threshold_in_hindsight": float(lucky.mean()), "gain_on_hindsight": _interval(scored - lucky),
            "hindsight_optimum": float(most_score.mean()), "reached": _share(scored - other, most_score - other),
            "reached_on_hindsight": _share(scored - lucky, most_score - lucky),
            "predicted": point.quality.value,
            "interval_holds": point.quality.low <= float(scored.mean()) <= point.quality.high,
            "spend_interval_holds": point.cost_usd.low <= float(spent.sum()) <= point.cost_usd.high,
            "gap_share": plan.gap_share,
        })  # fmt: skip
    return table


def optimum(score: Matrix, paid: Matrix, usd: float) -> Matrix:
    """Each query's score where the models that score most in all for `usd` answer: at the least price on money that
    keeps it, and at the price just below, mixed to spend it all. That is the linear program's optimum, which whole
    queries miss by less than one answer. No less than the cheapest answers cost.
    """
    places, low, high = np.arange(len(score)), 0.0, 1.0

    def at(price: float) -> tuple[float, Matrix]:
        worth = score - price * paid
        pick = np.where(worth == worth.max(1, keepdims=True), paid, np.inf).argmin(1)
        return float(paid[places, pick].sum()), score[places, pick]

    while at(high)[0] > usd and high < _DEAREST:
        low, high = high, 2.0 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] > usd else (low, middle)
    (dear, most), (cheap, least) = at(low), at(high)
    if dear <= usd:
        return most
    weight = np.clip((usd - cheap) / (dear - cheap), 0.0, 1.0)
    return np.asarray(least + weight * (most - least))


def inner(own: TrainTestSplit) -> TrainTestSplit:
    """The training rows alone, two thirds of them to train on."""
    n = len(own.train_x)
    held = np.arange(n) % 3 == 0
    train, test = own.train.rows(~held), own.train.rows(held)
    return TrainTestSplit(train, test, own.train_x[~held], own.train_x[held], own.priced)


def over_splits(
    folder: Path, splits: int, *, within: bool = False, cascade: bool = False
) -> Iterator[dict[str, Any]]:
    """Every split's figures, then the means of their gains; `cascade`: jobs that climb (nothing where the data shows
    no evidence), else jobs of single models.
    """
    own = rows_of(folder, None, (), shipped_featurizer())
    own = inner(own) if within else own
    if cascade and evidence_of(folder, own.train) is None:
        return
    found: list[list[list[float]]] = []
    for seed in range(splits + 1):
        rows = drawn(own, seed)
        table = on_sides(*sides(rows), _climbs(folder, rows) if cascade else None)
        found.append([[row[name][0] for name in GAINS] for row in table])
        yield from ({"split": seed or "own", **row} for row in table)
    for place, share in enumerate(SHARES):
        means = {name: _mean([one[place][at] for one in found]) for at, name in enumerate(GAINS)}
        yield {"split": "mean", "job": table[place]["job"], "budget_share": share, **means}


def _climbs(folder: Path, rows: TrainTestSplit) -> Climbs | None:
    """The cascade that the training rows teach."""
    logged = evidence_of(folder, joined(rows.train, rows.test))
    if logged is None:
        return None
    x = np.concatenate([rows.train_x, rows.test_x])
    return Climbs.taught(logged, x, np.arange(len(x)) < len(rows.train_x))


def _mean(values: list[float]) -> list[float]:
    """With its interval by the standard error; of one value it is infinite."""
    return _listed(mean_interval(values))


def _interval(values: Matrix) -> list[float]:
    return _listed(percentile_interval(values.mean(), _resampled(values) / len(values)))


def _share(gained: Matrix, most: Matrix) -> list[float]:
    """Of all that could be gained, over the same rows; NaN where nothing could."""
    if most.sum() <= 0:
        return [math.nan] * 3
    return _listed(percentile_interval(gained.sum() / most.sum(), _resampled(gained) / _resampled(most)))


def _listed(found: Interval) -> list[float]:
    return [found.value, found.low, found.high]


def _resampled(values: Matrix) -> Matrix:
    """Sums over rows drawn anew, the same draws at every call."""
    return np.asarray(resampled_counts(len(values), RESAMPLES) @ values)


# -- scale


@contextmanager
def measured(table: dict[str, Any]) -> Iterator[None]:
    wall, own, children = time.perf_counter(), time.process_time(), _children_s()
    yield
    table["wall_s"] = time.perf_counter() - wall
    table["cpu_s"] = time.process_time() - own + _children_s() - children
    table["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    table["largest_child_gb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def at_scale(prompts: int, limited: bool) -> dict[str, Any]:
    job = estimates(prompts, MODELS, 1, barred=0.05)
    least, most = range_usd(job)
    deadline_s, limits = (40_000.0, capacities(job, 40_000.0)) if limited else (math.inf, ())
    table: dict[str, Any] = {"prompts": prompts, "limits": 1 + len(limits)}
    with measured(table):
        plan = assign(job, least + 0.1 * (most - least), deadline_s=deadline_s, capacities=limits)
    return {**table, "gap_share": plan.gap_share}


def from_lines(lines: int, processes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        path = _batch_file(Path(place) / "in.jsonl", lines)
        context = _shop(Path(place))
        options = PlanOptions(budget_usd=8e-5 * lines, processes=processes)
        table: dict[str, Any] = {"lines": lines, "processes": processes, "file_gb": path.stat().st_size / 1e9}
        with measured(table):
            plan = plan_job(path, Path(place) / "plan", options, context)
        return {**table, "gap_share": plan.assignment.gap_share, "prompts": len(plan.prompts)}


def _batch_file(path: Path, lines: int) -> Path:
    """Questions of 8 to 90 words of this repository's own prose."""
    words = " ".join(file.read_text() for file in sorted(Path("routers").glob("*.py"))).split()
    rng = random.Random(0)
    with path.open("w") as file:
        for line in range(lines):
            start = rng.randrange(len(words) - 90)
            text = " ".join(words[start : start + rng.randint(8, 90)]) + f" ({line % 9973})"
            body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 300}
            record = {"custom_id": f"q{line}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(record) + "\n")
    return path


def _shop(folder: Path) -> PlanContext:
    router: Any = open_router("default")
    names = list(router.learned.models)[:MODELS]
    table = {
        "server": {"run_dir": str(folder / "run")},
        "providers": [{"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"}],
        "models": [
            {"name": name, "provider": "up", "input_usd_per_mtok": 0.05 * 1.25**place,
             "output_usd_per_mtok": 0.2 * 1.25**place}
            for place, name in enumerate(names)
        ],
        "routes": [{"name": "auto", "models": names, "cache": "exact"}],
    }  # fmt: skip
    config, problems = parse(table, {})
    assert config is not None, problems
    return PlanContext(config, RouteBook(config, open_routers(config, Settings())))


def alone(*arguments: str) -> dict[str, Any]:
    """One measurement in a process of its own, so that its peak is its own."""
    done = subprocess.run([sys.executable, "-m", "tests.bench.batch", *arguments], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.batch", description=__doc__)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--splits", type=int, default=0)
    parser.add_argument("--within", action="store_true")
    parser.add_argument("--scale", type=int, default=0)
    parser.add_argument("--lines", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", choices=["free", "limited", "lines"])
    args = parser.parse_args()
    if args.one:
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            "free": lambda: at_scale(args.scale, False),
            "limited": lambda: at_scale(args.scale, True),
            "lines": lambda: from_lines(args.lines, args.processes),
        }
        print(json.dumps(runs[args.one]()))
        return
    for folder in args.data:
        for cascade in (False, True):
            for row in over_splits(folder, args.splits, within=args.within, cascade=cascade):
                print(folder.name, json.dumps(row), flush=True)
    for one in ("free", "limited") if args.scale else ():
        print("scale", json.dumps(alone("--one", one, "--scale", str(args.scale))), flush=True)
    if args.lines:
        words = ("--lines", str(args.lines), "--processes", str(args.processes))
        print("lines", json.dumps(alone("--one", "lines", *words)), flush=True)


if __name__ == "__main__":
    main()
