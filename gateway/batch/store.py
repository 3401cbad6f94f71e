"""Batch jobs as a worker meets them: the files and jobs of the database, opened at the first question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from gateway.journal.reader import Reader

if TYPE_CHECKING:
    from gateway.batch.files import Files
    from gateway.batch.jobs import Jobs

MARKER = "batches.open"
"""In the run folder while some job of the API is unfinished: workers look for jobs only then."""
FILE_PATIENCE_S = 300.0
T = TypeVar("T")


class BatchStore:
    """One per worker. The stores are synchronous, and opening them may wait for a database: never on the event loop."""

    def __init__(self, journal: Reader, run_dir: str) -> None:
        self._journal = journal
        self.run_dir = Path(run_dir)
        self.asked = asyncio.Event()
        """Set when a job was made or changed here."""
        self.drain_s = 0.0
        """What calls under way get to end in, once the worker ends."""

    @property
    def jobs(self) -> Jobs:
        from gateway.batch.jobs import Jobs

        return Jobs(self._journal.store.engine)

    @property
    def files(self) -> Files:
        from gateway.batch.files import Files

        return Files(self._journal.store.engine)

    async def of_jobs(self, ask: Callable[[Jobs], T]) -> T:
        """Raises HeadgateError 503 where the database is away."""
        return await self._journal.ask(lambda: ask(self.jobs))

    async def of_files(self, ask: Callable[[Files], T]) -> T:
        """As `of_jobs`; a large file takes a while."""
        return await self._journal.ask(lambda: ask(self.files), FILE_PATIENCE_S)

    @property
    def marker(self) -> Path:
        return self.run_dir / MARKER

    def mark(self) -> None:
        """Some job is unfinished."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.marker.touch()
