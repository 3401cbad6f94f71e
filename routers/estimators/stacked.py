"""The ensemble with weights learned from the members' predictions of rows that they did not see.

What decides between models is a cell's deviation from its model's mean and from its row's mean, so the weights are
fitted to those deviations by non-negative least squares (Breiman 1996, "Stacked regressions"). The sum of the weights
is kept as the stretch: each estimate is shrunk for its own noise, but their errors partly cancel in the mean, which is
therefore shrunk too far. Training takes five times as long as the ensemble's; prediction takes as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix, Training
from routers.estimators.ensemble import FOLDS, Ensemble


class Stacked(Ensemble):
    """An ensemble whose `fit` learns the weights, which sum to one, and the stretch. Where no member predicts the
    deviations at all, the weights stay and the stretch is zero, so that every estimate is its model's mean.
    """

    kind = "stacked"

    def fit(self, data: Training) -> Self:
        if len(data.x) >= 2 * FOLDS:
            self.weights, self.stretch = stacked(self.out_of_fold(data), data.scores, self.weights)
        super().fit(data)
        return self


def stacked(
    predicted: Sequence[Matrix], scores: Matrix, otherwise: tuple[float, ...]
) -> tuple[tuple[float, ...], float]:
    """Weights of the members, and the stretch, from their out-of-fold predictions, (n, m) each; `otherwise` and a
    stretch of zero where no member predicts the deviations at all.
    """
    from scipy.optimize import nnls

    seen = np.isfinite(scores)
    columns = np.stack([_apart(matrix, seen)[seen] for matrix in predicted], axis=1)
    weights, _ = nnls(columns, _apart(scores, seen)[seen])
    total = float(weights.sum())
    return (tuple((weights / total).tolist()), total) if total > 0 else (otherwise, 0.0)


def _apart(matrix: Matrix, seen: NDArray[np.bool_]) -> Matrix:
    """Each observed value, less its model's mean and then its row's mean; zero where nothing was observed."""
    kept = np.where(seen, matrix, 0.0)
    kept = np.where(seen, kept - kept.sum(0) / np.maximum(seen.sum(0), 1), 0.0)
    return np.asarray(
        np.where(seen, kept - kept.sum(1, keepdims=True) / np.maximum(seen.sum(1, keepdims=True), 1), 0.0)
    )
