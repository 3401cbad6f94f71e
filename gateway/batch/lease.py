"""A runner's lease on its job: it is renewed while the runner works; when it lapses, another runner may take the job.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from math import inf

from sqlalchemy.exc import SQLAlchemyError

from gateway.batch.jobs import LEASE_S, Job, Jobs, Progress, State, Wish
from gateway.errors import HeadgateError
from gateway.journal.durable import OutageLog

log = logging.getLogger("headgate.batch")

EVERY_S = 0.5
BEAT_S = 2.0
SURE_S = LEASE_S * 0.7
"""Seconds without a renewal after which no new calls start, because the lease may soon lapse."""
_STATES: dict[Wish, State] = {"": "running", "pause": "paused", "cancel": "cancelling"}


class LostLease(HeadgateError):
    """Another runner has taken the job, and this one must not change it any more."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """A runner's clocks, its time to drain, and the callback for its progress."""

    drain_s: float = 30.0
    """Seconds within which calls under way must end after the runner is stopped."""
    on_progress: Callable[[Progress], None] = lambda progress: None
    now: Callable[[], float] = time.monotonic
    clock: Callable[[], float] = time.time


class Lease:
    """The lease of one runner."""

    def __init__(self, jobs: Jobs, job: Job, options: RunnerOptions) -> None:
        self.jobs, self.job, self.options = jobs, job, options
        self.wish: Wish = job.wish
        """What a user has asked of the job (pause, cancel), as last read."""
        self.lost = False
        """Whether another runner has taken the job."""
        self._asked_s = -inf
        self._renewed_s = options.now()
        self._complaint = OutageLog(log, f"renewals of {job.id}'s lease, and soon its calls,")
        self._task: asyncio.Task[None] | None = None

    @property
    def is_sure(self) -> bool:
        """Whether the lease is still valid for a while."""
        return self.options.now() - self._renewed_s < SURE_S

    def renew_if_due(self, progress: Progress) -> None:
        """Renew the lease in the background. Where the database is slow or can't be reached for long, new calls stop.
        """
        now = self.options.now()
        if now - self._asked_s >= EVERY_S and (self._task is None or self._task.done()):
            self._asked_s = now
            self._task = asyncio.create_task(self._renew(progress, now))

    async def end(self) -> None:
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _renew(self, progress: Progress, now: float) -> None:
        try:
            wish = await asyncio.to_thread(self.jobs.renew, self.job, progress, self.options.clock())
            if wish is None:
                self.lost = True
                return
            if wish != self.wish:
                self.wish = wish
                await asyncio.to_thread(self.jobs.change, self.job, _STATES[wish], self.options.clock())
        except SQLAlchemyError as fault:
            self._complaint.fails(fault)
            return
        self._complaint.works()
        self._renewed_s = now


@asynccontextmanager
async def kept(jobs: Jobs, job: Job, progress: Progress, options: RunnerOptions) -> AsyncIterator[None]:
    """Renew the lease while the context lasts and no runner does. Raises LostLease at its end where it was lost."""
    renewing = asyncio.create_task(_keep_renewing(jobs, job, progress, options))
    try:
        yield
    finally:
        renewing.cancel()
    if await asyncio.to_thread(jobs.renew, job, progress, options.clock()) is None:
        raise LostLease("another runner has taken the job")


async def _keep_renewing(jobs: Jobs, job: Job, progress: Progress, options: RunnerOptions) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        with suppress(SQLAlchemyError):
            await asyncio.to_thread(jobs.renew, job, progress, options.clock())
