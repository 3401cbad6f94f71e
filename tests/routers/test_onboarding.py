from __future__ import annotations

import numpy as np
import pytest

from routers.bench.onboarding import WAYS, _shares
from routers.onboarding import completed
from routers.outcomes import Outcomes


def outcomes(n: int = 2_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Eight models, of which the last is similar to the first. The true probabilities are returned beside the scores.
    """
    rng = np.random.default_rng(seed)
    ease, turn = rng.normal(size=(n, 1)), rng.normal(size=(n, 1))
    skill = np.linspace(-0.5, 1.0, 8)
    bent = np.array([2.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    chance = 1 / (1 + np.exp(-(skill + 1.2 * ease + turn * bent)))
    return (rng.random(chance.shape) < chance).astype(float), chance[:, -1]


def test_fifty_probes_predict_a_models_scores() -> None:
    """The predictions are nearer to the truth than the model's mean over its probes."""
    scores, chance = outcomes()
    few = scores.copy()
    few[50:, -1] = np.nan
    found = completed(few)[50:, -1]
    mean = few[:50, -1].mean()
    assert ((found - chance[50:]) ** 2).mean() < 0.7 * ((mean - chance[50:]) ** 2).mean()


def test_observed_scores_stay() -> None:
    """Only gaps of sparse models are filled, and only with numbers in [0, 1]."""
    scores, _ = outcomes(600)
    few = scores.copy()
    few[30:, -1] = np.nan
    found = completed(few)
    assert np.array_equal(found[:, :-1], scores[:, :-1])
    assert np.array_equal(found[:30, -1], scores[:30, -1])
    assert ((found >= 0) & (found <= 1)).all()


def test_dense_and_logged_data_stay_unchanged() -> None:
    """A model with many outcomes needs no prediction; where no model is dense, nothing can be predicted."""
    scores, _ = outcomes(600)
    half = scores.copy()
    half[300:, -1] = np.nan
    assert completed(half) is half
    logged = np.where(np.arange(8) == np.arange(600)[:, None] % 8, scores, np.nan)
    assert completed(logged) is logged


def test_easy_probes_do_not_flatter() -> None:
    """If a model's probes are easier than most queries, lower scores are predicted for the others."""
    rng, flattered, adjusted = np.random.default_rng(0), [], []
    for seed in range(8):
        scores, chance = outcomes(1000, seed)
        weight = np.exp(3.0 * scores[:, :7].mean(1))
        rows = rng.choice(1000, 100, replace=False, p=weight / weight.sum())
        few = scores.copy()
        few[np.delete(np.arange(1000), rows), -1] = np.nan
        gaps, truth = np.isnan(few[:, -1]), chance[np.isnan(few[:, -1])].mean()
        flattered.append(scores[rows, -1].mean() - truth)
        adjusted.append(completed(few)[gaps, -1].mean() - truth)
    assert abs(np.mean(adjusted)) < 0.5 * np.mean(flattered)


@pytest.mark.parametrize(
    ("n", "dense", "known", "filled"),
    [(600, 7, 4, False), (600, 7, 5, True), (600, 7, 199, True), (600, 7, 200, False),
     (100, 7, 49, True), (100, 7, 50, False), (600, 2, 50, True), (600, 1, 50, False)],
)  # fmt: skip
def test_few_probes_and_two_known_models_are_needed(n: int, dense: int, known: int, filled: bool) -> None:
    """A model is filled if it has 5 to 199 outcomes, on less than half of the queries."""
    scores, _ = outcomes(n)
    few = scores[:, -1 - dense :].copy()
    few[known:, -1] = np.nan
    assert np.isfinite(completed(few)).all() == filled


def test_every_way_of_filling_keeps_observed_scores() -> None:
    """Both an identity vector and the probes' mean fill all gaps in training."""
    scores, chance = outcomes(600)
    few = outcome_data(np.where((np.arange(600) < 50)[:, None] | (np.arange(8) < 7), scores, np.nan))
    z = np.column_stack([scores[:, :7].mean(1), np.ones(600)])
    for name, way in WAYS.items():
        found = way(few, 7, z).scores
        assert np.array_equal(found[:, :7], scores[:, :7])
        assert np.array_equal(found[:50, 7], scores[:50, 7])
        assert np.isfinite(found).all() == (name != "predicted")
    vector, mean = (WAYS[name](few, 7, z).scores[50:, 7] for name in ("identity vector", "mean of probes"))
    assert ((vector - chance[50:]) ** 2).mean() < ((mean - chance[50:]) ** 2).mean()


def test_shares_are_of_the_total_value_of_models() -> None:
    """A more valuable model counts more; the interval is that of the draws."""
    gained = np.array([[[0.04, 0.02]] * 3, [[0.0, 0.0]] * 3])
    found = _shares(gained, 0.05)
    assert set(found) == set(WAYS)
    assert found["predicted"]["value"] == pytest.approx(0.6)
    assert (found["predicted"]["low"], found["predicted"]["high"]) == pytest.approx((0.4, 0.8))


def outcome_data(scores: np.ndarray) -> Outcomes:
    """Rows of which only the scores matter."""
    n, m = scores.shape
    none, texts = np.full((n, m), np.nan), tuple(f"q{i}" for i in range(n))
    splits, models = np.full(n, "train"), tuple("abcdefgh"[:m])
    unknown = (none, none, none, none, none, none, none)
    return Outcomes(texts, texts, ("t",) * n, splits, models, scores, *unknown)
