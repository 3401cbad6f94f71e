"""Mean score over the training queries with the highest cosine, shrunk toward the model's mean where few of them have
a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from routers.estimators.base import Estimator, Matrix, Training, deviation_of_mean, observed_mean, unit


class NearestNeighbours(Estimator):
    """`k` neighbours. Of more than `most_rows` training rows an evenly spaced sample is kept, to predict in less time.
    `prior_count` pseudo-observations shrink the mean.
    """

    kind = "knn"
    PARAMETERS = ("k", "prior_count", "most_rows")
    LEARNED = ("rows_", "scores_", "base_")

    def __init__(self, k: int = 100, prior_count: float = 4.0, most_rows: int = 20_000) -> None:
        self.k = k
        self.prior_count = prior_count
        self.most_rows = most_rows

    def fit(self, data: Training) -> Self:
        step = max(1, -(-len(data.x) // self.most_rows))
        self.rows_ = unit(data.x[::step]).astype(np.float32)
        self.scores_ = data.scores[::step].astype(np.float32)
        self.base_ = observed_mean(data.scores)
        return self

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        parts = [self._near(unit(x[i : i + 512]).astype(np.float32)) for i in range(0, len(x), 512)]
        return np.concatenate([mean for mean, _ in parts]), np.concatenate([sd for _, sd in parts])

    def _near(self, x: Matrix) -> tuple[Matrix, Matrix]:
        k = min(self.k, len(self.rows_))
        near = np.argpartition(-(x @ self.rows_.T), k - 1, axis=1)[:, :k]
        scores = self.scores_[near]
        seen = np.isfinite(scores)
        count = seen.sum(1) + self.prior_count
        mean = (np.where(seen, scores, 0.0).sum(1) + self.prior_count * self.base_) / count
        return mean, deviation_of_mean(mean, count)
