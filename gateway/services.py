"""What answering needs, built once per worker by gateway/app.py and handed down: no module-level state."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

from cache.entry import Entry, Hit
from cache.flight import Flight
from cache.rules import Directive, Rules
from cache.store import Store
from gateway.config import Config, RouteConfig
from gateway.drive import Driver
from gateway.exchange import Exchange
from gateway.fleet import Fleet
from gateway.journal.reader import Reader
from gateway.journal.spool import Spool
from gateway.keys import Keyring
from gateway.ledger import Ledger
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.responses import Responses
from gateway.routes import RouteBook
from gateway.settings import Current
from gateway.tracing import Tracing
from routers.features import Featurizer


class Ids:
    """Unique ids at the price of a counter: a random prefix per worker, then a number."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._count = itertools.count(1)

    def new(self, kind: str) -> str:
        return f"{kind}_{self._prefix}{next(self._count):08x}"


@dataclass(slots=True)
class Shelf:
    """The cache as the request path uses it: look up, share, keep."""

    store: Store
    flight: Flight
    rules: dict[float, Rules]
    """By time to live, the one thing in which routes differ."""

    def rules_of(self, config: RouteConfig) -> Rules:
        rules = self.rules.get(config.cache_ttl_s)
        if rules is None:
            rules = self.rules[config.cache_ttl_s] = Rules(ttl_s=config.cache_ttl_s)
        return rules

    async def find(self, exchange: Exchange, directive: Directive, now_s: float) -> bool:
        """True: the exact cache has a living answer of this tenant, and the exchange now holds it."""
        entry = await self.store.get(exchange.cache_key, tenant=exchange.caller.tenant, now_s=now_s)
        if entry is None:
            return False
        if directive.max_age_s is not None and now_s - entry.created_s > directive.max_age_s:
            return False
        self.serve(exchange, entry, "hit")
        return True

    def serve(self, exchange: Exchange, entry: Entry, state: str) -> None:
        """Answer with an entry."""
        exchange.hit = Hit(entry, "exact", why={"state": state, "entry": entry.id})
        exchange.cache_state = state
        exchange.answer_body = entry.body
        exchange.answered_by = entry.model


@dataclass(slots=True)
class Services:
    """See gateway/app.py for how each is made."""

    config: Config
    now: Callable[[], float]
    """Monotonic seconds."""
    clock: Callable[[], float]
    """Unix time."""
    draws: Iterator[float]
    """Floats in [0, 1): the only randomness of decisions."""
    ids: Ids
    keyring: Keyring
    ledger: Ledger
    limits: Limits
    book: RouteBook
    fleet: Fleet
    featurizer: Callable[[], Featurizer]
    """Loaded when a route's router first needs it."""
    shelf: Shelf
    driver: Driver
    responses: Responses
    spool: Spool
    journal: Reader
    spool_dir: Path
    metrics: Metrics
    tracing: Tracing | None
    current: Current
    chores: list[Callable[[], Coroutine[None, None, None]]]
    """What must run beside the requests."""
    index: int
    """Which worker this is."""
