"""Output limits as part of the arm, learned from truncated answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from routers.bench.limits import (
    RULES,
    WIDTHS,
    WORTH,
    compared,
    drawn_answers,
    logged_answers,
    longest,
    pairs,
    regret,
    shared,
)
from routers.censored import LimitArms
from routers.outcomes import DataError, Outcomes

LIMITS = np.array([50.0, 100.0, 200.0, 400.0, 800.0])


def test_truncated_answers_are_counted_as_censored() -> None:
    """The share of answers that a limit lets finish is estimated rightly, although most were truncated below it."""
    rng, arms = np.random.default_rng(0), LimitArms(LIMITS, 0.0)
    for _ in range(4000):
        limit, need = int(rng.integers(0, 5)), float(rng.exponential(200.0))
        arms.learn(limit, min(need, LIMITS[limit]), 1.0 if need < LIMITS[limit] else 0.0)
    assert np.allclose(arms.values(0.0), 1.0 - np.exp(-LIMITS / 200.0), atol=0.03)


def test_the_expected_use_is_charged() -> None:
    """It is the mean length up to the limit."""
    rng, arms = np.random.default_rng(1), LimitArms(np.arange(20.0, 801.0, 20.0), 0.001)
    for _ in range(4000):
        need = float(rng.exponential(200.0))
        arms.learn(39, min(need, 800.0), 0.0)
    use = -arms.values(0.0)[-1] / 0.001
    assert use == pytest.approx(200.0 * (1 - np.exp(-4.0)), rel=0.06)


def test_sharing_lengths_beats_an_arm_per_limit() -> None:
    """Over four seeds it has far less regret than two plain bandits, each at its best setting."""
    answers = drawn_answers()
    mean = answers.reward().mean(0)
    draws = [np.random.default_rng(seed).integers(len(answers.need), size=1000).tolist() for seed in range(4)]
    own = np.mean([regret(mean, shared(answers, rows, 0.1)) for rows in draws])
    for rule in (pairs, longest):
        plain = min(np.mean([regret(mean, rule(answers, rows, width)) for rows in draws]) for width in WIDTHS)
        assert own < 0.6 * plain


def test_logged_answers_are_truncated_at_the_limit() -> None:
    """Lengths, scores and prices come from the data. A truncated answer is paid for up to the limit and scores 0."""
    none, cost = np.full((2, 2), np.nan), np.array([[1.0, 4.0]] * 2)
    data = Outcomes(
        ("a", "b"), ("a", "b"), ("t", "t"), np.array(["train", "test"]), ("cheap", "dear"),
        scores=np.array([[1.0, 1.0], [0.0, 1.0]]), cost_usd=cost, checked_cost_usd=cost, input_tokens=none,
        output_tokens=np.array([[10.0, 40.0], [10.0, 20.0]]), latency_s=none, confidence=none, propensity=none,
    )  # fmt: skip
    answers = logged_answers(data)
    assert answers.limits.tolist() == [16, 32, 64]
    assert answers.price * answers.need.mean(0) == pytest.approx([WORTH / 4, WORTH])
    assert answers.reward()[0, 1] == pytest.approx(-answers.price[1] * np.array([16, 32, 40]) + [0, 0, 1])
    with pytest.raises(DataError, match="output_tokens"):
        logged_answers(replace(data, output_tokens=np.full((2, 2), np.nan)))


def test_the_report_has_every_rule_with_its_interval() -> None:
    """It also has the difference of our rule to each of the others."""
    report = compared(drawn_answers(n=200), 60, 2)
    assert set(report["regret"]) == set(RULES)
    assert set(report["less than"]) == set(RULES) - {"one estimate per model"}
    assert all(row["half_width"] >= 0 for row in report["regret"].values())


@pytest.mark.parametrize("limits", [[], [0.0, 1.0], [2.0, 1.0]])
def test_invalid_limits_are_refused(limits: list[float]) -> None:
    """Limits must be positive and ascending."""
    with pytest.raises(ValueError, match="limits"):
        LimitArms(np.array(limits), 0.1)
