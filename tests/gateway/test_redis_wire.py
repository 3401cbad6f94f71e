"""One connection to Redis for a whole worker: answers in order and in time, and a pause after failures."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop

from gateway import redis_wire
from gateway.redis_wire import RedisAway, RedisRefused, RedisWire, Script
from tests.chaos.wire import wire_to
from tests.gateway.redis_server import RedisServer
from tests.until import PATIENCE_S


@pytest.fixture
async def wire(redis_server: RedisServer) -> AsyncIterator[RedisWire]:
    made = RedisWire(redis_server.url, timeout_s=PATIENCE_S)
    await made.ask("FLUSHALL")
    yield made
    await made.close()


async def test_answers_go_to_those_who_asked(wire: RedisWire) -> None:
    """Of hundreds of concurrent commands on one connection, some cancelled, each gets its own answer."""
    await asyncio.gather(*(wire.ask("SET", f"k{n}", n) for n in range(300)))
    asking = [asyncio.create_task(wire.ask("GET", f"k{n}")) for n in range(300)]
    await asyncio.sleep(0)
    for task in asking[::7]:
        task.cancel()
    found = await asyncio.gather(*asking, return_exceptions=True)
    for n, answer in enumerate(found):
        assert isinstance(answer, asyncio.CancelledError) if n % 7 == 0 else answer == str(n).encode()
    clients = await wire.ask("CLIENT", "LIST")
    assert clients.count(b"\n") == 1


async def test_an_error_of_redis_is_no_outage(wire: RedisWire) -> None:
    """An error answer is raised to its caller, and the connection serves on."""
    await wire.ask("SET", "text", "abc")
    with pytest.raises(RedisRefused, match="not an integer"):
        await wire.ask("INCR", "text")
    assert not wire.is_away and await wire.ask("GET", "text") == b"abc"


async def test_scripts_run_by_digest_or_text(wire: RedisWire) -> None:
    """Scripts that Redis doesn't know, at first and after a flush, run one at a time and many in one write."""
    script = Script("return {KEYS[1], ARGV[1]}")
    assert await wire.run(script, ["k"], [1]) == [b"k", b"1"]
    await wire.ask("SCRIPT", "FLUSH")
    assert await wire.run_all([(script, ["a"], [1]), (script, ["b"], [2])]) == [[b"a", b"1"], [b"b", b"2"]]
    with pytest.raises(RedisRefused):
        await wire.run_all([(Script("return redis.call('INCR', 'x', 'y', 'z')"), [], [])])


async def test_a_redis_that_stands_still_costs_its_timeout_a_few_times(
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a few timeouts commands fail at once, except one now and then, until Redis answers again."""
    monkeypatch.setattr(redis_wire, "REST_S", 0.2)
    wire = RedisWire(redis_server.url, timeout_s=0.1)
    await answers(wire)
    redis_server.freeze()
    try:
        for _ in range(redis_wire.PATIENCE):
            with pytest.raises(RedisAway):
                await wire.ask("PING")
        began_s = time.process_time()
        for _ in range(200):
            with pytest.raises(RedisAway):
                await wire.ask("PING")
            if time.process_time() - began_s > 1:
                break
        assert wire.is_away
    finally:
        redis_server.thaw()
    await answers(wire)
    assert not wire.is_away
    await wire.close()


async def answers(wire: RedisWire) -> None:
    """Wait until Redis answers again."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                assert await wire.ask("PING") == b"PONG"
                return
            except RedisAway:
                await asyncio.sleep(0.02)


async def test_it_connects_again_by_itself(redis_server: RedisServer, wire: RedisWire) -> None:
    """After a restart or a cut connection, at most one command fails."""
    redis_server.stop()
    with pytest.raises(RedisAway):
        await wire.ask("PING")
    redis_server.start()
    assert await wire.ask("PING") == b"PONG"
    await wire.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
    try:
        await wire.ask("PING")
    except RedisAway:
        pass
    assert await wire.ask("PING") == b"PONG"


async def test_passwords_and_databases(redis_server: RedisServer, wire: RedisWire) -> None:
    """The URL's password and database are used before the first command; a wrong one counts as away."""
    await wire.ask("CONFIG", "SET", "requirepass", "se:cret")
    try:
        base = redis_server.url.removesuffix("/0")
        known = RedisWire(base.replace("//", "//:se%3Acret@") + "/3", timeout_s=PATIENCE_S)
        await known.ask("SET", "k", "v")
        assert b"db=3" in await known.ask("CLIENT", "INFO")
        await known.close()
        stranger = RedisWire(base.replace("//", "//:wrong@"), timeout_s=PATIENCE_S)
        with pytest.raises((RedisAway, RedisRefused)):
            await stranger.ask("PING")
        await stranger.close()
    finally:
        await wire.ask("CONFIG", "SET", "requirepass", "")


@pytest.mark.parametrize("changed", [("//", "//:wrong@"), ("/0", "/99")])
async def test_a_redis_that_lets_nobody_in_keeps_no_connection(
    redis_server: RedisServer,
    wire: RedisWire,
    changed: tuple[str, str],
) -> None:
    """A refused login closes its connection and is not tried at every command; otherwise connections and files would
    run out.
    """
    stranger = RedisWire(redis_server.url.replace(*changed), timeout_s=PATIENCE_S)
    for _ in range(20):
        with pytest.raises(RedisAway):
            await stranger.ask("PING")
    assert stranger.is_away
    async with asyncio.timeout(PATIENCE_S):
        while (await wire.ask("CLIENT", "LIST")).count(b"\n") > 1:
            await asyncio.sleep(0.01)
    await stranger.close()


@pytest.mark.parametrize("in_batches", [False, True])
async def test_a_primary_that_became_a_replica_is_left(
    redis_server: RedisServer,
    tmp_path: Path,
    in_batches: bool,
) -> None:
    """After a failover the next command connects anew, because the name may lead to another server."""
    script = Script("return redis.call('SET', KEYS[1], ARGV[1])")
    successor = RedisServer(tmp_path)
    successor.start()
    async with wire_to(redis_server.port) as name:
        wire = RedisWire(f"redis://127.0.0.1:{name.port}/0", timeout_s=PATIENCE_S)
        old = RedisWire(redis_server.url, timeout_s=PATIENCE_S)

        async def write() -> None:
            await (wire.run_all([(script, ["k"], ["v"])] * 3) if in_batches else wire.run(script, ["k"], ["v"]))

        try:
            await write()
            name.server_port = successor.port
            await old.ask("REPLICAOF", "127.0.0.1", successor.port)
            with pytest.raises(RedisRefused, match="READONLY"):
                await write()
            await write()
            assert f"tcp_port:{successor.port}".encode() in await wire.ask("INFO", "server")
        finally:
            await old.ask("REPLICAOF", "NO", "ONE")
            await wire.close()
            await old.close()
            successor.stop()


def test_an_answer_unread_by_a_loop_that_was_held_up_is_in_time(redis_server: RedisServer) -> None:
    """An answer that arrived while the event loop was blocked is in time. (uvloop calls timers before it reads.)"""

    async def ask_and_be_held_up() -> object:
        wire, loop = RedisWire(redis_server.url, timeout_s=0.2), asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        def hold_up() -> None:
            loop.remove_reader(ours)
            time.sleep(0.5)

        try:
            await wire.ask("PING")
            asking = asyncio.create_task(wire.ask("BLPOP", "nothing", 0.1))  # answered while nobody reads
            await asyncio.sleep(0.01)  # by now it is sent
            loop.add_reader(ours, hold_up)
            theirs.send(b"x")
            return await asking
        finally:
            await wire.close()
            ours.close()
            theirs.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask_and_be_held_up()) is None
