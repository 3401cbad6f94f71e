"""Query vectors made comparable: centred on the training rows and rotated to few axes.

One projection serves all estimators of a router, so a query pays for it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix


class Projection:
    """Principal components of the vectors; `dims` of them at most, the leading one of unit variance."""

    def __init__(self, dims: int = 128) -> None:
        self.dims = dims

    def fit(self, x: Matrix) -> Self:
        mean = x.mean(0)
        centred = x - mean
        values, axes = np.linalg.eigh(centred.T @ centred / len(x))
        order = np.argsort(-values)[: self.dims]
        kept = order[values[order] > 1e-9 * max(float(values.max()), 1e-12)]
        scale = np.sqrt(max(float(values.max()), 1e-12))
        self.mean_ = mean.astype(np.float32)
        self.axes_ = (axes[:, kept] / scale).astype(np.float32)
        return self

    def apply(self, x: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Rows (or one vector) on the axes."""
        return np.asarray((x - self.mean_) @ self.axes_, np.float32)

    def state(self) -> dict[str, NDArray[Any]]:
        return {"mean_": self.mean_, "axes_": self.axes_}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Self:
        self.mean_, self.axes_ = state["mean_"], state["axes_"]
        self.dims = self.axes_.shape[1]
        return self
