"""Tests of the factorisation: its gradients, its predictions, and models that join."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from routers.estimators.base import Matrix, Training
from routers.estimators.descent import sigmoid
from routers.estimators.factor import Factor, _logits, _slopes


def numeric(loss: Callable[[Matrix], float], at: Matrix, step: float = 1e-5) -> Matrix:
    """The gradient by central differences."""
    found = np.zeros_like(at)
    for place in np.ndindex(at.shape):
        moved = np.zeros_like(at)
        moved[place] = step
        found[place] = (loss(at + moved) - loss(at - moved)) / (2 * step)
    return found


def test_the_slopes_are_the_gradient_of_the_log_loss() -> None:
    """They are ten times the gradient of the mean loss over observed cells, as central differences show."""
    rng = np.random.default_rng(0)
    scores = (rng.random((7, 3)) < 0.5).astype(float)
    scores[0, 1] = scores[4, :2] = np.nan
    data = Training(rng.normal(size=(7, 4)), scores, ["t"] * 7, list("abc"))
    weights = {
        "level": rng.normal(size=3), "ease": rng.normal(size=4), "traits": rng.normal(size=(4, 2)),
        "trait_level": rng.normal(size=2), "vectors": rng.normal(size=(2, 3)),
    }  # fmt: skip

    def loss(name: str, moved: Matrix) -> float:
        p = sigmoid(_logits(weights | {name: moved}, data.x))
        return -10.0 * float(np.nanmean(scores * np.log(p) + (1 - scores) * np.log(1 - p)))

    found = _slopes(weights, data)
    for name, at in weights.items():
        assert np.allclose(found[name], numeric(lambda moved: loss(name, moved), at), atol=1e-5)


def fitted(n: int = 300) -> tuple[Factor, Training]:
    """Two models do well where the first coordinate is high, and one where it is low."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 3))
    chance = sigmoid(0.5 + 0.8 * x[:, 1:2] + 2.0 * x[:, :1] * np.array([1.0, 1.0, -1.0]))
    data = Training(x, (rng.random((n, 3)) < chance).astype(float), ["t"] * n, list("abc"))
    return Factor(rank=2).fit(data), data


def test_a_prediction_is_the_sigmoid_of_its_logits() -> None:
    """Its variance is p (1 - p) (1 + |traits|^2) / (n + 1)."""
    factor, data = fitted()
    mean, sd = factor.predict(data.x[:5])
    traits = data.x[:5] @ factor.traits_ + factor.trait_level_
    level = (data.x[:5] @ factor.ease_)[:, None] + factor.level_
    assert np.allclose(np.log(mean / (1 - mean)), level + traits @ factor.vectors_)
    assert sd**2 == pytest.approx(mean * (1 - mean) * (1 + (traits**2).sum(1, keepdims=True)) / 301)
    assert ((mean > 0.5) == (data.scores[:5] > 0.5)).mean() > 0.6


def test_a_model_that_joins_gets_the_likeliest_vector() -> None:
    """There the gradient of the probes' log loss equals that of the penalty toward the known models' mean."""
    factor, data = fitted()
    centre = np.append(factor.level_.mean(), factor.vectors_.mean(1))
    spread = np.append(factor.level_.var() + 0.05, factor.vectors_.var(1) + 0.05)
    x, scores = data.x[:40], data.scores[:40, 2]
    factor.join(x, scores)
    own = np.append(factor.level_[-1], factor.vectors_[:, -1])
    design = np.column_stack([np.ones(40), x @ factor.traits_ + factor.trait_level_])
    missed = scores - factor.predict(x)[0][:, -1]
    assert np.allclose(design.T @ missed, (own - centre) / spread, atol=1e-6)
    assert factor.count_.tolist() == [300, 300, 300, 40]
