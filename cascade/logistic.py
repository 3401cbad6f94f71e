"""Logistic regression in numpy alone: what every learned chance of the cascade is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def sigmoid(z: Matrix) -> Matrix:
    return np.asarray(1.0 / (1.0 + np.exp(-np.minimum(np.maximum(z, -30.0), 30.0))))


def logistic(x: Matrix, y: Matrix, penalty: float, steps: int = 12) -> Matrix:
    """Weights of a penalised logistic regression by Newton's method; the first column is not penalised.

    `y` may be any score in [0, 1].
    """
    w = np.zeros(x.shape[1])
    ridge = np.full(x.shape[1], penalty)
    ridge[0] = 1e-6
    for _ in range(steps):
        p = sigmoid(x @ w)
        gradient = x.T @ (p - y) + ridge * w
        curvature = (x * (p * (1.0 - p))[:, None]).T @ x
        curvature[np.diag_indices_from(curvature)] += ridge + 1e-9
        step = np.linalg.solve(curvature, gradient)
        w -= np.clip(step, -5.0, 5.0)
        if np.abs(step).max() < 1e-4:
            break
    return w
