"""Rate limits that all workers and replicas share: token buckets in Redis, taken in the round trip of the hold.

A worker keeps their last levels, for the client's headers, and repeats a refusal for a moment, so that a refused flood
of requests costs Redis twenty calls a second and not thousands. While Redis is away, each worker counts by itself with
its share of the limit; all shares together are the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gateway.errors import RateLimited
from gateway.money.limits import NOTHING_TAKEN, Limit, Limits, Taken, _Bucket, _Pair

REFUSED_FOR_S = 0.05
"""A refusal is repeated for this long without asking Redis; not longer, as other workers may give tokens back."""
Arguments = list[str | int | float]
"""Arguments of a Redis script."""


class Corrections(Protocol):
    """Sends corrections of estimated tokens to Redis."""

    def queue_correct(self, keys: list[str], capacities: Arguments, tokens: int) -> None:
        """Give this many tokens back to each bucket; below 0, take them."""
        ...


class SharedPair(_Pair):
    """The two buckets of one limit, with the levels that Redis last stated."""

    __slots__ = ("refused_until_s",)

    def __init__(self, limit: Limit) -> None:
        super().__init__(limit)
        self.refused_until_s = 0.0

    def update(self, requests: str, tokens: str, now: float) -> None:
        """Set the levels to those that Redis states; an empty one belongs to a bucket that doesn't exist."""
        for bucket, level in ((self.requests, requests), (self.tokens, tokens)):
            if bucket is not None and level:
                bucket.set_level(float(level), now)


class SharedLimits(Limits):
    """`take` only prepares what a request takes; the ledger's hold takes it in Redis together with the money."""

    def __init__(self, corrections: Corrections, max_limits: int = 65_536) -> None:
        super().__init__(max_limits)
        self._corrections = corrections
        self._known: dict[str, SharedPair] = {}
        self._offline = Limits(max_limits)

    def take(self, limits: Sequence[Limit], tokens: int, now: float) -> Taken:
        """Raises RateLimited at once where Redis has just refused the same."""
        if not limits:
            return NOTHING_TAKEN
        pairs = [self._pair_of(limit) for limit in limits]
        for pair in pairs:
            if now < pair.refused_until_s:
                raise pair.refusal(tokens, now)
        return SharedTaken(self._corrections, self._offline, pairs, tokens, now)

    def _pair_of(self, limit: Limit) -> SharedPair:
        pair = self._known.get(limit.id)
        if pair is None or pair.limit != limit:
            if len(self._known) >= self._max_limits:
                self._known.clear()  # the levels are in Redis; those here serve only for headers
            pair = self._known[limit.id] = SharedPair(limit)
        return pair


class SharedTaken(Taken):
    """What one request is to take, then has taken, from its limits."""

    __slots__ = ("_corrections", "_offline", "_shared", "_taken_offline", "_time_s")

    def __init__(
        self, corrections: Corrections, offline: Limits, pairs: Sequence[SharedPair], tokens: int, now: float
    ) -> None:
        super().__init__(pairs, tokens)
        self._shared = pairs
        self._corrections = corrections
        self._offline = offline
        self._time_s = now
        self._taken_offline: Taken | None = None

    def names(self) -> list[str]:
        """The buckets' keys in Redis, without the ledger's prefix."""
        return [f"bucket:{pair.limit.id}" for pair in self._shared]

    def capacities(self) -> Arguments:
        """Requests and tokens a minute of each limit; empty strings where unlimited."""
        return [each for pair in self._shared for each in (_capacity(pair.requests), _capacity(pair.tokens))]

    def apply(self, levels: Sequence[bytes], refused: int) -> None:
        """Note the levels that Redis states. Raises RateLimited where the limit of number `refused` has too little;
        numbers begin at 1, and 0 means that none has.
        """
        now = self._time_s
        for pair, requests, tokens in zip(self._shared, levels[::2], levels[1::2], strict=True):
            pair.update(requests.decode(), tokens.decode(), now)
        if refused:
            self._corrected = True
            pair = self._shared[refused - 1]
            refusal = pair.refusal(self.tokens, now)
            pair.refused_until_s = now + min(REFUSED_FOR_S, refusal.retry_after_s or 0.0)
            raise refusal

    def cancel(self) -> None:
        """Note that nothing was taken, so that there is nothing to correct."""
        self._corrected = True

    def take_offline(self, workers: int) -> None:
        """Take from this worker's share of each limit, while Redis is away. Raises RateLimited."""
        limits = [_share(pair.limit, workers) for pair in self._shared]
        try:
            self._taken_offline = self._offline.take(limits, self.tokens, self._time_s)
        except RateLimited:
            self._corrected = True
            raise
        self._pairs = self._taken_offline._pairs

    def correct(self, tokens: int, now: float) -> None:
        if self._taken_offline is not None:
            self._taken_offline.correct(tokens, now)
            return
        if not self._corrected and tokens != self.tokens:
            self._corrections.queue_correct(self.names(), self.capacities(), self.tokens - tokens)
        super().correct(tokens, now)


def _capacity(bucket: _Bucket | None) -> str | int:
    return "" if bucket is None else bucket.capacity


def _share(limit: Limit, workers: int) -> Limit:
    """One worker's share of a limit, at least one a minute, so that no caller is shut out."""
    rpm = None if limit.rpm is None else max(1, limit.rpm // workers)
    tpm = None if limit.tpm is None else max(1, limit.tpm // workers)
    return replace(limit, rpm=rpm, tpm=tpm)
