"""The cost and quality that each budget would buy, with 95 % intervals; shown before anything is spent.

An interval covers three sources of error: single answers turn out right or wrong, each prediction errs by itself, and
all predictions of one model err together (the shifts of `Estimates`, which are taken as fully correlated between
models, a conservative assumption). Large jobs are computed on a sample of their prompts, whose sampling error is added.
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
"""Standard deviation of one answer's cost, as a share of its expected cost: lengths are about exponential."""
_MORE = 1 + 1e-6
"""Factor on each budget, so that rounding doesn't make the least budget impossible to keep."""


def frontier(
    estimates: Estimates,
    deadline_s: float,
    capacities: Sequence[Capacity],
    *,
    points: int = POINTS,
    seed: int = 0,
) -> tuple[Point, ...]:
    """Points for budgets from the least possible one to the one beyond which more money buys nothing, evenly spaced on
    a logarithmic scale.
    """
    estimates = timely(estimates, deadline_s)
    n = len(estimates)
    share = min(1.0, SAMPLE / n)
    if share < 1.0:
        rows = np.sort(np.random.default_rng(seed).choice(n, SAMPLE, replace=False))
        estimates = estimates.rows(rows)
        capacities = [replace(capacity, per_s=capacity.per_s * share) for capacity in capacities]
    frontier_points = []
    for budget_usd in _budgets(estimates, deadline_s, capacities, points):
        assignment = attempted(estimates, budget_usd, deadline_s=deadline_s, capacities=capacities)
        if assignment is not None:
            frontier_points.append(point_of(estimates, assignment, budget_usd, share))
    return tuple(frontier_points)


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
    """Cost and mean quality of an assignment, with intervals. `share`: the share of the job's prompts that the
    estimates are a sample of; 1: all of them.
    """
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
    independent = float((quality * (1.0 - quality)).sum() + (sd.astype(np.float64) ** 2).sum()) * share / n**2
    sampling = float(quality.var()) / n if share < 1.0 else 0.0
    common_sd = float(mix @ estimates.quality_shift_sd)
    value = float(quality.mean()) if len(quality) else 0.0
    reach = Z95 * math.sqrt(independent + sampling + common_sd**2)
    return Interval(value, max(value - reach, 0.0), min(value + reach, 1.0))


def _cost_interval(
    estimates: Estimates, cost: NDArray[np.float64], arm: NDArray[np.intp], share: float
) -> Interval:
    """Interval of the whole job's cost in dollars; its lower end is at least 0."""
    by_arm = np.bincount(arm, cost, len(estimates.arms)) / share
    total = float(by_arm.sum())
    independent = float((cost**2).sum()) * COST_SPREAD**2 / share
    sampling = float(cost.var()) * len(cost) / share**2 if share < 1.0 else 0.0
    common_sd = float(by_arm @ estimates.cost_shift_sd)
    reach = Z95 * math.sqrt(independent + sampling + common_sd**2)
    return Interval(total, max(total - reach, 0.0), total + reach)
