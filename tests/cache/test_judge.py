"""The judge's own error rate is subtracted from what it reports."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cache.acceptance import beta_upper
from cache.judge import JudgeError


def test_a_perfect_judge_is_believed() -> None:
    """Without error nothing is subtracted. Ten rightly judged pairs don't prove that a judge never errs."""
    share, upper = np.array([0.02]), np.array([0.04])
    assert [one[0] for one in JudgeError().correct(share, upper)] == pytest.approx([0.02, 0.04])
    few = JudgeError.measured([True] * 10, [False] * 10).correct(share, upper)
    assert few[0][0] == pytest.approx(0.02) and few[1][0] > 0.1


def test_the_bound_holds_for_an_erring_judge() -> None:
    """In at least 93 of 100 trials the corrected upper bound lies above the true share."""
    rng, held = random.Random(0), 0
    for _ in range(300):
        error = JudgeError.measured(
            [rng.random() >= 0.03 for _ in range(1000)], [rng.random() < 0.03 for _ in range(1000)]
        )
        rows = [(rng.random() < 0.02) != (rng.random() < 0.03) for _ in range(1000)]
        share = np.array([sum(rows) / 1000])
        _, upper = error.correct(share, beta_upper(share * 1000, 1000 - share * 1000, 0.95))
        held += upper[0] >= 0.02
    assert held >= 279


def test_the_correction_is_unbiased() -> None:
    """Over many rows judged with error, the mean corrected share is the true one."""
    share, _ = JudgeError(0.03, 0.05).correct(np.array([0.02 * 0.95 + 0.98 * 0.03]), np.array([0.1]))
    assert share[0] == pytest.approx(0.02)
    assert JudgeError(0.03, 0.05).called_wrong(0.02) == pytest.approx(0.02 * 0.95 + 0.98 * 0.03)


def test_uncertainty_about_the_judge_widens_the_bound() -> None:
    """By the delta method, with numerical slopes of the correction: the bound adds the one-sided 95 % error of either
    measured rate to that of the share; rates that are stated as known add nothing.
    """
    wrong, right, share, upper = 0.04, 0.06, 0.15, 0.2

    def corrected(share: float, wrong: float, right: float) -> float:
        return float(JudgeError(wrong, right).correct(np.array([share]), np.array([share]))[0][0])

    def slope(place: int) -> float:
        moved = [[share, wrong, right] for _ in range(2)]
        moved[0][place] += 1e-6
        moved[1][place] -= 1e-6
        return (corrected(*moved[0]) - corrected(*moved[1])) / 2e-6

    known = [slope(0) * (upper - share)]
    doubt = [1.645 * slope(1) * (0.04 * 0.96 / 300 + 1 / 300**2) ** 0.5,
             1.645 * slope(2) * (0.06 * 0.94 / 200 + 1 / 200**2) ** 0.5]  # fmt: skip
    for counts, parts in (((300, 200), known + doubt), ((0, 0), known)):
        _, above = JudgeError(wrong, right, *counts).correct(np.array([share]), np.array([upper]))
        assert above[0] == pytest.approx(corrected(share, wrong, right) + np.linalg.norm(parts), abs=1e-5)
    assert JudgeError(wrong, right).correct(np.array([0.01]), np.array([0.99]))[0][0] == 0.0
    assert JudgeError(wrong, right).correct(np.array([0.9]), np.array([0.99]))[1][0] == 1.0


def test_a_judge_that_guesses_is_refused() -> None:
    """A judge whose verdicts carry no information is refused by the configuration."""
    with pytest.raises(ValueError, match="judge"):
        JudgeError(0.5, 0.5)
    with pytest.raises(ValueError, match="judge"):
        JudgeError(-0.1, 0.0)
