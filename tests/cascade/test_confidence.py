"""Evidence becomes one number, and missing evidence stays missing."""

from __future__ import annotations

from math import exp, inf, isnan, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.confidence import confidence
from cascade.types import Evidence

ANY = st.floats(allow_nan=True, allow_infinity=True)


def test_one_token_answers_with_its_probability() -> None:
    """For a single token the mean and the least log-probability agree."""
    assert confidence(Evidence(mean_logprob=-0.5, min_logprob=-0.5)) == pytest.approx(exp(-0.5))


def test_the_sum_stands_in_for_a_missing_mean() -> None:
    """The mean is computed from a sum over a known number of tokens."""
    assert confidence(Evidence(sum_logprob=-4.0, output_tokens=4)) == pytest.approx(exp(-1.0))


def test_sources_of_evidence_are_averaged() -> None:
    """The log-probabilities count as the geometric mean of mean and least token; the result is the mean of the known
    sources.
    """
    told = Evidence(mean_logprob=-0.2, min_logprob=-1.0, agreement=0.4, judged=0.9)
    assert confidence(told) == pytest.approx((exp(-0.6) + 0.4 + 0.9) / 3)
    assert confidence(Evidence(agreement=0.4, judged=0.8)) == pytest.approx(0.6)


def test_no_evidence_is_nan() -> None:
    """An answer without evidence has no confidence, which is not the same as 0."""
    assert isnan(confidence(Evidence()))


@pytest.mark.parametrize(
    "failed", [{"refused": True}, {"schema_valid": False}, {"tools_parse": False}, {"checks_passed": False}]
)
def test_a_failed_check_is_a_veto(failed: dict[str, Any]) -> None:
    """One failed check outweighs all other evidence."""
    assert confidence(Evidence(mean_logprob=-0.01, **failed)) == 0.0


def test_a_passed_check_is_proof() -> None:
    """A check that ran and passed needs no log-probability."""
    assert confidence(Evidence(checks_passed=True)) == 1.0


@given(ANY, ANY, ANY, st.integers(-1, 9), ANY, ANY)
def test_any_evidence_gives_a_probability_or_nan(
    mean: float, least: float, total: float, tokens: int, agreement: float, judged: float
) -> None:
    """Infinite, NaN and out-of-range values raise nothing and never give a number outside [0, 1]."""
    p = confidence(Evidence(mean, least, total, tokens, agreement=agreement, judged=judged))
    assert isnan(p) or 0.0 <= p <= 1.0


def test_minus_infinity_is_zero_and_nan_is_missing() -> None:
    """A log-probability of -inf is a known probability of zero."""
    assert confidence(Evidence(mean_logprob=-inf)) == 0.0
    assert isnan(confidence(Evidence(mean_logprob=nan, min_logprob=inf)))
