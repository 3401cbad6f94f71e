from __future__ import annotations

from math import inf, isnan

import numpy as np
import pytest
from scipy import stats

from routers.intervals import (
    Z95,
    Interval,
    difference_interval,
    half_width,
    mean_and_half_width,
    mean_interval,
    percentile_interval,
    resampled_counts,
    resampled_weights,
    skewed_interval,
    student_t,
    wilson_interval,
)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_student_quantiles(confidence: float) -> None:
    """They agree with scipy; below 3 degrees of freedom, fractions are rounded down."""
    for degrees in range(1, 40):
        known = stats.t.ppf(0.5 + confidence / 2, degrees)
        assert student_t(confidence, degrees) == pytest.approx(known, rel=1e-9 if degrees < 3 else 0.01), degrees
    assert student_t(confidence, 1.5) == student_t(confidence, 1)
    assert student_t(0.95, 1e9) == pytest.approx(Z95)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_the_interval_of_a_mean_has_its_stated_coverage(n: int) -> None:
    """That holds for few values and for many; the mean is its centre."""
    samples = np.random.default_rng(n).normal(3.0, 2.0, (4000, n))
    found = [mean_interval(sample) for sample in samples]
    assert np.mean([one.low <= 3.0 <= one.high for one in found]) == pytest.approx(0.95, abs=0.012)
    one = found[0]
    assert mean_and_half_width(samples[0]) == {"value": one.value, "half_width": half_width(samples[0])}
    assert Interval.around(one.value, one.half_width).as_dict() == pytest.approx(one.as_dict())


def test_one_value_has_an_infinite_interval() -> None:
    """Fewer effective values make an interval wider."""
    assert half_width([0.4]) == inf
    values = np.arange(50.0)
    assert mean_interval(values, effective=5.0).half_width > 1.3 * half_width(values)


def test_the_interval_of_a_difference_holds_for_unequal_variances() -> None:
    """The two samples differ in size and spread."""
    rng = np.random.default_rng(0)
    found = [difference_interval(rng.normal(1.0, 3.0, 60), rng.normal(0.5, 0.5, 200)) for _ in range(2000)]
    assert np.mean([one.low <= 0.5 <= one.high for one in found]) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (95, 100), (1, 3)])
def test_the_interval_of_a_share_is_wilsons(hits: int, n: int) -> None:
    """It agrees with scipy, lies within 0 and 1 and contains the share, and has a width even if all trials agree."""
    found, known = wilson_interval(hits, n), stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-12)
    assert 0.0 <= found.low <= found.value == hits / n <= found.high <= 1.0
    assert found.low < found.high


def test_resamples_are_bootstraps() -> None:
    """Every resample has n rows, each equally often in expectation; the interval of their means is near the normal one.
    """
    values = np.random.default_rng(1).normal(0.0, 1.0, 200)
    counts = resampled_counts(200, 2000, 5)
    assert (counts.sum(1) == 200).all() and counts.mean() == 1.0
    weights = resampled_weights(200, 2000, 5)
    np.testing.assert_array_equal(weights, counts / 200)
    found = percentile_interval(values.mean(), weights @ values)
    assert found.low < found.value < found.high
    assert found.half_width == pytest.approx(half_width(values), rel=0.1)


def test_percentiles_ignore_figures_that_are_not_finite() -> None:
    """Without a finite figure there are no limits."""
    drawn = [*range(101), float("nan"), inf]
    assert percentile_interval(50.0, drawn) == Interval(50.0, 2.5, 97.5)
    nothing = percentile_interval(1.0, [float("nan")])
    assert nothing.value == 1.0 and isnan(nothing.low) and isnan(nothing.high)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_skewed_sample_widens_one_side(sign: float) -> None:
    """The shift is Hall's, the first term of the Edgeworth expansion, with scipy's skewness; the other side is
    Student's, and neither is narrower.
    """
    values = sign * np.random.default_rng(0).exponential(size=40)
    z, error = stats.norm.ppf(0.95), stats.sem(values)
    shift = error * stats.skew(values) / np.sqrt(40) * (2 * z * z + 1) / 6
    found, reach = skewed_interval(values, 0.90, 25.0), stats.t.ppf(0.95, 25) * error
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - reach + min(shift, 0.0), rel=1e-4)
    assert found.high == pytest.approx(values.mean() + reach + max(shift, 0.0), rel=1e-4)
    wide = skewed_interval(np.ones(40), 0.90, np.inf, least=0.25)
    assert (wide.low, wide.high) == pytest.approx((1 - z * 0.5, 1 + z * 0.5))
