"""At which hours a route's requests come, learned from past days, and so how a daily budget is to be spent over the
day.

The forecast is the share of each hour (UTC) in a day's requests, averaged over past days, with more weight on later
days, and shrunk toward an even day. Each day counts as one however many requests it had, unless they were few, so that
one busy day doesn't outweigh the others. The forecast of a weekday moves from the usual day toward that weekday's own
average as far as the latter has predicted past days better (stacking, one day ahead), less one standard error.

Where days differ, 24 hours that span two of them may hold more than one day's requests, such as an evening's peak and
the next morning's. The budget is then divided so that no 24 hours get more than a day's budget, and each hour otherwise
gets its share. That division maximises the sum of log(budget per request); it is found by a price on each 24 hours,
which rises while they are overdrawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import sqrt

import numpy as np
from numpy.typing import NDArray

DAY_S, HOUR_S = 86_400.0, 3_600.0
HOURS, WEEK = 24, 7
WEEK_S = WEEK * DAY_S
FADE = 0.7
"""Weight of a day relative to the next day, and of a weekday relative to the same weekday a week later."""
FEW = 100.0
"""A day with this many requests counts half."""
EVEN_DAYS = 0.1
"""Number of even days that are averaged with those seen."""
STALE = 0.95
"""Weight of a day's evidence for weekdays of their own relative to the next day's."""
UNPROVED = 0.02
"""Evidence at which weekdays are half trusted: squared distances between cumulative hourly shares, summed over hours
and days.
"""
PRICE_STEPS = 200
Shares = NDArray[np.float64]
ANY_DAY = np.ones(HOURS)


class DayShape:
    """The forecast of a week's requests; even until the first day is over."""

    def __init__(self, hours: Mapping[int, float] | None = None, now_s: float = 0.0) -> None:
        """`hours`: requests by hour since 1970 (UTC). Hours of today and later are ignored. Where the first known hour
        of a day follows a day without requests, the hours before it count as unknown and not as zero.
        """
        self._usual = np.zeros(HOURS)
        self._weekdays = np.zeros((WEEK, HOURS))
        self._gained = self._tried = self._doubt = 0.0
        for day, since, requests in _days(hours or {}, int(now_s // DAY_S)):
            expected = self._predicted(day % WEEK)
            known = float(expected[since:].sum())
            requests[:since] = requests.sum() / known * expected[:since]
            self._learn(day % WEEK, requests, known)
        week = np.concatenate([self._predicted(weekday) for weekday in range(WEEK)])
        self._before: list[float] = [0.0, *np.cumsum(shared_out(week)).tolist()]

    def share(self, since_s: float, until_s: float) -> float:
        """The share of a day's budget that is meant for the time between two moments."""
        return self._come(until_s) - self._come(since_s)

    @property
    def trust(self) -> float:
        """How far forecasts move from the usual day to the weekday's own, from 0 to 1."""
        return float(min(max((self._gained - sqrt(self._doubt)) / (self._tried + UNPROVED), 0.0), 1.0))

    def _learn(self, weekday: int, requests: Shares, known: float) -> None:
        """Learn from one day; `known` is the share of its requests that was observed."""
        total = float(requests.sum())
        weight = known * total / (total + FEW)
        usual, own = _shares(self._usual), self._weekdays[weekday]
        if own.any():
            way = np.cumsum(_shares(own) - usual)
            gained = weight * float(way @ np.cumsum(requests / total - usual))
            tried = weight * float(way @ way)
            expected = self._gained / self._tried if self._tried else 0.5
            self._doubt = STALE**2 * self._doubt + (gained - expected * tried) ** 2
            self._gained = STALE * self._gained + gained
            self._tried = STALE * self._tried + tried
        for seen in (self._usual, own):
            seen *= FADE
            seen += weight / total * requests

    def _predicted(self, weekday: int) -> Shares:
        usual, own = _shares(self._usual), self._weekdays[weekday]
        return usual + self.trust * (_shares(own) - usual) if own.any() else usual

    def _come(self, time_s: float) -> float:
        """Days' worth of budget from time 0 to `time_s`."""
        weeks, rest_s = divmod(time_s, WEEK_S)
        hour, rest_s = divmod(rest_s, HOUR_S)
        begun, over = self._before[int(hour)], self._before[int(hour) + 1]
        return weeks * self._before[-1] + begun + rest_s / HOUR_S * (over - begun)


def shared_out(week: Shares) -> Shares:
    """Share of a day's budget for each hour of a week whose hourly requests are `week`; any 24 hours sum to at most 1.
    """
    price = np.full(WEEK * HOURS, 1.0 / HOURS)
    """Price of the 24 hours that begin with each hour."""
    for _ in range(PRICE_STEPS):
        shares = week / np.convolve(np.concatenate([price[1 - HOURS :], price]), ANY_DAY, "valid")
        any_day = np.convolve(np.concatenate([shares, shares[: HOURS - 1]]), ANY_DAY, "valid")
        if any_day.max() <= 1.0 + 1e-9:
            break
        price *= any_day
    return np.asarray(shares / any_day.max())


def _days(hours: Mapping[int, float], today: int) -> Iterator[tuple[int, int, Shares]]:
    """The days before today that had requests, in order: day, first known hour, requests by hour."""
    days: dict[int, Shares] = {}
    since: dict[int, int] = {}
    for hour in sorted(hours):
        day, place = divmod(hour, HOURS)
        if day < today:
            days.setdefault(day, np.zeros(HOURS))[place] += hours[hour]
            since.setdefault(day, 0 if day - 1 in days else place)
    return ((day, since[day], requests) for day, requests in days.items() if requests.any())


def _shares(seen: Shares) -> Shares:
    return np.asarray((seen + EVEN_DAYS / HOURS) / (seen.sum() + EVEN_DAYS))
