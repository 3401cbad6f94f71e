"""Means over the rounds of a benchmark, with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def mean_and_half_width(values: Sequence[float]) -> dict[str, float]:
    """The mean over rounds and the half width of its 95 % interval by Student's t; NaN for a single round."""
    from scipy.stats import t

    n, half = len(values), math.nan
    if n > 1:
        half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return {"value": float(np.mean(values)), "half_width": half}


def mean_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """`mean_and_half_width` of each round's ratio."""
    return mean_and_half_width((np.array(numerators) / np.array(denominators)).tolist())


def formatted(figure: dict[str, float], unit: str = ".2f") -> str:
    """A mean with its half width, as a table shows it."""
    return f"{figure['value']:{unit}} (+-{figure['half_width']:{unit}})"
