"""Per-query threshold routers over logged outcomes: what a planned job is to beat at equal spend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """Rows with predictions and truth, all (n, m)."""

    quality: Matrix
    quality_sd: Matrix
    cost: Matrix
    score: Matrix
    paid: Matrix


Pair = tuple[int, int]
"""A weak and a strong model's places: a threshold router between them."""
THRESHOLDS = 201


@dataclass(frozen=True)
class Curve:
    """What a threshold router spends and reaches, means over queries, at every threshold; spend rising."""

    usd: Matrix
    score: Matrix

    def at(self, usd: float) -> float:
        """Score where it spends `usd` a query, mixing its two nearest thresholds; below nought where it can't."""
        return -1.0 if self.usd[0] > usd else float(np.interp(usd, self.usd, self.score))


class Thresholds:
    """Every threshold router over one side's rows: pairs of models, and (None) floors of predicted quality."""

    def __init__(self, side: Side, levels: Matrix) -> None:
        self.side, self.levels = side, levels
        self.rows = np.arange(len(side.quality))

    def curves(self, pairs: list[Pair]) -> dict[Pair | None, Curve]:
        found: dict[Pair | None, Curve] = {pair: self._pair_curve(*pair) for pair in pairs}
        picks = self.picks(None)
        paid, score = (
            np.array([matrix[self.rows, pick].mean() for pick in picks]) for matrix in (self.side.paid, self.side.score)
        )
        return found | {None: _rising(paid, score)}

    def picks(self, pair: Pair | None) -> list[NDArray[np.intp]]:
        """Each query's model at every threshold."""
        if pair is None:
            return [self._floor(level) for level in self.levels]
        weak, strong = pair
        rank = np.empty(len(self.rows), np.intp)
        rank[self._order(weak, strong)] = self.rows
        return [np.where(rank < count, strong, weak) for count in self._counts()]

    def at(self, pair: Pair | None, usd: float) -> Matrix:
        """Each query's score where the router spends `usd` a query: what `Curve.at` is the mean of."""
        points = sorted((float(self.side.paid[self.rows, pick].mean()), place, pick)
                        for place, pick in enumerate(self.picks(pair)))  # fmt: skip
        below = max(place for place, (cost, _, _) in enumerate(points) if cost <= usd)
        cost, _, low = points[below]
        found = self.side.score[self.rows, low]
        if below + 1 < len(points):
            dearer, _, high = points[below + 1]
            weight = (usd - cost) / max(dearer - cost, 1e-12)
            found = (1 - weight) * found + weight * self.side.score[self.rows, high]
        return np.asarray(found)

    def _order(self, weak: int, strong: int) -> NDArray[np.intp]:
        """Queries by predicted gain, the largest first."""
        return np.argsort(-(self.side.quality[:, strong] - self.side.quality[:, weak]), kind="stable")

    def _counts(self) -> NDArray[np.intp]:
        """Of the queries sent to the strong model, at every threshold."""
        return np.round(np.linspace(0, 1, THRESHOLDS) * len(self.rows)).astype(np.intp)

    def _pair_curve(self, weak: int, strong: int) -> Curve:
        order, counts = self._order(weak, strong), self._counts()
        paid, score = (
            matrix[:, weak].mean()
            + np.append(0.0, np.cumsum((matrix[:, strong] - matrix[:, weak])[order]))[counts] / len(self.rows)
            for matrix in (self.side.paid, self.side.score)
        )
        return _rising(paid, score)

    def _floor(self, level: float) -> NDArray[np.intp]:
        """The cheapest model that passes, else the best."""
        passes = self.side.quality >= level
        cheapest = np.where(passes, self.side.cost, np.inf).argmin(1)
        return np.where(passes.any(1), cheapest, self.side.quality.argmax(1))


def _rising(usd: Matrix, score: Matrix) -> Curve:
    order = np.argsort(usd, kind="stable")
    return Curve(usd[order], score[order])


def pairs_of(side: Side) -> list[Pair]:
    """Every model with every dearer one."""
    price = side.paid.mean(0)
    return [(weak, strong) for weak, strong in np.ndindex(*2 * price.shape) if price[weak] < price[strong]]
