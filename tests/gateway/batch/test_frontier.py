"""What budgets buy, with intervals."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from gateway.batch.assign import assign
from gateway.batch.frontier import frontier, point_of
from gateway.batch.types import Assignment, Estimates
from tests.gateway.batch.planned import capacities, estimates, range_usd


def test_quality_rises_with_the_budget_until_it_ends() -> None:
    """From the least budget to the one for the best answers, each further dollar buys less."""
    job = estimates(1_000, 6, 1)
    least, most = range_usd(job)
    points = frontier(job, math.inf, ())
    assert points[0].cost_usd.value == pytest.approx(least, rel=1e-3)
    assert points[-1].cost_usd.value == pytest.approx(most, rel=0.05)
    assert all(less.quality.value <= more.quality.value + 1e-4 for less, more in pairwise(points))
    assert all(sum(point.calls.values()) == 1_000 for point in points)
    for point in points:
        assert point.cost_usd.value <= point.budget_usd
        assert point.quality.low <= point.quality.value <= point.quality.high


def test_limits_narrow_a_frontier() -> None:
    """Rate limits raise the least budget and lower the best quality."""
    job = estimates(900, 5, 6)
    free = frontier(job, math.inf, (), points=4)
    bound = frontier(job, 100.0, capacities(job, 100.0, 0.9), points=4)
    assert bound
    assert bound[0].cost_usd.value > free[0].cost_usd.value
    assert bound[-1].quality.value <= free[-1].quality.value + 1e-6


def test_impossible_limits_have_no_frontier() -> None:
    job = estimates(100, 5, 6)
    assert frontier(job, 100.0, capacities(job, 100.0, 0.1)) == ()


def test_a_large_jobs_frontier_is_computed_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the costs and counts of the whole job, and slightly wider intervals."""
    job = estimates(4_000, 4, 2)
    whole = frontier(job, math.inf, (), points=4)
    monkeypatch.setattr("gateway.batch.frontier.SAMPLE", 1_000)
    drawn = frontier(job, math.inf, (), points=4)
    for one, other in zip(whole, drawn, strict=True):
        assert other.cost_usd.value == pytest.approx(one.cost_usd.value, rel=0.2)
        assert other.quality.value == pytest.approx(one.quality.value, abs=0.03)
        assert other.quality.high - other.quality.low > one.quality.high - one.quality.low
        assert sum(other.calls.values()) == pytest.approx(4_000, abs=4)


def realised(job: Estimates, found: Assignment, rng: np.random.Generator) -> tuple[float, float]:
    """Mean quality and cost in a world whose errors are those that the intervals assume."""
    rows = np.arange(len(job))
    shift, scale = rng.normal(0, job.quality_shift_sd), 1 + rng.normal(0, job.cost_shift_sd)
    chance = job.quality[rows, found.arm] + rng.normal(0, job.quality_sd[rows, found.arm]) + shift[found.arm]
    cost = job.cost_usd[rows, found.arm] * scale[found.arm] * rng.exponential(1.0, len(job))
    return float((rng.random(len(job)) < chance).mean()), float(cost.sum())


@pytest.mark.parametrize(("quality_shift", "cost_shift"), [(0.0, 0.0), (0.06, 0.25)])
def test_intervals_have_at_least_their_stated_coverage(quality_shift: float, cost_shift: float) -> None:
    """In 200 such worlds, with independent errors per prompt or per model, 95 % or more contain the truth."""
    job = estimates(1_000, 4, 4)
    job = replace(
        job, quality=np.clip(job.quality, 0.25, 0.75),
        quality_shift_sd=np.full(4, quality_shift, np.float32), cost_shift_sd=np.full(4, cost_shift, np.float32),
    )  # fmt: skip
    least, most = range_usd(job)
    found = assign(job, least + 0.4 * (most - least))
    point = point_of(job, found, 1.0)
    rng = np.random.default_rng(0)
    worlds = np.array([realised(job, found, rng) for _ in range(200)])
    for interval, seen in ((point.quality, worlds[:, 0]), (point.cost_usd, worlds[:, 1])):
        held = (interval.low <= seen) & (seen <= interval.high)
        assert held.mean() >= 0.93
        assert interval.high - interval.low < 8 * seen.std()
