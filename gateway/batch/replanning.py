"""Plans the rest of a running job again from the measured costs and latencies of its calls."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from gateway.batch import forecast
from gateway.batch.assign import replan
from gateway.batch.program import Objective
from gateway.batch.prompt_queue import AWAY, BUSY
from gateway.money.prices import usd

if TYPE_CHECKING:
    from gateway.batch.run import Runner

SHARE = 0.05
"""Share of the prompts that must have ended since the last plan before the rest is planned again."""
LEAST = 8
"""The least number of such prompts."""
EVERY_S = 10.0
"""Seconds after which the rest is planned again where at least one prompt has ended."""


class Replanning:
    """Replans the job of one runner. Solving runs in a thread; prompts that are asked meanwhile keep their arms."""

    def __init__(self, runner: Runner) -> None:
        self.run = runner
        self.count = 0
        self.shortfall = 0
        """Prompts that the last plan left without an arm, for want of money or time."""
        self._task: asyncio.Task[None] | None = None
        self._at_s, self._at = runner.options.now(), 0

    def start_if_due(self, now: float) -> None:
        done = self.run.answered - self._at
        due = done >= max(LEAST, SHARE * len(self.run.plan.prompts)) or (done and now - self._at_s >= EVERY_S)
        if due and (self._task is None or self._task.done()):
            self._at, self._at_s = self.run.answered, now
            self._task = asyncio.create_task(self._replan())

    async def end(self) -> None:
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _replan(self) -> None:
        """Replan with the money and time left. Providers' batch endpoints are only used at the beginning of a job."""
        run = self.run
        rest = run.queue.rest()
        if not len(rest):
            return
        table = run.cost_ratios.corrected(run.plan.estimates, run.limiters)
        live = np.array([arm.via == "live" for arm in table.arms])
        table = replace(table, cost_usd=np.where(live, table.cost_usd, np.float32(np.inf)))
        limits = [*run.plan.capacities, *forecast.measured(table.arms, run.limiters, run.job.card.concurrency)]
        objective = Objective() if run.limit is not None else Objective(usd_price=run.plan.usd_price)
        fresh = await asyncio.to_thread(
            replan, table, rest, self._left_usd(),
            deadline_s=max(0.001, run.left_s), capacities=limits, objective=objective,
        )  # fmt: skip
        self.shortfall = fresh.shortfall
        self.count += 1
        run.queue.plan(rest, fresh.arm)
        run.wake()

    def _left_usd(self) -> float:
        """Dollars for the rest: the unspent budget, less the expected cost of the calls under way; infinite where there
        is no budget.
        """
        run = self.run
        if run.limit is None:
            return inf
        busy = np.flatnonzero((run.queue.state == BUSY) | (run.queue.state == AWAY))
        costs = forecast.expected_usd(run.plan.estimates.cost_usd, run.queue.arm, busy, run.cost_ratios.ratios())
        return max(0.0, usd(run.limit - run.spent_now) - costs)
