"""A runner's hold on its job: renewed while it works, given up to whoever comes next when it can't be."""

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
"""After this long without a renewal the lease may soon be another's."""
_STATES: dict[Wish, State] = {"": "running", "pause": "paused", "cancel": "cancelling"}


class LostLease(HeadgateError):
    """Another runner has taken the job: this one must touch it no more."""


@dataclass(frozen=True, slots=True)
class RunnerOptions:
    """By which clocks, and whom to tell."""

    drain_s: float = 30.0
    """What calls under way get to end in, where the runner is stopped."""
    on_progress: Callable[[Progress], None] = lambda progress: None
    now: Callable[[], float] = time.monotonic
    clock: Callable[[], float] = time.time


class Lease:
    """Of one runner."""

    def __init__(self, jobs: Jobs, job: Job, options: RunnerOptions) -> None:
        self.jobs, self.job, self.options = jobs, job, options
        self.wish: Wish = job.wish
        """What somebody wants of the job, as last seen."""
        self.lost = False
        """Another runner has the job."""
        self._asked_s = -inf
        self._renewed_s = options.now()
        self._complaint = OutageLog(log, f"renewals of {job.id}'s lease, and soon its calls,")
        self._task: asyncio.Task[None] | None = None

    @property
    def is_sure(self) -> bool:
        """The job is ours for a while yet."""
        return self.options.now() - self._renewed_s < SURE_S

    def renew_if_due(self, progress: Progress) -> None:
        """In the background: a database that is slow or away stops nothing but, in the end, new calls."""
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
    """The lease goes on while no runner renews it. Raises LostLease at the end, where it was lost all the same."""
    beating = asyncio.create_task(_beat(jobs, job, progress, options))
    try:
        yield
    finally:
        beating.cancel()
    if await asyncio.to_thread(jobs.renew, job, progress, options.clock()) is None:
        raise LostLease("another runner has the job")


async def _beat(jobs: Jobs, job: Job, progress: Progress, options: RunnerOptions) -> None:
    while True:
        await asyncio.sleep(BEAT_S)
        with suppress(SQLAlchemyError):
            await asyncio.to_thread(jobs.renew, job, progress, options.clock())
