"""The default ensemble as one matrix: what a request pays for instead of four estimators in turn.

Domain logits, deviations, traits, likeness to clusters and costs are all linear in the projected query,
so one product gives them all; the rest is small tables. Predicts what the ensemble predicts, but for
rounding and for the standard deviation, which leaves out how the query lies to the training rows.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

from routers.cost import LogLinear
from routers.estimators.clusters import Clusters
from routers.estimators.domain import Domain
from routers.estimators.ensemble import Ensemble
from routers.estimators.factor import Factor
from routers.estimators.linear import Linear
from routers.projection import Projection

Row = NDArray[np.float32]
Values = NDArray[np.float64]


class Compiled:
    """Quality, its deviation and the cost of one query for every trained model."""

    def __init__(self, projection: Projection, ensemble: Ensemble, cost: LogLinear | None) -> None:
        domain = cast(Domain, ensemble.members["domain"])
        linear = cast(Linear, ensemble.members["linear"])
        factor = cast(Factor, ensemble.members["factor"])
        clusters = cast(Clusters, ensemble.members["clusters"])
        z = len(projection.axes_[0])
        costs = np.zeros((z, 0)) if cost is None else cost.weights_
        parts = (
            (domain.weights_, domain.intercept_),
            (
                -factor.ease_[:, None] - factor.traits_ @ factor.vectors_,
                -factor.level_ - factor.trait_level_ @ factor.vectors_,
            ),
            (costs, np.zeros(0) if cost is None else cost.intercept_),
            (clusters.centres_.T, np.zeros(len(clusters.centres_))),
            (linear.weights_, linear.intercept_),
        )
        axes = projection.axes_.astype(np.float64)
        matrix = np.concatenate([w for w, _ in parts], axis=1).T @ axes.T
        self._matrix = np.ascontiguousarray(matrix, np.float32)
        self._offset = np.asarray(
            np.concatenate([b for _, b in parts]) - matrix @ projection.mean_.astype(np.float64), np.float32
        )
        ends = np.cumsum([w.shape[1] for w, _ in parts]).tolist()
        self._domain, self._factor, self._costs, self._near, self._linear = (
            slice(start, end) for start, end in zip([0, *ends], ends, strict=False)
        )
        self._raised = slice(0, ends[3])
        self._domain_table, self._cluster_table = (np.asarray(e.table_, np.float32) for e in (domain, clusters))
        self._weights = np.asarray(ensemble.weights, np.float32)
        self._noise = np.asarray(
            ensemble.weights[0] * (domain.deviation_**2).mean(0)
            + ensemble.weights[3] * (clusters.deviation_**2).mean(0),
            np.float32,
        )

    def estimate(self, vector: Row) -> tuple[Values, Values, Values]:
        """Quality, standard deviation, cost (empty where none was learnt), in the order of the trained
        models.
        """
        row = self._matrix @ vector + self._offset
        raised = np.exp(np.minimum(row[self._raised], 50.0))
        share = raised[self._domain]
        parts = np.empty((4, len(self._noise)), np.float32)
        parts[0] = share @ self._domain_table / share.sum()
        parts[1] = row[self._linear]
        parts[2] = 1.0 / (1.0 + raised[self._factor])
        near = raised[self._near]
        parts[3] = near @ self._cluster_table / near.sum()
        parts.clip(0.0, 1.0, out=parts)
        mean = self._weights @ parts
        spread = self._weights @ (parts * parts) - mean * mean
        return (
            mean.astype(np.float64),
            np.sqrt(np.abs(spread) + self._noise).astype(np.float64),
            raised[self._costs].astype(np.float64),
        )
