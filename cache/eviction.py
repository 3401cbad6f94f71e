"""What to give up when the cache is full: the entry that is expected to save the least per byte.

An eviction score sees keys, costs and sizes only; stores hold the answers. The default is least expected cost
(Zhu et al., arXiv 2306.02003): rate of requests times cost of the answer, here per byte, with rates remembered
past eviction and a new entry refused when it is worth less than its victims. How fast rates are forgotten is
learnt: where popularity drifts the fast estimate predicts requests better and soon has all the weight. Beside
it greedy dual size frequency (Cherkasova 1998), H = L + frequency * cost / size.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Eviction(Protocol[Key]):
    """Decides which keys stay within `max_bytes`; the caller drops the victims it is told."""

    used_bytes: int

    def touch(self, key: Key) -> None:
        """Count a hit."""
        ...

    def admit(self, key: Key, cost_usd: float, size_bytes: int) -> list[Key] | None:
        """Make room for a key: the victims, or None when the key itself is worth least."""
        ...

    def drop(self, key: Key) -> None:
        """Forget a key that left for another reason."""
        ...


@dataclass(slots=True)
class _Held:
    size_bytes: int
    value: float
    """Cost saved by a hit, per byte."""
    score: float
    ticket: int = 0
    """Which of the heap's items is this one's; the others are left over."""


class GreedyDual(Generic[Key]):
    """GDSF with remembered, ageing frequencies and admission.

    A hit only counts; an entry's place in the heap is corrected when it comes up for eviction, so a hit
    is one look-up however large the cache is.
    """

    def __init__(self, max_bytes: int, *, remembered: int = 4) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._remembered = remembered
        """How many keys' frequencies are kept for each key that is in."""
        self._floor = 0.0
        self._held: dict[Key, _Held] = {}
        self._counts: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._tickets = 0

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def touch(self, key: Key) -> None:
        count = self._counts[key] = self._counts.get(key, 0.0) + 1.0
        held = self._held.get(key)
        if held is not None:
            held.score = self._floor + count * held.value

    def admit(self, key: Key, cost_usd: float, size_bytes: int) -> list[Key] | None:
        count = self._counts[key] = self._counts.get(key, 0.0) + 1.0
        self._forget_rare()
        self.drop(key)
        if size_bytes > self.max_bytes:
            return None
        value = cost_usd / max(size_bytes, 1)
        victims = self._victims(size_bytes, self._floor + count * value)
        if victims is None:
            return None
        for victim in victims:
            self._floor = max(self._floor, self._held[victim].score)
            self.drop(victim)
        self._held[key] = _Held(size_bytes, value, self._floor + count * value)
        self.used_bytes += size_bytes
        self._push(key)
        return victims

    def drop(self, key: Key) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self.used_bytes -= held.size_bytes

    def _victims(self, size_bytes: int, score: float) -> list[Key] | None:
        """The least keys whose going makes room, or None when one of them is worth more than `score`."""
        victims: list[Key] = []
        free = self.max_bytes - self.used_bytes
        while free < size_bytes:
            key = self._pop_least()
            victims.append(key)
            free += self._held[key].size_bytes
            if self._held[key].score > score:
                for kept in victims:
                    self._push(kept)
                return None
        return victims

    def _pop_least(self) -> Key:
        while True:
            score, ticket, key = heapq.heappop(self._heap)
            held = self._held.get(key)
            if held is None or held.ticket != ticket:
                continue
            if held.score <= score:
                return key
            self._push(key)

    def _push(self, key: Key) -> None:
        self._tickets += 1
        held = self._held[key]
        held.ticket = self._tickets
        heapq.heappush(self._heap, (held.score, held.ticket, key))
        if len(self._heap) > 4 * len(self._held) + 64:
            self._heap = [(held.score, held.ticket, key) for key, held in self._held.items()]
            heapq.heapify(self._heap)

    def _forget_rare(self) -> None:
        """Halve every count when too many keys are remembered, and forget those seen once."""
        if len(self._counts) > self._remembered * len(self._held) + 1024:
            self._counts = {k: c / 2 for k, c in self._counts.items() if c >= 2.0 or k in self._held}


_MEMORIES = (3_000.0, 16_000.0, math.inf)
"""After how many requests a rate estimate has forgotten all but 1/e: from fast to never."""
_LEAST_REMEMBERED = 32_768
"""Keys whose rates are remembered however few are held: some ten megabytes, and what a small cache lives by."""
_LEARNING = 0.05
_SHARE = 0.0005
"""How much of the weight is shared out at each request, so that either estimate can come back."""


@dataclass(slots=True)
class _Seen:
    """What is remembered of a key, held or not."""

    at: int
    counts: list[float]
    """Decayed requests, one for each of the memories."""
    cost_usd: float = 0.0
    answers: int = 0


class LeastExpectedCost(Generic[Key]):
    """Gives up, of a sample, the key with the least rate * cost / size.

    The sample makes a score that changes by itself affordable: nothing is kept sorted, and the least of a few
    dozen random keys is nearly always among the least of all.
    """

    def __init__(self, max_bytes: int, *, sample: int = 32, remembered: int = 4, seed: int = 0) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._sample = sample
        self._remembered = remembered
        self._rng = random.Random(seed)
        self._now = 0
        self._trust = [1.0 / len(_MEMORIES)] * len(_MEMORIES)
        self._seen: dict[Key, _Seen] = {}
        self._sizes: dict[Key, int] = {}
        self._keys: list[Key] = []
        self._places: dict[Key, int] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def touch(self, key: Key) -> None:
        self._count(key)

    def admit(self, key: Key, cost_usd: float, size_bytes: int) -> list[Key] | None:
        seen = self._count(key)
        seen.cost_usd += cost_usd
        seen.answers += 1
        self.drop(key)
        if size_bytes > self.max_bytes:
            return None
        spans = self._spans()
        victims = self._victims(size_bytes, self._worth(key, size_bytes, spans), spans)
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
        seen = self._seen.get(key)
        if seen is None:
            self._forget_old()
            seen = self._seen[key] = _Seen(self._now, [1.0] * len(_MEMORIES))
            return seen
        counts = self._decayed(seen)
        expected = [n / span + 1e-7 for n, span in zip(counts, self._spans(), strict=True)]
        likely = sum(t * e for t, e in zip(self._trust, expected, strict=True))
        trust = [t * (e / likely) ** _LEARNING for t, e in zip(self._trust, expected, strict=True)]
        total = sum(trust)
        self._trust = [(1 - _SHARE) * t / total + _SHARE / len(trust) for t in trust]
        seen.at, seen.counts = self._now, [n + 1.0 for n in counts]
        return seen

    def _decayed(self, seen: _Seen) -> list[float]:
        age = seen.at - self._now
        return [n * math.exp(age / memory) for n, memory in zip(seen.counts, _MEMORIES, strict=True)]

    def _spans(self) -> list[float]:
        """How many requests each estimate's counts stand for."""
        now = self._now
        return [1.0 + (m * -math.expm1(-now / m) if m < math.inf else now) for m in _MEMORIES]

    def _worth(self, key: Key, size_bytes: int, spans: list[float]) -> float:
        seen = self._seen[key]
        parts = zip(self._trust, self._decayed(seen), spans, strict=True)
        rate = sum(trust * count / span for trust, count, span in parts)
        return rate * seen.cost_usd / max(seen.answers, 1) / max(size_bytes, 1)

    def _victims(self, size_bytes: int, worth: float, spans: list[float]) -> list[Key] | None:
        """Keys whose going makes room, or None when one of them is worth more than `worth`."""
        victims: dict[Key, None] = {}
        free = self.max_bytes - self.used_bytes
        while free < size_bytes:
            drawn = {self._keys[int(self._rng.random() * len(self._keys))] for _ in range(self._sample)}
            drawn -= victims.keys()
            if not drawn:
                drawn = {next(key for key in self._keys if key not in victims)}
            least = min((self._worth(key, self._sizes[key], spans), self._places[key], key) for key in drawn)
            if least[0] > worth:
                return None
            victims[least[2]] = None
            free += self._sizes[least[2]]
        return list(victims)

    def _forget_old(self) -> None:
        """Of too many keys remembered, keep those held and the more recent half of the others."""
        if len(self._seen) <= max(self._remembered * len(self._sizes), _LEAST_REMEMBERED):
            return
        ages = sorted(seen.at for key, seen in self._seen.items() if key not in self._sizes)
        oldest = ages[len(ages) // 2]
        self._seen = {k: seen for k, seen in self._seen.items() if k in self._sizes or seen.at > oldest}
