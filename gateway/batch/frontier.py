"""What each budget would buy, with intervals: shown before anything is spent.

An interval covers three doubts: that single answers turn out right or wrong, that each prediction errs by itself, and
that all predictions of one model err together (the shifts of `Estimates`; the models' shifts are taken to go together,
which widens it). Large jobs are drawn from a sample of their prompts, whose own doubt is added.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gateway.batch.assign import attempted, cheapest_usd, least_budget, timely
from gateway.batch.types import UNASSIGNED, Assignment, Capacity, Estimates, Point
from routers.intervals import Z95, Interval

POINTS = 12
SAMPLE = 10_000
COST_SPREAD = 1.0
"""Standard deviation of one answer's cost around its expectation, as a share of it: lengths are about exponential."""
_MORE = 1 + 1e-6
"""So that rounding does not make the least budget too small for itself."""


def frontier(
    estimates: Estimates,
    deadline_s: float,
    capacities: Sequence[Capacity],
    *,
    points: int = POINTS,
    seed: int = 0,
) -> tuple[Point, ...]:
    """Budgets from the least that does to the one beyond which money buys nothing, evenly spaced by their logarithm."""
    estimates = timely(estimates, deadline_s)
    n = len(estimates)
    share = min(1.0, SAMPLE / n)
    if share < 1.0:
        rows = np.sort(np.random.default_rng(seed).choice(n, SAMPLE, replace=False))
        estimates = estimates.rows(rows)
        capacities = [replace(capacity, per_s=capacity.per_s * share) for capacity in capacities]
    found = []
    for budget_usd in _budgets(estimates, deadline_s, capacities, points):
        assignment = attempted(estimates, budget_usd, deadline_s=deadline_s, capacities=capacities)
        if assignment is not None:
            found.append(point_of(estimates, assignment, budget_usd, share))
    return tuple(found)


def _budgets(
    estimates: Estimates, deadline_s: float, capacities: Sequence[Capacity], points: int
) -> list[float]:
    best = attempted(estimates, math.inf, deadline_s=deadline_s, capacities=capacities)
    if best is None:
        return []
    least, most = cheapest_usd(estimates, deadline_s), best.cost_usd
    if attempted(estimates, least * _MORE, deadline_s=deadline_s, capacities=capacities) is None:
        least = min(least_budget(estimates, deadline_s, capacities), most)
    if not 0 < least < most:
        return [most * _MORE]
    return [float(budget) for budget in np.geomspace(least, most, points) * _MORE]


def point_of(estimates: Estimates, assignment: Assignment, budget_usd: float, share: float = 1.0) -> Point:
    """Cost and mean quality of an assignment with their intervals; `share`: of the job's prompts that these are."""
    rows = np.flatnonzero(assignment.arm != UNASSIGNED)
    arm = assignment.arm[rows].astype(np.intp)
    quality = estimates.quality[rows, arm].astype(np.float64)
    cost = estimates.cost_usd[rows, arm].astype(np.float64)
    n = max(len(rows), 1)
    counts = np.bincount(arm, minlength=len(estimates.arms))
    labels: Counter[str] = Counter()
    for one, count in zip(estimates.arms, counts.tolist(), strict=True):
        if count:
            labels[one.label] += round(count / share)
    return Point(
        budget_usd if math.isinf(budget_usd) else budget_usd / share,
        _cost_interval(estimates, cost, arm, share),
        _quality_interval(estimates, quality, estimates.quality_sd[rows, arm], counts / n, share),
        dict(labels.most_common()),
        assignment.finish_s,
    )


def _quality_interval(
    estimates: Estimates, quality: NDArray[np.float64], sd: NDArray[np.float32], mix: NDArray[np.float64], share: float
) -> Interval:
    n = max(len(quality), 1)
    own = float((quality * (1.0 - quality)).sum() + (sd.astype(np.float64) ** 2).sum()) * share / n**2
    drawn = float(quality.var()) / n if share < 1.0 else 0.0
    together = float(mix @ estimates.quality_shift_sd)
    value = float(quality.mean()) if len(quality) else 0.0
    reach = Z95 * math.sqrt(own + drawn + together**2)
    return Interval(value, max(value - reach, 0.0), min(value + reach, 1.0))


def _cost_interval(
    estimates: Estimates, cost: NDArray[np.float64], arm: NDArray[np.intp], share: float
) -> Interval:
    """Of the whole job; costs are no less than nothing."""
    by_arm = np.bincount(arm, cost, len(estimates.arms)) / share
    total = float(by_arm.sum())
    own = float((cost**2).sum()) * COST_SPREAD**2 / share
    drawn = float(cost.var()) * len(cost) / share**2 if share < 1.0 else 0.0
    together = float(by_arm @ estimates.cost_shift_sd)
    reach = Z95 * math.sqrt(own + drawn + together**2)
    return Interval(total, max(total - reach, 0.0), total + reach)
