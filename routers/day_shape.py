"""When in a day its requests come, learnt from the days that are over: what budget pacing foresees.

Shares by hour (UTC), later days counting more, shrunk to an even day. A day counts as one however many requests it
had, unless they were few, so that one busy day doesn't outweigh the others. Says when requests come, not how many.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

DAY_S, HOUR_S = 86_400.0, 3_600.0
HOURS = 24
FADE = 0.7
"""What a day counts beside the one after it."""
FEW = 100.0
"""Requests of a day that counts half."""
EVEN_DAYS = 0.1
"""Days of even traffic that stand beside those seen."""


def _even() -> list[float]:
    return [i / HOURS for i in range(HOURS + 1)]


@dataclass(slots=True)
class DayShape:
    """Until a day is over every hour is expected to bring as much."""

    day: int = -1
    since: int = 0
    """First hour of this day that was seen whole."""
    today: list[float] = field(default_factory=lambda: [0.0] * HOURS)
    seen: list[float] = field(default_factory=lambda: [0.0] * HOURS)
    """Shares of the days before, faded, summed."""
    before: list[float] = field(default_factory=_even)
    """Share of a day's requests expected before each hour begins."""

    def count(self, time_s: float) -> None:
        """A request came."""
        self.turn(time_s)
        self.today[int(time_s % DAY_S // HOUR_S)] += 1.0

    def turn(self, time_s: float) -> None:
        """Learns the day that is over, where one is. A clock that goes back to an earlier day begins anew in it."""
        day = int(time_s // DAY_S)
        if day == self.day:
            return
        is_later = 0 <= self.day < day
        if is_later and any(self.today[self.since :]):
            self._learn()
        self.since = 0 if is_later else ceil(time_s % DAY_S / HOUR_S)
        self.day, self.today = day, [0.0] * HOURS

    def share(self, since_s: float, until_s: float) -> float:
        """Of a day's requests, expected from then until then."""
        return self._come(until_s) - self._come(since_s)

    def _learn(self) -> None:
        """Hours before the first that was seen brought what was expected of them."""
        known = sum(self.today[self.since :]) / (1.0 - self.before[self.since])
        for hour in range(self.since):
            self.today[hour] = known * (self.before[hour + 1] - self.before[hour])
        weight = 1.0 / (known + FEW)
        self.seen = [FADE * old + weight * new for old, new in zip(self.seen, self.today, strict=True)]
        total, before = sum(self.seen) + EVEN_DAYS, [0.0]
        for share in self.seen:
            before.append(before[-1] + (share + EVEN_DAYS / HOURS) / total)
        self.before = before

    def _come(self, time_s: float) -> float:
        """Days' worth of requests since time 0."""
        days, rest_s = divmod(time_s, DAY_S)
        hour, rest_s = divmod(rest_s, HOUR_S)
        begun, over = self.before[int(hour) : int(hour) + 2]
        return days + begun + rest_s / HOUR_S * (over - begun)
