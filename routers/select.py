"""From estimates to a choice with exact probabilities: the one decision rule that every learned router
shares.

Utility is quality minus exchange rate times cost. The cost weight w in [0, 1] sets the rate,
`rate = BALANCE * (w / (1 - w))^2` quality points per reference cost, so 0 reads quality only and 1 cost only.
A quality floor or a bound on latency comes before utility. Exploration is inverse-gap weighting
(SquareCB, Foster & Rakhlin 2020) with a floor; a caller who opted out gets the best model with
probability 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import overload

import numpy as np
from numpy.typing import NDArray

from routers.types import Choice, Estimate, Knobs, Undecided

DEFAULT_COST_WEIGHT = 0.5
BALANCE = 0.2
"""Quality points that one reference cost is worth at cost_weight 0.5."""
CHEAPEST_RATE = 1e9

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of the eligible candidates, in one order: arrays of one length."""

    models: Sequence[str]
    quality: Array
    quality_sd: Array
    cost_usd: Array
    latency_s: Array
    """NaN where nothing is known; such a model is not held to `max_latency_s`."""
    output_tokens: Array


@dataclass(frozen=True, slots=True)
class Exploration:
    """How often another than the best is tried. `floor` 0: never."""

    floor: float = 0.0
    """Least probability of each eligible model is floor / their number."""
    sharpness: float = 1000.0
    """SquareCB's gamma: a model whose utility is `gap` below the best is tried with 1 / (K + gamma * gap)."""


def exchange_rate(cost_weight: float) -> float:
    """Quality points per reference cost."""
    if cost_weight >= 1.0:
        return CHEAPEST_RATE
    odds = cost_weight / (1.0 - cost_weight)
    return BALANCE * odds * odds


def utilities(forecast: Forecast, knobs: Knobs, reference_usd: float) -> Array:
    """Worth of each model under the knobs; models that miss a floor or a bound fall below all that meet
    it.
    """
    cost = forecast.cost_usd / max(reference_usd, 1e-12)
    if knobs.cost_weight is None and knobs.min_quality is not None:
        worth = 1e-9 * forecast.quality - cost
    else:
        weight = DEFAULT_COST_WEIGHT if knobs.cost_weight is None else knobs.cost_weight
        worth = forecast.quality - exchange_rate(weight) * cost
    if knobs.min_quality is not None:
        worth = _penalised(worth, np.maximum(knobs.min_quality - forecast.quality, 0.0))
    if knobs.max_latency_s is not None:
        late = np.maximum(forecast.latency_s - knobs.max_latency_s, 0.0) / max(knobs.max_latency_s, 1e-9)
        worth = _penalised(worth, np.nan_to_num(late))
    return worth


def _penalised(worth: Array, shortfall: Array) -> Array:
    """Keeps the order among those without shortfall and puts the others below, least shortfall first."""
    if not shortfall.any():
        return worth
    spread = float(worth.max() - worth.min()) + 1.0
    return np.where(shortfall > 0, worth.min() - spread * (1.0 + shortfall), worth)


def probabilities(worth: Array, exploration: Exploration, explore: bool) -> Array:
    """Over the eligible models, summing to 1. Every model gets at least floor / K where exploration is on."""
    values: list[float] = worth.tolist()
    k, top = len(values), max(values)
    best = values.index(top) if top == top else 0
    if not (explore and exploration.floor > 0.0 and k > 1):
        chances = np.zeros(k)
        chances[best] = 1.0
        return chances
    least, sharpness = min(exploration.floor, 1.0) / k, exploration.sharpness
    shares = [max(1.0 / (k + sharpness * (top - value)), least) for value in values]
    shares[best] = 0.0
    shares[best] = 1.0 - sum(shares)
    return np.array(shares)


def drawn(chances: Array | Sequence[float], draw: float) -> int:
    """Index of the model whose share of [0, 1) holds `draw`; never one of probability zero."""
    total, last = 0.0, 0
    for index, chance in enumerate(chances):
        if chance > 0.0:
            total += chance
            last = index
            if draw < total:
                return index
    return last


def chosen(
    forecast: Forecast,
    worth: Array,
    chances: Array,
    draw: float,
    excluded: Mapping[str, str],
    router: str,
    reason: str = "",
) -> Choice:
    """The choice as a record. Undecided where an estimate is not finite."""
    values, shares = worth.tolist(), chances.tolist()
    if not all(map(isfinite, values)) or not all(map(isfinite, forecast.cost_usd.tolist())):
        raise Undecided("an estimate is not finite", excluded)
    models = forecast.models
    index = drawn(shares, draw)
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    return Choice(
        model=models[index],
        propensity=shares[index],
        probabilities=dict(zip(models, shares, strict=True)),
        estimates=Estimates(forecast),
        excluded=excluded,
        reason="explored" if index != order[0] else reason or "best estimate",
        router=router,
        ranked=tuple(models[i] for i in order),
    )


class Estimates(Sequence[Estimate]):
    """The forecast as estimates, made when somebody reads them: most requests never do."""

    def __init__(self, forecast: Forecast) -> None:
        self._forecast = forecast
        self._made: tuple[Estimate, ...] | None = None

    def _all(self) -> tuple[Estimate, ...]:
        if self._made is None:
            f = self._forecast
            columns = (f.quality, f.quality_sd, f.cost_usd, f.latency_s, f.output_tokens)
            self._made = tuple(map(Estimate, f.models, *(column.tolist() for column in columns)))
        return self._made

    @overload
    def __getitem__(self, index: int) -> Estimate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Estimate]: ...
    def __getitem__(self, index: int | slice) -> Estimate | Sequence[Estimate]:
        return self._all()[index]

    def __len__(self) -> int:
        return len(self._forecast.models)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == tuple(other)

    def __hash__(self) -> int:
        return hash(self._all())

    def __repr__(self) -> str:
        return repr(self._all())
