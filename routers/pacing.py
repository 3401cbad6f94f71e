"""A daily budget that refills all the time, spent where it buys most: primal-dual pacing (bandits with
replenishable knapsacks; exponential dual prices).

A purse refills at an even rate up to a reserve. The price of a dollar in quality points is exponential in
how empty the purse is, which is what multiplicative updates of the dual variable come to when they are
summed: a full purse reads quality only, an empty one cost only. No decision may cost more than the purse
holds, so in any 24 hours spending stays within the budget, whatever the traffic does: the refill of a day
and the reserve together are the budget. A larger reserve lets a busy hour spend what a quiet one left,
and takes as much from even traffic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, inf, log, sqrt

from routers.select import BALANCE
from routers.types import Knobs

DAY_S = 86_400.0
RESERVE = 1.0 / 24.0
"""Of a day's budget: what a purse holds when full."""
FULL_RATE, EMPTY_RATE = 1e-3, 1e3
"""Quality points per reference cost at a full and at an empty purse."""


@dataclass(slots=True)
class Purse:
    """What may be spent now. Time is the caller's."""

    budget_usd_per_day: float
    level_usd: float
    time_s: float
    reserve: float = RESERVE

    @classmethod
    def new(cls, budget_usd_per_day: float, now_s: float, reserve: float = RESERVE) -> Purse:
        """Half full: the first requests are neither spoilt nor starved."""
        if not 0.0 < budget_usd_per_day < inf:
            raise ValueError(f"budget_usd_per_day: {budget_usd_per_day} is not a positive amount")
        return cls(budget_usd_per_day, budget_usd_per_day * reserve / 2, now_s, reserve)

    @property
    def capacity_usd(self) -> float:
        return self.budget_usd_per_day * self.reserve

    def refill(self, now_s: float) -> None:
        """Up to now, never beyond the reserve. A clock that goes back refills nothing."""
        added = (now_s - self.time_s) * self.budget_usd_per_day * (1.0 - self.reserve) / DAY_S
        self.level_usd = min(self.capacity_usd, self.level_usd + max(added, 0.0))
        self.time_s = max(now_s, self.time_s)

    def spend(self, cost_usd: float) -> None:
        """Settled cost. A level below zero is a debt that refills first."""
        self.level_usd -= cost_usd

    @property
    def fullness(self) -> float:
        """0: empty or in debt, 1: full."""
        return min(max(self.level_usd / self.capacity_usd, 0.0), 1.0)

    @property
    def rate(self) -> float:
        """Quality points per reference cost."""
        return exp(log(EMPTY_RATE) + self.fullness * (log(FULL_RATE) - log(EMPTY_RATE)))


def cost_weight_of(rate: float) -> float:
    """The cost weight whose exchange rate this is: `routers.select.exchange_rate` backwards."""
    odds = sqrt(max(rate, 0.0) / BALANCE)
    return odds / (1.0 + odds)


def weighed(knobs: Knobs, purse: Purse, now_s: float) -> Knobs:
    """The knobs in force while spending keeps its pace: a cost weight never below what was asked for.

    Where only a quality floor was asked for, the cheapest model that meets it is taken anyway.
    """
    purse.refill(now_s)
    if knobs.min_quality is not None and knobs.cost_weight is None:
        return knobs
    return replace(knobs, cost_weight=max(knobs.cost_weight or 0.0, cost_weight_of(purse.rate)))


def paced(knobs: Knobs, purse: Purse, now_s: float) -> Knobs:
    """As `weighed`, and no model may be expected to cost more than what is left: kept to the cent by itself, where no
    ledger refuses what is beyond the budget.
    """
    weighty = weighed(knobs, purse, now_s)
    affordable = max(purse.level_usd, 0.0)
    limit = affordable if knobs.max_cost_usd is None else min(knobs.max_cost_usd, affordable)
    return replace(weighty, max_cost_usd=limit)
