"""Adam on plain arrays (Kingma & Ba 2015), which fits the estimators that have no closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix

Weights = dict[str, Matrix]


def sigmoid(x: Matrix) -> Matrix:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -35.0, 35.0))))


def held_out(
    rng: np.random.Generator, share: float, telling: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The rows to fit to and the rows to read the held-out loss on, which are `share` of all rows, drawn at random.
    `telling`: whether a row changes the loss, (n,). Where only one of the two parts has such a row, both are all rows.
    """
    held = rng.random(len(telling)) < share
    if telling[held].any() and telling[~held].any():
        return ~held, held
    return np.ones_like(held), np.ones_like(held)


def descend(
    weights: Weights,
    gradient: Callable[[Weights], Weights],
    loss: Callable[[Weights], float],
    *,
    decay: Mapping[str, float],
    rate: float = 0.02,
    steps: int = 150,
    patience: int = 20,
) -> Weights:
    """Take up to `steps` full-batch steps with weight decay, and return the weights of the least `loss`. The loss is
    read every fifth step; `patience` readings in a row without a better one end the descent.
    """
    first = {name: np.zeros_like(w) for name, w in weights.items()}
    second = {name: np.zeros_like(w) for name, w in weights.items()}
    best, kept, worse = loss(weights), dict(weights), 0
    for step in range(1, steps + 1):
        slopes = gradient(weights)
        for name, w in weights.items():
            slope = slopes[name] + decay.get(name, 0.0) * w
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.99 * second[name] + 0.01 * slope * slope
            scale = np.sqrt(second[name] / (1 - 0.99**step)) + 1e-8
            weights = weights | {name: w - rate * first[name] / (1 - 0.9**step) / scale}
        if step % 5 == 0:
            now = loss(weights)
            better = now < best
            best, kept, worse = (now, dict(weights), 0) if better else (best, kept, worse + 1)
            if worse >= patience:
                break
    return kept
