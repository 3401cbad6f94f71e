"""What every linear bandit here shares: its sums over scored answers, those of other replicas, and the posterior they
give.

A replica learns into its own sums only and reads those of the others beside them, so that nothing is counted twice.
The posterior is fitted anew after every answer at first, and then after every `refit_every`th.
"""

from __future__ import annotations

import numpy as np

from routers.bandit_state import Array, BanditState, Posterior, Shrinkage, fitted
from routers.projection import Projection
from routers.types import Vector

ALWAYS_REFITTED = 20
"""Answers after each of which the posterior is fitted anew."""


class LinearBandit:
    """Learns corrections that are linear in the query's projection."""

    def __init__(self, projection: Projection, state: BanditState, shrink: Shrinkage, refit_every: int) -> None:
        self.projection = projection
        self.state = state
        self.shrink = shrink
        self.others: BanditState | None = None
        """Sums of other replicas, never added to our own."""
        self.seen = int(state.counts.sum())
        """Answers learnt from, those of other replicas included."""
        self._refit_every = refit_every
        self._posterior: Posterior | None = None

    @property
    def posterior(self) -> Posterior:
        if self._posterior is None:
            self._posterior = fitted(self._total(), self.shrink)
        return self._posterior

    def set_others(self, others: BanditState | None) -> None:
        """Replace what other replicas have seen by now, and fit the posterior anew."""
        self.others = others
        total = self._total()
        self.seen = int(total.counts.sum())
        self._posterior = fitted(total, self.shrink)

    def axes(self, vector: Vector) -> Array:
        """The query's projection and a constant 1, shape (dims + 1,)."""
        return np.append(self.projection.apply(vector).astype(np.float64), 1.0)

    def _total(self) -> BanditState:
        """Our own sums and those of the other replicas together."""
        return self.state if self.others is None else self.state.merged(self.others)

    def _count_answer(self) -> None:
        """Note that one more answer was learnt, and fit the posterior anew where that is due."""
        self.seen += 1
        if self.seen <= ALWAYS_REFITTED or self.seen % self._refit_every == 0:
            self._posterior = None
