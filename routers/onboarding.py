"""A new model joins after a few probes: its other outcomes are predicted from how the known models did on the same
queries.

20 to 50 probes are too few to learn a model's own table or weights, but enough to learn which known models it
resembles: its scores are regressed on theirs, with the weights shrunk toward their plain mean, and the regression fills
the queries that it was never asked. (`estimators.factor.Factor.join` does the same in the space of traits.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix

FEW = 200
"""A model with fewer outcomes than this, on less than half of the queries, is filled from the others."""
LEAST = 5
RIDGE = 5.0
COMMON = 0.8
"""Prior weight of the known models' mean deviation in a new model's score."""


def completed(scores: Matrix) -> Matrix:
    """Scores (n, m) with sparse columns filled, within [0, 1], by what the complete columns predict; the others
    unchanged.
    """
    seen = np.asarray(np.isfinite(scores))
    count = seen.sum(0)
    dense = np.flatnonzero(seen.all(0))
    sparse = np.flatnonzero((count >= LEAST) & (count < FEW) & (count < len(scores) / 2))
    if len(dense) < 2 or not len(sparse):
        return scores
    filled = scores.copy()
    for column in sparse.tolist():
        rows = np.flatnonzero(seen[:, column])
        predicted = _predicted(scores[:, dense], rows, scores[rows, column])
        filled[:, column] = np.where(seen[:, column], scores[:, column], predicted)
    return filled


def _predicted(known: Matrix, rows: NDArray[np.intp], own: Matrix) -> Matrix:
    """Predicted score of the new model on every query, (n,): its level, adjusted for how easy its probes were, plus the
    weighted deviations of the known models.
    """
    centred = known - known.mean(0)
    probes = centred[rows]
    share = np.full(known.shape[1], COMMON / known.shape[1])
    rest = own - own.mean() - probes @ share
    share = share + np.linalg.solve(probes.T @ probes + RIDGE * np.eye(len(share)), probes.T @ rest)
    level = own.mean() - (probes @ share).mean()
    return np.asarray(np.clip(level + centred @ share, 0.0, 1.0))
