"""Limits as part of the arm, learnt from cut answers."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import numpy as np
import pytest

from routers.censored import LimitArms

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


@dataclass(frozen=True)
class Need:
    """What a model's answers take and are worth."""

    mean: float
    quality: float


def regret(needs: list[Need], limits: np.ndarray, price: float, rounds: int, seed: int, *, shared: bool) -> float:
    """Of upper-confidence choice over (model, limit) against the best such pair. `shared` False: every pair is an arm
    of its own, which is the plain extension.
    """
    rng = np.random.default_rng(seed)
    arms = [LimitArms(limits, price) for _ in needs]
    count, total = np.zeros((len(needs), len(limits))), np.zeros((len(needs), len(limits)))
    truth = np.array([_worth(need, limits, price) for need in needs])
    lost = 0.0
    for t in range(rounds):
        if shared:
            values = np.array([arm.values(0.5, t + 2) for arm in arms])
        else:
            values = np.where(count > 0, total / np.maximum(count, 1), 1e9) + 0.5 * sqrt(log(t + 2) / 2) / np.sqrt(
                np.maximum(count, 1)
            )
        model, limit = np.unravel_index(int(values.argmax()), values.shape)
        need = rng.exponential(needs[model].mean)
        quality = float(rng.random() < needs[model].quality)
        done = need < limits[limit]
        count[model, limit] += 1
        total[model, limit] += done * quality - price * min(need, limits[limit])
        arms[model].learn(int(limit), min(need, float(limits[limit])), quality if done else 0.0)
        lost += float(truth.max() - truth[model, limit])
    return lost


def _worth(need: Need, limits: np.ndarray, price: float) -> np.ndarray:
    """Exactly, for exponentially distributed needs."""
    done = 1.0 - np.exp(-limits / need.mean)
    return done * need.quality - price * need.mean * done


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
