"""A judge's own error is taken off what it reports."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cache.acceptance import beta_upper
from cache.judge import JudgeError


def test_a_perfect_judge_is_believed() -> None:
    """Without error nothing is taken off."""
    share, upper = np.array([0.02]), np.array([0.04])
    assert JudgeError().correct(share, upper) == (share, upper)


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
    """Of many rows judged with error, the corrected share is the true one."""
    share, _ = JudgeError(0.03, 0.05).correct(np.array([0.02 * 0.95 + 0.98 * 0.03]), np.array([0.1]))
    assert share[0] == pytest.approx(0.02)
    assert JudgeError(0.03, 0.05).called_wrong(0.02) == pytest.approx(0.02 * 0.95 + 0.98 * 0.03)


def test_a_judge_that_guesses_is_refused() -> None:
    """A judge that says nothing is an error where it is configured."""
    with pytest.raises(ValueError, match="judge"):
        JudgeError(0.5, 0.5)
    with pytest.raises(ValueError, match="judge"):
        JudgeError(-0.1, 0.0)
