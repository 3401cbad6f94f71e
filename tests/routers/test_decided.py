"""The ensemble weighed by what it decides: on the frontier of rows that its members did not see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from routers import evaluate
from routers.estimators.decided import KEPT, SHARES, Decided
from routers.estimators.ensemble import Ensemble
from tests.routers.worlds import world

PRICES = np.array([0.0002, 0.001, 0.008])


def priced(n: int, seed: int = 0, **known: float) -> tuple:
    data, truth = world(n, seed=seed, **known)  # type: ignore[arg-type]
    costs = PRICES * np.random.default_rng(seed).lognormal(0, 0.2, data.scores.shape)
    return replace(data, costs=costs), truth


def test_weights_are_shares_of_the_best_mixtures() -> None:
    """They sum to one, none is negative, each is a mean of quarters, and the same data gives the same ones."""
    data, _ = priced(400)
    weights = np.array(Decided().fit(data).weights)
    assert weights.sum() == pytest.approx(1.0)
    assert (weights >= 0).all()
    assert np.allclose(weights * SHARES * KEPT, np.round(weights * SHARES * KEPT))
    assert tuple(weights) == Decided().fit(data).weights


def test_without_costs_or_with_few_full_rows_the_ensembles_weights_stay() -> None:
    """Nothing was spent, nothing can be compared; so with scores of one model at a time."""
    data, _ = priced(400)
    few, _ = priced(120)
    patchy, _ = priced(400, missing=0.6)
    unpriced = replace(data, costs=np.full_like(data.scores, np.nan))
    for poor in (replace(data, costs=None), unpriced, few, patchy):
        assert Decided().fit(poor).weights == Ensemble().weights


def test_it_decides_no_worse_than_the_ensemble() -> None:
    """On rows of a seeded world that neither saw, its frontier is as high but for noise."""
    gains = []
    for seed in range(3):
        data, truth = priced(1000, seed=seed)
        train, test = data.rows(np.arange(500)), data.rows(np.arange(500, 1000))
        bench = evaluate.Bench(truth[500:], np.tile(PRICES, (500, 1)), 2)

        def aiq(estimator: Ensemble, train=train, test=test, bench=bench) -> float:  # type: ignore[no-untyped-def]
            quality, _ = estimator.fit(train).predict(test.x)
            points = evaluate.swept(quality, bench.costs, bench).points()
            return evaluate.figures(points, bench.singles(), bench.best, 1.0)["aiq"]

        gains.append(aiq(Decided()) - aiq(Ensemble()))
    assert np.mean(gains) > -0.002
