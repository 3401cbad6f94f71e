"""Rate limits that all workers and replicas share: token buckets in Redis, taken in the hold's own round trip.

Here is what a worker keeps of them: the levels it was last told, for the client's headers, and for a moment the
refusals, so that a flood that is being refused costs Redis twenty questions a second and not thousands. While
Redis is away each worker counts for itself, with its share of the limit: all shares together are the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gateway.errors import RateLimited
from gateway.limits import NOTHING_TAKEN, Limit, Limits, Taken, _Bucket, _Pair

REFUSED_FOR_S = 0.05
"""A refusal is repeated this long without asking: other workers may give tokens back meanwhile."""
Words = list[str | int | float]


class Corrections(Protocol):
    """Where what was guessed too high or too low goes."""

    def queue_correct(self, keys: list[str], capacities: Words, tokens: int) -> None:
        """Give this many tokens back to each; negative: take them."""
        ...


class SharedPair(_Pair):
    """The buckets of one limit, as Redis last told them."""

    __slots__ = ("shut_until_s",)

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.shut_until_s = 0.0

    def know(self, requests: str, tokens: str, now: float) -> None:
        """Levels as Redis tells them; empty: there is no such bucket."""
        for bucket, told in ((self.requests, requests), (self.tokens, tokens)):
            if bucket is not None and told:
                bucket.set_level(float(told), now)


class SharedLimits(Limits):
    """`take` says what is wanted; the ledger's hold takes it, together with the money."""

    def __init__(self, corrections: Corrections, max_limits: int = 65_536) -> None:
        super().__init__(max_limits)
        self._corrections = corrections
        self._known: dict[str, SharedPair] = {}
        self._alone = Limits(max_limits)

    def take(self, limits: Sequence[Limit], tokens: int, now: float) -> Taken:
        """Raises RateLimited at once where Redis has just refused the same."""
        if not limits:
            return NOTHING_TAKEN
        pairs = [self._pair_of(limit) for limit in limits]
        for pair in pairs:
            if now < pair.shut_until_s:
                raise pair.refusal(tokens, now)
        return SharedTaken(self._corrections, self._alone, pairs, tokens, now)

    def _pair_of(self, limit: Limit) -> SharedPair:
        pair = self._known.get(limit.id)
        if pair is None or pair.limit != limit:
            if len(self._known) >= self._max_limits:
                self._known.clear()  # Redis has the levels; here they are only for headers
            pair = self._known[limit.id] = SharedPair(limit)
        return pair


class SharedTaken(Taken):
    """What one request wants, then has, of its limits."""

    __slots__ = ("_alone", "_asked_s", "_corrections", "_granted", "_shared")

    def __init__(
        self, corrections: Corrections, alone: Limits, pairs: Sequence[SharedPair], tokens: int, now: float
    ) -> None:
        super().__init__(pairs, tokens)
        self._shared = pairs
        self._corrections = corrections
        self._alone = alone
        self._asked_s = now
        self._granted: Taken | None = None

    def names(self) -> list[str]:
        return [f"bucket:{pair.limit.id}" for pair in self._shared]

    def capacities(self) -> Words:
        """Requests and tokens a minute of each limit; empty: unlimited."""
        return [word for pair in self._shared for word in (_word(pair.requests), _word(pair.tokens))]

    def know(self, levels: Sequence[bytes], refused: int) -> None:
        """What Redis says of each limit. Raises RateLimited where the `refused`th (from 1) has not enough."""
        now = self._asked_s
        for pair, requests, tokens in zip(self._shared, levels[::2], levels[1::2], strict=True):
            pair.know(requests.decode(), tokens.decode(), now)
        if refused:
            self._corrected = True
            pair = self._shared[refused - 1]
            refusal = pair.refusal(self.tokens, now)
            pair.shut_until_s = now + min(REFUSED_FOR_S, refusal.retry_after_s or 0.0)
            raise refusal

    def forget(self) -> None:
        """Nothing was taken after all."""
        self._corrected = True

    def take_alone(self, workers: int) -> None:
        """Redis is away: from this worker's share. Raises RateLimited."""
        limits = [_share(pair.limit, workers) for pair in self._shared]
        try:
            self._granted = self._alone.take(limits, self.tokens, self._asked_s)
        except RateLimited:
            self._corrected = True
            raise
        self._pairs = self._granted._pairs

    def correct(self, tokens: int, now: float) -> None:
        if self._granted is not None:
            self._granted.correct(tokens, now)
            return
        if not self._corrected and tokens != self.tokens:
            self._corrections.queue_correct(self.names(), self.capacities(), self.tokens - tokens)
        super().correct(tokens, now)


def _word(bucket: _Bucket | None) -> str | int:
    return "" if bucket is None else bucket.capacity


def _share(limit: Limit, workers: int) -> Limit:
    """At least one a minute, so that nobody is shut out."""
    rpm = None if limit.rpm is None else max(1, limit.rpm // workers)
    tpm = None if limit.tpm is None else max(1, limit.tpm // workers)
    return replace(limit, rpm=rpm, tpm=tpm)
