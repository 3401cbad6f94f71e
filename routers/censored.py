"""Limits as part of a bandit's arms: how many tokens (or seconds) a model may use, learned from answers that were cut.

An answer that was cut at its limit is worth nothing and tells only that more was needed: it is a censored observation.
But an answer under one limit also informs about every smaller limit, and a finished one about every larger limit. So
the limits of a model share their observations (product-limit estimate, Kaplan & Meier 1958) instead of being separate
arms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(slots=True)
class LimitArms:
    """One model under several limits. It holds sums only, so those of several replicas can be added."""

    limits: Array
    """Positive and increasing."""
    price: float
    """Price of one unit of what is limited, in quality points."""
    at_risk: Array = field(init=False)
    """(L,) answers that were observed up to the interval below each limit."""
    finished: Array = field(init=False)
    """(L,) answers among them that finished within that interval."""
    quality: float = 0.0

    def __post_init__(self) -> None:
        if len(self.limits) == 0 or self.limits[0] <= 0 or (np.diff(self.limits) <= 0).any():
            raise ValueError(f"limits: {self.limits.tolist()} are not positive and rising")
        self.at_risk, self.finished = np.zeros(len(self.limits)), np.zeros(len(self.limits))

    def learn(self, limit: int, used: float, quality: float) -> None:
        """Learn from an answer under `limits[limit]`. It finished if `used` is below that limit, and `quality` then
        counts.
        """
        done = int(np.searchsorted(self.limits, used, side="left")) if used < self.limits[limit] else len(self.limits)
        last = min(limit, done)
        self.at_risk[: last + 1] += 1
        if done <= limit:
            self.finished[done] += 1
            self.quality += quality

    def within(self) -> Array:
        """(L,) estimated share of answers that finish within each limit. An interval without observations is assumed to
        finish all.
        """
        hazard = np.where(self.at_risk > 0, self.finished / np.maximum(self.at_risk, 1), 1.0)
        return np.asarray(1.0 - np.cumprod(1.0 - hazard))

    def values(self, width: float = 1.0, total: int = 0) -> Array:
        """Optimistic value of each limit, (L,): P(finished by it) x mean quality - price x expected use + a bonus. The
        bonus is `width` times the summed uncertainty of the intervals, each weighted by the share of answers that reach
        it; `total` is the number of rounds so far.
        """
        unfinished = 1.0 - self.within()
        before = np.concatenate([[1.0], unfinished[:-1]])
        stretch = np.diff(np.concatenate([[0.0], self.limits]))
        use = np.cumsum((before + unfinished) / 2 * stretch)
        done = float(self.finished.sum())
        worth = self.quality / done if done else 1.0
        unsure = np.cumsum(before**2 / np.maximum(self.at_risk, 1.0))
        bonus = width * np.sqrt(log(max(total, 2)) / 2 * unsure)
        return np.asarray((1.0 - unfinished) * worth - self.price * use + bonus)
