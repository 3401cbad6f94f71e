"""The daily budgets of routes, spent as their traffic comes: a purse per route raises its cost weight as it empties.

The ledger refuses what no budget covers; a purse keeps it from coming to that, by choosing cheaper models in time. It
reads only settled costs, never holds, and lowers no quality floor. Every worker has its share of the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway.config import RouteConfig
from routers.pacing import Purse, weighed
from routers.types import Knobs


class Purses:
    """Those of the routes with a daily budget."""

    def __init__(self, clock: Callable[[], float], workers: int = 1) -> None:
        self._clock, self._workers = clock, workers
        self._purses: dict[str, Purse] = {}

    def adopt(self, routes: Iterable[RouteConfig]) -> None:
        """Routes as they are from now on; a purse whose budget is as it was goes on, another knows its day's shape."""
        purses = {}
        for route in routes:
            if route.budget_usd_per_day:
                budget = route.budget_usd_per_day / self._workers
                held = self._purses.get(route.name)
                if held is None or held.budget_usd_per_day != budget:
                    held = Purse.new(budget, self._clock(), held.shape if held is not None else None)
                purses[route.name] = held
        self._purses = purses

    def paced(self, route: str, knobs: Knobs) -> Knobs:
        """With the cost weight that the purse asks for."""
        purse = self._purses.get(route)
        return knobs if purse is None else weighed(knobs, purse, self._clock())

    def spend(self, route: str, nanousd: int) -> None:
        purse = self._purses.get(route)
        if purse is not None and nanousd:
            purse.spend(nanousd / 1e9)

    def fullness(self) -> dict[tuple[str, ...], float]:
        """By route, 0..1."""
        return {(name,): purse.fullness for name, purse in self._purses.items()}
