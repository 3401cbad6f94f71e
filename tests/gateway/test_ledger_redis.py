"""Budgets shared through a real Redis."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from gateway import ledger_redis
from gateway.errors import OverBudget
from gateway.ledger import Account
from gateway.ledger_redis import RedisLedger

from .redis_server import RedisServer, redis_server  # noqa: F401

KEY = Account("key:a", 1000, "day")
TENANT = Account("tenant:t", 1500, "total")
FREE = Account("route:r", None, "month")


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:  # noqa: F811
    client: Redis = Redis.from_url(redis_server.url, socket_timeout=2)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def worker(redis: Redis, clock: Clock) -> RedisLedger:
    return RedisLedger(redis, clock=clock, timeout_s=2.0)


async def test_what_one_worker_holds_another_sees(redis: Redis, clock: Clock) -> None:
    """A budget is one budget, however many workers spend from it."""
    one, two = worker(redis, clock), worker(redis, clock)
    hold = await one.hold((KEY, TENANT), 700)
    with pytest.raises(OverBudget, match="key 'a'"):
        await two.hold((KEY, TENANT), 400)
    assert await two.balance(TENANT) == (0, 700)
    assert hold.settle(100) is True
    await one.flush()
    assert await two.balance(KEY) == (100, 0)
    await two.hold((KEY, TENANT), 900)
    assert await two.balance(TENANT) == (100, 900)


async def test_a_refusal_holds_nothing_anywhere(redis: Redis, clock: Clock) -> None:
    """Where the second account says no, the first isn't touched."""
    ledger = worker(redis, clock)
    with pytest.raises(OverBudget, match="tenant 't'"):
        await ledger.hold((FREE, TENANT), 1501)
    assert await ledger.balance(FREE) == (0, 0)
    assert ledger.outstanding == 0


async def test_settling_is_counted_once_however_often_it_is_sent(redis: Redis, clock: Clock) -> None:
    """A settlement whose answer was lost is sent again and changes nothing."""
    ledger = worker(redis, clock)
    hold = await ledger.hold((KEY,), 700)
    assert hold.settle(1200) and not hold.settle(1) and not hold.release()
    sent = list(ledger._queue)
    await ledger.flush()
    ledger._queue = sent
    await ledger.flush()
    assert await ledger.balance(KEY) == (1200, 0)
    assert ledger.overrun_nanousd == 500


async def test_shrinking_gives_back_at_once(redis: Redis, clock: Clock) -> None:
    """What a plan turns out not to need is free for others."""
    ledger = worker(redis, clock)
    hold = await ledger.hold((KEY,), 900)
    hold.shrink(200)
    await ledger.flush()
    assert await ledger.balance(KEY) == (0, 200)
    with pytest.raises(ValueError):
        hold.shrink(201)
    hold.release()
    await ledger.flush()
    assert await ledger.balance(KEY) == (0, 0)


async def test_a_dead_workers_holds_lapse_and_a_living_ones_are_renewed(redis: Redis, clock: Clock) -> None:
    """A crash doesn't eat the budget; a long stream doesn't lose its hold."""
    dead, alive = worker(redis, clock), worker(redis, clock)
    await dead.hold((TENANT,), 1000)
    await alive.hold((TENANT,), 100)
    clock.now += 100
    await alive.renew()
    clock.now += 21
    await alive.hold((TENANT,), 1400)
    assert await alive.balance(TENANT) == (0, 1500)


async def test_a_settlement_after_its_lease_still_counts(redis: Redis, clock: Clock) -> None:
    """Money spent by a hold that lapsed is spent all the same, and is given back only once."""
    slow, other = worker(redis, clock), worker(redis, clock)
    hold = await slow.hold((TENANT,), 1000)
    clock.now += 121
    await other.hold((TENANT,), 10)
    hold.settle(600)
    await slow.flush()
    assert await other.balance(TENANT) == (600, 10)


async def test_a_new_day_begins_with_nothing_spent(redis: Redis, clock: Clock) -> None:
    """Periods roll; what is held stays held."""
    ledger = worker(redis, clock)
    (await ledger.hold((KEY,), 900)).settle(900)
    running = await ledger.hold((KEY,), 100)
    await ledger.flush()
    clock.now += 86_400
    await ledger.renew()
    await ledger.hold((KEY,), 850)
    assert await ledger.balance(KEY) == (0, 950)
    running.settle(100)
    await ledger.flush()
    assert await ledger.balance(KEY) == (100, 850)


async def test_concurrent_workers_never_pass_the_limit(redis: Redis, clock: Clock) -> None:
    """However requests interleave, no more is held than the budget, and at rest held is zero."""
    workers = [worker(redis, clock) for _ in range(3)]
    rng = random.Random(5)
    spent = 0

    async def request(ledger: RedisLedger) -> None:
        nonlocal spent
        amount = rng.randrange(1, 400)
        try:
            hold = await ledger.hold((KEY, TENANT, FREE), amount)
        except OverBudget:
            return
        await asyncio.sleep(0)
        cost = rng.randrange(0, amount + 1)
        spent += cost
        hold.settle(cost)
        await ledger.flush()

    for _ in range(5):
        await asyncio.gather(*(request(ledger) for ledger in workers for _ in range(6)))
        for ledger in workers:
            await ledger.flush()
    assert await workers[0].balance(KEY) == (spent, 0)
    assert spent <= 1000
    assert sum(ledger.outstanding for ledger in workers) == 0


async def test_while_redis_is_away_budgets_go_on_and_nothing_spent_is_lost(
    redis_server: RedisServer,  # noqa: F811
    redis: Redis,
    clock: Clock,
) -> None:
    """Serving goes on by what the worker knew, within the limit; the spending arrives when Redis is back."""
    ledger = worker(redis, clock)
    (await ledger.hold((KEY,), 600)).settle(600)
    await ledger.flush()
    redis_server.stop()
    hold = await ledger.hold((KEY,), 300)
    assert ledger.is_away
    assert hold.settle(250)
    with pytest.raises(OverBudget):
        await ledger.hold((KEY,), 900)
    redis_server.start()
    await ledger.seed((KEY,), {"key:a": 600})
    await ledger.flush()
    assert await ledger.balance(KEY) == (850, 0)
    assert ledger.queued == 0


async def test_a_long_outage_keeps_sums_instead_of_requests(
    redis: Redis, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded, and what it sums up arrives whole."""
    monkeypatch.setattr(ledger_redis, "MAX_QUEUED", 100)
    ledger = worker(redis, clock)
    for _ in range(500):
        ledger._enqueue_settle(ledger.new_id(), (KEY, FREE), 3)
        assert ledger.queued <= 101
    await ledger.flush()
    assert await ledger.balance(KEY) == (1500, 0)
    assert await ledger.balance(FREE) == (1500, 0)


async def test_scripts_run_where_digests_are_unknown(redis: Redis, clock: Clock) -> None:
    """After SCRIPT FLUSH (or behind a proxy without SCRIPT) the text itself is sent."""
    ledger = worker(redis, clock)
    await redis.script_flush()
    hold = await ledger.hold((KEY,), 10)
    await redis.script_flush()
    hold.settle(4)
    await ledger.flush()
    assert await ledger.balance(KEY) == (4, 0)


async def test_the_runner_sends_by_itself(redis: Redis, clock: Clock) -> None:
    """A settlement reaches Redis without anybody waiting for it."""
    ledger = worker(redis, clock)
    runner = asyncio.create_task(ledger.run())
    hold = await ledger.hold((KEY,), 10)
    hold.settle(7)
    async with asyncio.timeout(10):
        while await ledger.balance(KEY) != (7, 0):
            await asyncio.sleep(0)
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    await ledger.close()
