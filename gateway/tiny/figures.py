"""Figures of `headgate cascade tiny`, each with its 95 % interval over questions (paired bootstrap)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from routers.evaluate import with_interval
from routers.intervals import resampled_counts

RESAMPLES = 1000
Figure = dict[str, float | None]
"""The keys are value, low and high; each is None where it isn't defined."""


def mean(values: Sequence[float]) -> Figure:
    """Mean of one number per question."""
    return ratio(values, [1.0] * len(values))


def difference(one: Sequence[float], other: Sequence[float]) -> Figure:
    """Mean of `one` minus mean of `other`, question by question."""
    return mean((np.asarray(one, float) - np.asarray(other, float)).tolist())


def ratio(over: Sequence[float], under: Sequence[float]) -> Figure:
    """Sum of `over` divided by sum of `under`; both are resampled by the same questions."""
    pairs = np.column_stack([np.asarray(over, float), np.asarray(under, float)])
    count = len(pairs)
    sums = np.vstack([np.ones(count), resampled_counts(count, RESAMPLES)]) @ pairs
    with np.errstate(divide="ignore", invalid="ignore"):
        value, *resampled = (sums[:, 0] / sums[:, 1]).tolist()
    return with_interval(value, resampled)
