"""The interface of stores: an entry comes back whole and for its own tenant, or not at all.

A store never raises for its own failures: what can't be read with certainty is a miss, and what can't be written is not
kept. The memory, SQLite and Redis stores share one test suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cache.entry import Entry


@dataclass(slots=True)
class StoreStats:
    """Counts since the store was opened, and what it holds now where that is known."""

    hits: int = 0
    misses: int = 0
    puts: int = 0
    refused: int = 0
    """Entries not kept, because they were too large or worth less than those that would have to go."""
    evicted: int = 0
    corrupt: int = 0
    """Entries that were not whole when read; also counted as misses."""
    failures: int = 0
    """Calls in which the medium failed or was late; also counted as misses."""
    entries: int = 0
    used_bytes: int = 0


class Store(Protocol):
    """Answers by exact key."""

    async def get(self, key: bytes, *, tenant: str, now_s: float) -> Entry | None:
        """Return the living entry of this tenant under `key`."""
        ...

    async def put(self, key: bytes, entry: Entry) -> bool:
        """Keep an entry under `key`, in place of what was there; False: not kept."""
        ...

    async def delete(self, entry_id: str, *, tenant: str | None = None) -> bool:
        """Forget one entry; with `tenant`, only if it is that tenant's. False: there is none."""
        ...

    async def delete_tenant(self, tenant: str) -> bool:
        """Forget all of a tenant's entries, before the next request on any replica. False: it failed."""
        ...

    def stats(self) -> StoreStats:
        """Return the counts; a copy."""
        ...

    async def close(self) -> None:
        """Close files and connections."""
        ...


def alive(entry: Entry, *, tenant: str, now_s: float) -> bool:
    """Whether an entry may answer this tenant now."""
    return entry.tenant == tenant and now_s < entry.created_s + entry.ttl_s
