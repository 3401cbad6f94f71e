"""Compares the route with random mixtures of models, blind to the query, at equal cost or equal quality.

Each model alone is valued doubly robust on the logged rounds; mixtures of models are the points between them, so the
best blind chooser of a price lies on their upper hull (the "zero router" of RouterBench, Hu et al. 2024). What the
route itself cost and was worth is as it was logged, everything spent on it included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gateway.learn.dataset import Log
from routers import frontier, ope
from routers.intervals import Interval, percentile_interval, resampled_weights
from routers.ope import Array, Refusal

RESAMPLES = 300


@dataclass(frozen=True, slots=True)
class Blind:
    """Per request; intervals of 95 % by resampling rounds."""

    saved_usd: Interval
    """Dollars by which the blind mixture of the same quality costs more."""
    quality_gain: Interval
    """Quality by which the blind mixture of the same cost is worse."""
    rounds: int


def against_blind(log: Log, *, seed: int = 0) -> Blind | Refusal:
    """Needs scored rounds in which at least two models were chosen by chance often enough."""
    scored = log.rows(log.labelled)
    if len(scored) < ope.MIN_ESS:
        said = f"scored answers: {len(scored)} of the {ope.MIN_ESS:g} needed; send feedback, or label answers"
        return Refusal(said, ope.Overlap(len(scored), 0.0, 1.0), 0, 0, float("nan"))
    x, prices = scored.covariates(), log.mean_cost_usd()
    quality, cost = list[Array](), list[Array]()
    kept, refused = list[int](), list[Refusal]()
    for j in range(len(log.models)):
        target = scored.always(j)
        rounds = scored.rounds(scored.score)
        verdict = ope.judged(rounds, target, prices)
        if isinstance(verdict, Refusal):
            refused.append(verdict)
            continue
        kept.append(j)
        for reward, into in ((scored.score, quality), (scored.cost_usd, cost)):
            rounds = scored.rounds(reward)
            into.append(ope.doubly_robust(rounds, target, ope.cross_fitted(x, rounds, seed=seed)))
    if len(kept) < 2:
        return refused[0] if refused else Refusal(
            "the route has one model", ope.Overlap(len(scored), float(len(scored)), 0.0), 0, 0, 0.0
        )  # fmt: skip
    columns = np.column_stack([*quality, *cost, scored.score, scored.cost_usd])
    return _resampled(columns, len(kept), np.random.default_rng(seed))


def _resampled(columns: Array, m: int, rng: np.random.Generator) -> Blind:
    n = len(columns)
    weights = resampled_weights(n, RESAMPLES, rng)
    means = np.vstack([columns.mean(0), weights @ columns])
    found = np.array([_beside(row[:m], row[m : 2 * m], row[-2], row[-1]) for row in means])
    saved, gain = (percentile_interval(column[0], column[1:]) for column in found.T)
    return Blind(saved, gain, n)


def _beside(quality: Array, cost: Array, our_quality: float, our_cost: float) -> tuple[float, float]:
    """Dollars that the route saves at equal quality, and quality that it gains at equal cost."""
    costs, worths = frontier.hull(np.column_stack([cost, quality])).T
    same_worth = float(np.interp(our_quality, worths, costs))
    same_cost = float(np.interp(our_cost, costs, worths))
    return same_worth - our_cost, our_quality - same_cost
