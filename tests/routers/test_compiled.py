"""Estimators that are folded for a pool give the same estimates as one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from routers.compiled import fold
from routers.cost import LogLinear
from routers.estimators.base import Estimator
from routers.estimators.ensemble import Ensemble
from routers.estimators.general import General
from routers.estimators.knn import NearestNeighbours
from routers.estimators.linear import Linear
from routers.projection import Projection
from tests.routers.worlds import world

POOLS = ([0, 1, 2], [2, 0], [1])
RAW, _ = world(50, seed=3)


def fitted(quality: Estimator, one_task: bool = False) -> tuple[Projection, Estimator, LogLinear, LogLinear]:
    data, _ = world(600)
    projection = Projection(8).fit(data.x)
    data = replace(data, x=projection.apply(data.x).astype(float))
    if one_task:
        data = replace(data, tasks=[""] * len(data.tasks))
    easy = np.exp(0.2 * data.x[:, 2])
    cost, tokens = LogLinear().fit(data.x, np.outer(easy, [1e-5, 1e-4, 1e-3])), LogLinear()
    return projection, quality.fit(data), cost, tokens.fit(data.x, np.outer(easy, [50.0, 100.0, 400.0]))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("quality", [Linear(), General(), Ensemble(), Ensemble(stretch=1.4), NearestNeighbours()])
def test_it_predicts_what_its_estimators_predict(quality: Estimator, pool: Sequence[int]) -> None:
    """One product gives the same quality, cost and length as the separate estimators, for any pool."""
    projection, quality, cost, tokens = fitted(quality)
    found = fold(projection, quality, cost, tokens, pool)
    z = projection.apply(RAW.x).astype(float)
    mean, deviation = quality.predict(z)
    for i, row in enumerate(RAW.x.astype(np.float32)):
        told = found.estimate(row)
        assert told.quality == pytest.approx(mean[i, pool], abs=1e-5)
        assert told.cost_usd == pytest.approx(cost.predict(z[i : i + 1])[0, pool], rel=1e-4)
        assert told.output_tokens == pytest.approx(tokens.predict(z[i : i + 1])[0, pool], rel=1e-4)
        assert told.quality_sd == pytest.approx(deviation[i, pool], rel=3.0)


def test_a_folded_ridge_has_the_mean_deviation() -> None:
    """A folded estimator's deviation is the root mean square of those over the training rows."""
    projection, quality, cost, tokens = fitted(Linear())
    data, _ = world(600)
    _, deviation = quality.predict(projection.apply(data.x).astype(float))
    told = fold(projection, quality, cost, tokens, [0, 1, 2]).estimate(RAW.x[0].astype(np.float32))
    assert told.quality_sd == pytest.approx(np.sqrt((deviation**2).mean(0)), rel=0.05)


def test_a_single_task_can_be_folded() -> None:
    """A table of one domain gives that domain's means."""
    projection, quality, cost, tokens = fitted(Ensemble(), one_task=True)
    mean, _ = quality.predict(projection.apply(RAW.x).astype(float))
    told = fold(projection, quality, cost, tokens, [0, 1, 2]).estimate(RAW.x[0].astype(np.float32))
    assert told.quality == pytest.approx(mean[0], abs=1e-5)


def test_a_distant_query_gives_finite_estimates() -> None:
    """No exponential overflows, whatever the vector."""
    far = np.full(8, 1e4, np.float32)
    for quality in (Linear(), Ensemble()):
        told = fold(*fitted(quality), [0, 1, 2]).estimate(far)
        assert np.isfinite([told.quality, told.cost_usd, told.output_tokens]).all()


def test_without_costs_none_are_estimated() -> None:
    """Where no costs or lengths were learned, the estimate has none."""
    projection, quality, _, _ = fitted(Linear())
    told = fold(projection, quality, None, None, [0, 1]).estimate(RAW.x[0].astype(np.float32))
    assert told.cost_usd == told.output_tokens == []


@pytest.mark.parametrize("quality", [Linear(), Ensemble()])
def test_skipping_costs_changes_nothing_else(quality: Estimator) -> None:
    """Where prices are known, quality, deviation and length are the same without estimating costs."""
    found, row = fold(*fitted(quality), [0, 2]), RAW.x[0].astype(np.float32)
    with_costs, without = found.estimate(row), found.estimate(row, costs=False)
    assert with_costs.cost_usd and with_costs._replace(cost_usd=[]) == without._replace(cost_usd=[])


@pytest.mark.parametrize("level", [-3.0, -0.4, 0.0, 0.4, 3.0])
def test_a_folded_ridge_stays_within_the_range_of_quality(level: float) -> None:
    """However far a query is from those it was trained on, no quality is below 0 or above 1."""
    projection, quality, cost, tokens = fitted(Linear())
    assert isinstance(quality, Linear)
    quality.intercept_ = quality.intercept_ + np.array([level, 0.0, 0.0])
    told = fold(projection, quality, cost, tokens, [0, 1, 2]).estimate(RAW.x[0].astype(np.float32))
    mean, _ = quality.predict(projection.apply(RAW.x[:1]).astype(float))
    assert told.quality == pytest.approx(np.clip(mean[0], 0.0, 1.0), abs=1e-5)
    assert min(told.quality) >= 0.0 and max(told.quality) <= 1.0
