"""The interface of trained cascades, and the request that they plan for: its estimates, prices, absent models and
fallbacks.
"""

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
class PlanRequest:
    """One request, as a trained cascade sees it."""

    choice: Choice
    worst_cost_usd: Mapping[str, float]
    """Most dollars that one attempt can cost, by model; models without a price now are left out."""
    limits: Limits = field(default_factory=Limits)
    retries: int = 1
    fallbacks: Sequence[str] = ()
    messages: Sequence[Message] = ()
    """The conversation, for a cascade that `writes` requests of its own."""

    def estimates(self, typical: Typical) -> list[Estimate]:
        """The router's estimates; a typical one for each model that it has none for."""
        known = {e.model: e for e in self.choice.estimates if np.isfinite(e.quality + e.cost_usd)}
        return [known.get(m) or Estimate(m, q, 1.0, usd) for m, (q, usd) in typical.items()]

    def absent(self, models: Sequence[str]) -> frozenset[str]:
        """The models that are not eligible, or have no price now."""
        eligible = set(self.choice.probabilities) - set(self.choice.excluded)
        return frozenset(m for m in models if m not in eligible or m not in self.worst_cost_usd)

    def step(self, model: str) -> Step:
        """A step whose answer is always kept."""
        return Step(model, worst_cost_usd=self.worst_cost_usd[model])

    def stand_ins(self, taken: Sequence[str]) -> tuple[Step, ...]:
        """Fallbacks: steps of the models outside the cascade, in the order to try them."""
        spare = [m for m in (*self.choice.ranked, *self.fallbacks) if m in self.worst_cost_usd and m not in taken]
        return tuple(map(self.step, dict.fromkeys(spare)))


class Planner(Protocol):
    """A route's trained cascade. It needs the conversation only if it `writes` requests of its own."""

    @property
    def writes(self) -> bool: ...

    def plan(self, request: PlanRequest, share: float = 1.0, most_wrong: float | None = None) -> Plan: ...


class Scored(Protocol):
    """A rule with its quality and cost on the training rows."""

    @property
    def quality(self) -> float: ...

    @property
    def cost_usd(self) -> float: ...


S = TypeVar("S", bound=Scored)


def cheapest(found: Sequence[S], quality: float) -> S:
    """The cheapest that reaches this quality; the best where none does."""
    reaching = [one for one in found if one.quality >= quality]
    if reaching:
        return min(reaching, key=lambda one: one.cost_usd)
    return max(found, key=lambda one: (one.quality, -one.cost_usd))
