"""When a deployment is left alone, and for how long. No clock and no I/O: time is an argument.

Closed: requests pass and failures are counted over the last `WINDOW_S` seconds. Open: nothing passes until
`opens_s`. Half-open: one probe at a time passes; it closes the breaker or opens it for twice as long.
An opening only ever extends: a shorter one never cuts a longer one off.
"""

from __future__ import annotations

from math import inf
from typing import Literal

State = Literal["closed", "open", "half_open"]

WINDOW_S = 30.0
CONSECUTIVE = 5
"""Failures in a row that open it."""
RATIO = 0.5
"""Share of failures in the window that opens it, from `LEAST` outcomes on."""
LEAST = 20
COOL_S = 5.0
"""First opening; doubles with each failed probe."""
MAX_COOL_S = 300.0
MAX_STATED_S = 3600.0
"""Longest retry-after we believe."""
PROBE_S = 60.0
"""A probe that hasn't come back after this long has been lost; another may go."""

COUNTED = frozenset(
    {
        "connect", "timeout", "reset", "overloaded", "server_error", "bad_response",
        "stream_cut", "stream_stalled", "stream_malformed", "stream_error",
    }
)  # fmt: skip
"""Failures that speak against a deployment; a rejected request or a client that left doesn't."""
AT_ONCE = frozenset({"rate_limited", "unauthorized", "not_found"})
"""Failures after which another request is sure to fail as well."""
COOL_AT_ONCE_S = {"rate_limited": COOL_S, "unauthorized": 60.0, "not_found": 60.0}


class Breaker:
    """Of one deployment."""

    __slots__ = (
        "_bad", "_begun_s", "_good", "_last_bad", "_last_good", "_probe_s", "_reopened", "_row", "opens_s",
        "reason",
    )  # fmt: skip

    def __init__(self) -> None:
        self.opens_s = 0.0
        """When it may be tried again; 0: closed."""
        self.reason = ""
        """The failure that opened it."""
        self._row = 0
        self._reopened = 0
        self._probe_s = -inf
        self._begun_s = -inf
        self._good = self._bad = self._last_good = self._last_bad = 0

    def state(self, now: float) -> State:
        if not self.opens_s:
            return "closed"
        return "open" if now < self.opens_s else "half_open"

    def lets_pass(self, now: float) -> bool:
        """True: a request may go (in half-open, the only one until it is back)."""
        opens_s = self.opens_s
        return not opens_s or (now >= opens_s and now - self._probe_s >= PROBE_S)

    def begin(self, now: float) -> None:
        """A request goes. Unless the breaker is closed it is a probe."""
        if self.opens_s:
            self._probe_s = now

    def idle(self) -> None:
        """No request is under way any more, so no probe is."""
        self._probe_s = -inf

    def succeed(self, now: float) -> None:
        """An answer came whole. Only a probe's closes an open breaker, not one begun before it opened."""
        self._turn(now)
        self._good += 1
        self._row = 0
        if self.opens_s and self._probe_s > -inf:
            self.opens_s = 0.0
            self.reason = ""
            self._reopened = 0
            self._probe_s = -inf
            self._good = self._bad = self._last_good = self._last_bad = 0

    def fail(self, failure: str, now: float, retry_after_s: float | None = None) -> None:
        """A failure, one of gateway.errors.FAILURES."""
        if failure in AT_ONCE:
            stated = retry_after_s if failure == "rate_limited" else None
            self.open(failure, now, stated or self._cool_s(COOL_AT_ONCE_S[failure], now))
        elif failure not in COUNTED:
            self._probe_s = -inf
        else:
            self._count(failure, now, retry_after_s)

    def open(self, reason: str, now: float, for_s: float) -> None:
        """Let nothing pass for this long, or longer where it was already to be longer."""
        if now >= self.opens_s:
            self._reopened = self._reopened + 1 if self.opens_s else 0
        until_s = now + min(for_s, MAX_STATED_S)
        if until_s > self.opens_s:
            self.opens_s = until_s
            self.reason = reason
        self._probe_s = -inf

    def _count(self, failure: str, now: float, retry_after_s: float | None) -> None:
        self._turn(now)
        self._bad += 1
        self._row += 1
        if self.opens_s or self._row >= CONSECUTIVE or self._is_mostly_bad():
            self.open(failure, now, max(self._cool_s(COOL_S, now), retry_after_s or 0.0))

    def _is_mostly_bad(self) -> bool:
        bad, good = self._bad + self._last_bad, self._good + self._last_good
        return bad + good >= LEAST and bad >= RATIO * (bad + good)

    def _cool_s(self, first_s: float, now: float) -> float:
        """Longer with every probe that failed."""
        probes = self._reopened + (self.opens_s > 0 and now >= self.opens_s)
        return min(MAX_COOL_S, first_s * 2.0 ** min(probes, 10))

    def _turn(self, now: float) -> None:
        """The window slides in two halves: this one and the last."""
        passed_s = now - self._begun_s
        if passed_s < WINDOW_S / 2:
            return
        fresh = passed_s < WINDOW_S
        self._last_good, self._last_bad = (self._good, self._bad) if fresh else (0, 0)
        self._good = self._bad = 0
        self._begun_s = now
