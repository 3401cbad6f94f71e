"""What answering needs, built once per worker by gateway/app.py and handed down: no module-level state."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.answer_cache import AnswerCache
from gateway.batch.store import BatchStore
from gateway.config import Config
from gateway.drive import Driver
from gateway.fleet import Fleet
from gateway.journal.reader import Reader
from gateway.journal.spool import Spool
from gateway.keys import ANYONE, Caller, Keyring, refuse_pages
from gateway.learn.online import Online
from gateway.ledger import Ledger
from gateway.limits import Limits
from gateway.metrics import Metrics
from gateway.pacing import Purses
from gateway.prefixes import Prefixes
from gateway.responses import Responses
from gateway.routes import RouteBook
from gateway.settings import Current
from gateway.tracing import Tracing
from routers.features import Featurizer

Chore = Callable[[], Coroutine[None, None, None]]
"""A background task that runs until it is cancelled."""


class Ids:
    """Unique ids at the price of a counter: a random prefix per worker, then a number."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._count = itertools.count(1)

    def new(self, kind: str) -> str:
        return f"{kind}_{self._prefix}{next(self._count):08x}"


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
    """Loads the shipped featurizer when a route's router first needs it."""
    embedder: Featurizer | None
    """The configured embedder, which takes milliseconds, for routers that were trained on it."""
    cache: AnswerCache
    driver: Driver
    responses: Responses
    spool: Spool
    journal: Reader
    batches: BatchStore
    spool_dir: Path
    metrics: Metrics
    tracing: Tracing | None
    current: Current
    online: Online
    """Bandits, which learn while they serve."""
    purses: Purses
    """Pacing of the routes with a daily budget."""
    prefixes: Prefixes
    """Which model has which conversation in its cache."""
    chores: list[Chore]
    index: int
    """Which worker this is."""

    def __post_init__(self) -> None:
        self.adopt()

    def adopt(self) -> None:
        """Take the routes as they are from now on; what bandits have learnt and budgets have left is kept."""
        self.online.adopt(self.book)
        self.purses.adopt(self.config.routes)

    def caller_of(self, headers: Mapping[bytes, bytes], host: str) -> Caller:
        """The owner of the key in these headers, however the SDK sends it. Raises Unauthorized or PolicyError."""
        key = headers.get(b"x-api-key") or headers.get(b"api-key")
        caller = self.keyring.identify(headers.get(b"authorization"), key, host, self.clock())
        if caller is ANYONE:
            refuse_pages(headers.get(b"host", b""), headers.get(b"origin", b""), self.config.server.cors_origins)
        return caller
