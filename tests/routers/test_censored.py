"""Limits as part of the arm, learnt from cut answers."""

from __future__ import annotations

import numpy as np
import pytest

from routers.censored import LimitArms, Need, regret

LIMITS = np.array([50.0, 100.0, 200.0, 400.0, 800.0])


def test_cut_answers_are_counted_as_cut() -> None:
    """The share finished by a limit is estimated right although most answers were cut below it."""
    rng, arms = np.random.default_rng(0), LimitArms(LIMITS, 0.0)
    for _ in range(4000):
        limit, need = int(rng.integers(0, 5)), float(rng.exponential(200.0))
        arms.learn(limit, min(need, LIMITS[limit]), 1.0 if need < LIMITS[limit] else 0.0)
    assert np.allclose(arms.values(0.0), 1.0 - np.exp(-LIMITS / 200.0), atol=0.03)


def test_the_price_of_what_is_used_is_charged() -> None:
    """Expected use is the mean need up to the limit."""
    rng, arms = np.random.default_rng(1), LimitArms(np.arange(20.0, 801.0, 20.0), 0.001)
    for _ in range(4000):
        need = float(rng.exponential(200.0))
        arms.learn(39, min(need, 800.0), 0.0)
    use = -arms.values(0.0)[-1] / 0.001
    assert use == pytest.approx(200.0 * (1 - np.exp(-4.0)), rel=0.06)


def test_sharing_beats_an_arm_per_limit() -> None:
    """Over six seeds, far less regret than the plain extension that learns every (model, limit) apart."""
    needs = [Need(300.0, 0.95), Need(80.0, 0.7), Need(40.0, 0.4)]
    shared = [regret(needs, LIMITS, 0.0003, 1500, seed, shared=True) for seed in range(6)]
    apart = [regret(needs, LIMITS, 0.0003, 1500, seed, shared=False) for seed in range(6)]
    assert np.mean(shared) < 0.75 * np.mean(apart)


@pytest.mark.parametrize("limits", [[], [0.0, 1.0], [2.0, 1.0]])
def test_limits_that_are_none_are_refused(limits: list[float]) -> None:
    """Limits are positive and rise."""
    with pytest.raises(ValueError, match="limits"):
        LimitArms(np.array(limits), 0.1)
