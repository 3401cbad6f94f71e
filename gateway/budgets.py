"""Where budgets are kept, and how they go on after a restart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from gateway.config import Config
from gateway.ledger import Account, Ledger, MemoryLedger, period_start
from gateway.limits import Limits
from gateway.services import Services


def open_ledger(config: Config, clock: Callable[[], float]) -> Ledger:
    """In this process, or shared by all replicas where the configuration names a Redis."""
    if not config.storage.redis_url:
        return MemoryLedger(clock)
    from gateway.ledger_redis import RedisLedger
    from gateway.redis_wire import RedisWire

    return RedisLedger(RedisWire(str(config.storage.redis_url)), when_away=config.storage.redis_away)


def open_limits(ledger: Ledger) -> Limits:
    """Rate limits, kept where budgets are."""
    if isinstance(ledger, MemoryLedger):
        return Limits()
    from gateway.ledger_redis import RedisLedger
    from gateway.limits_shared import SharedLimits

    assert isinstance(ledger, RedisLedger)
    return SharedLimits(ledger)


def restore(services: Services) -> None:
    """What each budget's period has cost so far, from the journal and what is still in spools. Blocks."""
    accounts = {account for caller in services.keyring.callers for account in caller.accounts}
    accounts |= {account for route in services.book.routes.values() for account in route.accounts}
    if accounts:
        services.ledger.restore(spent(services, accounts), accounts)


def spent(services: Services, accounts: Iterable[Account]) -> dict[str, int]:
    by_start = defaultdict(list)
    for account in accounts:
        by_start[period_start(account.period, services.clock())].append(account.id)
    found: dict[str, int] = {}
    for start_s, ids in by_start.items():
        totals: dict[str, int] = defaultdict(int)
        for row in services.journal.spend_since(start_s):
            for kind in ("tenant", "route"):
                totals[f"{kind}:{row[kind]}"] += row["cost_nanousd"]
            totals[f"key:{row['key_id']}"] += row["cost_nanousd"]
        found |= {id: totals[id] for id in ids if totals[id]}
    return found
