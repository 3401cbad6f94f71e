"""Pacing of the routes' daily budgets: each route has a purse, which raises the route's cost weight as it empties.

The ledger refuses requests that no budget covers; a purse avoids that by choosing cheaper models in time. It counts
only settled costs, never holds, and lowers no quality floor. Each worker has an equal share of the budget.

At which hours requests arrive is learnt each day from the journal, which has the traffic of all workers through any
restart. A new purse also reads there what was spent before it was made.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from gateway.config.types import RouteConfig
from gateway.errors import HeadgateError
from gateway.journal.durable import OutageLog
from gateway.journal.reader import Reader
from routers.day_shape import DAY_S, HOUR_S, DayShape
from routers.pacing import MERGED_S, Purse, weighed
from routers.types import Knobs

if TYPE_CHECKING:
    from gateway.journal.store import Store

log = logging.getLogger("headgate.pacing")

LOOK_AFTER_S, LOOK_EVERY_S = 0.2, 1.0
"""The first look at the journal waits, so that it doesn't delay the start."""
LATE_S = 300.0
"""Time after midnight (UTC) by which the day's last requests are in the journal."""
DAYS = 56
"""Number of days that a day's shape is learnt from."""
Spent = dict[str, list[tuple[float, float]]]
"""By route, pairs of the end of a minute (Unix time) and the dollars spent in it."""


class Purses:
    """The purses of all routes with a daily budget."""

    def __init__(self, clock: Callable[[], float], workers: int = 1) -> None:
        self._clock, self._workers = clock, workers
        self._purses: dict[str, Purse] = {}
        self._made: dict[str, float] = {}
        """By route, when the purse was made, for purses that don't know yet what was spent before."""
        self._learnt: int | None = None
        """The day on which the shapes were last learnt, in days since the Unix epoch; None before the first time."""

    def adopt(self, routes: Iterable[RouteConfig]) -> None:
        """Apply changed routes. A purse whose budget is unchanged stays; one whose budget has changed is replaced, and
        keeps its day's shape.
        """
        purses, now_s = {}, self._clock()
        for route in routes:
            if route.budget_usd_per_day:
                budget = route.budget_usd_per_day / self._workers
                purse = self._purses.get(route.name)
                if purse is None or purse.budget_usd_per_day != budget:
                    purse = Purse.new(budget, now_s, purse.shape if purse is not None else None)
                    self._made[route.name] = now_s
                purses[route.name] = purse
        self._purses = purses

    def paced(self, route: str, knobs: Knobs) -> Knobs:
        """The knobs with the cost weight that the route's purse sets; unchanged for a route without a purse."""
        purse = self._purses.get(route)
        return knobs if purse is None else weighed(knobs, purse, self._clock())

    def spend(self, route: str, nanousd: int) -> None:
        purse = self._purses.get(route)
        if purse is not None and nanousd:
            purse.spend(nanousd / 1e9)

    def fullness(self) -> dict[tuple[str, ...], float]:
        """How full each purse is, from 0 to 1, by (route,)."""
        return {(name,): purse.fullness for name, purse in self._purses.items()}

    async def run(self, journal: Reader) -> None:
        """Learn from the journal until cancelled; while it can't be read, try again every second."""
        outages = OutageLog(log, "the hours of budgets")
        await asyncio.sleep(LOOK_AFTER_S)
        while True:
            try:
                await self.learn(journal)
                outages.works()
            except (HeadgateError, OSError) as fault:
                outages.fails(fault)
            await asyncio.sleep(LOOK_EVERY_S)

    async def learn(self, journal: Reader) -> None:
        """Learn the shapes once a day, and past spending for each new purse. Raises HeadgateError or OSError."""
        now_s, names, made = self._clock(), set(self._purses), dict(self._made)
        today = int((now_s - LATE_S) // DAY_S)
        if not names or (today == self._learnt and not made):
            return
        shapes = await journal.ask(lambda: shapes_of(journal.store, names, now_s))
        spent = await journal.ask(lambda: spent_before(journal, made)) if made else {}
        for name, purse in self._purses.items():
            if name in names:
                purse.refill(now_s)
                purse.shape = shapes[name]
            if name in made and self._made.get(name) == made[name]:
                purse.recall([(until_s, usd / self._workers) for until_s, usd in spent[name]], made[name])
        self._made = {name: made_s for name, made_s in self._made.items() if made_s != made.get(name)}
        self._learnt = today


def shapes_of(store: Store, routes: Iterable[str], now_s: float) -> dict[str, DayShape]:
    """The shape of each route's day, learnt from requests that no cache answered. Blocks."""
    from gateway.journal.sums import sums

    hours: defaultdict[str, dict[int, float]] = defaultdict(dict)
    hits = "exact_hits", "shared_hits", "semantic_hits"
    since_s = now_s - DAYS * DAY_S
    for row in sums(store, int(HOUR_S), since_s, now_s, by=("route", "start_s"), names=("requests", *hits)):
        hours[row["route"]][row["start_s"] // int(HOUR_S)] = row["requests"] - sum(row[name] for name in hits)
    return {route: DayShape(hours.get(route), now_s) for route in routes}


def spent_before(journal: Reader, made: Mapping[str, float]) -> Spent:
    """What each route spent in the 24 hours before its purse was made; `made` has these times. Blocks."""
    from gateway.journal.lookup import spend_by_minute

    spent: Spent = {route: [] for route in made}
    since_s, until_s = min(made.values()) - DAY_S, max(made.values())
    for row in spend_by_minute(journal.store, journal.spools, since_s, until_s):
        if row["start_s"] < made.get(row["route"], 0.0):
            spent[row["route"]].append((row["start_s"] + MERGED_S, row["cost_nanousd"] / 1e9))
    return {route: sorted(minutes) for route, minutes in spent.items()}
