"""The benchmark of admission, in its short form."""

from __future__ import annotations

import math

import pytest

from local_models.bench import admission_case


def test_known_lengths_are_admitted_best() -> None:
    """Every round has figures of its own, and knowing the answers' lengths takes the fewest steps."""
    told = admission_case(60, 2)
    for worst, known in zip(told["steps"]["worst case"], told["steps"]["true lengths"], strict=True):
        assert known < worst
    fewer = told["fewer_steps"]
    assert fewer["worst case"] == {"value": 1.0, "half_width": 0.0}
    assert fewer["true lengths"]["value"] > fewer["predicted"]["value"]
    ratios = [a / b for a, b in zip(told["steps"]["worst case"], told["steps"]["predicted"], strict=True)]
    assert fewer["predicted"]["half_width"] == pytest.approx(12.706 * abs(ratios[0] - ratios[1]) / 2, rel=1e-3)
    assert math.isnan(admission_case(45, 1)["faster"]["predicted"]["half_width"])
