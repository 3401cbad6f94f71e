"""Cluster table (Avengers-Pro): k-means over queries, and each model's mean score per cluster.

A query's estimate is the mean over all clusters, weighted by softmax(sharpness * cosine to the cluster's centre), so
that only the nearest few count. The cosine is multiplied by the query's length over that of a typical training query.
Each mean in the table is shrunk toward the model's overall mean. Nothing is learned by gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Estimator, Matrix, Training, observed_mean, softmax, unit


def k_means(x: Matrix, k: int, seed: int, rounds: int = 25) -> tuple[Matrix, NDArray[np.intp]]:
    """Spherical k-means of unit rows (n, d): unit centres (k, d), and the number of each row's cluster (n,)."""
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
    """`count` clusters. The higher `sharpness`, the fewer clusters count; `prior_count` pseudo-observations shrink each
    mean in the table.
    """

    kind = "clusters"
    PARAMETERS = ("count", "sharpness", "prior_count")
    LEARNED = ("centres_", "table_", "deviation_")

    def __init__(self, count: int = 32, sharpness: float = 16.0, prior_count: float = 20.0) -> None:
        self.count = count
        self.sharpness = sharpness
        self.prior_count = prior_count

    def fit(self, data: Training) -> Self:
        centres, _ = k_means(unit(data.x), self.count, data.seed)
        typical = np.sqrt((data.x**2).sum(1).mean())
        self.centres_ = centres * self.sharpness / max(float(typical), 1e-9)
        share = self.shares(data.x)
        seen = np.isfinite(data.scores)
        count = share.T @ seen
        total = share.T @ np.where(seen, data.scores, 0.0)
        self.table_ = (total + self.prior_count * observed_mean(data.scores)) / (count + self.prior_count)
        self.deviation_ = 0.5 / np.sqrt(count + self.prior_count)
        return self

    def shares(self, x: Matrix) -> Matrix:
        """Weight of each cluster on each row, (n, clusters)."""
        return softmax(x @ self.centres_.T)

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        share = self.shares(x)
        mean = share @ self.table_
        return mean, np.sqrt(np.maximum(share @ (self.deviation_**2 + self.table_**2) - mean**2, 1e-8))
