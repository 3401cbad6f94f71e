"""The quality-cost frontier and its figures: AIQ in both forms, quality at a cost, cost at a quality, PGR.

Any two operating points may be mixed at random, so what a router can reach is the non-decreasing upper concave hull of
its points (RouterBench, Hu et al. 2024, section 3). Points are rows of (cost, quality).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


def hull(points: Points | Sequence[tuple[float, float]]) -> Points:
    """Points of the frontier by rising cost: points that are no better than a cheaper one are dropped, then those below
    the upper concave chain. Of points of equal cost the best is kept.
    """
    given = np.asarray(points, np.float64).reshape(-1, 2)
    ordered = given[np.lexsort((-given[:, 1], given[:, 0]))]
    better = np.concatenate([[True], ordered[1:, 1] > np.maximum.accumulate(ordered[:, 1])[:-1]])
    chain: list[tuple[float, float]] = []
    for x, y in ordered[better].tolist():
        while len(chain) >= 2 and _below(chain[-2], chain[-1], (x, y)):
            chain.pop()
        chain.append((x, y))
    return np.array(chain)


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """b lies on or under the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def quality_at(chain: Points, cost: float) -> float:
    """Quality reachable at that mean cost; left of the chain its first quality, right of it its last."""
    return float(np.interp(cost, chain[:, 0], chain[:, 1]))


def cost_at(chain: Points, quality: float) -> float:
    """Least mean cost that reaches the quality; infinite where the chain never does."""
    if chain[-1, 1] < quality - 1e-12:
        return float("inf")
    if chain[0, 1] >= quality:
        return float(chain[0, 0])
    return float(np.interp(quality, chain[:, 1], chain[:, 0]))


def aiq(chain: Points, low: float, high: float) -> float:
    """Average quality over mean costs from low to high (AIQ): the exact integral of the chain over the
    range.
    """
    if high <= low:
        return quality_at(chain, high)
    inside = chain[(chain[:, 0] > low) & (chain[:, 0] < high), 0]
    costs = np.concatenate([[low], inside, [high]])
    qualities = np.interp(costs, chain[:, 0], chain[:, 1])
    return float(np.trapezoid(qualities, costs) / (high - low))


def aiq_repo(chain: Points, highest: float) -> float:
    """AIQ as RouterBench's released code has it: the area from the chain's own first point to the most expensive
    point of all routers compared, the last quality carried on, divided by that most expensive cost.
    """
    if highest <= 0:
        return float(chain[-1, 1])
    costs, qualities = chain[:, 0], chain[:, 1]
    if highest > costs[-1]:
        costs, qualities = np.append(costs, highest), np.append(qualities, qualities[-1])
    return float(np.trapezoid(qualities, costs) / highest)


def cost_saved(chain: Points, best: tuple[float, float], *shares: float) -> list[float]:
    """For each share: 1 - cost / cost of the best single model, at the cheapest point of hull(chain + best) that
    reaches that share of its quality. It is never negative, because the best single model is one of the points.
    """
    if best[0] <= 0:
        return [0.0] * len(shares)
    offered = hull(np.vstack([chain, [best]]))
    return [max(1.0 - cost_at(offered, share * best[1]) / best[0], 0.0) for share in shares]


def gap_recovered(gain: NDArray[np.float64], weak: NDArray[np.float64], strong: NDArray[np.float64]) -> Points:
    """PGR at every cut: rows of (share of calls to the strong model, share of the quality gap recovered).

    `gain` is the router's score for sending a query to the strong model; queries are cut in falling order
    of it.
    """
    order = np.argsort(-gain, kind="stable")
    n = len(gain)
    won = np.concatenate([[0.0], np.cumsum((strong - weak)[order])]) / n
    gap = float(strong.mean() - weak.mean())
    return np.column_stack([np.arange(n + 1) / n, won / gap if gap else np.full(n + 1, np.nan)])


def apgr(curve: Points) -> float:
    """Average performance gap recovered: the area under PGR over the share of strong calls (RouteLLM,
    equation 5).
    """
    return float(np.trapezoid(curve[:, 1], curve[:, 0]))


def apgr_repo(curve: Points) -> float:
    """The paper's ten-point form: the mean PGR at strong shares of 10 %, 20 % ... 100 %."""
    return float(np.interp(np.arange(1, 11) / 10, curve[:, 0], curve[:, 1]).mean())


def calls_for(curve: Points, recovered: float) -> float:
    """CPT: least share of strong calls whose PGR, by its running maximum, reaches `recovered`."""
    reached = np.maximum.accumulate(curve[:, 1]) >= recovered
    return float(curve[int(reached.argmax()), 0]) if reached.any() else float("nan")


def arena_score(points: Points, beta: float = 0.1) -> float:
    """RouterArena's score of the best point: accuracy and dollars per query, these on a logarithmic scale
    from $0.0044 to $200 per 1,000, weighed by beta.
    """
    low, high = 0.0044, 200.0
    per_1000 = np.clip(points[:, 0] * 1000, low, high)
    cost = (np.log2(high) - np.log2(per_1000)) / (np.log2(high) - np.log2(low))
    return float(((1 + beta) * points[:, 1] * cost / np.maximum(beta * points[:, 1] + cost, 1e-12)).max())
