"""Numbers as people read them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dashboard import units
from gateway.dashboard.units import DASH, GAP, MINUS


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (units.usd(1234.5), "$1,234.50"), (units.usd(12345.6), "$12,346"), (units.usd(-0.5), f"{MINUS}$0.50"),
        (units.usd(0.0004), "$0.0004"), (units.usd(0.00123456), "$0.00123"), (units.usd(0), "$0"),
        (units.usd_per_1k(0.0022), "$2.20"), (units.seconds(0.0421), f"42.1{GAP}ms"),
        (units.seconds(1.234), f"1.23{GAP}s"), (units.seconds(900), f"15{GAP}min"), (units.seconds(7200), f"2{GAP}h"),
        (units.percent(0.1234), f"12.3{GAP}%"), (units.percent(0), f"0{GAP}%"), (units.percent(1), f"100{GAP}%"),
        (units.count(1234), "1,234"), (units.count(1_234_567), f"1.23{GAP}M"), (units.quality(0.9), "0.900"),
        (units.size(268_435_456), f"268{GAP}MB"), (units.number(0.0999996), "0.100"),
        (units.difference(units.usd(0.5)), "+$0.50"), (units.difference(units.usd(0)), "$0"),
        (units.difference(units.quality(-0.01)), f"{MINUS}0.010"), (units.trimmed("30.0"), "30"),
        (units.trimmed("$0.500"), "$0.50"), (units.trimmed("1,200.0"), "1,200"),
    ],
)  # fmt: skip
def test_figures_have_their_unit(told: str, expected: str) -> None:
    """Numbers are rounded to their significant digits."""
    assert told == expected


@pytest.mark.parametrize("unit", list(units.UNITS))
def test_what_is_not_known_is_a_dash(unit: str) -> None:
    """An unknown value is a dash, never a zero."""
    assert units.in_unit(None, unit) == units.in_unit(float("nan"), unit) == units.in_unit(float("inf"), unit) == DASH


@given(st.floats(min_value=-1e12, max_value=1e12))
def test_numbers_keep_three_significant_digits(value: float) -> None:
    text = units.number(value).replace(MINUS, "-").replace(",", "")
    assert float(text) == pytest.approx(value, rel=6e-3, abs=1e-300)


@given(st.floats(min_value=0, max_value=4e9))
def test_times_are_relative_to_now(time_s: float) -> None:
    """Past times are "ago", future ones "in"."""
    told = units.ago(time_s, 2e9)
    assert re.fullmatch(r"just now|\d+\u202f(s|min|h|d) ago|in \d+\u202f(s|min|h|d)", told)
    assert ("ago" in told) == (2e9 - time_s >= 2)
