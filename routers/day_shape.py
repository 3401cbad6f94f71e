"""When its requests come, learnt from the days that are over, and so when a daily budget is spent: what budget pacing
foresees.

Shares of a day by hour (UTC), later days counting more, shrunk to an even day. A day counts as one however many
requests it had, unless they were few, so that one busy day doesn't outweigh the others. A weekday differs from the days
before it as far as the same weekday of earlier weeks has foretold days better than those did (stacking, one day ahead),
less one standard error.

Where days differ, 24 hours that span two of them would bring more than a day: an evening's peak and the next morning's.
The budget is then shared out so that no 24 hours get more than a day's, each hour otherwise in proportion to what it
brings: the largest sum of log(budget per request), found by a price for each 24 hours that rises as they are overdrawn.
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
"""What a day counts beside the one after it, and a weekday beside its own of the week after."""
FEW = 100.0
"""Requests of a day that counts half."""
EVEN_DAYS = 0.1
"""Days of even traffic that stand beside those seen."""
STALE = 0.95
"""What a day's evidence for weekdays of their own counts beside that of the day after."""
UNPROVED = 0.02
"""Such evidence that counts half: squared distances between the days' running shares, summed over hours and days."""
PRICE_STEPS = 200
Shares = NDArray[np.float64]
ANY_DAY = np.ones(HOURS)


class DayShape:
    """Until a day is over every hour is expected to bring as much."""

    def __init__(self, hours: Mapping[int, float] | None = None, now_s: float = 0.0) -> None:
        """`hours`: requests by hour since 1970; today's and later ones are left out. Of a day that begins in the
        middle, with nothing the day before, the hours before are unknown; those that are stated as 0 are not.
        """
        self._usual = np.zeros(HOURS)
        self._weekdays = np.zeros((WEEK, HOURS))
        self._gained = self._tried = self._doubt = 0.0
        for day, since, requests in _days(hours or {}, int(now_s // DAY_S)):
            expected = self._foretold(day % WEEK)
            known = float(expected[since:].sum())
            requests[:since] = requests.sum() / known * expected[:since]
            self._learn(day % WEEK, requests, known)
        week = np.concatenate([self._foretold(weekday) for weekday in range(WEEK)])
        self._before: list[float] = [0.0, *np.cumsum(shared_out(week)).tolist()]

    def share(self, since_s: float, until_s: float) -> float:
        """The share of a day's budget that is meant for the time between two moments."""
        return self._come(until_s) - self._come(since_s)

    @property
    def trust(self) -> float:
        """In weekdays of their own: what of the way from one forecast to the other would have been right to go."""
        return float(min(max((self._gained - sqrt(self._doubt)) / (self._tried + UNPROVED), 0.0), 1.0))

    def _learn(self, weekday: int, requests: Shares, known: float) -> None:
        """`known`: how much of the day is."""
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

    def _foretold(self, weekday: int) -> Shares:
        usual, own = _shares(self._usual), self._weekdays[weekday]
        return usual + self.trust * (_shares(own) - usual) if own.any() else usual

    def _come(self, time_s: float) -> float:
        """Days' worth of budget since time 0."""
        weeks, rest_s = divmod(time_s, WEEK_S)
        hour, rest_s = divmod(rest_s, HOUR_S)
        begun, over = self._before[int(hour)], self._before[int(hour) + 1]
        return weeks * self._before[-1] + begun + rest_s / HOUR_S * (over - begun)


def shared_out(week: Shares) -> Shares:
    """Of a day's budget, for each hour of a week of which these are the days' shares: at most 1 in any 24 hours."""
    price = np.full(WEEK * HOURS, 1.0 / HOURS)
    """Of the 24 hours that begin with each."""
    for _ in range(PRICE_STEPS):
        shares = week / np.convolve(np.concatenate([price[1 - HOURS :], price]), ANY_DAY, "valid")
        any_day = np.convolve(np.concatenate([shares, shares[: HOURS - 1]]), ANY_DAY, "valid")
        if any_day.max() <= 1.0 + 1e-9:
            break
        price *= any_day
    return np.asarray(shares / any_day.max())


def _days(hours: Mapping[int, float], today: int) -> Iterator[tuple[int, int, Shares]]:
    """The days before today that had requests, in order, each with its first hour that is known."""
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
