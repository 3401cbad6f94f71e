"""Confidence intervals: of a mean, of a difference of means, of a share, and by the bootstrap.

The request path, the checks and the benchmarks all use these formulas. Only numpy is needed, and every source of
randomness is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, pi, sqrt, tan
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Z95 = NormalDist().inv_cdf(0.975)
"""Standard errors on either side of an estimate that make a 95 % interval."""
Z95_ONE_SIDED = NormalDist().inv_cdf(0.95)
"""Standard errors on one side of an estimate that make a one-sided 95 % bound."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and the limits between which the truth is expected."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, half_width: float) -> Interval:
        return cls(value, value - half_width, value + half_width)

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def student_t(confidence: float, degrees: float) -> float:
    """Two-sided quantile of Student's t: exact for 1 and 2 degrees of freedom, to which fewer than 3 are rounded down;
    from 3 on by Cornish and Fisher's expansion (Abramowitz and Stegun 1964, 26.7.5), within 1 % up to 99 %.
    """
    if degrees < 2:
        return tan(pi * confidence / 2)
    if degrees < 3:
        return confidence * sqrt(2 / (1 - confidence**2))
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / degrees + second / degrees**2 + third / degrees**3 + fourth / degrees**4


def mean_interval(values: ArrayLike, confidence: float = 0.95, effective: float | None = None) -> Interval:
    """Interval of the mean of independent values, by Student's t (Student 1908); infinite for a single value.
    `effective`: the effective number of values where they are weighted; it sets the degrees of freedom.
    """
    found = np.asarray(values, np.float64)
    n = len(found)
    error = float(found.std(ddof=1)) / sqrt(n) if n > 1 else inf
    degrees = (n if effective is None else effective) - 1
    return Interval.around(float(found.mean()), student_t(confidence, degrees) * error)


def skewed_interval(values: Array, confidence: float, degrees: float, least: float = 0.0) -> Interval:
    """Interval of the mean of independent values that may be skewed. By the first term of Edgeworth's expansion (Hall
    1992) it reaches further on the side of the long tail; the other side is not shortened. `least`: lower bound on the
    variance of the mean.
    """
    n, value = len(values), float(values.mean())
    rest = values - value
    squares = float(rest @ rest)
    variance = squares / max(n * (n - 1), 1)
    reach = student_t(confidence, degrees) * sqrt(max(variance, least))
    z = student_t(confidence, inf)
    skew = float((rest**3).sum()) / max(squares, 1e-60) ** 1.5
    shift = sqrt(variance) * skew * (2 * z * z + 1) / 6
    return Interval(value, value - reach + min(shift, 0.0), value + reach + max(shift, 0.0))


def half_width(values: ArrayLike) -> float:
    """Half width of the 95 % interval of the values' mean."""
    return mean_interval(values).half_width


def mean_and_half_width(values: ArrayLike) -> dict[str, float]:
    """`value` and `half_width` of the 95 % interval of a mean, as the checks report them."""
    found = mean_interval(values)
    return {"value": found.value, "half_width": found.half_width}


def difference_interval(one: Array, other: Array, z: float = Z95) -> Interval:
    """Interval of the difference of the means of two independent samples, `one` minus `other`, their variances not
    assumed equal (Welch 1938) and both large enough for the normal distribution.
    """
    error = sqrt(float(one.var(ddof=1)) / len(one) + float(other.var(ddof=1)) / len(other))
    return Interval.around(float(one.mean() - other.mean()), z * error)


def wilson_interval(hits: float, n: int, z: float = Z95) -> Interval:
    """Interval of a share, `hits` of `n` trials (Wilson 1927); it has a width even where all trials agree."""
    share, spread = hits / n, z * z / n
    middle, reach = share + spread / 2, z * sqrt(share * (1 - share) / n + spread / (4 * n))
    low, high = (middle - reach) / (1 + spread), (middle + reach) / (1 + spread)
    return Interval(share, low if hits else 0.0, high if hits < n else 1.0)


def resampled_counts(n: int, resamples: int, seed: int | np.random.Generator = 0) -> NDArray[np.int64]:
    """How often each of n rows is in each bootstrap resample (Efron 1979): shape (resamples, n), rows sum to n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)


def resampled_weights(n: int, resamples: int, seed: int | np.random.Generator = 0) -> Array:
    """The counts of `resampled_counts` as weights: shape (resamples, n), rows sum to 1."""
    return resampled_counts(n, resamples, seed) / n


def percentile_interval(value: float, drawn: Sequence[float] | Array) -> Interval:
    """The 95 % percentile interval of a figure from its values in bootstrap resamples; those that aren't finite are
    left out, and without any the limits are NaN.
    """
    found = np.asarray(drawn, np.float64)
    found = found[np.isfinite(found)]
    low, high = np.percentile(found, [2.5, 97.5]) if len(found) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))
