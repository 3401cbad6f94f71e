"""What a router is worth on outcomes with known scores, beside what it must beat, each figure with its
interval.

A router's curve is the hull of its operating points over all exchange rates between quality and cost.
Intervals are 95 % percentile bootstraps over queries; the same resamples serve every policy, so
differences are paired. The published habit of reading a hull through test points flatters all routers
alike; `operating_point` does not, for its exchange rate is chosen on training rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers import frontier
from routers.estimators.base import Matrix
from routers.intervals import percentile_interval, resampled_counts, resampled_weights
from routers.parallel import ParallelMap, serial_map

RESAMPLES = 400
CHUNK = 50
"""Bootstrap resamples that are computed together."""

Figures = dict[str, float]
Clouds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bench:
    """The rows on which policies are compared: (n, m) matrices without gaps."""

    scores: Matrix
    costs: Matrix
    best: int
    """Column of the model that was best on the training rows when used alone."""

    def singles(self, weights: NDArray[np.float64] | None = None) -> frontier.Points:
        """(cost, quality) of each model alone."""
        return np.column_stack([np.average(self.costs, 0, weights), np.average(self.scores, 0, weights)])


@dataclass(frozen=True, slots=True)
class PolicyFamily:
    """The assignments of one policy at several exchange rates. Row l of `cost` and `score`, (rates, n), is what each
    query cost and scored at rate l.
    """

    cost: Matrix
    score: Matrix
    gain: NDArray[np.float64] | None = None
    """With two models, (n,): the score by which queries are sent to the strong one; None with more models."""

    def points(self) -> frontier.Points:
        return np.column_stack([self.cost.mean(1), self.score.mean(1)])


def rates_for(costs: Matrix, decade: float = 10.0) -> NDArray[np.float64]:
    """Exchange rates to try, quality points per dollar, `decade` of them to each power of ten: from 1e-3 to 1e6,
    further where so expensive or so cheap models call for it, and one at which money alone counts.
    """
    paid = [one for one in costs.mean(0).tolist() if one > 0]
    low, high = (log10(1e-6 / max(paid)), log10(30.0 / min(paid))) if paid else (-3.0, 6.0)
    powers = np.arange(floor(min(low, -3.0) * decade), ceil(max(high, 6.0) * decade) + 1) / decade
    return np.concatenate([[0.0], 10.0**powers, [10.0 ** (powers[-1] + 6.0)]])


def swept(quality: Matrix, cost: Matrix, bench: Bench, rates: NDArray[np.float64] | None = None) -> PolicyFamily:
    """The policy that maximises estimated quality minus rate times estimated cost, at every rate. `rates` None: those
    of `rates_for` on the bench's costs.
    """
    rates = rates_for(bench.costs) if rates is None else rates
    rows = np.arange(len(quality))
    picks = [np.argmax(quality - rate * cost, 1) for rate in rates]
    gain = None
    if bench.scores.shape[1] == 2:
        gain = quality[:, bench.best] - quality[:, 1 - bench.best]
    return PolicyFamily(
        np.array([bench.costs[rows, pick] for pick in picks]),
        np.array([bench.scores[rows, pick] for pick in picks]),
        gain,
    )


def singles(bench: Bench) -> PolicyFamily:
    """The zero router: every model alone, mixed at will; it reads no query."""
    return PolicyFamily(bench.costs.T, bench.scores.T)


def best_single(bench: Bench) -> PolicyFamily:
    return PolicyFamily(bench.costs.T[[bench.best]], bench.scores.T[[bench.best]])


def oracle(bench: Bench) -> PolicyFamily:
    """The policy that knows every score and cost beforehand."""
    return swept(bench.scores, bench.costs, bench)


def figures(points: frontier.Points, alone: frontier.Points, best: int, highest_cost: float) -> Figures:
    """Every figure that one curve gives. `alone` are the points of the single models, `highest_cost` is the highest
    mean cost of all policies compared, in dollars.
    """
    chain = frontier.hull(points)
    low, high = float(alone[:, 0].min()), float(alone[best, 0])
    strongest = (high, float(alone[best, 1]))
    saved = frontier.cost_saved(chain, strongest, 1.0, 0.99, 0.95)
    return {
        "aiq": frontier.aiq(chain, low, high),
        "aiq_repo": frontier.aiq_repo(chain, highest_cost),
        "max_quality": float(chain[-1, 1]),
        "quality_at_10": frontier.quality_at(chain, low + 0.1 * (high - low)),
        "quality_at_50": frontier.quality_at(chain, low + 0.5 * (high - low)),
        **dict(zip(("cost_saved_100", "cost_saved_99", "cost_saved_95"), saved, strict=True)),
        "arena_score": frontier.arena_score(chain),
    }


def pair_figures(gain: NDArray[np.float64], bench: Bench, rows: NDArray[np.intp]) -> Figures:
    """RouteLLM's figures of two models over those rows (repeats allowed)."""
    weak, strong = bench.scores[rows, 1 - bench.best], bench.scores[rows, bench.best]
    curve = frontier.gap_recovered(gain[rows], weak, strong)
    return {
        "apgr": frontier.apgr(curve),
        "apgr_repo": frontier.apgr_repo(curve),
        "cpt50": frontier.calls_for(curve, 0.5),
        "cpt80": frontier.calls_for(curve, 0.8),
    }


def compared(
    bench: Bench, policies: Mapping[str, PolicyFamily], seed: int = 0, resamples: int = RESAMPLES,
    parallel_map: ParallelMap = serial_map,
) -> tuple[dict[str, Figures], dict[str, list[Figures]]]:  # fmt: skip
    """Figures of every policy on the rows themselves, and on each of `resamples` bootstrap resamples, which all
    policies share. `parallel_map` runs the chunks.
    """
    n = len(bench.scores)
    counts = resampled_counts(n, resamples, seed)
    chunks = [np.ones((1, n), counts.dtype), *(counts[at : at + CHUNK] for at in range(0, resamples, CHUNK))]
    (point,), *found = parallel_map(_of_chunk, (bench, dict(policies)), chunks)
    return point, {name: [one[name] for chunk in found for one in chunk] for name in policies}


def _of_chunk(
    bench: Bench, policies: Mapping[str, PolicyFamily], counts: NDArray[np.int64]
) -> list[dict[str, Figures]]:
    """Every policy's figures on each of those resamples: rows of `counts` say how often each query is in."""
    n = counts.shape[1]
    shares = (counts / n).astype(np.float64)
    clouds = {name: _clouds(policy, shares) for name, policy in policies.items()}
    alone = _clouds(singles(bench), shares)
    return [_figures(bench, policies, clouds, alone, b, np.repeat(np.arange(n), counts[b])) for b in range(len(counts))]


def _figures(
    bench: Bench, policies: Mapping[str, PolicyFamily], clouds: Mapping[str, Clouds], alone: Clouds, b: int,
    rows: NDArray[np.intp],
) -> dict[str, Figures]:  # fmt: skip
    """Figures of every policy on resample `b`, which consists of those rows."""
    highest_cost = max(float(cloud[b, :, 0].max()) for cloud in clouds.values())
    found: dict[str, Figures] = {}
    for name, cloud in clouds.items():
        found[name] = figures(cloud[b], alone[b], bench.best, highest_cost)
        gain = policies[name].gain
        if gain is not None:
            found[name] |= pair_figures(gain, bench, rows)
    return found


def _clouds(policy: PolicyFamily, shares: Matrix) -> Clouds:
    """Shape (resamples, points, 2): means of every resample, by one product each."""
    return np.stack([shares @ policy.cost.T, shares @ policy.score.T], axis=2)


def with_interval(value: float, drawn: Sequence[float]) -> dict[str, float | None]:
    """The figure and its 95 % percentile interval; null where it isn't defined."""
    return {name: _json(limit) for name, limit in percentile_interval(value, drawn).as_dict().items()}


def _json(value: float) -> float | None:
    return value if np.isfinite(value) else None


def tabled(point: Mapping[str, Figures], drawn: Mapping[str, list[Figures]]) -> dict[str, Any]:
    """Per policy, every figure with its interval."""
    return {
        name: {key: with_interval(value, [d[key] for d in drawn[name]]) for key, value in found.items()}
        for name, found in point.items()
    }


def paired(point: Mapping[str, Figures], drawn: Mapping[str, list[Figures]], one: str, other: str) -> dict[str, Any]:
    """Differences of `one` minus `other`, figure by figure, over the same resamples."""
    keys = point[one].keys() & point[other].keys()
    return {
        key: with_interval(
            point[one][key] - point[other][key],
            [a[key] - b[key] for a, b in zip(drawn[one], drawn[other], strict=True)],
        )
        for key in sorted(keys)
    }


def rate_matching(policy: PolicyFamily, bench: Bench) -> int:
    """Index of the cheapest rate whose mean quality on these (training) rows is the best single model's by one standard
    error of the paired difference: the cheapest that merely reaches it was lucky there (the one-standard-error rule of
    Breiman et al. 1984). The cheapest that reaches it where none does so safely; else the rate of highest quality.
    """
    points = policy.points()
    gained = policy.score - bench.scores[:, bench.best]
    mean = gained.mean(1)
    for reached in (mean > gained.std(1) / np.sqrt(gained.shape[1]), mean >= 0.0):
        if reached.any():
            rates = np.flatnonzero(reached)
            return int(rates[points[rates, 0].argmin()])
    return int(mean.argmax())


def operating_point(
    policy: PolicyFamily, index: int, bench: Bench, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Quality difference and cost ratio to the best single model on the test rows, at a rate fixed beforehand; and the
    share of queries that were answered for less than that model costs.
    """
    n = len(bench.scores)
    counts = resampled_weights(n, resamples, seed)
    gained = policy.score[index] - bench.scores[:, bench.best]
    paid, price = policy.cost[index], bench.costs[:, bench.best]
    spent, priced = (np.append(one.mean(), counts @ one) for one in (paid, price))
    ratio, *ratios = np.divide(spent, priced, out=np.full_like(spent, np.nan), where=priced > 0).tolist()
    kept = (paid < price).astype(float)
    return {
        "quality_difference": with_interval(float(gained.mean()), (counts @ gained).tolist()),
        "cost_ratio": with_interval(ratio, ratios),
        "mean_cost": with_interval(float(paid.mean()), (counts @ paid).tolist()),
        "kept_cheaper": with_interval(float(kept.mean()), (counts @ kept).tolist()),
    }


def calibration(quality: Matrix, scores: Matrix, bins: int = 15) -> dict[str, float | None]:
    """Brier score, expected calibration error over equal-mass bins, and AUROC of scores of .5 or more against lower
    ones; the AUROC is None where all are on one side.
    """
    guess, truth = quality.ravel(), scores.ravel()
    order = np.argsort(guess, kind="stable")
    gaps = [
        len(part) * abs(float(guess[part].mean() - truth[part].mean()))
        for part in np.array_split(order, bins)
        if len(part)
    ]
    return {
        "brier": float(((guess - truth) ** 2).mean()),
        "ece": sum(gaps) / len(guess),
        "auroc": _json(auroc(guess, truth >= 0.5)),
    }


def auroc(guess: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that a right answer was rated above a wrong one, ties counting half. NaN
    where all answers are right or all are wrong.
    """
    positives, negatives = int(right.sum()), int((~right).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    _, place, counts = np.unique(guess, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = ends - (counts - 1) / 2.0
    return float((ranks[place][right].sum() - positives * (positives + 1) / 2) / (positives * negatives))
