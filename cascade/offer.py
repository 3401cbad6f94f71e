"""What a request offers a trained cascade: estimates of its models, who can't be asked now, who may stand in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cascade.types import Step
from routers.types import Choice, Estimate

Typical = Mapping[str, tuple[float, float]]
"""Mean quality and cost of each of a cascade's models."""
Worst = Mapping[str, float]
"""Dollars that one attempt can cost at most, by model; a model without a price now is not in it."""


def estimates_of(choice: Choice, typical: Typical) -> list[Estimate]:
    """The router's, and what is typical of a model that it says nothing of."""
    told = {e.model: e for e in choice.estimates if np.isfinite(e.quality + e.cost_usd)}
    return [told.get(m) or Estimate(m, q, 1.0, usd) for m, (q, usd) in typical.items()]


def absent(choice: Choice, models: Sequence[str], worst_cost_usd: Worst) -> frozenset[str]:
    """Models that aren't eligible or have no price now."""
    eligible = set(choice.probabilities) - set(choice.excluded)
    return frozenset(m for m in models if m not in eligible or m not in worst_cost_usd)


def stand_ins(
    choice: Choice, fallbacks: Sequence[str], taken: Sequence[str], worst_cost_usd: Worst
) -> tuple[Step, ...]:
    """Steps of the models that take no part in the cascade, in the order they are to be tried."""
    spare = [m for m in (*choice.ranked, *fallbacks) if m in worst_cost_usd and m not in taken]
    return tuple(Step(m, worst_cost_usd=worst_cost_usd[m]) for m in dict.fromkeys(spare))
