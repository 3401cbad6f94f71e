"""The ensemble with the say of each member learnt: by what it foretold of rows that it did not see.

What decides between models is how far each lies from its own mean, further than the row's other models do, so that is
what the weights are fitted to (least squares, none below zero: Breiman 1996, "Stacked regressions"). Their sum is kept
as the stretch: a mean of estimates, each shrunk for its own noise, is shrunk too far, for their errors partly cancel.
It takes five times as long to train and no longer to ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix, Training
from routers.estimators.ensemble import FOLDS, Ensemble


class Stacked(Ensemble):
    """Weights sum to one. Where no member foretells anything they are the ensemble's own, and the stretch is zero: what
    is told of every row is its models' mean.
    """

    kind = "stacked"

    def fit(self, data: Training) -> Self:
        if len(data.x) >= 2 * FOLDS:
            self.weights, self.stretch = stacked(self.foretold(data), data.scores, self.weights)
        super().fit(data)
        return self


def stacked(
    told: Sequence[Matrix], scores: Matrix, otherwise: tuple[float, ...]
) -> tuple[tuple[float, ...], float]:
    """Weights of the members that `told` the scores of rows which they did not see, and the stretch; `otherwise`, and a
    stretch of zero, where none of them foretells anything.
    """
    from scipy.optimize import nnls

    seen = np.isfinite(scores)
    columns = np.stack([_apart(matrix, seen)[seen] for matrix in told], axis=1)
    weights, _ = nnls(columns, _apart(scores, seen)[seen])
    total = float(weights.sum())
    return (tuple((weights / total).tolist()), total) if total > 0 else (otherwise, 0.0)


def _apart(matrix: Matrix, seen: NDArray[np.bool_]) -> Matrix:
    """Each cell less its model's mean, and less what of that all seen cells of its row share."""
    kept = np.where(seen, matrix, 0.0)
    kept = np.where(seen, kept - kept.sum(0) / np.maximum(seen.sum(0), 1), 0.0)
    return np.asarray(
        np.where(seen, kept - kept.sum(1, keepdims=True) / np.maximum(seen.sum(1, keepdims=True), 1), 0.0)
    )
