"""Opens the ledger of budgets, and restores what was spent after a restart or a loss of Redis's data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.types import Config
from gateway.keys import Keyring
from gateway.money.ledger import Account, Ledger, MemoryLedger, period_start
from gateway.money.limits import Limits
from gateway.routes import route_accounts
from gateway.services import Services

if TYPE_CHECKING:
    from redis import Redis

    from gateway.journal.store import Store


LEADERS = "{headgate}:leaders"
LEADS_S = 15.0
"""Seconds after which a control process that hasn't renewed its entry no longer counts as a leader."""


def open_budgets(config: Config, clock: Callable[[], float]) -> tuple[Ledger, Limits]:
    """Budgets and rate limits in this process, or shared by all replicas if the configuration names a Redis."""
    storage = config.storage
    if not storage.redis_url:
        return MemoryLedger(clock), Limits()
    from gateway.money.ledger_redis import RedisLedger
    from gateway.money.limits_shared import SharedLimits
    from gateway.redis_wire import RedisWire

    wire = RedisWire(str(storage.redis_url), timeout_s=storage.redis_timeout_s)
    ledger = RedisLedger(wire, when_away=storage.redis_away)
    return ledger, SharedLimits(ledger)


def restore(services: Services) -> None:
    """Give the ledger what every budget has spent, by the journal, now and whenever Redis loses its data. Blocks.

    Raises HeadgateError or OSError if the journal can't be read; the ledger then asks it again.
    """
    services.ledger.recall = partial(recall_spending, services)
    services.ledger.restore(*recall_spending(services))


def recall_spending(services: Services) -> tuple[dict[str, int], set[Account]]:
    """Nano-dollars spent in each budget's current period, by account id, from the journal and the spools; and all
    accounts. Blocks.
    """
    accounts = {account for caller in services.keyring.callers for account in caller.accounts}
    accounts |= {account for route in services.book.routes.values() for account in route.accounts}
    if not accounts:
        return {}, accounts
    return spent(services.journal.spend_since, accounts, services.clock()), accounts


class Reconciled(NamedTuple):
    """The state of Redis, as compared with the journal."""

    wrong: int = 0
    """Number of budgets of which Redis knew less spending than the journal."""
    evicts: str = ""
    """The eviction policy by which Redis drops budgets when its memory is full; empty if it keeps them."""


def reconcile(config: Config, store: Store, now: float) -> Reconciled:
    """Raise the spending of each budget in Redis to what the journal knows. Blocks. Raises RedisError, OSError or
    SQLAlchemyError.

    Redis lacks the spending that a killed worker had not written yet, and everything if it lost its data.
    """
    from gateway.money.ledger_redis import PREFIX, RIGHTED, raising
    from gateway.money.ledger_scripts import RAISE

    keyring = Keyring(config.auth, store.keys)
    accounts = {account for caller in keyring.callers for account in caller.accounts}
    accounts |= {account for route in config.routes for account in route_accounts(route)}
    if not accounts:
        return Reconciled()
    keys, words = raising(list(accounts), spent(store.spend_since, accounts, now), now)
    with _redis(config) as redis:
        wrong = int(redis.eval(RAISE.text, len(keys), *keys, *map(str, words)))
        redis.hset(PREFIX + "born", RIGHTED, "1")
        return Reconciled(wrong, _evicts(redis))


def leaders(config: Config, name: str) -> int:
    """Number of leading control processes that share this configuration's Redis, with the caller, whose entry `name` is
    renewed. Blocks.
    """
    from redis.exceptions import ResponseError

    with _redis(config) as redis, suppress(ResponseError):  # the Redis user may not run these commands
        now = float(redis.time()[0])
        with redis.pipeline(transaction=False) as pipeline:
            pipeline.zadd(LEADERS, {name: now})
            pipeline.zremrangebyscore(LEADERS, "-inf", now - LEADS_S)
            pipeline.expire(LEADERS, round(2 * LEADS_S))
            pipeline.zcard(LEADERS)
            return int(pipeline.execute()[-1])
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
    except ResponseError:  # the Redis user may not run INFO
        return ""
    policy = str(memory.get("maxmemory_policy", ""))
    return policy if policy.startswith("allkeys-") and memory.get("maxmemory") else ""


def spent(
    spend_since: Callable[[float], Iterable[Mapping[str, Any]]], accounts: Iterable[Account], now: float
) -> dict[str, int]:
    """Nano-dollars spent in each account's current period, by account id, without those that are 0."""
    by_start = defaultdict(list)
    for account in accounts:
        by_start[period_start(account.period, now)].append(account.id)
    amounts: dict[str, int] = {}
    for start_s, ids in by_start.items():
        totals: dict[str, int] = defaultdict(int)
        for row in spend_since(start_s):
            for kind in ("tenant", "route"):
                totals[f"{kind}:{row[kind]}"] += row["cost_nanousd"]
            totals[f"key:{row['key_id']}"] += row["cost_nanousd"]
        amounts |= {id: totals[id] for id in ids if totals[id]}
    return amounts
