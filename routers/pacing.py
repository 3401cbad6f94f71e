"""A daily budget that refills continuously and is spent where it buys most: primal-dual pacing (bandits with
replenishable knapsacks, exponential dual prices).

Optimal spending under one budget holds one price all day, so spending follows the traffic. A purse therefore refills by
the shape of earlier days (routers/day_shape.py), and evenly until one is known (target spending from samples: Balseiro,
Kumar, Mirrokni & Sivan 2023, Robust budget pacing with a single sample). The price of a dollar in quality points grows
exponentially as the purse empties, which is the sum of multiplicative updates of the dual variable: with a full purse
only quality counts, with an empty one only cost.

The spending of the last 24 hours is kept apart from the purse's level. The price also rises as that spending nears the
budget, and no decision may cost more than what is left, so spending in any 24 hours stays within the budget whatever
the traffic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import exp, inf, log, sqrt

from routers.day_shape import DAY_S, HOUR_S, DayShape
from routers.select import BALANCE
from routers.types import Knobs

SAVED = 0.1
"""Share of a day's budget that a full purse holds."""
RESERVE = 1.0 / 16.0
"""Share of a day's budget that is not planned to be spent."""
FULL_RATE, EMPTY_RATE = 1e-3, 1e3
"""Quality points per reference cost at a full and at an empty purse."""
MERGED_S = 60.0
"""Spending within this time of each other is kept as one entry."""


@dataclass(slots=True)
class Purse:
    """What may be spent now. The caller passes the time."""

    budget_usd_per_day: float
    level_usd: float
    time_s: float
    shape: DayShape = field(default_factory=DayShape)
    spent: deque[tuple[float, float]] = field(default_factory=deque)
    """Dollars spent in the last 24 hours, each entry with the time of its spending or a little later."""
    spent_usd: float = 0.0

    @classmethod
    def new(cls, budget_usd_per_day: float, now_s: float, shape: DayShape | None = None) -> Purse:
        """A half-full purse, so that the first requests have neither much nor little to spend."""
        if not 0.0 < budget_usd_per_day < inf:
            raise ValueError(f"budget_usd_per_day: {budget_usd_per_day} is not a positive amount")
        return cls(budget_usd_per_day, budget_usd_per_day * SAVED / 2, now_s, shape or DayShape())

    @property
    def capacity_usd(self) -> float:
        return self.budget_usd_per_day * SAVED

    @property
    def left_usd(self) -> float:
        """What is left of the budget after the last 24 hours' spending."""
        return self.budget_usd_per_day - self.spent_usd

    def refill(self, now_s: float) -> None:
        """Refill up to `now_s`, never beyond the capacity. A clock that goes back a little refills nothing. One that
        goes back more than an hour had been wrong: it is followed, and all past spending counts as spent now.
        """
        if now_s < self.time_s - HOUR_S:
            self.time_s, self.spent = now_s, deque([(now_s, self.spent_usd)])
        now_s = max(now_s, self.time_s)
        self.level_usd = min(self.capacity_usd, self.level_usd + self._refilled(self.time_s, now_s))
        self.time_s = now_s
        while self.spent and self.spent[0][0] <= now_s - DAY_S:
            self.spent_usd -= self.spent.popleft()[1]

    def spend(self, cost_usd: float) -> None:
        """Subtract a settled cost. A level below zero is a debt that refills first."""
        self.level_usd -= cost_usd
        self.spent_usd += cost_usd
        if self.spent and self.time_s < self.spent[-1][0]:
            until_s, usd = self.spent.pop()
            self.spent.append((until_s, usd + cost_usd))
        else:
            self.spent.append((self.time_s + MERGED_S, cost_usd))

    def recall(self, spent: Sequence[tuple[float, float]], made_s: float) -> None:
        """Continue from earlier spending, as a purse that had existed then would, except for its debts. `spent`: (time,
        dollars) in the order of time; `made_s`: when this purse was made.
        """
        if not spent:
            return
        level, time_s = self.capacity_usd / 2, spent[0][0]
        for until_s, usd in (*spent, (made_s, 0.0)):
            level = min(self.capacity_usd, level + self._refilled(time_s, until_s)) - usd
            time_s = until_s
        self.level_usd = min(self.capacity_usd, self.level_usd + max(level, 0.0) - self.capacity_usd / 2)
        self.spent.extendleft(reversed(spent))
        self.spent_usd += sum(usd for _, usd in spent)

    @property
    def fullness(self) -> float:
        """From 0 (empty or in debt) to 1 (full). Once less than the reserve is left of the last 24 hours' budget, that
        limits it too.
        """
        level = self.level_usd / self.capacity_usd
        return min(max(min(level, self.left_usd / (self.budget_usd_per_day * RESERVE)), 0.0), 1.0)

    @property
    def rate(self) -> float:
        """Quality points per reference cost."""
        return exp(log(EMPTY_RATE) + self.fullness * (log(FULL_RATE) - log(EMPTY_RATE)))

    def _refilled(self, since_s: float, until_s: float) -> float:
        return self.shape.share(since_s, until_s) * self.budget_usd_per_day * (1.0 - RESERVE)


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
    """As `weighed`, and no model may be expected to cost more than what is left of the budget: for use without a ledger
    that refuses spending beyond it.
    """
    weighty = weighed(knobs, purse, now_s)
    affordable = max(purse.left_usd, 0.0)
    limit = affordable if knobs.max_cost_usd is None else min(knobs.max_cost_usd, affordable)
    return replace(weighty, max_cost_usd=limit)
