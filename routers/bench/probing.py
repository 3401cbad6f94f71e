"""Shows how few outcomes tell the best model: `python -m routers.bench.probing --data DIR`.

Every run draws queries at random, hides their table of scores and buys outcomes until a share of the cells is known;
then a model is named. Compared: `headgate probe`'s rule; each model asked the same random queries in turn; and both
algorithms of Zhou et al. 2024 (arXiv 2407.06172): UCB-E, which reads nothing but each model's own mean, and UCB-E-LRF,
which asks for 5 % of the table at random and then goes by an ensemble of rank-one factorisations and its
disagreement. Reported: how often the best model was named, and how far below it the named one is, over runs, with 95 %
intervals; beside them the share at which our rule said that it was sure, and how often it was then wrong. `--without`
leaves the best models out: those that follow lie closer together.
"""

from __future__ import annotations

import argparse
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.cores import one_core
from routers.estimators.base import Matrix
from routers.intervals import mean_and_half_width, wilson_interval
from routers.outcomes import DataError, Outcomes, read_outcomes
from routers.probing import FIRST, leaderboard, next_batch, shared_order

BUDGETS = (0.02, 0.05, 0.10, 0.15)
"""Shares of the table."""
LOT = 32
"""Outcomes that the published algorithms buy at once."""
WARM_UP = 0.05
ENSEMBLE = 64
DROPPED = 0.05
PENALTY = 0.1
BOLDNESS = 5.0
"""Standard deviations of the ensemble in a bound (the paper's eta)."""

Cells = tuple[NDArray[np.intp], NDArray[np.intp]]
"""(queries, models)."""


class Rule(ABC):
    """Buys cells of a table with gaps, and names the model that is best so far."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    @abstractmethod
    def next(self, scores: Matrix) -> Cells:
        """The cells to buy now."""

    def best(self, scores: Matrix) -> int:
        return int(np.where(np.isfinite(scores).any(0), _means(scores), -np.inf).argmax())


class Probe(Rule):
    """`headgate probe`."""

    order: NDArray[np.intp] | None = None

    def next(self, scores: Matrix) -> Cells:
        if self.order is None:
            self.order = shared_order(scores, int(self.rng.integers(2**31)))
        model, rows = next_batch(scores, self.order)
        return rows, np.full(len(rows), model)

    def best(self, scores: Matrix) -> int:
        return leaderboard(scores).leader


class InTurn(Rule):
    """Every model is asked the same queries, as many as there is money for."""

    def next(self, scores: Matrix) -> Cells:
        row = self.rng.choice(np.flatnonzero(~np.isfinite(scores).any(1)), 1)
        return np.repeat(row, scores.shape[1]), np.arange(scores.shape[1])


class UcbE(Rule):
    """The highest of mean + sqrt(1 / asked), on queries of its own."""

    def next(self, scores: Matrix) -> Cells:
        asked = np.isfinite(scores).sum(0)
        bound = np.where(asked > 0, _means(scores) + np.sqrt(1.0 / np.maximum(asked, 1)), np.inf)
        model = int(np.where(asked == len(scores), -np.inf, bound).argmax())
        lot = self.rng.permutation(np.flatnonzero(~np.isfinite(scores[:, model])))[:LOT]
        return lot, np.full(len(lot), model)


class UcbELrf(Rule):
    """The highest mean of what is known and, in the gaps, of what is predicted plus `BOLDNESS` deviations; of its gaps
    the most doubtful ones.
    """

    def next(self, scores: Matrix) -> Cells:
        seen = np.asarray(np.isfinite(scores))
        if seen.mean() < WARM_UP:
            rows, models = np.nonzero(~seen)
            lot = self.rng.permutation(len(rows))[:LOT]
            return rows[lot], models[lot]
        predicted = factorised(scores, self.rng)
        spread = predicted.std(0)
        bound = np.where(seen, scores, predicted.mean(0) + BOLDNESS * spread).mean(0)
        model = int(np.where(seen.all(0), -np.inf, bound).argmax())
        gaps = np.flatnonzero(~seen[:, model])
        lot = gaps[np.argsort(-spread[gaps, model], kind="stable")[:LOT]]
        return lot, np.full(len(lot), model)

    def best(self, scores: Matrix) -> int:
        seen = np.asarray(np.isfinite(scores))
        if seen.mean() < WARM_UP:
            return super().best(scores)
        return int(np.where(seen, scores, factorised(scores, self.rng).mean(0)).mean(0).argmax())


def factorised(scores: Matrix, rng: np.random.Generator, rounds: int = 10) -> Matrix:
    """(ENSEMBLE, n, m): rank-one tables by alternating ridge regressions, each without some of the known cells."""
    seen = np.asarray(np.isfinite(scores))
    kept = (seen & (rng.random((ENSEMBLE, *scores.shape)) >= DROPPED)).astype(np.float32)
    known = kept * np.where(seen, scores, 0.0).astype(np.float32)
    ease = rng.random((ENSEMBLE, scores.shape[0], 1), np.float32)
    for _ in range(rounds):
        skill = known.transpose(0, 2, 1) @ ease / (kept.transpose(0, 2, 1) @ ease**2 + PENALTY)
        ease = known @ skill / (kept @ skill**2 + PENALTY)
    return np.asarray(ease @ skill.transpose(0, 2, 1))


def _means(scores: Matrix) -> Matrix:
    seen = np.isfinite(scores)
    return np.asarray(np.where(seen, scores, 0.0).sum(0) / np.maximum(seen.sum(0), 1))


RULES: dict[str, type[Rule]] = {"headgate probe": Probe, "in turn": InTurn, "UCB-E": UcbE, "UCB-E-LRF": UcbELrf}


def named(truth: Matrix, rule: Rule, budgets: Sequence[float]) -> list[int]:
    """The model named at each budget; no more cells than it are bought."""
    scores, found = np.full(truth.shape, np.nan), []
    for budget in budgets:
        while (left := int(budget * truth.size) - int(np.isfinite(scores).sum())) > 0:
            rows, models = (part[:left] for part in rule.next(scores))
            scores[rows, models] = truth[rows, models]
        found.append(rule.best(scores))
    return found


def settled(truth: Matrix, seed: int) -> tuple[float, float]:
    """Share of the table that our rule bought until it was sure, and how far below the best its model then is."""
    order, scores = shared_order(truth, seed), np.full(truth.shape, np.nan)
    while np.isnan(scores).any():
        if np.isfinite(scores).sum(0).min() >= FIRST and leaderboard(scores).settled:
            break
        model, rows = next_batch(scores, order)
        scores[rows, model] = truth[rows, model]
    mean = truth.mean(0)
    return float(np.isfinite(scores).mean()), float(mean.max() - mean[leaderboard(scores).leader])


def compared(truth: Matrix, queries: int, runs: int) -> dict[str, Any]:
    """Every rule at every budget, on the same tables."""
    found: dict[str, list[list[int]]] = {name: [] for name in RULES}
    means, sure = [], []
    for run in range(runs):
        table = truth[np.random.default_rng(run).permutation(len(truth))[:queries]]
        means.append(table.mean(0))
        sure.append(settled(table, run))
        for name, rule in RULES.items():
            found[name].append(named(table, rule(np.random.default_rng(run)), BUDGETS))
    mean, every = np.array(means), np.arange(runs)[:, None]
    rules = {}
    for name, picks in found.items():
        below = mean.max(1, keepdims=True) - mean[every, np.array(picks)]
        rules[name] = {f"{share:g}": _told(below[:, j]) for j, share in enumerate(BUDGETS)}
    shares, wrong = np.array(sure).T
    return {
        "models": truth.shape[1],
        "queries": min(queries, len(truth)),
        "runs": runs,
        "second below best": float(np.diff(np.sort(mean, 1)[:, -2:], axis=1).mean()),
        "rules": rules,
        "sure": {"share": mean_and_half_width(shares), "wrong": int((wrong > 0).sum()),
                 "below": mean_and_half_width(wrong)},
    }


def _told(below: Matrix) -> dict[str, Any]:
    found = wilson_interval(int((below <= 0).sum()), len(below))
    return {"found": found.as_dict(), "below": mean_and_half_width(below)}


def complete(data: Outcomes, without: int) -> Matrix:
    """Scores of the models that answered nearly all queries, where all of them did, less the `without` best."""
    seen = np.isfinite(data.scores)
    scores = data.scores[:, seen.mean(0) >= 0.95]
    scores = scores[np.isfinite(scores).all(1)]
    kept = np.argsort(-scores.mean(0))[without:] if len(scores) else np.zeros(0, np.intp)
    if len(kept) < 2:
        raise DataError(f"outcomes.parquet: {len(kept)} complete model(s); two or more are needed")
    return np.asarray(scores[:, np.sort(kept)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m routers.bench.probing", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=1000, help="drawn for each run")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--without", type=int, default=0, help="leave so many of the best models out")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = compared(complete(read_outcomes(args.data), args.without), args.queries, args.runs)
    print(json.dumps(report) if args.json else _table(report))


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['models']} models, {report['queries']} queries, {report['runs']} runs; "
        f"the second is {report['second below best']:.4f} below the best",
        f"{'share of the table bought':26s}" + "".join(f"{share:>22.0%}" for share in BUDGETS),
    ]
    for name, row in report["rules"].items():
        found = [f"{f['value']:.2f} [{f['low']:.2f}, {f['high']:.2f}]" for f in (one["found"] for one in row.values())]
        lines.append(f"{name + ', best named':26s}" + "".join(f"{text:>22s}" for text in found))
        below = [_at(one["below"], 4) for one in row.values()]
        lines.append(f"{'  quality below the best':26s}" + "".join(f"{text:>22s}" for text in below))
    sure = report["sure"]
    return "\n".join(
        [
            *lines,
            f"headgate probe was sure after {_at(sure['share'], 3)} of the table; wrong in {sure['wrong']} of "
            f"{report['runs']} runs, {_at(sure['below'], 4)} below the best",
        ]
    )


def _at(figure: dict[str, float], digits: int) -> str:
    return f"{figure['value']:.{digits}f} (+-{figure['half_width']:.{digits}f})"


if __name__ == "__main__":
    try:
        with one_core():
            main()
    except DataError as fault:
        raise SystemExit(str(fault)) from None
