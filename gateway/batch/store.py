"""A worker's access to the files and batch jobs of the database, which is opened at the first use."""

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
"""A file in the run folder while some job of the API is unfinished; workers look for jobs only while it exists."""
FILE_PATIENCE_S = 300.0
T = TypeVar("T")


class BatchStore:
    """The stores of one worker. They block and may wait for the database, so they must not be used on the event loop.
    """

    def __init__(self, journal: Reader, run_dir: str) -> None:
        self._journal = journal
        self.run_dir = Path(run_dir)
        self.asked = asyncio.Event()
        """Set when this worker has made or changed a job."""
        self.drain_s = 0.0
        """Seconds within which calls under way must end when the worker shuts down."""

    @property
    def jobs(self) -> Jobs:
        from gateway.batch.jobs import Jobs

        return Jobs(self._journal.store.engine)

    @property
    def files(self) -> Files:
        from gateway.batch.files import Files

        return Files(self._journal.store.engine)

    async def of_jobs(self, ask: Callable[[Jobs], T]) -> T:
        """Call `ask` with the jobs, in a thread. Raises HeadgateError 503 where the database can't be reached."""
        return await self._journal.ask(lambda: ask(self.jobs))

    async def of_files(self, ask: Callable[[Files], T]) -> T:
        """Call `ask` with the files, in a thread, with a longer timeout than `of_jobs`, since large files take a while.
        """
        return await self._journal.ask(lambda: ask(self.files), FILE_PATIENCE_S)

    @property
    def marker(self) -> Path:
        return self.run_dir / MARKER

    def mark(self) -> None:
        """Write the marker, which says that some job is unfinished."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.marker.touch()
