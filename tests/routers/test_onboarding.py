from __future__ import annotations

import numpy as np

from routers.onboarding import completed


def outcomes(n: int = 2_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Eight models; the last one is much like the first. Its chances are returned beside the scores."""
    rng = np.random.default_rng(seed)
    ease, turn = rng.normal(size=(n, 1)), rng.normal(size=(n, 1))
    skill = np.linspace(-0.5, 1.0, 8)
    bent = np.array([2.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    chance = 1 / (1 + np.exp(-(skill + 1.2 * ease + turn * bent)))
    return (rng.random(chance.shape) < chance).astype(float), chance[:, -1]


def test_fifty_probes_tell_whom_a_model_resembles() -> None:
    """What is foretold lies nearer to the truth than the model's mean over its probes."""
    scores, chance = outcomes()
    few = scores.copy()
    few[50:, -1] = np.nan
    found = completed(few)[50:, -1]
    mean = few[:50, -1].mean()
    assert ((found - chance[50:]) ** 2).mean() < 0.7 * ((mean - chance[50:]) ** 2).mean()


def test_what_was_observed_stays() -> None:
    """Only gaps of sparse columns are filled, and only with numbers in [0, 1]."""
    scores, _ = outcomes(600)
    few = scores.copy()
    few[30:, -1] = np.nan
    found = completed(few)
    assert np.array_equal(found[:, :-1], scores[:, :-1])
    assert np.array_equal(found[:30, -1], scores[:30, -1])
    assert ((found >= 0) & (found <= 1)).all()


def test_half_observed_and_logged_data_are_left_alone() -> None:
    """A model with many outcomes speaks for itself; where no model is dense nothing can be foretold."""
    scores, _ = outcomes(600)
    half = scores.copy()
    half[300:, -1] = np.nan
    assert completed(half) is half
    logged = np.where(np.arange(8) == np.arange(600)[:, None] % 8, scores, np.nan)
    assert completed(logged) is logged
