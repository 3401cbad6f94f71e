"""Where budgets are kept, and how they go on after a restart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config import Config
from gateway.keys import Keyring
from gateway.ledger import Account, Ledger, MemoryLedger, period_start
from gateway.limits import Limits
from gateway.routes import route_accounts
from gateway.services import Services

if TYPE_CHECKING:
    from redis import Redis

    from gateway.journal.store import Store


LEADERS = "{headgate}:leaders"
LEADS_S = 15.0
"""Who hasn't said for so long that it leads doesn't."""


def open_ledger(config: Config, clock: Callable[[], float]) -> Ledger:
    """In this process, or shared by all replicas where the configuration names a Redis."""
    if not config.storage.redis_url:
        return MemoryLedger(clock)
    from gateway.ledger_redis import RedisLedger
    from gateway.redis_wire import RedisWire

    storage = config.storage
    wire = RedisWire(str(storage.redis_url), timeout_s=storage.redis_timeout_s)
    return RedisLedger(wire, when_away=storage.redis_away)


def open_limits(ledger: Ledger) -> Limits:
    """Rate limits, kept where budgets are."""
    if isinstance(ledger, MemoryLedger):
        return Limits()
    from gateway.ledger_redis import RedisLedger
    from gateway.limits_shared import SharedLimits

    assert isinstance(ledger, RedisLedger)
    return SharedLimits(ledger)


def restore(services: Services) -> None:
    """Budgets go on where they were, also after Redis has lost its data. Blocks; raises HeadgateError or OSError where
    the journal can't be read, which the ledger then goes on asking.
    """
    services.ledger.recall = partial(recalled, services)
    services.ledger.restore(*recalled(services))


def recalled(services: Services) -> tuple[dict[str, int], set[Account]]:
    """What each budget's period has cost so far, from the journal and what is still in spools. Blocks."""
    accounts = {account for caller in services.keyring.callers for account in caller.accounts}
    accounts |= {account for route in services.book.routes.values() for account in route.accounts}
    if not accounts:
        return {}, accounts
    return spent(services.journal.spend_since, accounts, services.clock()), accounts


class Righted(NamedTuple):
    """What Redis was found to be."""

    wrong: int = 0
    """Of how many budgets it knew less than the journal."""
    evicts: str = ""
    """The policy by which it throws budgets away where its memory is full; empty: it doesn't."""


def right(config: Config, store: Store, now: float) -> Righted:
    """Raise what Redis has of each budget to what the journal knows was spent. Blocks.

    Redis lacks what a killed worker had spent and not told, and all of it where it lost its data.
    """
    from gateway.ledger_redis import PREFIX, RIGHTED, raising
    from gateway.ledger_scripts import RAISE

    keyring = Keyring(config.auth, store.keys)
    accounts = {account for caller in keyring.callers for account in caller.accounts}
    accounts |= {account for route in config.routes for account in route_accounts(route)}
    if not accounts:
        return Righted()
    keys, words = raising(list(accounts), spent(store.spend_since, accounts, now), now)
    with _redis(config) as redis:
        wrong = int(redis.eval(RAISE.text, len(keys), *keys, *map(str, words)))
        redis.hset(PREFIX + "born", RIGHTED, "1")
        return Righted(wrong, _evicts(redis))


def leaders(config: Config, name: str) -> int:
    """How many control processes, this one named so, lead by the Redis of this configuration. Blocks."""
    from redis.exceptions import ResponseError

    with _redis(config) as redis, suppress(ResponseError):  # not allowed to ask
        now = float(redis.time()[0])
        with redis.pipeline(transaction=False) as told:
            told.zadd(LEADERS, {name: now})
            told.zremrangebyscore(LEADERS, "-inf", now - LEADS_S)
            told.expire(LEADERS, round(2 * LEADS_S))
            told.zcard(LEADERS)
            return int(told.execute()[-1])
    return 1


def _redis(config: Config) -> Redis:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return Redis.from_url(str(config.storage.redis_url), socket_timeout=2.0, retry=Retry(NoBackoff(), 0))


def _evicts(redis: Redis) -> str:
    from redis.exceptions import ResponseError

    try:
        memory = redis.info("memory")
    except ResponseError:  # not allowed to ask
        return ""
    policy = str(memory.get("maxmemory_policy", ""))
    return policy if policy.startswith("allkeys-") and memory.get("maxmemory") else ""


def spent(
    spend_since: Callable[[float], Iterable[Mapping[str, Any]]], accounts: Iterable[Account], now: float
) -> dict[str, int]:
    by_start = defaultdict(list)
    for account in accounts:
        by_start[period_start(account.period, now)].append(account.id)
    found: dict[str, int] = {}
    for start_s, ids in by_start.items():
        totals: dict[str, int] = defaultdict(int)
        for row in spend_since(start_s):
            for kind in ("tenant", "route"):
                totals[f"{kind}:{row[kind]}"] += row["cost_nanousd"]
            totals[f"key:{row['key_id']}"] += row["cost_nanousd"]
        found |= {id: totals[id] for id in ids if totals[id]}
    return found
