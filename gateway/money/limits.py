"""Rate limits of requests and tokens per minute, as token buckets: they allow no burst at a window's edge and need one
number each.

The tokens that a request will use are estimated when it arrives and corrected when it is settled. A request larger than
a whole minute's tokens passes when its bucket is full and leaves a debt, instead of never passing at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

from gateway.errors import RateLimited
from gateway.reply import Headers

MINUTE_S = 60.0
_EMPTY_S = MINUTE_S + 1e-6
"""Seconds until an empty bucket is full again, with room for rounding."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Requests and tokens per minute of a key (`key:<id>`) or a route (`route:<name>`); None where unlimited."""

    id: str
    rpm: int | None = None
    tpm: int | None = None


class _Bucket:
    """A token bucket that refills at `capacity` a minute. It keeps only the time at which it is full again (the generic
    cell rate algorithm), so that nothing has to refill it; a time more than a minute ahead is a debt.
    """

    __slots__ = ("capacity", "each_s", "full_s")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.each_s = MINUTE_S / capacity
        """Seconds in which one unit is refilled."""
        self.full_s = -inf

    def take(self, amount: int, now: float) -> bool:
        """Take `amount`. False, and nothing is taken, where it holds less and isn't full."""
        full_s = self.full_s
        if full_s <= now:
            self.full_s = now + amount * self.each_s
            return True
        full_s += amount * self.each_s
        if full_s - now > _EMPTY_S:
            return False
        self.full_s = full_s
        return True

    def headers(self, names: tuple[bytes, bytes, bytes], now: float) -> Headers:
        """Capacity, level (0 while there is a debt) and time until it is full, under these names."""
        full_in_s, left = self.full_s - now, self.capacity
        if full_in_s > 0:
            left = max(0, int(left - full_in_s / self.each_s + 1e-3))
        capacity, level, full = names
        return [(capacity, b"%d" % self.capacity), (level, b"%d" % left), (full, duration(full_in_s).encode())]

    def set_level(self, level: float, now: float) -> None:
        self.full_s = now + (self.capacity - level) * self.each_s

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until it holds `amount`, or is full where that is less; 0 or less where it does now."""
        return self.full_s - now - MINUTE_S + min(amount * self.each_s, MINUTE_S)


class _Pair:
    """The two buckets of one limit; None where that number is unlimited."""

    __slots__ = ("limit", "requests", "tokens")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.requests = _Bucket(limit.rpm) if limit.rpm is not None else None
        self.tokens = _Bucket(limit.tpm) if limit.tpm is not None else None

    def take(self, tokens: int, now: float) -> bool:
        """Take one request and its tokens. False, and nothing is taken, where one of the buckets refuses."""
        requests, bucket = self.requests, self.tokens
        if requests is not None and not requests.take(1, now):
            return False
        if bucket is None or bucket.take(tokens, now):
            return True
        if requests is not None:
            requests.full_s -= requests.each_s
        return False

    def give_back(self, tokens: int) -> None:
        if self.requests is not None:
            self.requests.full_s -= self.requests.each_s
        if self.tokens is not None:
            self.tokens.full_s -= tokens * self.tokens.each_s

    def refusal(self, tokens: int, now: float) -> RateLimited:
        """The error for a request that was refused; it names the bucket with the longer wait."""
        waits = []
        if self.requests is not None:
            waits.append((self.requests.wait_s(1, now), self.requests.capacity, "requests"))
        if self.tokens is not None:
            waits.append((self.tokens.wait_s(tokens, now), self.tokens.capacity, "tokens"))
        wait_s, capacity, unit = max(waits)
        kind, _, name = self.limit.id.partition(":")
        return RateLimited(
            f"Rate limit of {kind} '{name}' reached: {capacity} {unit} per minute. "
            f"Please try again in {duration(wait_s)}.",
            retry_after_s=wait_s,
        )

    def is_idle(self, now: float) -> bool:
        return all(bucket is None or bucket.full_s <= now for bucket in (self.requests, self.tokens))


class Taken:
    """What one request took from its limits, to be corrected once by the tokens that it used."""

    __slots__ = ("_corrected", "_pairs", "tokens")

    def __init__(self, pairs: Sequence[_Pair], tokens: int) -> None:
        self._pairs = pairs
        self._corrected = False
        self.tokens = tokens

    def correct(self, tokens: int, now: float) -> None:
        """Replace the estimate by the tokens that were used; a second call does nothing."""
        if self._corrected:
            return
        self._corrected = True
        more, self.tokens = tokens - self.tokens, tokens
        for pair in self._pairs:
            bucket = pair.tokens
            if bucket is not None:
                full_s = bucket.full_s
                bucket.full_s = (full_s if full_s > now else now) + more * bucket.each_s

    def headers(self, now: float) -> Headers:
        """The `x-ratelimit-*` headers of the tightest limit on requests and of the tightest limit on tokens."""
        requests = tokens = None
        for pair in self._pairs:
            requests = _tighter(pair.requests, requests, now)
            tokens = _tighter(pair.tokens, tokens, now)
        headers = requests.headers(_REQUESTS, now) if requests is not None else []
        return headers if tokens is None else headers + tokens.headers(_TOKENS, now)


NOTHING_TAKEN = Taken((), 0)
"""For a request without any rate limit."""


class Limits:
    """The buckets of all limits. A full bucket equals a new one, so it is dropped when there are too many."""

    def __init__(self, max_limits: int = 65_536) -> None:
        self._pairs: dict[str, _Pair] = {}
        self._max_limits = max_limits

    def __len__(self) -> int:
        return len(self._pairs)

    def take(self, limits: Sequence[Limit], tokens: int, now: float) -> Taken:
        """Take one request of about `tokens` from every limit. Raises RateLimited, and takes nothing, where one
        refuses.
        """
        if not limits:
            return NOTHING_TAKEN
        pairs: list[_Pair] = []
        for limit in limits:
            pair = self._pairs.get(limit.id)
            if pair is None or (pair.limit is not limit and pair.limit != limit):
                pair = self._add(limit, now)
            if not pair.take(tokens, now):
                for taken in pairs:
                    taken.give_back(tokens)
                raise pair.refusal(tokens, now)
            pairs.append(pair)
        return Taken(pairs, tokens)

    def _add(self, limit: Limit, now: float) -> _Pair:
        if len(self._pairs) >= self._max_limits:
            self._forget(now)
        pair = self._pairs[limit.id] = _Pair(limit)
        return pair

    def _forget(self, now: float) -> None:
        """Drop full buckets, or the older half where none is full."""
        busy = {id_: pair for id_, pair in self._pairs.items() if not pair.is_idle(now)}
        if len(busy) >= self._max_limits:
            busy = dict(list(busy.items())[len(busy) // 2 :])
        self._pairs = busy


_REQUESTS = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests")
_TOKENS = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens")


def _tighter(one: _Bucket | None, other: _Bucket | None, now: float) -> _Bucket | None:
    """The bucket with the smaller share left."""
    if one is None or other is None:
        return one or other
    return one if one.full_s > now and one.full_s > other.full_s else other


def duration(seconds: float) -> str:
    """A duration as OpenAI's headers write it (`12ms`, `1.5s`, `6m0s`), rounded up to the millisecond, or to the second
    from a minute on.
    """
    milliseconds = ceil(max(0.0, seconds) * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:g}s"
    minutes, rest = divmod(ceil(milliseconds / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
