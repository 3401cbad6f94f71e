"""Ridge regression of the score per model, toward the model's own mean: CARROT's plug-in in closed form.

All models that were scored on the same rows share one factorisation; models with missing cells get their own.
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Estimator, Matrix, Training, observed_mean


class Linear(Estimator):
    """Least squares with penalty `ridge` on the weights, none on the intercept."""

    kind = "linear"
    PARAMETERS = ("ridge",)
    LEARNED = ("weights_", "intercept_", "covariance_", "noise_")

    def __init__(self, ridge: float = 30.0) -> None:
        self.ridge = ridge

    def fit(self, data: Training) -> Self:
        d, m = data.x.shape[1], len(data.models)
        base = observed_mean(data.scores)
        self.weights_, self.intercept_ = np.zeros((d, m)), base.copy()
        self.noise_ = np.full(m, 0.25)
        self.covariance_ = np.linalg.inv(data.x.T @ data.x + self.ridge * np.eye(d))
        for columns, rows in _same_rows(data.scores):
            x, y = data.x[rows], data.scores[rows][:, columns]
            if len(x) < 2:
                continue
            centre, level = x.mean(0), (y.sum(0) + 4 * base[columns]) / (len(y) + 4)
            gram = (x - centre).T @ (x - centre) + self.ridge * np.eye(d)
            self.weights_[:, columns] = np.linalg.solve(gram, (x - centre).T @ (y - level))
            self.intercept_[columns] = level - centre @ self.weights_[:, columns]
            self.noise_[columns] = np.maximum((y - self._mean(x)[:, columns]).var(0), 1e-4)
        return self

    def _mean(self, x: Matrix) -> Matrix:
        return np.asarray(x @ self.weights_ + self.intercept_)

    def predict(self, x: Matrix) -> tuple[Matrix, Matrix]:
        leverage = ((x @ self.covariance_) * x).sum(1)
        return np.clip(self._mean(x), 0.0, 1.0), np.sqrt(np.outer(leverage, self.noise_))


def _same_rows(scores: Matrix) -> list[tuple[list[int], NDArray[np.intp]]]:
    """Groups of columns that were observed on exactly the same rows, with those rows."""
    groups: dict[bytes, list[int]] = {}
    seen = np.isfinite(scores)
    for column in range(scores.shape[1]):
        groups.setdefault(seen[:, column].tobytes(), []).append(column)
    return [(columns, np.flatnonzero(seen[:, columns[0]])) for columns in groups.values()]
