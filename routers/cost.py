"""What an answer will cost and how long it will take, learned per model.

A candidate with a price is charged for the prompt's tokens and the expected output; only where data names a cost but no
price (offline sets) is the cost itself predicted. Costs are heavy-tailed, so the logarithm is regressed and the mean is
restored per model (smearing). Latency is `first + per_token * output` (idealised runtime) plus queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix

FLOOR_USD = 1e-9


class LogLinear:
    """Ridge on the logarithm of a positive target per model; the mean over training rows is kept exactly."""

    def __init__(self, ridge: float = 3.0) -> None:
        self.ridge = ridge

    def fit(self, x: Matrix, target: Matrix) -> Self:
        """`target` (n, m), NaN where unknown; a model never seen predicts NaN."""
        d, m = x.shape[1], target.shape[1]
        self.weights_, self.intercept_ = np.zeros((d, m)), np.full(m, np.nan)
        for j in range(m):
            rows = np.isfinite(target[:, j])
            if rows.any():
                self._fit_one(j, x[rows], np.maximum(target[rows, j], FLOOR_USD))
        return self

    def _fit_one(self, j: int, z: Matrix, target: Matrix) -> None:
        """Fit model `j` to these rows, which are changed in place."""
        centre, log = z.mean(0), np.log(target)
        z -= centre
        weights = np.linalg.solve(z.T @ z + self.ridge * np.eye(z.shape[1]), z.T @ log)
        self.weights_[:, j] = weights
        self.intercept_[j] = np.log(target.mean() / np.exp(z @ weights).mean()) - centre @ weights

    def predict(self, x: Matrix) -> Matrix:
        return np.asarray(np.exp(np.minimum(x @ self.weights_ + self.intercept_, 50.0)))

    def state(self) -> dict[str, NDArray[Any]]:
        return {"weights_": self.weights_, "intercept_": self.intercept_}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Self:
        self.weights_, self.intercept_ = state["weights_"], state["intercept_"]
        return self


class Latency:
    """Seconds per model as `first + per_token * output_tokens`, by non-negative least squares."""

    def fit(self, latency_s: Matrix, output_tokens: Matrix) -> Self:
        m = latency_s.shape[1]
        self.first_s_, self.per_token_s_ = np.full(m, np.nan), np.full(m, np.nan)
        for j in range(m):
            rows = np.isfinite(latency_s[:, j]) & np.isfinite(output_tokens[:, j])
            if rows.sum() >= 3:
                self.first_s_[j], self.per_token_s_[j] = runtime(latency_s[rows, j], output_tokens[rows, j])
        return self

    def predict(self, output_tokens: Matrix) -> Matrix:
        """Seconds for each row of expected output tokens, (n, m); NaN where nothing was learned of a model."""
        return np.asarray(self.first_s_ + self.per_token_s_ * output_tokens)

    def state(self) -> dict[str, NDArray[Any]]:
        return {"first_s_": self.first_s_, "per_token_s_": self.per_token_s_}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Self:
        self.first_s_, self.per_token_s_ = state["first_s_"], state["per_token_s_"]
        return self


def runtime(latency_s: Matrix, output_tokens: Matrix) -> tuple[float, float]:
    """Least-squares fit of latencies as `first + per_token * output_tokens`: `(first, per_token)` in seconds, neither
    negative.
    """
    spread = float(output_tokens.var())
    slope = float(np.cov(output_tokens, latency_s, bias=True)[0, 1]) / spread if spread > 0 else 0.0
    slope = max(slope, 0.0)
    first = float(latency_s.mean() - slope * output_tokens.mean())
    if first < 0:
        squares = float(output_tokens @ output_tokens)
        return 0.0, max(float(output_tokens @ latency_s) / squares, 0.0) if squares else 0.0
    return first, slope
