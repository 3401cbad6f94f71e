"""An entry that one replica records is proposed by another; what any replica deletes is served by none."""

from __future__ import annotations

import random
import secrets

import numpy as np

from cache.acceptance import Acceptance
from cache.entry import Entry, Hit
from cache.key import Partition
from cache.link import RedisLink
from cache.neighbours import FEATURES
from cache.redis import RedisStore
from cache.replicate import Replication
from cache.semantic import Miss, SemanticCache
from tests.cache.entries import accept_all
from tests.gateway.redis_server import RedisServer

DIMENSION = 16
QUESTION = Partition(b"p", "lost my card")
VECTOR = np.random.default_rng(0).normal(size=DIMENSION).astype(np.float32)
ENTRY = Entry("e", "chat", b"{}", "m", "d", 100.0, 1000.0, 0.01, tenant="t")


class Replica:
    """A semantic cache on a shared store, with a connection of its own."""

    def __init__(self, url: str, route: str, embedder: str = "e") -> None:
        self.link = RedisLink(url, timeout_s=10)
        self.store = RedisStore(self.link, prefix=f"{route}:")
        self.cache = SemanticCache(self.store, dimension=DIMENSION, acceptance=Acceptance(rng=random.Random(0)))
        self.replication = Replication(self.link, self.cache, route=route, embedder=embedder)
        accept_all(self.cache.acceptance, rows=100)

    async def ask(self) -> Hit | Miss:
        """Read the other replicas' messages, then look up."""
        while await self.replication.follow():
            pass
        return await self.cache.look_up(QUESTION, VECTOR, tenant="t", now_s=101)

    async def record(self) -> None:
        """Store and record an entry, and publish it to the other replicas."""
        await self.store.put(b"k", ENTRY)
        self.cache.record(QUESTION, VECTOR, ENTRY, key=b"k")
        await self.replication.tell_recorded(QUESTION, VECTOR, ENTRY, key=b"k")

    async def close(self) -> None:
        """Close the store and the connection."""
        await self.store.close()
        await self.link.close()


async def test_an_entry_of_one_replica_is_a_hit_on_another(shared_server: RedisServer) -> None:
    """An entry that one replica records is a hit on the other, until either deletes it."""
    route = secrets.token_hex(4)
    one, other = Replica(shared_server.url, route), Replica(shared_server.url, route)
    await one.record()
    hit = await other.ask()
    assert isinstance(hit, Hit) and hit.entry == ENTRY
    await other.store.delete("e")
    gone = await one.ask()
    assert isinstance(gone, Miss) and gone.why == "gone"
    await one.record()
    assert isinstance(await other.ask(), Hit)
    other.cache.delete("e")
    await other.replication.tell_deleted(entry_id="e")
    missed = await one.ask()
    assert isinstance(missed, Miss) and missed.why == "empty"
    await one.record()
    await one.replication.tell_deleted(tenant="t")
    assert len(other.cache) == 0
    missed = await other.ask()
    assert isinstance(missed, Miss) and missed.why == "empty"
    await one.close()
    await other.close()


async def test_a_tenants_deletion_holds_before_its_message_is_read(shared_server: RedisServer) -> None:
    """Although its index still proposes them, a replica serves no entry of a tenant that was deleted elsewhere."""
    route = secrets.token_hex(4)
    one, other = Replica(shared_server.url, route), Replica(shared_server.url, route)
    await one.record()
    assert isinstance(await other.ask(), Hit)
    await one.store.delete_tenant("t")
    answer = await other.cache.look_up(QUESTION, VECTOR, tenant="t", now_s=101)
    assert isinstance(answer, Miss) and answer.why == "gone"
    await one.close()
    await other.close()


async def test_verdicts_are_shared(shared_server: RedisServer) -> None:
    """A verdict on one replica is learned by the other, and a replica learns its own only once."""
    route = secrets.token_hex(4)
    one, other = Replica(shared_server.url, route), Replica(shared_server.url, route)
    before = other.cache.false_hit_rate().n
    await one.replication.tell_judged([0.5] * FEATURES, True, 2.0, True)
    await one.replication.tell_judged([0.5] * 23, True, 2.0, True)
    await one.replication.tell_judged([float("nan")] * FEATURES, True, 2.0, True)
    await one.replication.follow()
    await other.replication.follow()
    assert one.cache.false_hit_rate().n == before
    assert other.cache.false_hit_rate().n == before + 1 and other.replication.skipped == 2
    await one.close()
    await other.close()


async def test_a_new_replica_starts_with_the_others_verdicts(shared_server: RedisServer) -> None:
    """If there are enough verdicts for a fit, the rule is fitted at the first request after the start; a few verdicts
    make no rule.
    """
    route = secrets.token_hex(4)
    one = Replica(shared_server.url, route)
    fresh = SemanticCache(one.store, dimension=DIMENSION, acceptance=Acceptance(rng=random.Random(0)))
    replication = Replication(one.link, fresh, route=route, embedder="e")
    for n in range(fresh.acceptance.options.warm_up):
        assert not fresh.acceptance.due
        await one.replication.tell_judged([float(n % 4 > 0)] * FEATURES, n % 4 > 0, 1.0, False)
        if n % 100 == 99:
            while await replication.follow():
                pass
    assert fresh.acceptance.due
    fresh.maintain()
    assert fresh.acceptance.fitted is not None and fresh.acceptance.fitted.serves and not fresh.acceptance.due
    await one.close()


async def test_foreign_messages_are_skipped(shared_server: RedisServer) -> None:
    """Garbage, malformed vectors, and vectors of another embedder or dimension don't change the index."""
    route = secrets.token_hex(4)
    one, stranger = Replica(shared_server.url, route), Replica(shared_server.url, route, embedder="f")
    await stranger.record()
    await one.link.client.xadd(f"hg:s:{route}", {"m": b"garbage"})
    await one.link.client.xadd(f"hg:s:{route}", {"x": b"y"})
    same = Replica(shared_server.url, route)
    await same.replication.tell_recorded(QUESTION, VECTOR[:-1], ENTRY, key=b"k")
    while await one.replication.follow():
        pass
    assert len(one.cache) == 0 and one.replication.skipped == 3
    for replica in (one, stranger, same):
        await replica.close()
