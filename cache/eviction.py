"""What to give up when the cache is full: the entry that is expected to save the least per byte.

The policy sees keys, costs and sizes only; stores hold the answers. It is least expected cost (Zhu et al., arXiv
2306.02003): the rate of requests for a key times the cost of its answer, here per byte. Rates are remembered after an
eviction, and a new entry is refused when it is worth less than the entries that would have to go. How fast old requests
are forgotten is learnt: several estimates of each rate are kept, and those that predict requests best get the most
weight.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from operator import add, mul
from typing import Generic, TypeVar

import numpy as np

Key = TypeVar("Key", bound=Hashable)


_MEMORIES = (3_000.0, 16_000.0, math.inf)
"""After how many requests a rate estimate has forgotten all but 1/e: from fast to never."""
_LEAST_REMEMBERED = 32_768
"""Keys whose rates are remembered however few are held: some ten megabytes, and what a small cache lives by."""
_LEARNING = 0.05
_SHARE = 0.0005
"""How much of the weight is shared out at each request, so that either estimate can come back."""
_TURN = 300.0
"""Forward decay begins anew after so many of the shortest memories: e to the power of it is a float still."""
_KEPT_LOW = 16
"""How many of a sample's least are looked at again with the next."""
_ROOM = 1024
"""Keys that there is room for at first; the room doubles when it is full."""


@dataclass(slots=True)
class _Seen:
    """What is remembered of a key, held or not."""

    at: int
    counts: list[float]
    """Requests for each of the memories, each grown by what was forgotten from the clock's last turn to its time."""
    cost_usd: float = 0.0
    """Cost of all its answers."""
    answers: int = 0

    def scores(self, size_bytes: int) -> list[float]:
        """Each count times the mean cost of an answer, per byte."""
        each = self.cost_usd / (self.answers * size_bytes)
        return [count * each for count in self.counts]


class LeastExpectedCost(Generic[Key]):
    """Gives up, of a sample, the key with the least rate * cost / size.

    The sample makes a score that changes by itself affordable: nothing is kept sorted, and the least of a few dozen
    random keys and of the least of earlier samples is nearly always among the least of all. Counts decay
    forward (Cormode et al., ICDE 2009): new requests weigh more instead of old ones less, so that no key is touched
    for getting older.
    """

    def __init__(self, max_bytes: int, *, sample: int = 32, remembered: int = 4, seed: int = 0) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._sample = sample
        self._remembered = remembered
        self._rng = np.random.default_rng(seed)
        self._now = 0
        self._turned = 0
        """When forward decay last began anew, before its weights grow too large for a float."""
        self._trust = [1.0 / len(_MEMORIES)] * len(_MEMORIES)
        self._seen: dict[Key, _Seen] = {}
        self._sizes: dict[Key, int] = {}
        self._keys: list[Key] = []
        self._places: dict[Key, int] = {}
        self._scores = np.zeros((_ROOM, len(_MEMORIES)))
        """By place, each held key's counts * cost / size: its worth is their product with `_weights`."""
        self._low = np.empty(0, np.intp)
        """Places of the least of earlier samples. Other keys may have come there since, which only makes a look vain.
        """

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def touch(self, key: Key) -> None:
        """Count a hit."""
        seen = self._count(key)
        place = self._places.get(key)
        if place is not None:
            self._scores[place] = seen.scores(self._sizes[key])

    def admit(self, key: Key, cost_usd: float, size_bytes: int) -> list[Key] | None:
        """Make room for a key. Returns the keys that the caller must drop, or None where the new key is worth least."""
        seen = self._count(key)
        seen.cost_usd += cost_usd
        seen.answers += 1
        self.drop(key)
        if size_bytes > self.max_bytes:
            return None
        scores = seen.scores(size_bytes)
        victims = self._victims(scores, size_bytes) if self.used_bytes + size_bytes > self.max_bytes else []
        if victims is None:
            return None
        for victim in victims:
            self.drop(victim)
        place = self._places[key] = len(self._keys)
        if place == len(self._scores):
            self._scores = np.concatenate((self._scores, np.zeros_like(self._scores)))
        self._scores[place] = scores
        self._keys.append(key)
        self._sizes[key] = size_bytes
        self.used_bytes += size_bytes
        return victims

    def drop(self, key: Key) -> None:
        """Forget that a key is held, because it left for another reason."""
        size = self._sizes.pop(key, None)
        if size is None:
            return
        self.used_bytes -= size
        place, last = self._places.pop(key), self._keys.pop()
        if last != key:
            self._keys[place] = last
            self._places[last] = place
            self._scores[place] = self._scores[len(self._keys)]

    def _count(self, key: Key) -> _Seen:
        """Count a request for a key, and trust the estimate more that expected it."""
        self._now += 1
        if self._now - self._turned > _TURN * _MEMORIES[0]:
            self._turn()
        grown = [math.exp((self._now - self._turned) / memory) for memory in _MEMORIES]
        seen = self._seen.get(key)
        if seen is None:
            self._forget_old()
            seen = self._seen[key] = _Seen(self._now, grown)
            return seen
        parts = zip(seen.counts, grown, self._spans(), strict=True)
        expected = [n / growth / span + 1e-7 for n, growth, span in parts]
        trust = [t * e**_LEARNING for t, e in zip(self._trust, expected, strict=True)]
        total = sum(trust)
        self._trust = [(1 - _SHARE) * t / total + _SHARE / len(trust) for t in trust]
        seen.at, seen.counts = self._now, list(map(add, seen.counts, grown))
        return seen

    def _turn(self) -> None:
        """Restart the forward decay."""
        faded = [math.exp((self._turned - self._now) / memory) for memory in _MEMORIES]
        self._turned = self._now
        for seen in self._seen.values():
            seen.counts = list(map(mul, seen.counts, faded))
        self._scores *= faded

    def _spans(self) -> list[float]:
        """Effective number of requests in each estimate's counts."""
        now = self._now
        return [1.0 + (m * -math.expm1(-now / m) if m < math.inf else now) for m in _MEMORIES]

    def _weights(self) -> list[float]:
        """What one of each memory's counts adds to a rate now."""
        age = self._turned - self._now
        parts = zip(self._trust, self._spans(), _MEMORIES, strict=True)
        return [trust * math.exp(age / memory) / span for trust, span, memory in parts]

    def _victims(self, scores: list[float], size_bytes: int) -> list[Key] | None:
        """Keys whose going makes room, or None when one of them is worth more than the one that comes."""
        weights = np.array(self._weights())
        worth = float(weights @ scores)
        victims: dict[Key, None] = {}
        free = self.max_bytes - self.used_bytes
        while free < size_bytes:
            count = len(self._keys)
            drawn = np.concatenate((self._low[self._low < count], self._rng.integers(count, size=self._sample)))
            worths = self._scores[drawn] @ weights
            order = worths.argsort()
            for rank, at in enumerate(order.tolist()):
                key = self._keys[drawn[at]]
                if key in victims:
                    continue
                if worths[at] > worth:
                    self._low = drawn[order[rank : rank + _KEPT_LOW]]
                    return None
                victims[key] = None
                free += self._sizes[key]
                if free >= size_bytes:
                    break
            self._low = drawn[order[rank + 1 : rank + 1 + _KEPT_LOW]]
        return list(victims)

    def _forget_old(self) -> None:
        """Where too many keys are remembered, keep those held and the more recent half of the others."""
        if len(self._seen) <= max(self._remembered * len(self._sizes), _LEAST_REMEMBERED):
            return
        ages = sorted(seen.at for key, seen in self._seen.items() if key not in self._sizes)
        oldest = ages[len(ages) // 2]
        self._seen = {k: seen for k, seen in self._seen.items() if k in self._sizes or seen.at > oldest}
