"""Query vectors made comparable: centred on the training rows, blocks balanced, and rotated to few axes.

All estimators of a router share one projection, so that each query is projected once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix, Rows

AT_ONCE = 1024
"""Number of rows whose coordinates are computed together."""


class Projection:
    """Principal components of the vectors; `dims` of them at most, the leading one of unit variance."""

    def __init__(self, dims: int = 256) -> None:
        self.dims = dims

    def fit(self, x: Rows, blocks: Sequence[tuple[slice, float]] = ()) -> Self:
        """`blocks` are parts of the vector, each with the spread (root of its summed variance) that it is scaled to."""
        mean = x.mean(0, dtype=np.float64)
        factor = np.ones(x.shape[1])
        for block, spread in blocks:
            factor[block] = spread / np.sqrt(x[:, block].var(0, dtype=np.float64).sum() + 1e-12)
        centred = x - mean
        centred *= factor
        values, axes = np.linalg.eigh(centred.T @ centred / len(x))
        order = np.argsort(-values)[: self.dims]
        largest = max(float(values.max()), 1e-12)
        kept = order[values[order] > 1e-9 * largest]
        self.mean_ = mean.astype(np.float32)
        self.axes_ = (factor[:, None] * axes[:, kept] / np.sqrt(largest)).astype(np.float32)
        return self

    def apply(self, x: Rows) -> NDArray[np.float32]:
        """Coordinates of rows (n, d), or of one vector (d,), on the axes."""
        return np.asarray((x - self.mean_) @ self.axes_, np.float32)

    def coordinates(self, x: Rows) -> Matrix:
        """Coordinates of rows (n, d) to fit or evaluate with, computed in float64 for a part of the rows at a time, so
        that there is never a second copy of all rows in memory.
        """
        found = np.empty((len(x), self.axes_.shape[1]))
        for start in range(0, len(x), AT_ONCE):
            found[start : start + AT_ONCE] = self.apply(x[start : start + AT_ONCE].astype(np.float64))
        return found

    def state(self) -> dict[str, NDArray[Any]]:
        return {"mean_": self.mean_, "axes_": self.axes_}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Self:
        self.mean_, self.axes_ = state["mean_"], state["axes_"]
        self.dims = self.axes_.shape[1]
        return self
