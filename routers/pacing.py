"""A daily budget that refills all the time, spent where it buys most: primal-dual pacing (bandits with
replenishable knapsacks; exponential dual prices).

Under one budget the best spending holds one price all day, so what is spent follows the traffic. A purse
therefore refills by the day's shape (routers/day_shape.py), as far as earlier days have shown it, and evenly before
(target spending from samples: Balseiro, Kumar, Mirrokni & Sivan 2023, Robust budget pacing with a single sample). The
price of a dollar in quality points is exponential in how empty the purse is, which is what multiplicative updates of
the dual variable come to when they are summed: a full purse reads quality only, an empty one cost only. What was spent
in the last 24 hours is told apart from the purse's level: the price also rises as it nears the budget, and no decision
may cost more than is left of it, so in any 24 hours spending stays within the budget, whatever the traffic does.
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
"""Of a day's budget: what a purse holds when full."""
RESERVE = 1.0 / 16.0
"""Of a day's budget: what no day is planned to spend."""
FULL_RATE, EMPTY_RATE = 1e-3, 1e3
"""Quality points per reference cost at a full and at an empty purse."""
MERGED_S = 60.0
"""Spending this close together leaves the last 24 hours together."""


@dataclass(slots=True)
class Purse:
    """What may be spent now. Time is the caller's."""

    budget_usd_per_day: float
    level_usd: float
    time_s: float
    shape: DayShape = field(default_factory=DayShape)
    spent: deque[tuple[float, float]] = field(default_factory=deque)
    """Dollars of the last 24 hours, each with the time it was spent at or somewhat later."""
    spent_usd: float = 0.0

    @classmethod
    def new(cls, budget_usd_per_day: float, now_s: float, shape: DayShape | None = None) -> Purse:
        """Half full: the first requests are neither spoilt nor starved."""
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
        """Up to now, never beyond what it holds. A clock that goes back refills nothing; one that was far ahead is
        followed, and all that was spent counts as spent now.
        """
        if now_s < self.time_s - HOUR_S:
            self.time_s, self.spent = now_s, deque([(now_s, self.spent_usd)])
        now_s = max(now_s, self.time_s)
        self.level_usd = min(self.capacity_usd, self.level_usd + self._refilled(self.time_s, now_s))
        self.time_s = now_s
        while self.spent and self.spent[0][0] <= now_s - DAY_S:
            self.spent_usd -= self.spent.popleft()[1]

    def spend(self, cost_usd: float) -> None:
        """Settled cost. A level below zero is a debt that refills first."""
        self.level_usd -= cost_usd
        self.spent_usd += cost_usd
        if self.spent and self.time_s < self.spent[-1][0]:
            until_s, usd = self.spent.pop()
            self.spent.append((until_s, usd + cost_usd))
        else:
            self.spent.append((self.time_s + MERGED_S, cost_usd))

    def recall(self, spent: Sequence[tuple[float, float]], made_s: float) -> None:
        """Goes on where a purse that was there before this one was made would be, but for its debts. `spent`: dollars,
        each with the time it was spent at or somewhat later, in order.
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
        """0: empty or in debt, 1: full. Of the last 24 hours' budget what is left counts, once it is less than the
        reserve.
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
    """As `weighed`, and no model may be expected to cost more than what is left: kept to the cent by itself, where no
    ledger refuses what is beyond the budget.
    """
    weighty = weighed(knobs, purse, now_s)
    affordable = max(purse.left_usd, 0.0)
    limit = affordable if knobs.max_cost_usd is None else min(knobs.max_cost_usd, affordable)
    return replace(weighty, max_cost_usd=limit)
