"""Vectors in Redis 8's vector sets: what they propose is served as from a replica's own index, or not at all."""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.acceptance import Acceptance
from cache.entry import Entry, Hit
from cache.key import Partition
from cache.link import RedisLink
from cache.memory import MemoryStore
from cache.semantic import Miss, SemanticCache
from cache.vector_sets import VectorSets, has_vector_sets
from tests.cache.entries import accept_all
from tests.gateway.redis_server import RedisServer
from tests.redis8 import redis8  # noqa: F401

DIMENSION = 16


def direction(seed: int) -> NDArray[np.float32]:
    """A unit vector that is determined by its seed."""
    made = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
    return made / np.linalg.norm(made)


@pytest.fixture
async def link(redis8: str) -> AsyncIterator[RedisLink]:  # noqa: F811
    made = RedisLink(redis8, timeout_s=10.0)
    yield made
    await made.close()


def sets_on(link: RedisLink) -> VectorSets:
    return VectorSets(link, route=secrets.token_hex(4), embedder="e")


async def test_the_server_is_asked_for_vector_sets(link: RedisLink, shared_server: RedisServer) -> None:
    """Version 8 has vector sets. An older Redis and one that is away have none, and nothing is raised."""
    assert await has_vector_sets(link)
    old, away = RedisLink(shared_server.url, timeout_s=10.0), RedisLink("redis://127.0.0.1:9/0", timeout_s=1.0)
    assert not await has_vector_sets(old) and not await has_vector_sets(away)
    await old.close()
    await away.close()


async def test_the_nearest_come_with_their_cosines(link: RedisLink) -> None:
    """They are those of a full search within the partition, until they are removed."""
    sets = sets_on(link)
    for seed in range(40):
        assert await sets.add(b"p", f"e{seed}", direction(seed), ttl_s=1000.0)
    assert await sets.add(b"other", "stranger", direction(99), ttl_s=1000.0)
    asked = direction(99)
    cosines = {f"e{seed}": float(direction(seed) @ asked) for seed in range(40)}
    found = await sets.near(b"p", asked, 8)
    best = sorted(cosines, key=lambda name: -cosines[name])[:8]
    assert {name for name, _ in found} == set(best)
    assert all(abs(cosine - cosines[name]) < 0.02 for name, cosine in found)
    assert found == sorted(found, key=lambda pair: -pair[1])
    assert await sets.remove(b"p", best[0]) and not await sets.remove(b"p", best[0])
    assert best[0] not in {name for name, _ in await sets.near(b"p", asked, 8)}
    assert await sets.near(b"nothing", asked, 8) == []


async def test_a_set_lives_as_long_as_its_newest_entry(link: RedisLink) -> None:
    """An entry with a longer time to live extends the set's; one with a shorter leaves it."""
    sets = sets_on(link)
    for ttl_s in (100.0, 1000.0, 10.0):
        await sets.add(b"p", f"e{ttl_s}", direction(int(ttl_s)), ttl_s=ttl_s)
    left_ms = await link.client.pttl(sets._key(b"p"))
    assert 900_000 < left_ms <= 1_000_000


async def test_replicas_serve_from_one_set(link: RedisLink) -> None:
    """A replica serves another's entry once it has recorded the question's text, and not after its store deleted it."""
    sets, store = sets_on(link), MemoryStore(1 << 20)
    gone: list[tuple[bytes, str]] = []
    one, two = (
        SemanticCache(
            store, dimension=DIMENSION, acceptance=Acceptance(rng=random.Random(0)), sets=sets,
            on_forgotten=lambda *what: gone.append(what),
        )
        for _ in range(2)
    )
    question, entry = Partition(b"p", "block my card"), Entry("e", "chat", b"{}", "m", "", 0.0, 1e9, 0.01, tenant="t")
    await store.put(b"k", entry)
    await sets.add(b"p", "e", direction(1), ttl_s=1000.0)
    one.record(question, direction(1), entry, key=b"k")
    accept_all(one.acceptance)
    accept_all(two.acceptance)
    hit = await one.look_up(question, direction(1), tenant="t", now_s=1.0)
    assert isinstance(hit, Hit) and hit.entry is entry and hit.similarity > 0.98
    missed = await two.look_up(question, direction(1), tenant="t", now_s=1.0)
    assert isinstance(missed, Miss) and missed.why == "empty"
    two.record(question, direction(1), entry, key=b"k")
    assert isinstance(await two.look_up(question, direction(1), tenant="t", now_s=1.0), Hit)
    assert isinstance(await two.look_up(question, direction(1), tenant="u", now_s=1.0), Miss)
    await store.delete("e")
    after = await two.look_up(question, direction(1), tenant="t", now_s=1.0)
    assert isinstance(after, Miss) and after.why == "gone" and gone == [(b"p", "e")]


async def test_a_redis_that_is_away_proposes_nothing() -> None:
    """A look-up while Redis is away is a miss."""
    away = RedisLink("redis://127.0.0.1:9/0", timeout_s=1.0)
    cache = SemanticCache(MemoryStore(1000), dimension=DIMENSION, sets=sets_on(away))
    found = await cache.look_up(Partition(b"p", "block my card"), direction(1), tenant="t", now_s=1.0)
    assert isinstance(found, Miss) and found.why == "empty"
    await away.close()
