"""The shared store while its Redis is killed, frozen, emptied, filled with garbage, or answers nonsense."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from cache.codec import pack, unpack
from cache.flight import Flight
from cache.lease import RedisLease
from cache.link import RedisLink
from cache.redis import ENTRY_BYTES, RedisStore
from tests.cache.entries import entry
from tests.chaos.wire import wire_to
from tests.gateway.redis_server import RedisServer
from tests.ports import free_port
from tests.until import PATIENCE_S, until


@asynccontextmanager
async def replica(url: str, timeout_s: float = 10, rest_s: float = 0.0, **more: Any) -> AsyncIterator[RedisStore]:
    """A store with a connection of its own, as another process has."""
    link = RedisLink(url, timeout_s=timeout_s, rest_s=rest_s)
    store = RedisStore(link, **more)
    yield store
    await store.close()
    await link.close()


async def is_stored(store: RedisStore, key: bytes = b"k") -> bool:
    """Whether the store returns the entry."""
    return await store.get(key, tenant="t", now_s=101) is not None


async def comes_back(store: RedisStore, key: bytes = b"k") -> None:
    """Waits until the store returns the entry again."""
    await until(lambda: is_stored(store, key))


async def test_a_deletion_holds_on_every_replica_at_once(server: RedisServer) -> None:
    """An entry that one replica deletes is a miss on the other at the very next request."""
    async with replica(server.url) as one, replica(server.url) as other:
        for n in range(20):
            await one.put(b"k", entry(f"a{n}"))
            await one.put(b"l", entry(f"b{n}"))
            assert await is_stored(other)
            assert await other.delete(f"a{n}")
            assert not await is_stored(one) and await is_stored(one, b"l")
            assert await one.delete_tenant("t")
            assert not await is_stored(other, b"l")


async def test_a_deleted_tenants_bytes_are_freed(server: RedisServer) -> None:
    """Nothing of a deleted tenant's entries is left in Redis; entries stored afterwards are."""
    async with replica(server.url) as store:
        for n in range(300):
            await store.put(b"%d" % n, entry(f"e{n}"))
        await store.delete_tenant("t")
        await store.put(b"0", entry("later"))
        await store.close()
        values = [key async for key in store._link.client.scan_iter("*}e:*")]
        assert len(values) == 1 and await is_stored(store, b"0")
        totals = await store._link.client.hget(values[0].split(b"e:")[0] + b"m", "used")
        assert totals is not None and ENTRY_BYTES < int(totals) < 2 * ENTRY_BYTES


async def test_a_tenant_stays_within_its_quota(server: RedisServer) -> None:
    """A tenant over its quota loses its own least valuable entries, with hits counted, and no other tenant's."""
    async with replica(server.url, max_tenant_bytes=20 * (1200 + ENTRY_BYTES)) as store:
        await store.put(b"u", entry("u", tenant="u"))
        for n in range(100):
            await store.put(b"%d" % n, entry(f"e{n}", body=b"x" * 1000, cost_usd=9 if n < 5 else 0.1))
            assert await is_stored(store, b"7") or n < 7 or n == 7
        kept = [n for n in range(100) if await is_stored(store, b"%d" % n)]
        assert 15 <= len(kept) <= 20 and {0, 1, 2, 3, 4, 7, 99} <= set(kept)
        assert await store.get(b"u", tenant="u", now_s=101) is not None
        assert not await store.put(b"big", entry("big", body=b"x" * 40_000))


async def test_foreign_and_broken_values_are_misses(server: RedisServer) -> None:
    """Garbage, truncated values, another key's value, another type and an old epoch are misses."""
    async with replica(server.url) as store:
        client = store._link.client
        await store.put(b"k", entry())
        name = (await client.keys("*}e:" + b"k".hex()))[0]
        whole = await client.get(name)
        assert isinstance(whole, bytes)
        epoch = unpack(whole, key=b"k")
        assert epoch is not None
        for value in (b"", b"nonsense", whole[:-1], whole[::-1], pack(b"l", epoch[0], entry())):
            await client.set(name, value)
            assert not await is_stored(store)
        await client.set(name, pack(b"k", "other", entry()))
        assert not await is_stored(store)
        await client.delete(name)
        await client.lpush(name, "a list")
        assert not await is_stored(store)
        await client.delete(name)
        await client.set(name, whole)
        assert await is_stored(store)
        assert store.stats().corrupt == 5


@pytest.mark.parametrize("other_type", [False, True])
async def test_hits_come_back_after_garbage_in_every_key(server: RedisServer, other_type: bool) -> None:
    """Whatever was written over a tenant's values and indexes, entries stored afterwards are found."""
    async with replica(server.url) as store:
        client = store._link.client
        for n in range(5):
            await store.put(b"%d" % n, entry(f"e{n}"))
        for name in await client.keys("*"):
            await client.delete(name)
            await (client.lpush(name, "a list") if other_type else client.set(name, b"\xff\x00 nonsense"))
        assert not await is_stored(store, b"1")
        async with asyncio.timeout(PATIENCE_S):
            while not await is_stored(store, b"1"):
                await store.put(b"1", entry("again"))
        assert await store.put(b"2", entry("more")) and await is_stored(store, b"2")


async def test_an_emptied_redis_is_an_empty_cache(server: RedisServer) -> None:
    """After FLUSHALL, SCRIPT FLUSH or a lost epoch there are misses, and entries can be stored again."""
    async with replica(server.url) as store:
        await store.put(b"k", entry())
        await store._link.client.flushall()
        await store._link.client.script_flush()
        assert not await is_stored(store)
        assert await store.put(b"k", entry()) and await is_stored(store)
        epoch = (await store._link.client.keys("*epoch"))[0]
        await store._link.client.delete(epoch)
        assert not await is_stored(store)
        assert await store.put(b"l", entry("l")) and not await is_stored(store)


async def test_scripts_run_where_only_eval_is_allowed(server: RedisServer) -> None:
    """The store works behind a proxy or an ACL that forbids EVALSHA."""
    async with replica(server.url) as store:
        await store._link.client.acl_setuser(
            "default", enabled=True, nopass=True, categories=["+@all"], commands=["-evalsha"], keys=["*"]
        )
        assert await store.put(b"k", entry()) and await is_stored(store)
        assert await store.delete("e1")


async def test_load_goes_on_while_redis_is_killed_frozen_and_restarted(server: RedisServer) -> None:
    """Under load no call raises, whatever happens to Redis, and hits return by themselves."""
    async with replica(server.url, timeout_s=0.5, rest_s=0.01) as store:
        stop = False

        async def load(n: int) -> int:
            calls = 0
            while not stop:
                key = b"%d" % (calls % 20)
                got = await store.get(key, tenant="t", now_s=101)
                assert got is None or got.id == key.decode()
                if got is None:
                    await store.put(key, entry(key.decode()))
                calls += 1
                await asyncio.sleep(0)
            return calls

        tasks = [asyncio.create_task(load(n)) for n in range(8)]
        await comes_back(store, b"1")
        server.stop()
        await until(lambda: store.stats().failures >= 20)
        server.start()
        await comes_back(store, b"1")
        server.freeze()
        before = store.stats().failures
        await until(lambda: store.stats().failures >= before + 20)
        server.thaw()
        await comes_back(store, b"2")
        stop = True
        assert min(await asyncio.gather(*tasks)) > 0


async def test_a_dead_redis_is_not_waited_for_at_every_request(server: RedisServer) -> None:
    """After a few failures calls are refused at once; a frozen server costs its timeout only a few times."""
    async with replica(server.url, timeout_s=0.05, rest_s=3600) as store:
        server.freeze()
        for _ in range(500):
            assert not await is_stored(store)
        server.thaw()
        assert store._link.tried < 10
        assert store.stats().failures == 500


async def test_a_primary_that_became_a_replica_is_left(server: RedisServer, tmp_path: Path) -> None:
    """After a failover the name resolves to another server: entries stored afterwards are kept and found."""
    successor = RedisServer(tmp_path)
    successor.start()
    async with wire_to(server.port) as name, replica(f"redis://127.0.0.1:{name.port}/0") as store:
        try:
            await store.put(b"k", entry("a"))
            assert await is_stored(store)
            name.server_port = successor.port
            async with Redis.from_url(server.url) as old:
                await old.replicaof("127.0.0.1", successor.port)
                try:
                    await store.put(b"l", entry("b"))
                    await store.put(b"m", entry("c"))
                    assert await is_stored(store, b"m")
                finally:
                    await old.replicaof("NO", "ONE")
        finally:
            successor.stop()


async def test_a_server_that_speaks_nonsense_is_a_miss() -> None:
    """Whatever a foreign server on Redis's port answers, calls are misses and don't raise."""
    answers = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"*2\r\n$5\r\nab",
        b":1\r\n" * 50,
        b"*-1\r\n",
        b"\x00" * 99,
    ]
    for answer in answers:

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: bytes = answer) -> None:
            while await reader.read(4096):
                writer.write(said)
            writer.close()

        port = free_port()
        listening = await asyncio.start_server(speak, "127.0.0.1", port)
        async with replica(f"redis://127.0.0.1:{port}/0", timeout_s=0.1) as store:
            assert not await is_stored(store)
            await store.put(b"k", entry())
            assert not await store.delete("e1")
        listening.close()
        await listening.wait_closed()


def test_a_link_needs_a_reasonable_timeout() -> None:
    """A timeout of zero, or of an absurd length, is refused when the link is made."""
    for timeout_s in (0.0, -1.0, 60.0):
        with pytest.raises(ValueError, match="timeout_s"):
            RedisLink("redis://127.0.0.1:1/0", timeout_s=timeout_s)


async def test_replicas_ask_upstream_once(server: RedisServer) -> None:
    """Of identical requests on several replicas one calls upstream, and all get its answer."""
    async with replica(server.url) as one, replica(server.url) as other:
        asked = 0

        async def request(store: RedisStore, flight: Flight) -> str:
            nonlocal asked
            with flight.join(b"k") as ticket:
                got = await ticket.wait(30, lambda: store.get(b"k", tenant="t", now_s=101))
                if got is not None:
                    return got.id
                assert ticket.leader
                asked += 1
                await asyncio.sleep(0.02)
                made = entry(secrets.token_hex(4))
                await store.put(b"k", made)
                ticket.land(made)
                return made.id

        flights = [(s, Flight(RedisLease(s._link))) for s in (one, other)]
        ids = await asyncio.gather(*(request(s, f) for s, f in flights for _ in range(5)))
        assert asked == 1 and len(set(ids)) == 1


async def test_a_failed_leader_lets_another_replica_ask(server: RedisServer) -> None:
    """A lease is released on failure and after an answer that isn't shared, expires when its holder dies, and can be
    released by its holder only.
    """
    async with replica(server.url) as one:
        flight = Flight(RedisLease(one._link))
        with flight.join(b"own") as ticket:
            assert await ticket.wait(1, lambda: one.get(b"own", tenant="t", now_s=101)) is None
            ticket.land(None)
            await asyncio.gather(*flight._returns)
            assert await RedisLease(one._link).take(b"own")
        with flight.join(b"k") as ticket:
            assert await ticket.wait(1, lambda: one.get(b"k", tenant="t", now_s=101)) is None
            other = RedisLease(one._link)
            assert ticket.leader and not await other.take(b"k")
            await other.give_back(b"k")
            assert not await other.take(b"k")
        await asyncio.gather(*flight._returns)
        assert await other.take(b"k")
        brief = RedisLease(one._link, hold_s=0.001, prefix="brief:")
        assert await brief.take(b"k")
        await until(lambda: brief.take(b"k"))
        server.stop()
        assert await other.take(b"l")


async def test_a_request_cancelled_while_it_takes_the_lease_gives_it_back(server: RedisServer) -> None:
    """A client that leaves between the lease's command and its reply doesn't make other replicas wait for the lease's
    end.
    """
    async with replica(server.url) as one:
        flight, other = Flight(RedisLease(one._link)), RedisLease(one._link)
        assert not await is_stored(one)
        server.freeze()
        with flight.join(b"k") as ticket:
            waiting = asyncio.create_task(ticket.wait(30, lambda: one.get(b"k", tenant="t", now_s=101)))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        server.thaw()
        await asyncio.gather(*flight._returns)
        assert await other.take(b"k")
