"""Cluster table (Avengers-Pro): k-means over queries, each model's mean per cluster, mixed over the
nearest few.

No gradient is learnt. A query reads its `nearest` clusters with weights softmax(sharpness * cosine);
every cell is shrunk toward the model's overall mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Estimator, Matrix, Training, task_table
from routers.estimators.knn import unit


def k_means(x: Matrix, k: int, seed: int, rounds: int = 25) -> tuple[Matrix, NDArray[np.intp]]:
    """Spherical k-means: unit centres and each row's cluster."""
    rng = np.random.default_rng(seed)
    centres = x[rng.choice(len(x), size=min(k, len(x)), replace=False)]
    label = np.zeros(len(x), np.intp)
    for _ in range(rounds):
        label = np.asarray((x @ centres.T).argmax(1), np.intp)
        sums = np.zeros_like(centres)
        np.add.at(sums, label, x)
        empty = np.linalg.norm(sums, axis=1) < 1e-9
        sums[empty] = x[rng.choice(len(x), size=int(empty.sum()))]
        centres = unit(sums)
    return centres, np.asarray((x @ centres.T).argmax(1), np.intp)


class Clusters(Estimator):
    """A table of `count` clusters."""

    kind = "clusters"
    PARAMETERS = ("count", "nearest", "sharpness", "prior_count")
    LEARNED = ("centres_", "table_", "deviation_")

    def __init__(self, count: int = 32, nearest: int = 3, sharpness: float = 9.0, prior_count: float = 20.0) -> None:
        self.count = count
        self.nearest = nearest
        self.sharpness = sharpness
        self.prior_count = prior_count

    def fit(self, data: Training) -> Self:
        self.centres_, label = k_means(unit(data.x), self.count, data.seed)
        every = [f"{i:06d}" for i in range(len(self.centres_))]
        names, table, count = task_table(data.scores, [every[i] for i in label], self.prior_count)
        used = [int(name) for name in names]
        self.centres_ = self.centres_[used]
        self.table_, self.deviation_ = table, 0.5 / np.sqrt(count + self.prior_count)
        return self

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        near = unit(x) @ self.centres_.T
        least = np.partition(near, -min(self.nearest, near.shape[1]), axis=1)
        cut = least[:, [-min(self.nearest, near.shape[1])]]
        weight = np.where(near >= cut, np.exp(self.sharpness * (near - near.max(1, keepdims=True))), 0.0)
        weight /= weight.sum(1, keepdims=True)
        mean = weight @ self.table_
        return mean, np.sqrt(np.maximum(weight @ (self.deviation_**2 + self.table_**2) - mean**2, 1e-8))
