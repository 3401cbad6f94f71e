"""Dual-contrastive router (RouterDC): queries and models are embedded in one space, close to each other where the model
does well.

The loss of a query is the cross-entropy between the best of its `top` models and the softmax of cosine / temperature
over these and the `last` worst ones. To it is added a tenth of the cross-entropy between the query's own cluster and
the softmax over the centres of all clusters. Cosines are mapped to scores by one regression that all models share. The
published encoder is replaced by a linear map of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Estimator, Matrix, Training, deviation_of_mean, observed_mean, softmax, unit
from routers.estimators.clusters import k_means
from routers.estimators.descent import Weights, descend, held_out


class Contrastive(Estimator):
    """A linear map of queries to `dims` dimensions, and one vector per model."""

    kind = "contrastive"
    PARAMETERS = ("dims", "temperature", "top", "last", "steps")
    LEARNED = ("map_", "vectors_", "scale_", "count_")
    COMPARED_ROWS = 20

    def __init__(self, dims: int = 16, temperature: float = 0.5, top: int = 3, last: int = 3, steps: int = 100) -> None:
        self.dims = dims
        self.temperature = temperature
        self.top = top
        self.last = last
        self.steps = steps

    def fit(self, data: Training) -> Self:
        rng = np.random.default_rng(data.seed)
        push = self._pushes(data.scores)
        train, check = held_out(rng, 0.12, np.asarray(push.any(1)))
        _, cluster = k_means(unit(data.x), 8, data.seed, rounds=10)
        start = {
            "map": rng.normal(0, 1.0 / np.sqrt(data.x.shape[1]), (data.x.shape[1], self.dims)),
            "vectors": rng.normal(0, 0.3, (len(data.models), self.dims)),
        }
        found = descend(
            start,
            lambda w: self._slopes(w, data.x[train], push[train], cluster[train]),
            lambda w: float(-(self._cosine(w, data.x[check]) * push[check]).sum(1).mean()),
            decay={"map": 1e-3, "vectors": 1e-3},
            steps=self.steps,
        )
        self.map_, self.vectors_ = found["map"], found["vectors"]
        self._scale(self._cosine(found, data.x), data.scores)
        return self

    def _scale(self, near: Matrix, scores: Matrix) -> None:
        """Fit score = model's mean score + slope * (cosine - model's mean cosine), with one slope of at least zero for
        all models.
        """
        seen = np.isfinite(scores)
        middle = np.where(seen, near, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
        level = observed_mean(scores)
        above, gained = (near - middle)[seen], (scores - level)[seen]
        slope = max(float(above @ gained) / max(float(above @ above), 1e-9), 0.0)
        self.scale_ = np.vstack([level - slope * middle, np.full(len(level), slope)])
        self.count_ = seen.sum(0).astype(float)

    def _pushes(self, scores: Matrix) -> Matrix:
        """(n, m): positive for the best models of each row, of which there are several where scores are equal, negative
        for the worst ones, and zero for the others. A row on which no two scores differ has no negative entry.
        """
        seen = np.isfinite(scores)
        mean = np.where(seen, scores, 0.0).sum(1) / np.maximum(seen.sum(1), 1)
        filled = np.where(seen, scores, mean[:, None])
        order = np.argsort(-filled, axis=1, kind="stable")
        push = np.zeros_like(filled)
        m = filled.shape[1]
        top, last = min(self.top, m - 1), min(self.last, m - 1)
        np.put_along_axis(push, order[:, :top], 1.0 / top, axis=1)
        np.put_along_axis(push, order[:, m - last :], -1.0 / last, axis=1)
        best, worst = np.take_along_axis(filled, order[:, :1], 1), filled
        return np.where((best > worst) & (push < 0) | (filled == best) & (push > 0), push, 0.0)

    def _cosine(self, w: Weights, x: Matrix) -> Matrix:
        return unit(x @ w["map"]) @ unit(w["vectors"]).T

    def _slopes(self, w: Weights, x: Matrix, push: Matrix, cluster: NDArray[np.intp]) -> Weights:
        """Ten times the gradient of the loss, to suit Adam's step. Lengths are held fixed, as on a sphere."""
        z, length = x @ w["map"], np.linalg.norm(x @ w["map"], axis=1, keepdims=True) + 1e-9
        query, model = z / length, unit(w["vectors"])
        logits = query @ model.T / self.temperature
        rivals = np.where(push != 0, np.exp(logits - logits.max(1, keepdims=True)), 0.0)
        share = rivals / np.maximum(rivals.sum(1, keepdims=True), 1e-12)
        wanted = np.maximum(push, 0.0)
        wanted /= np.maximum(wanted.sum(1, keepdims=True), 1e-12)
        pull = (share * (wanted.sum(1, keepdims=True) > 0) - wanted) / (len(x) * self.temperature)
        to_query = pull @ model + self._between(query, cluster)
        to_query = (to_query - (to_query * query).sum(1, keepdims=True) * query) / length
        return {"map": x.T @ to_query * 10, "vectors": pull.T @ query * 10}

    def _between(self, query: Matrix, cluster: NDArray[np.intp]) -> Matrix:
        """Gradient, by the embedded queries, of the part of the loss that draws each to its own cluster's centre and
        away from the others'.
        """
        centres = np.zeros((int(cluster.max()) + 1, query.shape[1]))
        np.add.at(centres, cluster, query)
        centres = unit(centres)
        share = softmax(query @ centres.T / self.temperature)
        share[np.arange(len(query)), cluster] -= 1.0
        return np.asarray(0.1 * share @ centres / (len(query) * self.temperature))

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        near = self._cosine({"map": self.map_, "vectors": self.vectors_}, x)
        mean = np.clip(self.scale_[0] + self.scale_[1] * near, 0.0, 1.0)
        return mean, deviation_of_mean(mean, self.count_ / 10 + 1)
