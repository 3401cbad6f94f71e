"""Dual-contrastive router (RouterDC): queries and models are embedded in one space, close to each other where the model
does well.

Loss of a query: each of the `top` best models against the `last` worst ones, minus log softmax of the cosine over
temperature; plus the same between queries of one cluster and of others. Cosines are mapped to scores by one regression
shared by all models. The published encoder is replaced by a linear map of the features.
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
    """A linear map to `dims` and one vector per model."""

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
        """Score = level of the model + common slope * its cosine above the model's mean cosine."""
        seen = np.isfinite(scores)
        middle = np.where(seen, near, 0.0).sum(0) / np.maximum(seen.sum(0), 1)
        level = observed_mean(scores)
        above, gained = (near - middle)[seen], (scores - level)[seen]
        slope = max(float(above @ gained) / max(float(above @ above), 1e-9), 0.0)
        self.scale_ = np.vstack([level - slope * middle, np.full(len(level), slope)])
        self.count_ = seen.sum(0).astype(float)

    def _pushes(self, scores: Matrix) -> Matrix:
        """+1/k on the best models of a row and -1/k on the worst; zero on rows where all are alike."""
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
        """Gradient with the lengths of the vectors held fixed, as spherical methods do."""
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
        """Sample-sample term: toward the own cluster's centre, away from the others'."""
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
