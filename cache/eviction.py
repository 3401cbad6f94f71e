"""What to give up when the cache is full: the entry that is expected to save the least per byte.

An eviction score sees keys, costs and sizes only; stores hold the answers. The default is greedy dual size
frequency (Cherkasova 1998): H = L + frequency * cost / size, L rising to the H of whatever was given up last,
with frequencies remembered past eviction and a new entry refused when it is worth less than its victims.
"""

from __future__ import annotations

import heapq
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
