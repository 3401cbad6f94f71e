"""A perceptron with one hidden layer that predicts all models' scores at once. scikit-learn fits it; a prediction is
two matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from routers.estimators.base import Estimator, Matrix, Training, observed_mean


class Perceptron(Estimator):
    """`width` rectified units, with weight penalty `penalty`, fitted in at most `epochs` passes over the rows. In
    place of a score that was not observed it learns the model's mean plus the row's mean deviation from the means,
    shrunk by one pseudo-observation of zero.
    """

    kind = "mlp"
    PARAMETERS = ("width", "penalty", "epochs")
    LEARNED = ("inner_", "inner_bias_", "outer_", "outer_bias_", "noise_")

    def __init__(self, width: int = 32, penalty: float = 3.0, epochs: int = 60) -> None:
        self.width = width
        self.penalty = penalty
        self.epochs = epochs

    def fit(self, data: Training) -> Self:
        import warnings

        from sklearn.neural_network import MLPRegressor

        base = observed_mean(data.scores)
        residual = data.scores - base
        seen = np.isfinite(residual)
        level = np.where(seen, residual, 0.0).sum(1) / (seen.sum(1) + 1)
        target = np.where(seen, residual, level[:, None])
        model = MLPRegressor(
            hidden_layer_sizes=(self.width,), alpha=self.penalty, max_iter=self.epochs,
            early_stopping=len(target) > 100, random_state=data.seed, learning_rate_init=3e-3,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the epoch limit is meant
            model.fit(data.x, target)
        self.inner_, self.outer_ = model.coefs_
        self.inner_bias_, self.outer_bias_ = model.intercepts_[0], model.intercepts_[1] + base
        error = np.where(seen, self._mean(data.x) - np.nan_to_num(data.scores), np.nan)
        self.noise_ = np.sqrt(np.nan_to_num(np.nanvar(error, 0), nan=0.25) * self.width / (seen.sum(0) + 1))
        return self

    def _mean(self, x: Matrix) -> Matrix:
        return np.asarray(np.maximum(x @ self.inner_ + self.inner_bias_, 0.0) @ self.outer_ + self.outer_bias_)

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        return np.clip(self._mean(x), 0.0, 1.0), np.tile(self.noise_, (len(x), 1))
