"""From estimates to a choice with exact probabilities: the one decision rule that every learned router
shares.

Utility is quality minus exchange rate times cost: dollars of the call, and of the time it takes where a second
has a price (so a router sends less to what is busy, and more again when it is not). The cost weight w in
[0, 1] sets the rate, `rate = BALANCE * (w / (1 - w))^2` quality points per reference cost, so 0 reads
quality only and 1 cost only. A quality floor or a bound on latency comes before utility. Exploration is
inverse-gap weighting (SquareCB, Foster & Rakhlin 2020) with a floor; a caller who opted out gets the best
model with probability 1.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from math import isfinite
from typing import Any, cast, overload

from routers.types import Choice, Estimate, Knobs, Undecided

DEFAULT_COST_WEIGHT = 0.5
BALANCE = 0.2
"""Quality points that one reference cost is worth at cost_weight 0.5."""
CHEAPEST_RATE = 1e9

Numbers = list[float]


@dataclass(slots=True)
class Forecast:
    """Estimates of the eligible candidates, as parallel lists; lists, because a pool has only a few models."""

    models: Sequence[str]
    quality: Numbers
    quality_sd: Numbers
    cost_usd: Numbers
    latency_s: Numbers
    """NaN where nothing is known; `max_latency_s` does not apply to such a model."""
    output_tokens: Numbers


@dataclass(frozen=True, slots=True)
class Exploration:
    """How often a model other than the best is tried. With `floor` 0 that never happens."""

    floor: float = 0.0
    """Every eligible model has at least the probability floor / (number of eligible models)."""
    sharpness: float = 1000.0
    """SquareCB's gamma: a model whose utility is `gap` below the best is tried with 1 / (K + gamma * gap)."""


@lru_cache(64)
def exchange_rate(cost_weight: float) -> float:
    """Quality points per reference cost."""
    if cost_weight >= 1.0:
        return CHEAPEST_RATE
    odds = cost_weight / (1.0 - cost_weight)
    return min(BALANCE * odds * odds, CHEAPEST_RATE)


def utilities(forecast: Forecast, knobs: Knobs, reference_usd: float) -> Numbers:
    """Utility of each model under the knobs; models that miss a floor or a bound rank below all that meet it."""
    unit, weight = 1.0 / (reference_usd if reference_usd > 1e-12 else 1e-12), knobs.cost_weight
    quality, floor = forecast.quality, knobs.min_quality
    cost_usd = spent(forecast, knobs) if knobs.wait_usd_per_s else forecast.cost_usd
    if weight is None and floor is not None:
        worth = [1e-9 * quality[i] - cost * unit for i, cost in enumerate(cost_usd)]
    else:
        rate = exchange_rate(DEFAULT_COST_WEIGHT if weight is None else weight) * unit
        worth = [quality[i] - rate * cost for i, cost in enumerate(cost_usd)]
    if floor is not None:
        worth = _penalised(worth, [floor - each for each in quality])
    if knobs.max_latency_s is not None:
        bound = knobs.max_latency_s
        worth = _penalised(worth, [(latency - bound) / max(bound, 1e-9) for latency in forecast.latency_s])
    return worth


def spent(forecast: Forecast, knobs: Knobs) -> Numbers:
    """Money and waiting time as one cost in dollars. A model of unknown latency is charged the mean of the known ones.
    """
    price = knobs.wait_usd_per_s or 0.0
    known = [seconds for seconds in forecast.latency_s if seconds == seconds]
    otherwise = sum(known) / len(known) if known else 0.0
    return [
        usd + price * (seconds if seconds == seconds else otherwise)
        for usd, seconds in zip(forecast.cost_usd, forecast.latency_s, strict=True)
    ]


def _penalised(worth: Numbers, shortfall: Numbers) -> Numbers:
    """Keep the order of the models without a shortfall and put the others below them, the smallest shortfall first."""
    if not any(short > 0.0 for short in shortfall):
        return worth
    lowest = min(worth)
    spread = max(worth) - lowest + 1.0
    return [
        lowest - spread * (1.0 + short) + 0.0 * value if short > 0.0 else value
        for value, short in zip(worth, shortfall, strict=True)
    ]


def probabilities(worth: Numbers, exploration: Exploration, explore: bool) -> Numbers:
    """Choice probabilities of the eligible models, which sum to 1. With exploration each of the K models gets at least
    floor / K.
    """
    k, top = len(worth), max(worth)
    best = worth.index(top) if top == top else 0
    if not (explore and exploration.floor > 0.0 and k > 1):
        shares = [0.0] * k
        shares[best] = 1.0
        return shares
    least, sharpness = min(exploration.floor, 1.0) / k, exploration.sharpness
    shares = [least if (share := 1.0 / (k + sharpness * (top - value))) < least else share for value in worth]
    shares[best] = 0.0
    shares[best] = 1.0 - sum(shares)
    return shares


def drawn(chances: Iterable[float], draw: float) -> int:
    """Index of the model whose part of [0, 1) contains `draw`; a model of probability zero is never returned."""
    totals = list(accumulate(chances))
    index = bisect(totals, draw)
    return index if index < len(totals) else totals.index(totals[-1])  # they may round to less than 1


def chosen(
    forecast: Forecast,
    worth: Numbers,
    chances: Numbers,
    draw: float,
    excluded: Mapping[str, str],
    router: str,
    reason: str = "",
) -> Choice:
    """The choice with all that is logged of it. Raises Undecided where an estimate is not finite."""
    if not isfinite(sum(worth) + sum(forecast.cost_usd)):
        raise Undecided("an estimate is not finite", excluded)
    models = forecast.models
    index = drawn(chances, draw)
    order = sorted(range(len(worth)), key=worth.__getitem__, reverse=True)
    return Choice(
        models[index], chances[index], dict(zip(models, chances, strict=True)), Estimates(forecast),
        excluded, "explored" if index != order[0] else reason or "best estimate", router,
        tuple(map(models.__getitem__, order)),
    )  # fmt: skip


_ESTIMATE = cast(Callable[[tuple[Any, ...]], Estimate], partial(tuple.__new__, Estimate))
"""Makes an Estimate of a tuple of its fields; faster than `Estimate._make`, which is a Python function."""


class Estimates(Sequence[Estimate]):
    """The forecast as a sequence of estimates, built on first access: most requests never read them."""

    __slots__ = ("_forecast", "_made")

    def __init__(self, forecast: Forecast) -> None:
        self._forecast = forecast
        self._made: tuple[Estimate, ...] | None = None

    def _all(self) -> tuple[Estimate, ...]:
        if self._made is None:
            f = self._forecast
            columns = (f.models, f.quality, f.quality_sd, f.cost_usd, f.latency_s, f.output_tokens)
            self._made = tuple(map(_ESTIMATE, zip(*columns, strict=True)))
        return self._made

    @overload
    def __getitem__(self, index: int) -> Estimate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Estimate]: ...
    def __getitem__(self, index: int | slice) -> Estimate | Sequence[Estimate]:
        return self._all()[index]

    def __iter__(self) -> Iterator[Estimate]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._forecast.models)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())
