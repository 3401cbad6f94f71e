"""The services that answer requests: gateway/app.py builds them once per worker and hands them down, so that no module
has state of its own.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.answer_cache import AnswerCache
from gateway.batch.store import BatchStore
from gateway.config.settings import Current
from gateway.config.types import Config
from gateway.drive import Driver
from gateway.fleet import Fleet
from gateway.journal.reader import Reader
from gateway.journal.spool import Spool
from gateway.keys import ANYONE, Caller, Keyring
from gateway.learn.online import Online
from gateway.loopback import refuse_pages
from gateway.metrics import Metrics
from gateway.money.ledger import Ledger
from gateway.money.limits import Limits
from gateway.money.pacing import Purses
from gateway.prefixes import Prefixes
from gateway.routes import RouteBook
from gateway.stored.responses import Responses
from gateway.tracing import Tracing
from routers.features import Featurizer

Chore = Callable[[], Coroutine[None, None, None]]
"""A background task that runs until it is cancelled."""


class Ids:
    """Unique ids: a random prefix per worker, then a counter, which costs less than a random id each."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(8)
        self._count = itertools.count(1)

    def new(self, kind: str) -> str:
        return f"{kind}_{self._prefix}{next(self._count):08x}"


@dataclass(slots=True)
class Services:
    """Everything that a worker's request path uses."""

    config: Config
    now: Callable[[], float]
    """Monotonic seconds."""
    clock: Callable[[], float]
    """Unix time."""
    draws: Iterator[float]
    """Uniform draws in [0, 1), the only randomness in decisions."""
    ids: Ids
    keyring: Keyring
    ledger: Ledger
    limits: Limits
    book: RouteBook
    fleet: Fleet
    featurizer: Callable[[], Featurizer]
    """Returns the shipped featurizer, which is loaded when a router first needs it."""
    embedder: Featurizer | None
    """The configured embedder, for routers that were trained on it; None where none is configured. A call takes
    milliseconds.
    """
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
    """Bandits, which learn from the answers that they serve."""
    purses: Purses
    """Pacing of routes with a daily budget."""
    prefixes: Prefixes
    """Remembers which model has which conversation in its prompt cache."""
    chores: list[Chore]
    index: int
    """Number of this worker, from 0."""

    def __post_init__(self) -> None:
        self.adopt()

    def adopt(self) -> None:
        """Apply changed routes; what bandits have learnt and what is left of budgets is kept."""
        self.online.adopt(self.book)
        self.purses.adopt(self.config.routes)

    def caller_of(self, headers: Mapping[bytes, bytes], host: str) -> Caller:
        """The owner of the API key in `x-api-key`, `api-key` or `authorization`. Raises Unauthorized or PolicyError."""
        key = headers.get(b"x-api-key") or headers.get(b"api-key")
        caller = self.keyring.identify(headers.get(b"authorization"), key, host, self.clock())
        if caller is ANYONE:
            refuse_pages(headers.get(b"host", b""), headers.get(b"origin", b""), self.config.server.cors_origins)
        return caller
