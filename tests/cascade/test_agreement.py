"""Answers agree if they state the same result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.agreement import agreement, agreements


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("A", "A.", 1.0),
        ("A", "B", 0.0),
        ("12 - 2 = 10, so\n#### 10", "First ... #### $10", 1.0),
        ("#### 1,000", "#### 1000.", 1.0),
        ("#### 10", "#### 11", 0.0),
        ("Eros", "The Eros statue", 1.0),
        ("Angel of the North", "Lover's Fountain", 0.0),
        ("so \\boxed{42}", "#### 42", 1.0),
        ("", "", 1.0),
        ('{"n": 4, "day": "fri", "hour": 19}', '{"hour":19,"n":4,"day":"fri"}', 1.0),
        ('{"n": 4, "day": "fri", "hour": 19}', '{"n": 5, "day": "fri", "hour": 19}', 0.0),
        ('[1, 2, 3, 4, 5, 6]', '[6, 5, 4, 3, 2, 1]', 0.0),
    ],
)
def test_answers_are_compared_by_what_they_state(one: str, other: str, expected: float) -> None:
    """Numbers, letters and JSON are compared exactly, and short answers by their words."""
    assert agreement(one, other) == expected


@given(st.text(max_size=60), st.text(max_size=60))
def test_agreement_is_symmetric(one: str, other: str) -> None:
    """For any two texts it lies in [0, 1], is the same in either order, and is 1 for equal texts."""
    assert 0.0 <= agreement(one, other) <= 1.0
    assert agreement(one, other) == agreement(other, one)
    assert agreement(one, one) == 1.0


def test_an_agreement_table_is_symmetric() -> None:
    """The diagonal is 1, and every pair has the same value on both sides."""
    assert np.array_equal(agreements(["A", "B", "A"]), [[1, 0, 1], [0, 1, 0], [1, 0, 1]])
