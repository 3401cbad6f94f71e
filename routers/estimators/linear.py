"""Ridge regression in two parts: the query's level, which all models share (small penalty), and each model's deviation
from it (large penalty).

Only deviations decide between models, and they are small and noisy. With one penalty for both, as in a regression per
model, the argmax over many noisy estimates suffers from the winner's curse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Estimator, Matrix, Training, observed_mean, parted


def ridge(x: Matrix, y: Matrix, penalty: float) -> Matrix:
    """Weights (d, k) of a ridge regression through the origin of `y` (n, k) on `x` (n, d)."""
    return np.asarray(np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y))


class Linear(Estimator):
    """Ridge regression with penalty `ease` for the query's level and `ridge` for each model's deviation."""

    kind = "linear"
    PARAMETERS: ClassVar[tuple[str, ...]] = ("ridge", "ease")
    LEARNED: ClassVar[tuple[str, ...]] = ("weights_", "intercept_", "covariance_", "noise_")

    def __init__(self, ridge: float = 300.0, ease: float = 30.0) -> None:
        self.ridge = ridge
        self.ease = ease

    def fit(self, data: Training) -> Self:
        m = len(data.models)
        base = observed_mean(data.scores)
        centre = data.x.mean(0)
        x = data.x - centre
        rows = np.isfinite(data.scores).sum(1)
        residual = np.where(np.isfinite(data.scores), data.scores - base, 0.0).sum(1) / np.maximum(rows, 1)
        easy = ridge(x, residual[:, None], self.ease)[:, 0]
        _, deviation = parted(data.scores, x @ easy)
        self.weights_ = np.tile(easy[:, None], m)
        self.noise_ = np.full(m, 0.25)
        self.intercept_ = base.copy()
        for columns, seen in _same_rows(deviation):
            part = x if len(seen) == len(x) else x[seen]
            target = deviation[seen][:, columns]
            shift = target.sum(0) / (len(seen) + 4.0)
            own = ridge(part, target - shift, self.ridge)
            self.weights_[:, columns] += own
            self.intercept_[columns] += shift
            if len(seen) > 1:
                self.noise_[columns] = np.maximum((target - shift - part @ own).var(0), 1e-4)
        self.intercept_ -= centre @ self.weights_
        self.covariance_ = np.linalg.inv(x.T @ x + self.ridge * np.eye(x.shape[1]))
        return self

    def typical_leverage(self) -> float:
        """Mean leverage of the training rows, by which the noise's variance is multiplied in that of a prediction. It
        is the number of effective parameters per row.

        The number of rows is read from the leading axis, to which a projection gives unit variance.
        """
        values = 1.0 / np.linalg.eigvalsh(self.covariance_)
        rows = max(float(values.max()) - self.ridge, 1.0)
        return float((1.0 - self.ridge / values).sum()) / rows

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        leverage = ((x @ self.covariance_) * x).sum(1)
        return np.clip(x @ self.weights_ + self.intercept_, 0.0, 1.0), np.sqrt(np.outer(leverage, self.noise_))


def _same_rows(scores: Matrix) -> list[tuple[list[int], NDArray[np.intp]]]:
    """Groups of columns that were observed on exactly the same rows, with the numbers of these rows. Columns without
    any score are left out.
    """
    groups: dict[bytes, list[int]] = {}
    seen = np.isfinite(scores)
    for column in np.flatnonzero(seen.any(0)).tolist():
        groups.setdefault(seen[:, column].tobytes(), []).append(column)
    return [(columns, np.flatnonzero(seen[:, columns[0]])) for columns in groups.values()]
