"""A worker's access to the journal: rare, off the hot path, and opened at the first query.

A worker without queries never loads a database driver, and a worker starts even if its database can't be reached.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gateway.journal.durable import database_said, unavailable
from gateway.journal.record import DecisionRecord, ResponseRecord

if TYPE_CHECKING:
    from gateway.journal.store import Store
    from gateway.journal.upsert import Row

THREADS = 4
PATIENCE_S = 10.0
T = TypeVar("T")


class Reader:
    """Reads decisions, responses and spending from the database and from the spools."""

    def __init__(self, url: str, spools: Path) -> None:
        self.spools = spools
        self._url = url
        self._store: Store | None = None
        self._opening = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "journal")

    @property
    def store(self) -> Store:
        """The store, opened at the first use, which blocks. Raises SQLAlchemyError where the database can't be reached.
        """
        with self._opening:
            if self._store is None:
                from gateway.journal.store import open_store

                self._store = open_store(self._url)
            return self._store

    async def ask(self, question: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
        """Call a blocking function in a thread of the reader's own pool, so that a hanging database blocks nothing
        else. Raises HeadgateError 503 where the database can't be reached or does not answer in `patience_s` seconds.
        """
        from sqlalchemy.exc import DBAPIError
        from sqlalchemy.exc import TimeoutError as NoneFree

        asked = asyncio.get_running_loop().run_in_executor(self._threads, question)
        try:
            async with asyncio.timeout(patience_s):
                return await asked
        except (DBAPIError, NoneFree) as fault:
            if isinstance(fault, DBAPIError) and not database_said(fault):
                raise
            raise unavailable("the database is away") from fault
        except TimeoutError:
            raise unavailable("the database does not answer") from None

    async def decision(self, id: str, tenant: str | None = None) -> DecisionRecord | None:
        """The decision with this decision, response or request id, of `tenant`, or of any where that is None."""
        from gateway.journal.lookup import find_decision

        return await self.ask(lambda: find_decision(lambda: self.store, self.spools, id, tenant))

    async def response(self, id: str, tenant: str) -> ResponseRecord | None:
        """A stored /v1/responses object of this tenant; None where there is none or it was deleted."""
        from gateway.journal.lookup import find_response

        return await self.ask(lambda: find_response(lambda: self.store, self.spools, id, tenant))

    async def response_chain(self, id: str, tenant: str) -> list[ResponseRecord]:
        """A stored response and its previous ones, the newest first; empty where there is none or it was deleted."""
        from gateway.journal.lookup import find_chain

        return await self.ask(lambda: find_chain(lambda: self.store, self.spools, id, tenant))

    def spend_since(self, since_s: float) -> list[Row]:
        """Spending per tenant, key and route, including the spools. Blocks. Raises HeadgateError 503 where the database
        can't be reached.
        """
        from sqlalchemy.exc import SQLAlchemyError

        from gateway.journal.lookup import spend_since

        try:
            return spend_since(self.store, self.spools, since_s)
        except SQLAlchemyError as fault:
            raise unavailable("the database is away") from fault

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._store is not None:
            self._store.close()
