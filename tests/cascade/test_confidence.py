"""Evidence becomes one number; what is unknown stays unknown."""

from __future__ import annotations

from math import exp, inf, isnan, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.confidence import confidence
from cascade.types import Evidence

ANY = st.floats(allow_nan=True, allow_infinity=True)


def test_one_token_answers_with_its_probability():
    """Mean and least log-probability of a single token agree."""
    assert confidence(Evidence(mean_logprob=-0.5, min_logprob=-0.5)) == pytest.approx(exp(-0.5))


def test_the_sum_stands_in_for_a_missing_mean():
    """A sum over a known number of tokens gives the mean."""
    assert confidence(Evidence(sum_logprob=-4.0, output_tokens=4)) == pytest.approx(exp(-1.0))


def test_log_probabilities_agreement_and_a_judge_count_alike():
    """Of the log-probabilities the geometric mean of mean and least token; the mean of what is known."""
    told = Evidence(mean_logprob=-0.2, min_logprob=-1.0, agreement=0.4, judged=0.9)
    assert confidence(told) == pytest.approx((exp(-0.6) + 0.4 + 0.9) / 3)
    assert confidence(Evidence(agreement=0.4, judged=0.8)) == pytest.approx(0.6)


def test_nothing_known_is_nan():
    """An answer without evidence has no confidence, which is not zero."""
    assert isnan(confidence(Evidence()))


@pytest.mark.parametrize(
    "failed", [{"refused": True}, {"schema_valid": False}, {"tools_parse": False}, {"checks_passed": False}]
)
def test_a_failed_check_is_a_veto(failed: dict[str, bool]):
    """One failed check outweighs everything."""
    assert confidence(Evidence(mean_logprob=-0.01, **failed)) == 0.0


def test_a_passed_check_is_proof():
    """An executed check that passes needs no log-probability."""
    assert confidence(Evidence(checks_passed=True)) == 1.0


@given(ANY, ANY, ANY, st.integers(-1, 9), ANY, ANY)
def test_any_evidence_gives_a_probability_or_nan(mean, least, total, tokens, agreement, judged):
    """Infinite, NaN or out of range: never a crash, never outside [0, 1]."""
    p = confidence(Evidence(mean, least, total, tokens, agreement=agreement, judged=judged))
    assert isnan(p) or 0.0 <= p <= 1.0


def test_minus_infinity_is_no_confidence_and_nan_is_none():
    """A log-probability of -inf is a known zero."""
    assert confidence(Evidence(mean_logprob=-inf)) == 0.0
    assert isnan(confidence(Evidence(mean_logprob=nan, min_logprob=inf)))
