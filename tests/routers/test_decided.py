"""The ensemble whose weights are chosen by its decisions: on the frontier of rows that its members did not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from routers import evaluate
from routers.estimators.base import Matrix, Training
from routers.estimators.decided import KEPT, SHARES, Decided, _costs_out_of_fold, _mixtures
from routers.estimators.ensemble import Ensemble
from routers.estimators.linear import Linear
from routers.estimators.stacked import Stacked
from tests.routers.worlds import world

PRICES = np.array([0.0002, 0.001, 0.008])


def priced(n: int, seed: int = 0, **known: float) -> tuple[Training, Matrix]:
    data, truth = world(n, seed=seed, **known)  # type: ignore[arg-type]
    costs = PRICES * np.random.default_rng(seed).lognormal(0, 0.2, data.scores.shape)
    return replace(data, costs=costs), truth


def test_weights_are_a_convex_mixture() -> None:
    """They sum to 1, none is negative, they are averages over four parts, and the same data gives the same weights."""
    data, _ = priced(400)
    weights = np.array(Decided().fit(data).weights)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights >= 0).all()
    assert np.allclose(weights * SHARES * KEPT, np.round(weights * SHARES * KEPT))
    assert tuple(weights) == Decided().fit(data).weights


def test_mixtures_are_all_weights_in_quarters() -> None:
    """There are 35 of four members, each member alone and all with equal weights among them."""
    found = list(_mixtures(4))
    assert len(set(found)) == len(found) == 35 and {sum(one) for one in found} == {1.0}
    assert (0.25,) * 4 in found and (0.0, 0.0, 0.0, 1.0) in found


def test_costs_are_predicted_for_rows_that_were_not_seen() -> None:
    """A row's cost changes the predictions for other rows but not its own."""
    data, _ = priced(60)
    assert data.costs is not None
    other = data.costs.copy()
    other[7] *= 50.0
    one, two = _costs_out_of_fold(data, data.costs), _costs_out_of_fold(data, other)
    assert np.array_equal(one[7], two[7]) and not np.array_equal(one, two)
    assert np.abs(np.log(one / PRICES)).mean() < 0.2


def test_without_costs_or_full_rows_the_ensembles_weights_are_used() -> None:
    """Without costs, with few rows that have all models' scores, or with one score per row, nothing can be compared."""
    data, _ = priced(400)
    few, _ = priced(120)
    patchy, _ = priced(400, missing=0.6)
    unpriced = replace(data, costs=np.full_like(data.scores, np.nan))
    for poor in (replace(data, costs=None), unpriced, few, patchy):
        assert Decided().fit(poor).weights == Ensemble().weights


def test_it_decides_no_worse_than_the_ensemble() -> None:
    """On unseen rows of a seeded world its frontier is as high, up to noise."""
    gains = []
    for seed in range(3):
        data, truth = priced(1000, seed=seed)
        train, test = data.rows(np.arange(500)), data.rows(np.arange(500, 1000))
        bench = evaluate.Bench(truth[500:], np.tile(PRICES, (500, 1)), 2)

        def aiq(estimator: Ensemble) -> float:
            quality, _ = estimator.fit(train).predict(test.x)
            points = evaluate.swept(quality, bench.costs, bench).points()
            return evaluate.figures(points, bench.singles(), bench.best, 1.0)["aiq"]

        gains.append(aiq(Decided()) - aiq(Ensemble()))
    assert np.mean(gains) > -0.002


def test_jobs_are_planned_by_the_stacked_members() -> None:
    """The estimates for batch jobs don't depend on the weights for routing, and are the same after saving."""
    data, _ = priced(400)
    fitted, plain = Decided().fit(data), Stacked().fit(data)
    jobs = fitted.for_jobs()
    assert (jobs.weights, jobs.stretch) == (plain.weights, plain.stretch)
    assert all(np.allclose(one, other) for one, other in zip(jobs.predict(data.x), plain.predict(data.x), strict=True))
    again = Decided(**fitted.parameters()).restore(fitted.state())
    assert (again.for_jobs().predict(data.x)[0] == jobs.predict(data.x)[0]).all()
    assert (again.predict(data.x)[0] == fitted.predict(data.x)[0]).all()
    assert not (fitted.predict(data.x)[0] == jobs.predict(data.x)[0]).all()


def test_a_router_without_estimates_for_jobs_plans_them_as_it_routes() -> None:
    """That holds for another kind of estimator, and for an ensemble trained without prices."""
    data, _ = priced(400)
    unpriced = Decided().fit(replace(data, costs=None))
    assert unpriced.for_jobs() is unpriced
    linear = Linear()
    assert linear.for_jobs() is linear
