"""Learned estimators folded for one pool of models, so that a request costs one matrix product instead of a projection
and several estimators.

All that is linear in the projected query (a ridge, domain logits, traits, similarity to clusters, logarithms of costs
and lengths) is also linear in the query itself, so one product gives it all. The rest is small tables and plain floats,
which are faster than arrays for the few models of a pool. A fold predicts what its estimators predict, except for
rounding and for the standard deviation, which does not depend on the query's leverage here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, sqrt
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from routers.cost import LogLinear
from routers.estimators.base import Estimator
from routers.estimators.clusters import Clusters
from routers.estimators.domain import Domain
from routers.estimators.ensemble import Ensemble
from routers.estimators.factor import Factor
from routers.estimators.linear import Linear
from routers.projection import Projection
from routers.types import Vector

MOST_EXPONENT = 50.0
Array = NDArray[np.float64]
Part = tuple[Array, Array]
"""Weights (d, k) on the projected query, and intercepts (k,)."""


class Expected(NamedTuple):
    """Predictions for one query, in the order of the pool; a list is empty where nothing was learned, or where costs
    were not asked for.
    """

    quality: list[float]
    quality_sd: list[float]
    cost_usd: list[float]
    output_tokens: list[float]


class Fold(Protocol):
    """Estimates one query for the models it was folded for."""

    def estimate(self, vector: Vector, costs: bool = True) -> Expected:
        """Predict for one query. `costs`: whether learned costs are wanted; they are not where prices are known."""


class Product:
    """Affine functions of the projected query as functions of the query itself."""

    def __init__(self, projection: Projection, parts: Sequence[Part]) -> None:
        weights = projection.axes_.astype(np.float64) @ np.concatenate([w for w, _ in parts], axis=1)
        offset = np.concatenate([b for _, b in parts]) - projection.mean_.astype(np.float64) @ weights
        self.matrix = np.ascontiguousarray(weights.T, np.float32)
        self.offset = np.asarray(offset, np.float32)

    def __call__(self, vector: Vector) -> Vector:
        row: Vector = self.matrix.dot(vector)
        row += self.offset
        return row


def fold(
    projection: Projection,
    quality: Estimator,
    cost: LogLinear | None,
    output_tokens: LogLinear | None,
    places: Sequence[int],
) -> Fold:
    """The estimators folded for the models at those columns."""
    index = list(places)
    logs = _logs(cost, index), _logs(output_tokens, index)
    if isinstance(quality, Ensemble):
        return FoldedEnsemble(projection, quality, index, *logs)
    if isinstance(quality, Linear):
        return FoldedLinear(projection, quality, index, *logs)
    return Unfolded(projection, quality, index, *logs)


def _logs(learnt: LogLinear | None, index: Sequence[int]) -> Part | None:
    return None if learnt is None else (learnt.weights_[:, index], learnt.intercept_[index])


def _raised(logs: Sequence[float]) -> list[float]:
    return [exp(log if not log > MOST_EXPONENT else MOST_EXPONENT) for log in logs]


def _clipped(values: list[float]) -> list[float]:
    if values and min(values) >= 0.0 and max(values) <= 1.0:
        return values
    return [0.0 if value < 0.0 else 1.0 if value > 1.0 else value for value in values]


def _listed(parts: Sequence[Part | None]) -> tuple[list[Part], list[int]]:
    """The parts that are not None, and the cumulative columns at which each part ends."""
    there = [part for part in parts if part is not None]
    return there, np.cumsum([0 if part is None else part[0].shape[1] for part in parts]).tolist()


class FoldedLinear:
    """A folded ridge; its standard deviation is that of an average query."""

    def __init__(
        self, projection: Projection, quality: Linear, index: list[int], cost: Part | None, tokens: Part | None
    ) -> None:
        ridge = quality.weights_[:, index], quality.intercept_[index]
        there, (self._quality, self._cost, self._tokens) = _listed((ridge, cost, tokens))
        self._product = Product(projection, there)
        self._sd = np.sqrt(quality.typical_leverage() * quality.noise_[index]).tolist()

    def estimate(self, vector: Vector, costs: bool = True) -> Expected:
        row = self._product(vector).tolist()
        q, c, t = self._quality, self._cost, self._tokens
        return Expected(_clipped(row[:q]), self._sd, _raised(row[q:c]) if costs else [], _raised(row[c:t]))


class FoldedEnsemble:
    """The folded ensemble: the weighted mean of two tables under soft labels, a ridge and a factorisation."""

    def __init__(
        self, projection: Projection, quality: Ensemble, index: list[int], cost: Part | None, tokens: Part | None
    ) -> None:
        domain = cast(Domain, quality.members["domain"])
        linear = cast(Linear, quality.members["linear"])
        factor = cast(Factor, quality.members["factor"])
        clusters = cast(Clusters, quality.members["clusters"])
        vectors, self._k = factor.vectors_[:, index], len(index)
        odds = (
            -factor.ease_[:, None] - factor.traits_ @ vectors,
            -factor.level_[index] - factor.trait_level_ @ vectors,
        )
        ridge = linear.weights_[:, index], linear.intercept_[index]
        near = clusters.centres_.T, np.zeros(len(clusters.centres_))
        label = domain.weights_, domain.intercept_
        there, ends = _listed((ridge, odds, cost, tokens, label, near))
        _, _, self._cost, self._tokens, labels, self._end = ends
        self._product = Product(projection, there)
        self._table = np.zeros((self._end - self._tokens, 2 * self._k + 2), np.float32)
        split = labels - self._tokens
        self._table[:split, : self._k + 1] = np.column_stack([domain.table_[:, index], np.ones(split)])
        self._table[split:, self._k + 1 :] = np.column_stack(
            [clusters.table_[:, index], np.ones(len(clusters.centres_))]
        )
        self._weights, self._stretch = tuple(quality.weights), quality.stretch
        self._base = quality.base_[index].tolist() if quality.stretch != 1.0 else []
        self._noise = (
            quality.weights[0] * (domain.deviation_[:, index] ** 2).mean(0)
            + quality.weights[3] * (clusters.deviation_[:, index] ** 2).mean(0)
        ).tolist()

    def estimate(self, vector: Vector, costs: bool = True) -> Expected:
        k, (by_domain, by_ridge, by_factor, by_cluster) = self._k, self._weights
        row = self._product(vector)
        raised = np.exp(np.minimum(row[k:], MOST_EXPONENT))
        sums = raised[self._tokens - k :].dot(self._table).tolist()
        ridge, up = _clipped(row[:k].tolist()), raised[: self._tokens - k].tolist()
        labels, nears = 1.0 / sums[k], 1.0 / sums[-1]
        quality, sd, noise = [], [], self._noise
        for j, line in enumerate(ridge):
            label, near, odds = sums[j] * labels, sums[k + 1 + j] * nears, 1.0 / (1.0 + up[j])
            a, b, c, d = by_domain * label, by_ridge * line, by_factor * odds, by_cluster * near
            mean = a + b + c + d
            spread = a * label + b * line + c * odds + d * near - mean * mean
            quality.append(mean)
            sd.append(sqrt((spread if spread > 0.0 else -spread) + noise[j]))
        if self._base:
            s = self._stretch
            quality = _clipped([base + s * (mean - base) for base, mean in zip(self._base, quality, strict=True)])
            sd = [s * one for one in sd]
        return Expected(quality, sd, up[k : self._cost - k], up[self._cost - k :])


class Unfolded:
    """Any other estimator, unfolded: one projection and one prediction for all models."""

    def __init__(
        self, projection: Projection, quality: Estimator, index: list[int], cost: Part | None, tokens: Part | None
    ) -> None:
        self._projection, self._quality, self._index = projection, quality, index
        self._cost, self._tokens = cost, tokens

    def estimate(self, vector: Vector, costs: bool = True) -> Expected:
        z = self._projection.apply(vector).astype(np.float64)
        mean, sd = self._quality.predict(z[None])
        cost, tokens = (
            [] if part is None else _raised((z @ part[0] + part[1]).tolist()) for part in (self._cost, self._tokens)
        )
        return Expected(mean[0, self._index].tolist(), sd[0, self._index].tolist(), cost, tokens)
