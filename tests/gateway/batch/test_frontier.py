"""What budgets buy, and how sure that is."""

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


def test_more_money_buys_more_quality_until_it_buys_nothing() -> None:
    """From the least budget to the one that buys the best answers, each dollar buying less."""
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


def test_a_frontier_within_limits_begins_where_they_can_be_kept() -> None:
    """Rate limits make the least budget larger and the best quality smaller."""
    job = estimates(900, 5, 6)
    free = frontier(job, math.inf, (), points=4)
    bound = frontier(job, 100.0, capacities(job, 100.0, 0.9), points=4)
    assert bound
    assert bound[0].cost_usd.value > free[0].cost_usd.value
    assert bound[-1].quality.value <= free[-1].quality.value + 1e-6


def test_limits_that_nothing_keeps_have_no_frontier() -> None:
    """No point is shown that can't be had."""
    job = estimates(100, 5, 6)
    assert frontier(job, 100.0, capacities(job, 100.0, 0.1)) == ()


def test_a_large_jobs_frontier_is_drawn_from_a_sample_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands for all: costs and counts of the whole job, intervals a little wider."""
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
    """Mean quality and cost of a world that errs as the intervals suppose."""
    rows = np.arange(len(job))
    shift, scale = rng.normal(0, job.quality_shift_sd), 1 + rng.normal(0, job.cost_shift_sd)
    chance = job.quality[rows, found.arm] + rng.normal(0, job.quality_sd[rows, found.arm]) + shift[found.arm]
    cost = job.cost_usd[rows, found.arm] * scale[found.arm] * rng.exponential(1.0, len(job))
    return float((rng.random(len(job)) < chance).mean()), float(cost.sum())


@pytest.mark.parametrize(("quality_shift", "cost_shift"), [(0.0, 0.0), (0.06, 0.25)])
def test_intervals_hold_as_often_as_they_say_or_more(quality_shift: float, cost_shift: float) -> None:
    """In 200 worlds that err as is supposed, each prompt by itself or all of a model together, 95 % or more hold."""
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
