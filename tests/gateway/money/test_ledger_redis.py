"""Budgets and rate limits shared through a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.errors import BudgetsAway, OverBudget, PolicyError, RateLimited
from gateway.money import ledger_outbox, ledger_redis
from gateway.money.ledger import Account
from gateway.money.ledger_offline import QUIET_AT_ONCE
from gateway.money.ledger_redis import PREFIX, RIGHTED, RedisLedger, raising
from gateway.money.ledger_scripts import RAISE
from gateway.money.limits import Limit
from gateway.money.limits_shared import SharedLimits, SharedTaken
from gateway.redis_wire import RedisAway, RedisWire
from tests.gateway.redis_server import RedisServer
from tests.until import PATIENCE_S, until

Make = Callable[..., RedisLedger]
KEY = Account("key:a", 1000, "day")
TENANT = Account("tenant:t", 1500, "total")
FREE = Account("route:r", None, "month")


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Journal:
    """Reads past spending as the journal does; raises an error while it is away."""

    def __init__(self, spent: dict[str, int], *, is_away: bool) -> None:
        self.spent = spent
        self.is_away = is_away

    def __call__(self) -> tuple[dict[str, int], set[Account]]:
        if self.is_away:
            raise OSError("the database is away")
        return self.spent, {KEY}


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client: Redis = Redis.from_url(redis_server.url, socket_timeout=PATIENCE_S)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def worker(redis: Redis, redis_server: RedisServer) -> AsyncIterator[Callable[..., RedisLedger]]:
    """Makes ledgers, each as that of a separate worker."""
    made: list[RedisLedger] = []

    def make(clock: Clock | None = None, **settings: Any) -> RedisLedger:
        settings = {"settle_down_s": 0, **settings}
        made.append(RedisLedger(RedisWire(redis_server.url, timeout_s=PATIENCE_S), clock=clock, **settings))
        return made[-1]

    yield make
    await asyncio.gather(*(ledger.close() for ledger in made))


async def test_what_one_worker_holds_another_sees(worker: Make, clock: Clock) -> None:
    """A budget is shared by all workers that spend from it."""
    one, two = worker(clock), worker(clock)
    hold = await one.hold((KEY, TENANT), 700)
    with pytest.raises(OverBudget, match="key 'a'"):
        await two.hold((KEY, TENANT), 400)
    assert await two.balance(TENANT) == (0, 700)
    assert hold.settle(100) is True
    await one.flush()
    assert await two.balance(KEY) == (100, 0)
    await two.hold((KEY, TENANT), 900)
    assert await two.balance(TENANT) == (100, 900)


async def test_a_refusal_holds_nothing_anywhere(worker: Make, clock: Clock) -> None:
    """Where the second account refuses, nothing is held in the first."""
    ledger = worker(clock)
    with pytest.raises(OverBudget, match="tenant 't'"):
        await ledger.hold((FREE, TENANT), 1501)
    assert await ledger.balance(FREE) == (0, 0)
    assert ledger.outstanding == 0


async def test_settling_is_counted_once_however_often_it_is_sent(worker: Make, clock: Clock) -> None:
    """A settlement whose answer was lost is sent again and changes nothing."""
    ledger = worker(clock)
    hold = await ledger.hold((KEY,), 700)
    assert hold.settle(1200) and not hold.settle(1) and not hold.settle(0)
    outbox = ledger._outbox
    sent = list(outbox.settlements)
    await ledger.flush()
    outbox.settlements = sent
    await ledger.flush()
    assert await ledger.balance(KEY) == (1200, 0)
    assert ledger.overrun_nanousd == 500


async def test_shrinking_gives_back_at_once(worker: Make, clock: Clock) -> None:
    """What a shrunk hold gives back can be held by others at once."""
    ledger = worker(clock)
    hold = await ledger.hold((KEY,), 900)
    hold.shrink(200)
    await ledger.flush()
    assert await ledger.balance(KEY) == (0, 200)
    with pytest.raises(ValueError):
        hold.shrink(201)
    hold.settle(0)
    await ledger.flush()
    assert await ledger.balance(KEY) == (0, 0)


async def test_a_dead_workers_holds_lapse_and_a_living_ones_are_renewed(worker: Make, clock: Clock) -> None:
    """A crash doesn't use up the budget, and a long stream doesn't lose its hold."""
    dead, alive = worker(clock), worker(clock)
    await dead.hold((TENANT,), 1000)
    await alive.hold((TENANT,), 100)
    clock.now += 100
    await alive.renew()
    clock.now += 21
    await alive.hold((TENANT,), 1400)
    assert await alive.balance(TENANT) == (0, 1500)


async def test_a_settlement_after_its_lease_still_counts(worker: Make, clock: Clock) -> None:
    """Money spent by a hold that has lapsed is booked all the same, and its hold is given back only once."""
    slow, other = worker(clock), worker(clock)
    hold = await slow.hold((TENANT,), 1000)
    clock.now += 121
    await other.hold((TENANT,), 10)
    hold.settle(600)
    await slow.flush()
    assert await other.balance(TENANT) == (600, 10)


async def test_a_new_day_begins_with_nothing_spent(worker: Make, clock: Clock) -> None:
    """A new period begins with nothing spent, and what is held stays held."""
    ledger = worker(clock)
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


async def test_a_clock_that_jumps_ahead_and_back_gives_no_budget_twice(worker: Make, clock: Clock) -> None:
    """The next day's budget, which was given too early, is the only one until that day's end."""
    ledger = worker(clock)
    for step_s, spent in ((0, 1000), (86_400, 600), (-86_400, 0), (86_400, 0)):
        clock.now += step_s
        (await ledger.hold((KEY,), spent)).settle(spent)
        await ledger.flush()
    assert await ledger.balance(KEY) == (600, 0)
    with pytest.raises(OverBudget):
        await ledger.hold((KEY,), 401)
    clock.now += 86_400
    assert (await ledger.hold((KEY,), 1000)).nanousd == 1000


async def test_concurrent_workers_never_pass_the_limit(worker: Make, clock: Clock) -> None:
    """However requests interleave, no more is held than the budget, and at rest held is zero."""
    workers = [worker(clock) for _ in range(3)]
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
    redis_server: RedisServer,
    worker: Make,
    clock: Clock,
) -> None:
    """Requests are served within what the worker knew of the budget, and the spending is booked when Redis is back."""
    ledger = worker(clock)
    (await ledger.hold((KEY,), 600)).settle(600)
    await ledger.flush()
    redis_server.stop()
    hold = await ledger.hold((KEY,), 300)
    assert ledger.is_away
    hold.shrink(270)
    assert hold.settle(250)
    (await ledger.hold((KEY,), 150)).settle(0)
    with pytest.raises(OverBudget):
        await ledger.hold((KEY,), 151)
    redis_server.start()
    await ledger.come_back()
    assert not ledger.is_away
    assert await ledger.balance(KEY) == (850, 0)
    assert ledger.queued == 0


@pytest.mark.parametrize("is_told", [False, True])
async def test_what_redis_may_not_know_yet_counts_while_it_is_away(
    redis_server: RedisServer, worker: Make, clock: Clock, is_told: bool
) -> None:
    """What is still held, and what was spent just before the outage, count once each."""
    ledger = worker(clock)
    await ledger.hold((KEY,), 200)
    for hold in [await ledger.hold((KEY,), 300) for _ in range(2)]:
        assert hold.settle(250) and not hold.settle(250)
    if is_told:
        await ledger.flush()
    redis_server.stop()
    with pytest.raises(OverBudget) as refused:
        await ledger.hold((KEY,), 301)
    assert refused.value.retry_after_s == 1.0
    await ledger.hold((KEY,), 300)
    with pytest.raises(OverBudget) as refused:
        await ledger.hold((KEY,), 501)
    assert refused.value.retry_after_s is None
    redis_server.start()


async def test_while_redis_is_away_days_go_by_as_ever(redis_server: RedisServer, worker: Make, clock: Clock) -> None:
    """Today's spending counts today and not tomorrow."""
    ledger = worker(clock)
    for spent in (900, 600):
        (await ledger.hold((KEY,), spent)).settle(spent)
        await ledger.flush()
        clock.now += 86_400
    clock.now -= 86_400
    redis_server.stop()
    with pytest.raises(OverBudget):
        await ledger.hold((KEY,), 401)
    clock.now += 86_400
    await ledger.hold((KEY,), 1000)
    with pytest.raises(OverBudget):
        await ledger.hold((KEY,), 1)
    redis_server.start()


async def test_a_long_outage_keeps_sums_instead_of_requests(
    worker: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue of settlements is bounded, and the sums that replace them arrive whole."""
    monkeypatch.setattr(ledger_outbox, "MAX_QUEUED", 100)
    ledger = worker(clock)
    for _ in range(500):
        ledger._outbox.settle(ledger.new_id(), (KEY, FREE), 3)
        assert ledger.queued <= 101
    await ledger.flush()
    assert await ledger.balance(KEY) == (1500, 0)
    assert await ledger.balance(FREE) == (1500, 0)


async def test_scripts_run_where_digests_are_unknown(redis: Redis, worker: Make, clock: Clock) -> None:
    """After SCRIPT FLUSH (or behind a proxy without SCRIPT) the text itself is sent."""
    ledger = worker(clock)
    await redis.script_flush()
    hold = await ledger.hold((KEY,), 10)
    await redis.script_flush()
    hold.settle(4)
    await ledger.flush()
    assert await ledger.balance(KEY) == (4, 0)


async def test_the_runner_sends_by_itself(worker: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller hold and a settlement reach Redis in the background, before the next pulse."""
    monkeypatch.setattr(ledger_redis, "PULSE_S", 1e9)
    ledger = worker(clock)
    runner = asyncio.create_task(ledger.run())
    hold = await ledger.hold((KEY,), 10)
    for act, balance in ((hold.shrink, (0, 7)), (hold.settle, (7, 0))):
        act(7)
        async with asyncio.timeout(PATIENCE_S):
            while await ledger.balance(KEY) != balance:
                await asyncio.sleep(0)
    runner.cancel()
    await asyncio.gather(runner, return_exceptions=True)
    await ledger.close()


async def test_a_worker_that_ends_sends_what_is_left(worker: Make, clock: Clock) -> None:
    """Closing a ledger sends the queued settlements, which no other process knows."""
    ledger = worker(clock)
    (await ledger.hold((KEY,), 10)).settle(7)
    await ledger.close()
    assert await worker(clock).balance(KEY) == (7, 0)


async def test_a_redis_that_lost_its_data_is_told_before_anything_is_held(
    redis: Redis, worker: Make, clock: Clock
) -> None:
    """Spent and held amounts are restored first, and a hold that the emptied Redis had granted is not kept."""
    one, two = worker(clock), worker(clock)
    (await one.hold((KEY,), 600)).settle(600)
    await one.flush()
    running = await one.hold((KEY,), 300)
    await two.hold((KEY,), 50)
    await redis.flushall()
    with pytest.raises(OverBudget):
        await one.hold((KEY,), 200)
    assert await one.balance(KEY) == (600, 300)
    await two.renew()
    assert await two.balance(KEY) == (600, 350)
    running.settle(100)
    await one.flush()
    assert await two.balance(KEY) == (700, 50)


@pytest.mark.parametrize("knew_redis", [True, False])
async def test_what_the_dead_had_spent_the_journal_tells(
    redis: Redis, worker: Make, clock: Clock, knew_redis: bool
) -> None:
    """Spending of ended workers is read from the journal: until it answers, nothing is held of a budget; then all
    counts once.
    """
    dead, left = worker(clock), worker(clock, when_away="refuse")
    (await dead.hold((KEY,), 700)).settle(700)
    await dead.flush()
    if knew_redis:
        left.restore({}, {KEY})
        await left.renew()
    journal = Journal({KEY.id: 800}, is_away=True)
    left.recall = journal
    await redis.flushall()
    with pytest.raises(BudgetsAway, match="can't be checked"):
        await left.hold((KEY,), 100)
    (await left.hold((FREE,), 100)).settle(0)
    left._outbox.settle(left.new_id(), (KEY,), 100)
    with pytest.raises(RedisAway):
        await left.come_back()
    journal.is_away = False
    await left.come_back()
    assert await left.balance(KEY) == (800, 0)
    with pytest.raises(OverBudget):
        await left.hold((KEY,), 300)
    (await left.hold((KEY,), 200)).settle(0)


async def test_a_redis_that_was_told_already_needs_no_journal(redis: Redis, worker: Make, clock: Clock) -> None:
    """A worker that starts while the database is away uses a Redis that the control process has restored."""
    await worker(clock).renew()
    await redis.hset(PREFIX + "born", RIGHTED, "1")
    fresh = worker(clock, when_away="refuse")
    fresh.recall = Journal({}, is_away=True)
    (await fresh.hold((KEY,), 300)).settle(0)
    assert not fresh.is_away


async def test_a_failover_that_lost_the_last_writes_forgets_nothing_held(
    redis: Redis, worker: Make, clock: Clock
) -> None:
    """When a replica that lacks the last writes takes over with the same epoch, holds count again from the next renewal
    on, and spending when the control process restores it.
    """
    one, two = worker(clock), worker(clock)
    (await one.hold((KEY,), 100)).settle(100)
    await one.flush()
    await two.renew()
    behind = {key: await redis.dump(key) for key in await redis.keys("*")}
    running, done = await one.hold((KEY,), 300), await one.hold((KEY,), 250)
    done.settle(250)
    await one.flush()
    assert await two.balance(KEY) == (350, 300)
    await redis.flushall()
    for key, value in behind.items():
        await redis.restore(key, 0, value or b"")
    assert await two.balance(KEY) == (100, 0)
    for _ in range(2):
        await one.renew()
        assert await two.balance(KEY) == (100, 300)
    keys, words = raising([KEY], {KEY.id: 350}, clock())
    assert await redis.eval(RAISE.text, len(keys), *keys, *map(str, words)) == 1
    running.settle(200)
    await one.flush()
    await one.renew()
    assert await two.balance(KEY) == (550, 0)


async def test_nothing_is_held_while_a_new_redis_is_being_told(redis: Redis, worker: Make) -> None:
    """After a loss every worker has a moment to send what it knows, also one without requests."""
    busy, idle = worker(settle_down_s=0.4), worker(settle_down_s=0.4)
    (await idle.hold((TENANT,), 1400)).settle(1400)
    await idle.flush()
    await busy.renew()
    await redis.flushall()
    late = asyncio.create_task(busy.hold((TENANT,), 200))
    await asyncio.sleep(0)
    await idle.renew()
    with pytest.raises(OverBudget):
        await late
    assert await busy.balance(TENANT) == (1400, 0)


async def test_a_clock_that_runs_ahead_begins_no_period_for_the_others(worker: Make) -> None:
    """Redis' clock decides whether a day has begun, so a wrong clock can't renew a spent budget."""
    right = worker()
    (await right.hold((KEY,), 1000)).settle(1000)
    await right.flush()
    ahead = worker()
    ahead._clock = lambda: time.time() + 86_400
    for ledger in (ahead, right):
        with pytest.raises(OverBudget):
            await ledger.hold((KEY,), 1)


@pytest.mark.parametrize(("count", "most"), [(1, 1400), (2, 650), (3, 600)])
async def test_shares_of_all_workers_stay_within_the_budget(
    redis_server: RedisServer, worker: Make, clock: Clock, count: int, most: int
) -> None:
    """While Redis is away all workers together hold at most half of what was left; a single worker may hold all of it.
    """
    ledgers = [worker(clock) for _ in range(count)]
    for ledger in ledgers:
        (await ledger.hold((TENANT,), 100)).settle(100)
        await ledger.flush()
    for ledger in [*ledgers, *ledgers]:
        await ledger.renew()
    assert [ledger.workers for ledger in ledgers] == [count] * count
    redis_server.stop()
    given = 0
    for ledger in ledgers:
        with pytest.raises(OverBudget, match=f"each of {count} workers has a share" if count > 1 else "may cost"):
            while True:
                (await ledger.hold((TENANT,), 40)).settle(40)
                given += 40
    redis_server.start()
    assert most - 40 * count < given <= most
    for ledger in ledgers:
        await ledger.come_back()
    assert await ledgers[0].balance(TENANT) == (100 * count + given, 0)


async def test_every_account_is_looked_after_in_its_turn(worker: Make, clock: Clock) -> None:
    """Those that requests asked for lately at every pulse, of thousands of others some; so a quiet worker knows what a
    busy one has spent.
    """
    one, two = worker(clock), worker(clock)
    accounts = [Account(f"key:{n}", 1000, "total") for n in range(2 * QUIET_AT_ONCE + 100)]
    two.restore({}, accounts)
    await two.renew()
    (await two.hold((KEY,), 10)).settle(0)
    clock.now += 60.0
    looked_at = [two._offline.due() for _ in range(3)]
    assert [KEY in found for found in looked_at] == [True] * 3
    assert [len(found) for found in looked_at] == [QUIET_AT_ONCE + 1, QUIET_AT_ONCE + 1, 101]
    for account in (KEY, accounts[-1]):
        (await one.hold((account,), 700)).settle(700)
    await one.flush()
    clock.now += 1800.0
    for _ in range(3):
        await two.renew()
    assert {two._offline.spent[account.id] for account in (KEY, accounts[-1])} == {700}


async def test_a_worker_that_fell_silent_has_no_share(worker: Make, clock: Clock) -> None:
    """A worker without a pulse doesn't count for the shares until it sends one again."""
    one, two = worker(clock), worker(clock)
    counts = []
    for ledger, passed_s in ((one, 0.0), (two, 6.0), (one, 1.0), (two, 0.0)):
        await ledger.renew()
        counts.append(ledger.workers)
        clock.now += passed_s
    assert counts == [1, 2, 1, 2]


async def test_where_told_to_a_budget_is_refused_while_redis_is_away(
    redis_server: RedisServer,
    worker: Make,
) -> None:
    """With `redis_away = "refuse"` callers with a budget get 503, and all others are served."""
    ledger = worker(when_away="refuse")
    redis_server.stop()
    with pytest.raises(PolicyError) as refused:
        await ledger.hold((KEY,), 1)
    assert refused.value.status == 503
    (await ledger.hold((FREE,), 5)).settle(5)
    redis_server.start()
    await ledger.come_back()
    assert await ledger.balance(FREE) == (5, 0)


# Rate limits

RPM = Limit("key:a", rpm=10)
TPM = Limit("route:r", rpm=5000, tpm=1000)


async def take(ledger: RedisLedger, limits: SharedLimits, tokens: int = 0, now: float = 0.0) -> SharedTaken:
    taken = limits.take((RPM, TPM), tokens, now)
    await ledger.hold((KEY,), 0, taken)
    assert isinstance(taken, SharedTaken)
    return taken


async def test_a_limit_is_one_limit_for_all_workers(worker: Make, clock: Clock) -> None:
    """Ten requests a minute pass in total, by whichever worker; the eleventh gets a retry-after."""
    pairs = [(ledger, SharedLimits(ledger)) for ledger in (worker(clock), worker(clock))]
    for n in range(10):
        await take(*pairs[n % 2])
    for ledger, limits in pairs:
        with pytest.raises(RateLimited) as refused:
            await take(ledger, limits)
        assert refused.value.retry_after_s == pytest.approx(6.0)
    clock.now += 6.1
    await take(*pairs[0], now=6.1)
    with pytest.raises(RateLimited):
        await take(*pairs[1], now=6.1)


async def test_corrections_reach_every_worker(worker: Make, clock: Clock) -> None:
    """Tokens that were estimated too high are given back to all workers, and the headers have Redis' levels."""
    one, two = worker(clock), worker(clock)
    first, second = SharedLimits(one), SharedLimits(two)
    taken = await take(one, first, 800)
    assert dict(taken.headers(0.0))[b"x-ratelimit-remaining-tokens"] == b"200"
    with pytest.raises(RateLimited):
        await take(two, second, 800)
    taken.correct(100, 0.0)
    taken.correct(0, 0.0)
    await one.flush()
    again = await take(two, second, 800, now=1.0)
    left = dict(again.headers(1.0))
    assert (left[b"x-ratelimit-remaining-requests"], left[b"x-ratelimit-remaining-tokens"]) == (b"8", b"100")


async def test_a_request_larger_than_a_minute_leaves_a_debt(redis: Redis, worker: Make, clock: Clock) -> None:
    """It passes a full bucket, and Redis keeps the debt until it is paid; a refused request changes nothing."""
    ledger = worker(clock)
    await take(ledger, SharedLimits(ledger), 3000)
    for _ in range(2):
        taken = SharedLimits(ledger).take((RPM, TPM), 1, 0.0)
        with pytest.raises(RateLimited) as refused:
            await ledger.hold((KEY,), 0, taken)
        assert refused.value.retry_after_s == pytest.approx(120.06)
        taken.correct(0, 0.0)
        await ledger.flush()
    assert await redis.pttl(f"{PREFIX}bucket:{TPM.id}") > 180_000


async def test_what_a_budget_refuses_takes_no_limit(worker: Make, clock: Clock) -> None:
    """Money and limits are taken in one step, or neither is."""
    ledger = worker(clock)
    limits = SharedLimits(ledger)
    taken = limits.take((RPM, TPM), 10, 0.0)
    with pytest.raises(OverBudget):
        await ledger.hold((KEY,), 1001, taken)
    taken.correct(0, 0.0)
    await ledger.flush()
    left = dict((await take(ledger, limits)).headers(0.0))
    assert (left[b"x-ratelimit-remaining-requests"], left[b"x-ratelimit-remaining-tokens"]) == (b"9", b"1000")


async def test_a_refusal_is_not_asked_for_again_at_once(redis: Redis, worker: Make, clock: Clock) -> None:
    """Repeated requests beyond the limit are refused without asking Redis each time."""
    ledger = worker(clock)
    limits = SharedLimits(ledger)
    for _ in range(10):
        await take(ledger, limits)
    with pytest.raises(RateLimited):
        await take(ledger, limits)
    before = (await redis.info("stats"))["total_commands_processed"]
    for _ in range(100):
        with pytest.raises(RateLimited):
            await take(ledger, limits)
    assert (await redis.info("stats"))["total_commands_processed"] - before <= 2


@pytest.mark.parametrize(("tokens", "each"), [(0, 5), (250, 2)])
async def test_while_redis_is_away_limits_are_shared_out(
    redis_server: RedisServer, worker: Make, clock: Clock, tokens: int, each: int
) -> None:
    """Two workers have half of the limit each while Redis is away, and share the whole once it is back."""
    ledgers = [worker(clock), worker(clock)]
    for ledger in [*ledgers, *ledgers]:
        await ledger.renew()
    redis_server.stop()
    for ledger in ledgers:
        limits, passed = SharedLimits(ledger), 0
        with pytest.raises(RateLimited):
            while True:
                await take(ledger, limits, tokens)
                passed += 1
        assert passed == each
    redis_server.start()
    await ledgers[0].come_back()
    for _ in range(10):
        await take(ledgers[0], SharedLimits(ledgers[0]))


async def spoil(redis: Redis, name: str, how: str) -> None:
    """Put something else at a key of the ledger."""
    key = PREFIX + name
    match how:
        case "string":
            await redis.set(key, "spoilt")
        case "list":
            await redis.delete(key)
            await redis.rpush(key, "spoilt")
        case "field":
            await redis.hset(key, "spent", "nan")


@pytest.mark.parametrize("how", ["string", "list", "field"])
async def test_a_spoilt_budget_is_nobody_elses_trouble(
    redis: Redis, worker: Make, clock: Clock, how: str, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Only its own callers are refused, and the journal restores it with the right amount."""
    monkeypatch.setattr(ledger_redis, "PULSE_S", 0.02)
    ledger = worker(clock, when_away="refuse")
    runner = asyncio.create_task(ledger.run())
    other = Account("tenant:sound", 1000, "day")
    under_way = await ledger.hold([KEY, other], 10)
    (await ledger.hold([KEY], 20)).settle(20)
    await until(lambda: not ledger.queued)
    await spoil(redis, KEY.id, how)
    for _ in range(3):
        with pytest.raises(BudgetsAway):
            await ledger.hold([other, KEY], 1)
        (await ledger.hold([other], 1)).settle(1)
    under_way.settle(5)
    await until(lambda: not ledger.queued)
    assert await ledger.balance(other) == (8, 0)
    await asyncio.sleep(10 * ledger_redis.PULSE_S)
    assert not ledger.is_away and list(ledger.spoilt) == [KEY.id] and not runner.done()
    assert [r.message for r in caplog.records if KEY.id in r.message] != []

    keys, words = raising([KEY], {KEY.id: 25}, clock(), clock())
    assert await redis.eval(RAISE.text, len(keys), *keys, *map(str, words)) == 2
    await until(lambda: not ledger.spoilt)
    assert await ledger.balance(KEY) == (25, 0)
    with pytest.raises(OverBudget):
        await ledger.hold([KEY, other], 976)
    (await ledger.hold([KEY, other], 975)).settle(0)
    await until(lambda: not ledger.queued)
    assert (await ledger.balance(KEY), await ledger.balance(other)) == ((25, 0), (8, 0))
    runner.cancel()


@pytest.mark.parametrize("name", ["leases", "workers", "born"])
async def test_what_all_budgets_need_is_made_anew(
    redis: Redis, worker: Make, clock: Clock, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where something else is at one of the ledger's own keys, budgets are away for a moment, and nothing is forgotten.
    """
    monkeypatch.setattr(ledger_redis, "PULSE_S", 0.02)
    ledger = worker(clock, when_away="refuse")
    runner = asyncio.create_task(ledger.run())
    (await ledger.hold([KEY], 20)).settle(20)
    held = await ledger.hold([KEY], 10)
    await until(lambda: not ledger.queued)
    await spoil(redis, name, "string")
    with contextlib.suppress(BudgetsAway):
        (await ledger.hold([KEY], 1)).settle(0)
    await asyncio.sleep(10 * ledger_redis.PULSE_S)
    await until(lambda: not ledger.is_away and not ledger.queued)
    assert await ledger.balance(KEY) == (20, 10)
    held.settle(0)
    await until(lambda: not ledger.queued)
    assert await ledger.balance(KEY) == (20, 0)
    runner.cancel()


async def test_a_spoilt_rate_limit_begins_anew(redis: Redis, worker: Make, clock: Clock) -> None:
    """A bucket that can't be read is replaced by a full one, as it would be after a minute anyway."""
    ledger = worker(clock)
    limits = SharedLimits(ledger)
    limit = Limit("key:k", 3, None)
    await spoil(redis, "bucket:key:k", "string")
    for _ in range(3):
        await ledger.hold([], 0, limits.take([limit], 1, 0.0))
    with pytest.raises(RateLimited):
        await ledger.hold([], 0, limits.take([limit], 1, 0.0))
    assert not ledger.is_away


REFUSING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "OOM": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "NOPERM": (("ACL", "SETUSER", "default", "-@scripting"), ("ACL", "SETUSER", "default", "+@all")),
    "NOPERM keys": (("ACL", "SETUSER", "default", "resetkeys", "~a"), ("ACL", "SETUSER", "default", "~*")),
    "NOREPLICAS": (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
}


@pytest.mark.parametrize("why", REFUSING)
@pytest.mark.parametrize("when_away", ["refuse", "share"])
async def test_a_redis_that_refuses_to_write_is_away_for_so_long(
    redis: Redis, worker: Make, clock: Clock, why: str, when_away: str
) -> None:
    """While Redis refuses writes, only budgets are affected; nothing spent is lost, and it recovers by itself."""
    ledger = worker(clock, when_away=when_away)
    runner = asyncio.create_task(ledger.run())
    spoils, mends = REFUSING[why]
    (await ledger.hold([KEY], 10)).settle(10)
    under_way = await ledger.hold([KEY], 10)
    await until(lambda: not ledger.queued)
    await redis.execute_command(*spoils)
    try:
        (await ledger.hold([], 5)).settle(0)
        under_way.settle(7)
        if when_away == "refuse":
            with pytest.raises(BudgetsAway):
                await ledger.hold([KEY], 1)
        else:
            (await ledger.hold([KEY], 1)).settle(1)
        assert ledger.is_away
    finally:
        await redis.execute_command(*mends)
    await until(lambda: not ledger.is_away and not ledger.queued)
    assert await ledger.balance(KEY) == (17 if when_away == "refuse" else 18, 0)
    runner.cancel()
