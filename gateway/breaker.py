"""Circuit breakers: when a deployment gets no requests, and for how long. No clock and no I/O: time is an argument.

Closed: requests pass, and failures are counted over the last `WINDOW_S` seconds. Open: nothing passes until `opens_s`.
Half-open: one probe at a time passes; its outcome closes the breaker or opens it for twice as long. Opening an open
breaker can only make it stay open longer.
"""

from __future__ import annotations

from math import inf
from typing import Literal

State = Literal["closed", "open", "half_open"]

WINDOW_S = 30.0
CONSECUTIVE = 5
"""Number of failures in a row that opens a breaker."""
RATIO = 0.5
"""Share of failures in the window that opens a breaker, once the window has `LEAST` outcomes."""
LEAST = 20
COOL_S = 5.0
"""Seconds that a breaker stays open the first time; they double with each failed probe, up to `MAX_COOL_S`."""
MAX_COOL_S = 300.0
MAX_STATED_S = 3600.0
"""Longest time that a breaker stays open, whatever retry-after an upstream states."""
PROBE_S = 60.0
"""Seconds after which a probe without an outcome is given up, so that another may go."""

COUNTED = frozenset(
    {
        "connect", "timeout", "reset", "overloaded", "server_error", "bad_response",
        "stream_cut", "stream_stalled", "stream_malformed", "stream_error",
    }
)  # fmt: skip
"""Failures that count against a deployment. A rejected request or a client that left doesn't."""
OPENS_AT_ONCE = frozenset({"rate_limited", "unauthorized", "not_found"})
"""Failures that open a breaker at once, because the next request is sure to fail as well."""
FIRST_COOL_S = {"rate_limited": COOL_S, "unauthorized": 60.0, "not_found": 60.0}


class Breaker:
    """The breaker of one deployment."""

    __slots__ = (
        "_bad", "_failed_probes", "_good", "_half_from_s", "_in_a_row", "_last_bad", "_last_good", "_probe_s",
        "opens_s", "reason",
    )  # fmt: skip

    def __init__(self) -> None:
        self.opens_s = 0.0
        """Time (of the caller's clock) from which a probe may pass; 0 while closed."""
        self.reason = ""
        """The failure that opened it; empty while closed."""
        self._in_a_row = 0
        self._failed_probes = 0
        self._probe_s = -inf
        self._half_from_s = -inf
        self._good = self._bad = self._last_good = self._last_bad = 0

    def state(self, now: float) -> State:
        if not self.opens_s:
            return "closed"
        return "open" if now < self.opens_s else "half_open"

    def lets_pass(self, now: float) -> bool:
        """True if a request may be sent: always while closed, one at a time while half-open."""
        opens_s = self.opens_s
        return not opens_s or (now >= opens_s and now - self._probe_s >= PROBE_S)

    def begin(self, now: float) -> None:
        """Note that a request is sent, which is a probe if the breaker is not closed."""
        self._probe_s = now

    def idle(self) -> None:
        """Note that no request is under way any more, and so no probe."""
        self._probe_s = -inf

    def succeed(self, now: float, begun_s: float = inf) -> None:
        """Count a whole answer to a request that was sent at `begun_s`. Only a probe's closes the breaker, not that of
        a request sent before it.
        """
        self._slide(now)
        self._good += 1
        self._in_a_row = 0
        if self.opens_s and -inf < self._probe_s <= begun_s:
            self.opens_s = 0.0
            self.reason = ""
            self._failed_probes = 0
            self._probe_s = -inf
            self._good = self._bad = self._last_good = self._last_bad = 0

    def fail(self, failure: str, now: float, retry_after_s: float | None = None, begun_s: float = inf) -> None:
        """Count a failure, one of gateway.errors.FAILURES, of a request that was sent at `begun_s`."""
        if failure in OPENS_AT_ONCE:
            stated = retry_after_s if failure == "rate_limited" else None
            self.open(failure, now, stated or self._cool_s(FIRST_COOL_S[failure], now))
        elif failure not in COUNTED:
            if self._probe_s <= begun_s:  # an earlier request says nothing about the probe under way
                self._probe_s = -inf
        else:
            self._count(failure, now, retry_after_s)

    def open(self, reason: str, now: float, for_s: float) -> None:
        """Let nothing pass for `for_s` seconds, or for longer if the breaker is already open for longer."""
        if now >= self.opens_s:
            self._failed_probes = self._failed_probes + 1 if self.opens_s else 0
        until_s = now + min(for_s, MAX_STATED_S)
        if until_s > self.opens_s:
            self.opens_s = until_s
            self.reason = reason
        self._probe_s = -inf

    def _count(self, failure: str, now: float, retry_after_s: float | None) -> None:
        self._slide(now)
        self._bad += 1
        self._in_a_row += 1
        if self.opens_s or self._in_a_row >= CONSECUTIVE or self._is_mostly_bad():
            self.open(failure, now, max(self._cool_s(COOL_S, now), retry_after_s or 0.0))

    def _is_mostly_bad(self) -> bool:
        bad, good = self._bad + self._last_bad, self._good + self._last_good
        return bad + good >= LEAST and bad >= RATIO * (bad + good)

    def _cool_s(self, first_s: float, now: float) -> float:
        """Seconds to stay open: `first_s`, doubled for every failed probe, up to MAX_COOL_S."""
        probes = self._failed_probes + (self.opens_s > 0 and now >= self.opens_s)
        return min(MAX_COOL_S, first_s * 2.0 ** min(probes, 10))

    def _slide(self, now: float) -> None:
        """Slide the window, which consists of the current half and the one before."""
        elapsed_s = now - self._half_from_s
        if elapsed_s < WINDOW_S / 2:
            return
        self._last_good, self._last_bad = (self._good, self._bad) if elapsed_s < WINDOW_S else (0, 0)
        self._good = self._bad = 0
        self._half_from_s = now
