"""The contract of every store, tested on each of them."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.entry import Entry
from cache.link import RedisLink
from cache.memory import MemoryStore
from cache.redis import RedisStore
from cache.sqlite import SqliteStore
from cache.store import Store
from tests.cache.entries import entry
from tests.gateway.redis_server import RedisServer

KINDS = ("memory", "sqlite", "redis")


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    if request.param == "memory":
        yield MemoryStore(1 << 20)
    elif request.param == "sqlite":
        file = SqliteStore(tmp_path / "cache.db", max_bytes=1 << 20, timeout_s=10)
        yield file
        await file.close()
    else:
        server: RedisServer = request.getfixturevalue("shared_server")
        link = RedisLink(server.url, timeout_s=10)
        shared = RedisStore(link, prefix=f"{secrets.token_hex(4)}:")
        yield shared
        await shared.close()
        await link.close()


async def test_an_entry_comes_back_whole(store: Store) -> None:
    """An entry is found under its key, equal in every field."""
    one = entry(body=bytes(range(256)))
    assert await store.put(b"k1", one)
    assert await store.get(b"k1", tenant="t", now_s=101) == one
    assert await store.get(b"k2", tenant="t", now_s=101) is None
    assert (store.stats().hits, store.stats().misses, store.stats().puts) == (1, 1, 1)


async def test_an_entry_never_answers_another_tenant(store: Store) -> None:
    """Even under the same key an entry is a miss for another tenant."""
    await store.put(b"k", entry(tenant="t"))
    assert await store.get(b"k", tenant="u", now_s=101) is None
    assert await store.get(b"k", tenant="", now_s=101) is None


async def test_an_entry_expires(store: Store) -> None:
    """From the second of its expiry on, an entry is a miss."""
    await store.put(b"k", entry(created_s=100, ttl_s=60))
    assert await store.get(b"k", tenant="t", now_s=159.9) is not None
    assert await store.get(b"k", tenant="t", now_s=160.0) is None


async def test_a_second_entry_replaces_the_first(store: Store) -> None:
    """A key returns what was stored last, and the earlier entry's id is gone."""
    await store.put(b"k", entry("e1", body=b"old"))
    await store.put(b"k", entry("e2", body=b"new"))
    found = await store.get(b"k", tenant="t", now_s=101)
    assert found is not None and found.body == b"new"
    assert not await store.delete("e1")
    assert await store.delete("e2")
    assert await store.get(b"k", tenant="t", now_s=101) is None


async def test_a_deleted_entry_is_gone(store: Store) -> None:
    """An entry can be deleted by its id once, and only for its own tenant if one is given."""
    await store.put(b"k", entry("e1"))
    assert not await store.delete("e1", tenant="u")
    assert await store.get(b"k", tenant="t", now_s=101) is not None
    assert await store.delete("e1", tenant="t")
    assert not await store.delete("e1")
    assert await store.get(b"k", tenant="t", now_s=101) is None


async def test_a_deleted_tenant_is_gone_and_may_return(store: Store) -> None:
    """Deleting a tenant deletes all its entries and no others; new ones can be stored."""
    await store.put(b"k1", entry("e1"))
    await store.put(b"k2", entry("e2"))
    await store.put(b"k3", entry("e3", tenant="u"))
    assert await store.delete_tenant("t")
    assert await store.get(b"k1", tenant="t", now_s=101) is None
    assert await store.get(b"k2", tenant="t", now_s=101) is None
    assert await store.get(b"k3", tenant="u", now_s=101) is not None
    await store.put(b"k1", entry("e4"))
    assert await store.get(b"k1", tenant="t", now_s=101) is not None


_moves = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "delete", "delete_tenant", "wait"]),
        st.integers(0, 3),
        st.sampled_from(["t", "u"]),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves=_moves)
async def test_a_store_behaves_like_a_dictionary_with_expiry(store: Store, moves: list[tuple[str, int, str]]) -> None:
    """After any operations each key returns what a plain dictionary would, for its own tenant only."""
    model: dict[bytes, Entry] = {}
    now_s, serial = 100.0, 0
    await store.delete_tenant("t")
    await store.delete_tenant("u")
    for move, number, tenant in moves:
        key = bytes([number]) + tenant.encode()
        if move == "put":
            serial += 1
            model[key] = entry(f"id{id(moves)}-{serial}", tenant, created_s=now_s, ttl_s=50)
            assert await store.put(key, model[key])
        elif move == "delete" and key in model:
            assert await store.delete(model.pop(key).id)
        elif move == "delete_tenant":
            assert await store.delete_tenant(tenant)
            model = {k: e for k, e in model.items() if e.tenant != tenant}
        elif move == "wait":
            now_s += 20
        held = model.get(key)
        expected = held if held and now_s < held.created_s + 50 else None
        assert await store.get(key, tenant=tenant, now_s=now_s) == expected
        assert await store.get(key, tenant="v", now_s=now_s) is None
