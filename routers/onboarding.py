"""A new model joins by a few probes: its other outcomes are foretold from how the known models did on the
same queries.

With 20 to 50 probes a model's own table cells or weights can't be learnt, but which known models it
resembles can: its scores are regressed on theirs, shrunk toward their plain mean, and the regression
fills the queries it was never asked. (The identity vectors of `estimators.factor.join` do the same in the
space of traits.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix

FEW = 200
"""A model with fewer outcomes than this, on less than half of the queries, is completed from the others."""
LEAST = 5
RIDGE = 5.0
COMMON = 0.8
"""How much of the known models' mean ups and downs a new model is taken to share before it says otherwise."""


def completed(scores: Matrix) -> Matrix:
    """Scores with sparse columns filled by what the dense ones foretell, in [0, 1]; the rest is left as
    it is.
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
        foretold = _foretold(scores[:, dense], rows, scores[rows, column])
        filled[:, column] = np.where(seen[:, column], scores[:, column], foretold)
    return filled


def _foretold(known: Matrix, rows: NDArray[np.intp], own: Matrix) -> Matrix:
    """Score of the new model on every query: level adjusted for how easy its probes were, plus its
    likeness.
    """
    centred = known - known.mean(0)
    probes = centred[rows]
    share = np.full(known.shape[1], COMMON / known.shape[1])
    rest = own - own.mean() - probes @ share
    share = share + np.linalg.solve(probes.T @ probes + RIDGE * np.eye(len(share)), probes.T @ rest)
    level = own.mean() - (probes @ share).mean()
    return np.asarray(np.clip(level + centred @ share, 0.0, 1.0))
