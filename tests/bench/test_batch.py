"""The reference for a planned job: its own optimum in hindsight."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.sparse import csr_array, kron

from tests.bench.batch import on_sides, optimum
from tests.bench.batch_thresholds import Side


def side(n: int = 600, *, noise: float = 0.3, seed: int = 0) -> Side:
    """Right or wrong answers of three models, of which the more expensive are better; `noise` is that of the
    predictions.
    """
    rng = np.random.default_rng(seed)
    chance = np.clip(rng.uniform(-0.2, 0.8, (n, 1)) + np.array([0.0, 0.2, 0.35]), 0.02, 0.98)
    score = (rng.random(chance.shape) < chance).astype(float)
    paid = np.array([1e-5, 1e-4, 1e-3]) * rng.lognormal(0.0, 0.5, chance.shape)
    said = np.clip(chance + noise * rng.normal(size=chance.shape), 0, 1)
    return Side(said, np.full_like(said, 0.05), paid, score, paid)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.9])
@pytest.mark.parametrize("alike", [False, True])
def test_the_optimum_in_hindsight_is_the_linear_programs(share: float, alike: bool) -> None:
    """For right or wrong answers, graded ones, and ones of equal cost it is HiGHS's optimum, and rises with the budget
    up to every best answer.
    """
    true = side()
    score = np.round(true.score * np.random.default_rng(2).random(true.score.shape), 1)
    paid = np.broadcast_to([1e-5, 1e-4, 1e-3], score.shape) if alike else true.paid
    n, m = score.shape
    once = csr_array(kron(csr_array(np.eye(n)), np.ones((1, m))))
    usd = float(paid.min(1).sum() * (1 - share) + paid[:, 2].sum() * share)
    for scored in (true.score, score):
        relaxed = linprog(-scored.ravel(), A_ub=paid.reshape(1, -1), b_ub=[usd], A_eq=once, b_eq=np.ones(n))
        assert optimum(scored, paid, usd).sum() == pytest.approx(-relaxed.fun, abs=1e-5)
    assert optimum(score, paid, np.inf).sum() == pytest.approx(score.max(1).sum())


def test_the_share_reached_is_of_the_optimum_at_equal_cost() -> None:
    """A job with perfect predictions reaches nearly all of it, one with noisy ones less, and none reaches more."""
    train, test = side(seed=1), side()
    knowing = Side(test.score, np.full_like(test.score, 0.001), test.paid, test.score, test.paid)
    for row in on_sides(train, knowing):
        assert row["reached"][0] == pytest.approx(1.0, abs=0.02)
    for row in on_sides(train, test):
        assert row["hindsight_optimum"] >= max(row["quality"], row["best_threshold_in_hindsight"]) - 1e-9
        assert row["reached"][1] <= row["reached"][0] <= row["reached"][2] < 0.6
        most = row["hindsight_optimum"] - row["threshold_router"]
        assert row["reached"][0] == pytest.approx(row["gain"][0] / most)
        most = row["hindsight_optimum"] - row["best_threshold_in_hindsight"]
        assert row["reached_on_hindsight"][0] == pytest.approx(row["gain_on_hindsight"][0] / most)
