"""The ensemble with the say of each member learnt: by what it foretold of rows that it did not see.

What decides between models is how far each lies from the row's mean, so that is what the weights are fitted to (least
squares, none below zero: Breiman 1996, "Stacked regressions"). It takes five times as long to train
and no longer to ask.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix, Training
from routers.estimators.ensemble import FOLDS, Ensemble


class Stacked(Ensemble):
    """Weights sum to one; the ensemble's own where no member foretells anything."""

    kind = "stacked"

    def fit(self, data: Training) -> Self:
        if len(data.x) >= 2 * FOLDS:
            self.weights = self._weighed(data)
        super().fit(data)
        return self

    def _weighed(self, data: Training) -> tuple[float, ...]:
        from scipy.optimize import nnls

        seen = np.isfinite(data.scores)
        columns = np.stack([_apart(matrix, seen)[seen] for matrix in self.foretold(data)], axis=1)
        weights, _ = nnls(columns, _apart(data.scores, seen)[seen])
        total = float(weights.sum())
        return tuple((weights / total).tolist()) if total > 0 else self.weights


def _apart(matrix: Matrix, seen: NDArray[np.bool_]) -> Matrix:
    """Each cell less the mean of its row's seen cells."""
    kept = np.where(seen, matrix, 0.0)
    return np.asarray(kept - kept.sum(1, keepdims=True) / np.maximum(seen.sum(1, keepdims=True), 1))
