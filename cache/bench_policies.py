"""Published eviction policies that least expected cost is compared with: LRU, LFU, and greedy dual size frequency.

Greedy dual size frequency (GDSF, Cherkasova 1998) scores an entry H = L + frequency * cost / size, where L is the score
of the last entry that was evicted.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class LRU:
    """Evicts the least recently used key."""

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._sizes: OrderedDict[int, int] = OrderedDict()

    def __contains__(self, key: int) -> bool:
        return key in self._sizes

    def touch(self, key: int) -> None:
        self._sizes.move_to_end(key)

    def admit(self, key: int, cost_usd: float, size_bytes: int) -> None:
        self._sizes[key] = size_bytes
        self._free -= size_bytes
        while self._free < 0:
            self._free += self._sizes.popitem(last=False)[1]


class LFU:
    """Least frequently used goes, by counts that are never forgotten; of equals what was counted first."""

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._counts: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}
        self._heap: list[tuple[int, int, int]] = []
        self._tickets = count()

    def __contains__(self, key: int) -> bool:
        return key in self._sizes

    def touch(self, key: int) -> None:
        self._counts[key] += 1

    def admit(self, key: int, cost_usd: float, size_bytes: int) -> None:
        self._counts[key] += 1
        while self._free < size_bytes and self._sizes:
            self._drop_least()
        if self._free >= size_bytes:
            self._sizes[key] = size_bytes
            self._free -= size_bytes
            self._push(key)

    def _drop_least(self) -> None:
        while True:
            counted, _, key = heapq.heappop(self._heap)
            if counted == self._counts[key]:
                self._free += self._sizes.pop(key)
                return
            self._push(key)

    def _push(self, key: int) -> None:
        heapq.heappush(self._heap, (self._counts[key], next(self._tickets), key))


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
