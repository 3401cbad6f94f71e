"""How many calls of one model may be under way: more while they are answered, half as many when a provider refuses.

Additive increase and multiplicative decrease over the calls in flight, as TCP finds a link's share (Chiu and Jain
1989). Pure: time is an argument, in monotonic seconds.
"""

from __future__ import annotations

FIRST = 8.0
"""Calls at once before anything is known."""
LEAST = 1.0


class ConcurrencyLimiter:
    """Limits the calls of one model."""

    def __init__(self, most: int) -> None:
        self.most = float(most)
        self.limit = min(FIRST, self.most)
        self.in_flight = 0
        self.opens_s = 0.0
        """No call may start before this moment, which the provider asked for."""
        self.latency_s = 0.0
        """Mean latency of a call, recent ones counting more; 0: unknown."""
        self._cut_s = -1.0

    def lets_pass(self, now: float) -> bool:
        return self.in_flight + 1 <= self.limit and now >= self.opens_s

    def begin(self) -> None:
        self.in_flight += 1

    def end(self) -> None:
        self.in_flight -= 1

    def answered(self, latency_s: float) -> None:
        """A call was answered."""
        self.limit = min(self.most, self.limit + 1.0 / self.limit)
        self.latency_s += (latency_s - self.latency_s) * (0.1 if self.latency_s else 1.0)

    def pushed_back(self, now: float, began_s: float, wait_s: float) -> None:
        """The provider refused a call that began at `began_s`. All refused calls of one burst halve the limit once."""
        self.opens_s = max(self.opens_s, now + wait_s)
        if began_s >= self._cut_s:
            self.limit = max(LEAST, self.limit / 2)
            self._cut_s = now

    @property
    def rate_per_s(self) -> float:
        """Calls a second that the limit amounts to (Little's law); infinite where no latency is known."""
        return self.limit / self.latency_s if self.latency_s else float("inf")
