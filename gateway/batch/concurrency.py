"""Limits the calls of one model in flight: the limit rises with each answer, and is halved when a provider refuses.

Additive increase and multiplicative decrease, as in TCP's congestion control (Chiu and Jain 1989). Pure: time is an
argument, in monotonic seconds.
"""

from __future__ import annotations

FIRST = 8.0
"""The limit at first, in calls at once."""
LEAST = 1.0
"""The least limit, in calls at once."""


class ConcurrencyLimiter:
    """Limits the calls of one model."""

    def __init__(self, most: int) -> None:
        self.most = float(most)
        self.limit = min(FIRST, self.most)
        self.in_flight = 0
        self.opens_s = 0.0
        """Monotonic time in seconds before which no call may start, because the provider asked to wait."""
        self.latency_s = 0.0
        """Exponentially weighted mean latency of a call; 0 where it is unknown."""
        self._cut_s = -1.0

    def lets_pass(self, now: float) -> bool:
        return self.in_flight + 1 <= self.limit and now >= self.opens_s

    def begin(self) -> None:
        self.in_flight += 1

    def end(self) -> None:
        self.in_flight -= 1

    def answered(self, latency_s: float) -> None:
        """Take an answer that needed `latency_s`: the limit rises."""
        self.limit = min(self.most, self.limit + 1.0 / self.limit)
        self.latency_s += (latency_s - self.latency_s) * (0.1 if self.latency_s else 1.0)

    def pushed_back(self, now: float, began_s: float, wait_s: float) -> None:
        """Take the refusal of a call that began at `began_s`; the provider asks to wait `wait_s`. The refused calls of
        one burst halve the limit once.
        """
        self.opens_s = max(self.opens_s, now + wait_s)
        if began_s >= self._cut_s:
            self.limit = max(LEAST, self.limit / 2)
            self._cut_s = now

    @property
    def rate_per_s(self) -> float:
        """Calls per second that the limit allows (Little's law); infinite where the latency is unknown."""
        return self.limit / self.latency_s if self.latency_s else float("inf")
