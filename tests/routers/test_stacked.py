"""Members are weighted by how well they predict rows that they did not see."""

from __future__ import annotations

import numpy as np
import pytest

from routers.estimators.base import Training
from routers.estimators.ensemble import FOLDS, Ensemble
from routers.estimators.stacked import Stacked, _apart


def world(rows: int, *, noise: bool = False, seed: int = 3) -> Training:
    """Two models whose order is visible in the first coordinate, or nowhere with `noise`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 6))
    side = rng.normal(size=rows) if noise else x[:, 0]
    scores = np.column_stack([side > 0, side <= 0]).astype(float)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    scores[np.isnan(scores).all(1), 0] = 1.0
    return Training(x, scores, ["t"] * rows, ("a", "b"))


def test_members_that_predict_get_the_weight() -> None:
    """A table with a single task predicts nothing where the vector predicts everything. No weight is negative, and they
    sum to 1.
    """
    fitted = Stacked().fit(world(240))
    shares = dict(zip(fitted.members, fitted.weights, strict=True))
    assert sum(fitted.weights) == pytest.approx(1.0) and min(fitted.weights) >= 0.0
    assert shares["linear"] + shares["factor"] + shares["clusters"] > shares["domain"]
    assert np.abs(fitted.predict(world(40).x)[0][:, 0] - (world(40).x[:, 0] > 0)).mean() < 0.35


def test_estimates_are_stretched_or_shrunk() -> None:
    """Where the vector is informative, estimates are moved away from their model's mean; where it isn't, towards it."""
    fitted, fresh = Stacked().fit(world(400)), world(500, seed=4)
    assert fitted.stretch > 1.05
    seen = np.isfinite(fresh.scores)

    def error(estimator: Ensemble) -> float:
        return float(((estimator.predict(fresh.x)[0] - fresh.scores)[seen] ** 2).mean())

    plain = Ensemble(fitted.weights).fit(world(400))
    assert error(fitted) < error(plain)
    assert Stacked().fit(world(400, noise=True)).stretch < 0.5


def test_a_stretch_survives_being_saved() -> None:
    """The saved parameters and arrays give the same estimates, also in artefacts from before there was a stretch."""
    fitted, x = Stacked().fit(world(100)), world(30, seed=4).x
    again = Stacked(**fitted.parameters()).restore(fitted.state())
    assert all((one == other).all() for one, other in zip(fitted.predict(x), again.predict(x), strict=True))
    plain = Ensemble().fit(world(100))
    old = {name: array for name, array in plain.state().items() if name != "base_"}
    assert (Ensemble().restore(old).predict(x)[0] == plain.predict(x)[0]).all()


def test_with_few_rows_the_ensembles_weights_are_used() -> None:
    """There are too few rows to hold any out."""
    fitted = Stacked().fit(world(2 * FOLDS - 1))
    assert (fitted.weights, fitted.stretch) == (Ensemble().weights, 1.0)


def test_a_fit_is_determined_by_its_seed() -> None:
    """The training's seed is the only source of randomness."""
    one, other = (Stacked().fit(world(80, noise=True)) for _ in range(2))
    assert one.weights == other.weights


def test_members_predict_rows_that_they_did_not_see() -> None:
    """A row's scores don't change the members' predictions for that row."""
    data = world(80)
    other = Training(data.x, data.scores.copy(), data.tasks, data.models)
    other.scores[7] = 1.0 - np.nan_to_num(other.scores[7])
    for one, two in zip(Ensemble.out_of_fold(data), Ensemble.out_of_fold(other), strict=True):
        assert np.array_equal(one[7], two[7]) and not np.array_equal(one, two)


def test_the_deviation_of_the_ensemble_is_that_of_a_mixture() -> None:
    """Its second moment is the weighted mean of the members'. The stretch multiplies the standard deviation, and the
    difference to the model's mean score.
    """
    data = world(200)
    fitted = Ensemble().fit(data)
    mean, sd = fitted.predict(data.x)
    parts = [member.predict(data.x) for member in fitted.members.values()]
    second = sum(w * (part**2 + error**2) for w, (part, error) in zip(fitted.weights, parts, strict=True))
    assert np.allclose(mean**2 + sd**2, second)
    fitted.stretch = 0.5
    drawn, narrower = fitted.predict(data.x)
    assert np.allclose(drawn - fitted.base_, 0.5 * (mean - fitted.base_)) and np.allclose(narrower, 0.5 * sd)


def test_stacking_removes_the_means_of_models_and_rows() -> None:
    """Only observed cells count: the models' means are 3 and 4, and a row with one cell becomes zero."""
    seen = np.array([[True, True], [True, False], [False, False], [True, True]])
    found = _apart(np.array([[1.0, 5.0], [3.0, 9.0], [7.0, 7.0], [5.0, 3.0]]), seen)
    assert np.allclose(found, [[-1.5, 1.5], [0.0, 0.0], [0.0, 0.0], [1.5, -1.5]])
