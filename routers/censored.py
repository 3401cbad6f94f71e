"""A limit as part of the arm: how many tokens (or seconds) a model may use, learnt from answers that were cut.

An answer cut at its limit pays nothing and tells only that more would have been needed: a censored observation. But an
answer under any limit speaks of every smaller one, and a finished one of every larger one too, so one model's limits
share their observations (product-limit estimate of Kaplan & Meier 1958) instead of being arms of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(slots=True)
class LimitArms:
    """One model under several limits. Sums only, so replicas add up."""

    limits: Array
    """Rising, positive."""
    price: float
    """Of one unit of what is limited, in quality points."""
    at_risk: Array = field(init=False)
    """(L,) answers that were seen up to this limit's stretch."""
    finished: Array = field(init=False)
    """(L,) of them, those that finished within it."""
    quality: float = 0.0

    def __post_init__(self) -> None:
        if len(self.limits) == 0 or self.limits[0] <= 0 or (np.diff(self.limits) <= 0).any():
            raise ValueError(f"limits: {self.limits.tolist()} are not positive and rising")
        self.at_risk, self.finished = np.zeros(len(self.limits)), np.zeros(len(self.limits))

    def learn(self, limit: int, used: float, quality: float) -> None:
        """An answer under `limits[limit]`: it finished where `used` is below it; `quality` is then its worth."""
        done = int(np.searchsorted(self.limits, used, side="left")) if used < self.limits[limit] else len(self.limits)
        last = min(limit, done)
        self.at_risk[: last + 1] += 1
        if done <= limit:
            self.finished[done] += 1
            self.quality += quality

    def within(self) -> Array:
        """(L,) share of answers that finish within each limit; a stretch that nobody saw is hoped to finish all."""
        hazard = np.where(self.at_risk > 0, self.finished / np.maximum(self.at_risk, 1), 1.0)
        return np.asarray(1.0 - np.cumprod(1.0 - hazard))

    def values(self, width: float = 1.0, total: int = 0) -> Array:
        """Optimistic worth of each limit: P(finished by it) x mean quality - price x expected use.

        The bonus adds up the stretches' uncertainties, each as far as answers get there; an unseen stretch is hoped
        to finish every answer.
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
