"""The memory store's bounds."""

from __future__ import annotations

import random

import pytest

from cache.memory import ENTRY_BYTES, MemoryStore
from tests.cache.entries import entry


async def test_memory_stays_within_its_bytes() -> None:
    """However much is stored, the store stays within its bound and keeps the most valuable entries."""
    store = MemoryStore(100 * (1000 + ENTRY_BYTES))
    for n in range(1000):
        await store.put(b"%d" % n, entry(f"e{n}", body=b"x" * 1000, cost_usd=1.0 if n % 20 == 0 else 0.001))
    stats = store.stats()
    assert stats.used_bytes <= 100 * (1000 + ENTRY_BYTES)
    assert stats.entries <= 100 and stats.evicted + stats.refused >= 900
    dear = [await store.get(b"%d" % n, tenant="t", now_s=101) for n in range(0, 1000, 20)]
    assert None not in dear


async def test_an_entry_larger_than_the_store_is_refused() -> None:
    """An entry that can't fit is not stored, and evicts nothing."""
    store = MemoryStore(5000)
    assert await store.put(b"k1", entry("e1"))
    assert not await store.put(b"k2", entry("e2", body=b"x" * 5000, cost_usd=1e9))
    assert await store.get(b"k1", tenant="t", now_s=101) is not None


async def test_expired_entries_make_room_by_themselves() -> None:
    """Expired entries are removed as soon as anything is stored."""
    store = MemoryStore(1 << 20)
    for n in range(50):
        await store.put(b"%d" % n, entry(f"e{n}", created_s=100, ttl_s=10))
    await store.put(b"new", entry("new", created_s=200))
    assert store.stats().entries == 1


async def test_the_indexes_agree_with_the_entries() -> None:
    """After twenty thousand random operations the store's internal indexes hold exactly its entries."""
    store, rng = MemoryStore(200_000), random.Random(1)
    for n in range(20_000):
        key = b"%d" % rng.randrange(500)
        match rng.randrange(3):
            case 0:
                await store.put(key, entry(f"e{n}", rng.choice("tuv"), b"x" * rng.randrange(2000), created_s=n))
            case 1:
                await store.get(key, tenant=rng.choice("tuv"), now_s=n)
            case _:
                await store.delete(f"e{rng.randrange(n + 1)}")
    for tenant in "tuv":
        await store.delete_tenant(tenant)
    assert (store.stats().entries, store.stats().used_bytes) == (0, 0)


def test_a_store_needs_room() -> None:
    """A bound of zero bytes is refused when the store is made."""
    with pytest.raises(ValueError, match="max_bytes"):
        MemoryStore(0)
