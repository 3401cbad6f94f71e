"""What a request offers a trained cascade: estimates of its models, who can't be asked now, who may stand in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from cascade.prompts import Message
from cascade.types import Limits, Plan, Step
from routers.types import Choice, Estimate

Typical = Mapping[str, tuple[float, float]]
"""Mean quality and cost of each of a cascade's models."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One request, as any trained cascade plans it."""

    choice: Choice
    worst_cost_usd: Mapping[str, float]
    """Dollars that one attempt can cost at most, by model; a model without a price now is not in it."""
    limits: Limits = field(default_factory=Limits)
    retries: int = 1
    fallbacks: Sequence[str] = ()
    messages: Sequence[Message] = ()
    """The chat, for a cascade that `writes` requests of its own."""

    def estimates(self, typical: Typical) -> list[Estimate]:
        """The router's, and what is typical of a model that it says nothing of."""
        told = {e.model: e for e in self.choice.estimates if np.isfinite(e.quality + e.cost_usd)}
        return [told.get(m) or Estimate(m, q, 1.0, usd) for m, (q, usd) in typical.items()]

    def absent(self, models: Sequence[str]) -> frozenset[str]:
        """Models that aren't eligible or have no price now."""
        eligible = set(self.choice.probabilities) - set(self.choice.excluded)
        return frozenset(m for m in models if m not in eligible or m not in self.worst_cost_usd)

    def step(self, model: str) -> Step:
        """The model, kept whatever it shows."""
        return Step(model, worst_cost_usd=self.worst_cost_usd[model])

    def stand_ins(self, taken: Sequence[str]) -> tuple[Step, ...]:
        """Steps of the models that take no part in the cascade, in the order they are to be tried."""
        spare = [m for m in (*self.choice.ranked, *self.fallbacks) if m in self.worst_cost_usd and m not in taken]
        return tuple(map(self.step, dict.fromkeys(spare)))


class Planner(Protocol):
    """What a route's cascade is: plans climbs, and reads the chat only where it `writes` requests of its own."""

    @property
    def writes(self) -> bool: ...

    def plan(self, offer: Offer, share: float = 1.0, most_wrong: float | None = None) -> Plan: ...


class Scored(Protocol):
    """What was tried on rows that taught it."""

    @property
    def quality(self) -> float: ...

    @property
    def cost_usd(self) -> float: ...


S = TypeVar("S", bound=Scored)


def cheapest(found: Sequence[S], quality: float) -> S:
    """Of those that reach it; the best where none does."""
    reaching = [one for one in found if one.quality >= quality]
    if reaching:
        return min(reaching, key=lambda one: one.cost_usd)
    return max(found, key=lambda one: (one.quality, -one.cost_usd))
