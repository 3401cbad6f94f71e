"""What to give up when the cache is full: the entry that is expected to save the least per byte.

The policy sees keys, costs and sizes only; stores hold the answers. It is least expected cost (Zhu et al., arXiv
2306.02003): the rate of requests for a key times the cost of its answer, here per byte. Rates are remembered after an
eviction, and a new entry is refused when it is worth less than the entries that would have to go. How fast old requests
are forgotten is learnt: several estimates of each rate are kept, and those that predict requests best get the most
weight.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from operator import add, mul
from typing import Generic, TypeVar

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


@dataclass(slots=True)
class _Seen:
    """What is remembered of a key, held or not."""

    at: int
    counts: list[float]
    """Requests for each of the memories, each grown by what was forgotten from the clock's last turn to its time."""
    cost_usd: float = 0.0
    """Cost of all its answers."""
    answers: int = 0


class LeastExpectedCost(Generic[Key]):
    """Gives up, of a sample, the key with the least rate * cost / size.

    The sample makes a score that changes by itself affordable: nothing is kept sorted, and the least of a few
    random keys and of the least of earlier samples is nearly always among the least of all. Counts decay
    forward (Cormode et al., ICDE 2009): new requests weigh more instead of old ones less, so that no key is touched
    for getting older.
    """

    def __init__(self, max_bytes: int, *, sample: int = 8, remembered: int = 4, seed: int = 0) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._sample = sample
        self._remembered = remembered
        self._rng = random.Random(seed)
        self._now = 0
        self._turned = 0
        """When forward decay last began anew, before its weights grow too large for a float."""
        self._trust = [1.0 / len(_MEMORIES)] * len(_MEMORIES)
        self._seen: dict[Key, _Seen] = {}
        self._sizes: dict[Key, int] = {}
        self._keys: list[Key] = []
        self._places: dict[Key, int] = {}
        self._low: list[Key] = []
        """The least of earlier samples."""

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def touch(self, key: Key) -> None:
        """Count a hit."""
        self._count(key)

    def admit(self, key: Key, cost_usd: float, size_bytes: int) -> list[Key] | None:
        """Make room for a key. Returns the keys that the caller must drop, or None where the new key is worth least."""
        seen = self._count(key)
        seen.cost_usd += cost_usd
        seen.answers += 1
        self.drop(key)
        if size_bytes > self.max_bytes:
            return None
        victims = self._victims(key, size_bytes) if self.used_bytes + size_bytes > self.max_bytes else []
        if victims is None:
            return None
        for victim in victims:
            self.drop(victim)
        self._places[key] = len(self._keys)
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

    def _spans(self) -> list[float]:
        """Effective number of requests in each estimate's counts."""
        now = self._now
        return [1.0 + (m * -math.expm1(-now / m) if m < math.inf else now) for m in _MEMORIES]

    def _worths(self, keys: Iterable[Key]) -> dict[Key, float]:
        """Rate * cost / size of held keys."""
        fast, slow, ever = self._weights()
        found = {}
        for key in keys:
            seen = self._seen[key]
            one, two, three = seen.counts
            rate = fast * one + slow * two + ever * three
            found[key] = rate * seen.cost_usd / (seen.answers * self._sizes[key])
        return found

    def _weights(self) -> list[float]:
        """What one of each memory's counts adds to a rate now."""
        age = self._turned - self._now
        parts = zip(self._trust, self._spans(), _MEMORIES, strict=True)
        return [trust * math.exp(age / memory) / span for trust, span, memory in parts]

    def _victims(self, key: Key, size_bytes: int) -> list[Key] | None:
        """Keys whose going makes room, or None when one of them is worth more than the one that comes."""
        seen = self._seen[key]
        worth = sum(map(mul, self._weights(), seen.counts)) * seen.cost_usd / (seen.answers * size_bytes)
        victims: list[Key] = []
        free = self.max_bytes - self.used_bytes
        while free < size_bytes:
            drawn = [low for low in self._low if low in self._sizes]
            drawn += [self._keys[int(self._rng.random() * len(self._keys))] for _ in range(self._sample)]
            worths = self._worths(key for key in drawn if key not in victims)
            if not worths:
                worths = self._worths([next(key for key in self._keys if key not in victims)])
            ranked = sorted(worths, key=worths.__getitem__)
            self._low = ranked[1 : _KEPT_LOW + 1]
            if worths[ranked[0]] > worth:
                self._low.append(ranked[0])
                return None
            victims.append(ranked[0])
            free += self._sizes[ranked[0]]
        return victims

    def _forget_old(self) -> None:
        """Where too many keys are remembered, keep those held and the more recent half of the others."""
        if len(self._seen) <= max(self._remembered * len(self._sizes), _LEAST_REMEMBERED):
            return
        ages = sorted(seen.at for key, seen in self._seen.items() if key not in self._sizes)
        oldest = ages[len(ages) // 2]
        self._seen = {k: seen for k, seen in self._seen.items() if k in self._sizes or seen.at > oldest}
