"""Members are weighed by what they foretell of rows that they did not see."""

from __future__ import annotations

import numpy as np
import pytest

from routers.estimators.base import Training
from routers.estimators.ensemble import Ensemble
from routers.estimators.stacked import FOLDS, Stacked


def world(rows: int, *, noise: bool = False) -> Training:
    """Two models whose order is plain in the first coordinate; `noise`: in nothing."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 6))
    side = rng.normal(size=rows) if noise else x[:, 0]
    scores = np.column_stack([side > 0, side <= 0]).astype(float)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    scores[np.isnan(scores).all(1), 0] = 1.0
    return Training(x, scores, ["t"] * rows, ("a", "b"))


def test_who_foretells_gets_the_say() -> None:
    """One task's table tells nothing where the vector tells all; shares are none below zero and sum to one."""
    fitted = Stacked().fit(world(240))
    shares = dict(zip(fitted.members, fitted.weights, strict=True))
    assert sum(fitted.weights) == pytest.approx(1.0) and min(fitted.weights) >= 0.0
    assert shares["linear"] + shares["factor"] + shares["clusters"] > shares["domain"]
    assert np.abs(fitted.predict(world(40).x)[0][:, 0] - (world(40).x[:, 0] > 0)).mean() < 0.35


def test_with_few_rows_the_ensembles_own_weights_stand() -> None:
    """Too few to leave any out."""
    assert Stacked().fit(world(2 * FOLDS - 1)).weights == Ensemble().weights


def test_fits_of_a_seed_are_the_same() -> None:
    """Nothing is drawn but by the training's seed."""
    one, other = (Stacked().fit(world(80, noise=True)) for _ in range(2))
    assert one.weights == other.weights
