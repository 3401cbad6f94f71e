"""The store in this process: a dictionary bounded by bytes, which gives up what is worth least."""

from __future__ import annotations

import heapq
from dataclasses import replace

from cache.entry import Entry
from cache.eviction import LeastExpectedCost
from cache.store import StoreStats, alive

ENTRY_BYTES = 1200
"""Resident memory that an entry takes beside its body: object, identifiers, three indexes, its place in the heap."""


class MemoryStore:
    """Keeps entries within `max_bytes`; those of the least expected cost go."""

    def __init__(self, max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive, not {max_bytes}")
        self._eviction = LeastExpectedCost[bytes](max_bytes)
        self._entries: dict[bytes, Entry] = {}
        self._keys: dict[str, bytes] = {}
        self._tenants: dict[str, set[bytes]] = {}
        self._expiries: list[tuple[float, bytes]] = []
        self._stats = StoreStats()

    async def get(self, key: bytes, *, tenant: str, now_s: float) -> Entry | None:
        """Return the living entry of this tenant under `key`."""
        entry = self._entries.get(key)
        if entry is not None and alive(entry, tenant=tenant, now_s=now_s):
            self._eviction.touch(key)
            self._stats.hits += 1
            return entry
        self._stats.misses += 1
        self._expire(now_s)
        return None

    async def put(self, key: bytes, entry: Entry) -> bool:
        """Keep an entry under `key` if it is worth more than what would have to go."""
        self._expire(entry.created_s)
        if key in self._entries:
            self._forget(key)
        victims = self._eviction.admit(key, entry.cost_usd, len(entry.body) + ENTRY_BYTES)
        if victims is None:
            self._stats.refused += 1
            return False
        for victim in victims:
            self._forget(victim)
        self._stats.evicted += len(victims)
        self._stats.puts += 1
        self._entries[key] = entry
        self._keys[entry.id] = key
        self._tenants.setdefault(entry.tenant, set()).add(key)
        heapq.heappush(self._expiries, (entry.created_s + entry.ttl_s, key))
        self._compact_expiries()
        return True

    async def delete(self, entry_id: str, *, tenant: str | None = None) -> bool:
        """Forget one entry; with `tenant`, only if it is that tenant's."""
        key = self._keys.get(entry_id)
        if key is None or (tenant is not None and self._entries[key].tenant != tenant):
            return False
        self._forget(key)
        return True

    async def delete_tenant(self, tenant: str) -> bool:
        """Forget all of a tenant's entries."""
        for key in list(self._tenants.get(tenant, ())):
            self._forget(key)
        return True

    def entries(self) -> list[Entry]:
        """All entries, in no order."""
        return list(self._entries.values())

    def stats(self) -> StoreStats:
        """Return the counts; a copy."""
        return replace(self._stats, entries=len(self._entries), used_bytes=self._eviction.used_bytes)

    async def close(self) -> None:
        """Nothing is open."""

    def _forget(self, key: bytes) -> None:
        entry = self._entries.pop(key)
        self._eviction.drop(key)
        if self._keys.get(entry.id) == key:
            del self._keys[entry.id]
        mine = self._tenants[entry.tenant]
        mine.discard(key)
        if not mine:
            del self._tenants[entry.tenant]

    def _expire(self, now_s: float) -> None:
        while self._expiries and self._expiries[0][0] <= now_s:
            expiry_s, key = heapq.heappop(self._expiries)
            entry = self._entries.get(key)
            if entry is not None and entry.created_s + entry.ttl_s <= expiry_s:
                self._forget(key)

    def _compact_expiries(self) -> None:
        """Drop the expiries of entries that left earlier, before they outnumber those that are here."""
        if len(self._expiries) > 2 * len(self._entries) + 64:
            self._expiries = [(e.created_s + e.ttl_s, key) for key, e in self._entries.items()]
            heapq.heapify(self._expiries)
