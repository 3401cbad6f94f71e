"""Runs a planned job: as many calls at once as providers and money allow, never a cent above the budget.

One loop decides (`launch`, `hear`, `look`), tasks only carry calls. The job's own account in the ledger holds the
worst case of every call before it starts, so the budget can't be passed whatever was predicted; predictions only
decide who is asked. What the calls cost and how long they take corrects the predictions, and the rest of the job is
planned again. Everything that must survive is in the journal: a runner that dies leaves its lease, and the next one
begins where the records end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Protocol

import numpy as np
from sqlalchemy.exc import SQLAlchemyError

from gateway.batch import forecast
from gateway.batch.ask import Asker, Told, Ways
from gateway.batch.assign import replan
from gateway.batch.jobs import LEASE_S, Item, Job, Jobs, Part, Progress, State, Wish
from gateway.batch.pace import Pace
from gateway.batch.program import Taste
from gateway.batch.report import progress_of
from gateway.batch.supply import AWAY, BUSY, DONE, FAILED, Supply
from gateway.batch.types import Arm, Plan
from gateway.errors import HeadgateError
from gateway.keys import Caller
from gateway.ledger import Account
from gateway.prices import nanousd, usd
from gateway.services import Services
from routers.types import Estimate

log = logging.getLogger("headgate.batch")

LOOK_EVERY_S = 0.5
RENEW_EVERY_S = 0.5
SURE_S = LEASE_S * 0.7
"""After this long without a renewal the lease may soon be another's."""
REPLAN_SHARE = 0.05
"""Of the prompts: answered since the last plan, before the rest is planned again."""
REPLAN_EVERY_S = 10.0
WAIT_S = (0.25, 1.0, 4.0, 15.0)
"""Before a prompt's second call, its third, ..."""
OUT_OF_MONEY = "insufficient_quota"
OVER_RATE = "rate_limit_exceeded"


class LostLease(HeadgateError):
    """Another runner has taken the job: this one must touch it no more."""


class Endpoints(Protocol):
    """Providers' own batch endpoints (gateway/batch/endpoint.py)."""

    async def parts(self, runner: Runner) -> Sequence[Part]:
        """What is to lie there: earlier runners' parts that have not ended, and new ones."""
        ...

    async def run(self, runner: Runner, part: Part) -> None:
        """Until every prompt of the part is heard of (`heard_away`) or given back (`come_back`)."""
        ...


@dataclass(frozen=True, slots=True)
class Terms:
    """How to run, as against what."""

    drain_s: float = 30.0
    """What calls under way get to end in, where the runner is stopped."""
    on_progress: Callable[[Progress], None] = lambda progress: None
    now: Callable[[], float] = time.monotonic
    clock: Callable[[], float] = time.time


class Runner:
    """One run of one job, from a claim to the job's end or to `stop`."""

    def __init__(
        self, services: Services, jobs: Jobs, job: Job, plan: Plan, caller: Caller, terms: Terms, spent: int
    ) -> None:
        """`spent`: nano-dollars that the job has cost, what is at risk included."""
        self.jobs, self.job, self.plan, self.terms = jobs, job, plan, terms
        self.s = services
        self.spent_before, self.spent_now = spent, 0
        self.limit = None if job.card.budget_usd is None else max(0, nanousd(job.card.budget_usd) - spent)
        self.account = Account(f"batch:{job.owner}", self.limit, "total")
        caller = replace(caller, accounts=(*caller.accounts, self.account), explore=False)
        self.asker = Asker(services, job.id, caller)
        self.supply = Supply(plan.estimates.arms, plan.assignment.arm)
        self.paces = {arm.model: Pace(job.card.concurrency) for arm in plan.estimates.arms}
        self.learnt = forecast.Learnt(plan.estimates.arms)
        self.tasks: set[asyncio.Task[None]] = set()
        self.parts: set[asyncio.Task[None]] = set()
        self.wish: Wish = job.wish
        self.stopped = self.lost = False
        self.last = job.progress
        """How far it was at the end of `run`."""
        self.by_model: Counter[str] = Counter()
        self.lines = np.ones(len(plan.prompts), np.int64)
        """How many lines of the input each prompt stands for."""
        for duplicate in plan.duplicates:
            self.lines[duplicate.index] += 1
        self._wakes = asyncio.Event()
        self._short = self._shut_s = 0.0
        self._planning: asyncio.Task[None] | None = None
        self._planned_s, self._planned_at, self.replans = terms.now(), 0, 0
        self._asked_s = self._looked_s = -inf
        self._renewed_s = terms.now()
        self._answered = self.shortfall = 0

    # ---- from begin to end

    def resume(self, items: Sequence[Item], parts: Sequence[Part]) -> None:
        """Take over what the journal knows; prompts in a part that has not ended stay at their provider."""
        for item in items:
            self.supply.tries[item.place] = item.tries
            if item.state in ("done", "failed"):
                self.supply.end(item.place, DONE if item.state == "done" else FAILED)
                self.by_model[item.model or "none"] += 1
        for part in parts:
            if part.state == "sent":
                left = [place for place in part.places if self.supply.state[place] < AWAY]
                self.supply.state[left] = AWAY
        self.supply.fill()

    async def run(self, endpoints: Endpoints | None = None) -> None:
        """Until every prompt is over, the job is cancelled, its deadline has passed, or `stop`. Raises LostLease."""
        if endpoints is not None:
            for part in await endpoints.parts(self):
                self._carry(endpoints.run(self, part))
        for _, places in self.supply.at_endpoints():
            self.come_back(places.tolist())
        try:
            while not self.over:
                await self.look()
                self.launch()
                await self._sleep()
        finally:
            await self._drain()
        self.last = progress_of(self)
        self.terms.on_progress(self.last)
        if self.lost:
            raise LostLease("another runner has the job")

    @property
    def over(self) -> bool:
        if self.tasks or self.parts:
            return self.stopped or self.lost
        return self.stopped or self.lost or self.over_for_good

    @property
    def over_for_good(self) -> bool:
        """Nothing is left for another runner."""
        return self.ended_early or not (self.supply.state <= AWAY).any()

    @property
    def ended_early(self) -> bool:
        """Nothing more is to be asked, though prompts are left."""
        return self.wish == "cancel" or self.left_s <= 0

    @property
    def left_s(self) -> float:
        return inf if self.job.card.deadline_s is None else self.job.card.deadline_s - self.terms.clock()

    def stop(self) -> None:
        """Finish what is under way and leave the rest to the next runner."""
        self.stopped = True
        self._wakes.set()

    # ---- launch

    def launch(self) -> None:
        """Start every call that may start now."""
        now = self.terms.now()
        unsure = now - self._renewed_s > SURE_S
        if self.stopped or self.lost or self.wish or self.ended_early or unsure or now < self._shut_s:
            return
        self.supply.wake(now)
        while len(self.tasks) < self.job.card.concurrency:
            place = self._next(now)
            if place is None:
                return
            self._start(place, now)

    def _next(self, now: float) -> int | None:
        """Those that waited for money go first, and alone: what they wait for is not given to others."""
        if self.supply.poor:
            if self._short and self.tasks:
                return None
            if self._short and not self.parts:
                return self._afford(self.supply.take_poor())
            return None if self._short else self.supply.take_poor()
        return self.supply.take(lambda arm: arm.via == "live" and self._lets(arm, now))

    def _lets(self, arm: Arm, now: float) -> bool:
        """After a refusal one call goes ahead, and the others once it has been answered."""
        pace, fleet = self.paces[arm.model], self.s.fleet
        if not (pace.lets_pass(now) and fleet.healthy(arm.model, self.s.now())):
            return False
        return not pace.in_flight or any(not one.breaker.opens_s for one in fleet.deployments(arm.model))

    def _start(self, place: int, now: float) -> None:
        pace = self.paces[self.supply.arms[self.supply.arm[place]].model]
        pace.begin()
        task = asyncio.create_task(self._ask(place, pace, now))
        self.tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._short = 0.0
        self._wakes.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("a call of %s failed inside the gateway", self.job.id, exc_info=task.exception())

    async def _ask(self, place: int, pace: Pace, began_s: float) -> None:
        arm = int(self.supply.arm[place])
        limit_s = min(self.s.config.server.request_timeout_s, max(0.001, self.left_s))
        try:
            told = await self.asker.ask(
                self.plan.prompts[place], self.ways(place, arm), tries=self.supply.tries[place], timeout_s=limit_s
            )
        except BaseException:
            self.supply.put(place)
            raise
        finally:
            pace.end()
        await self.hear(place, arm, told, began_s)

    def ways(self, place: int, number: int) -> Ways:
        """How an arm answers this prompt, and who may after it where cascades are wanted."""
        table, arm = self.plan.estimates, self.plan.estimates.arms[number]
        own = float(table.quality[place, number])
        better: tuple[Estimate, ...] = ()
        if self.job.card.cascade and arm.samples == 1:
            better = tuple(
                Estimate(other.model, float(table.quality[place, i]), 0.0, float(table.cost_usd[place, i]))
                for i, other in enumerate(table.arms)
                if other.via == "live" and other.samples == 1 and other.model != arm.model
                and table.quality[place, i] > own and isfinite(table.cost_usd[place, i])
            )  # fmt: skip
        return Ways(arm, own, float(table.cost_usd[place, number]), better)

    # ---- hear

    async def hear(self, place: int, arm: int, told: Told, began_s: float) -> None:
        """What one call came to."""
        model = self.plan.estimates.arms[arm].model
        pace, now = self.paces[model], self.terms.now()
        if not told.held and told.code == OUT_OF_MONEY:
            self._short = now
            self.supply.refused.setdefault(place, set()).add(arm)
            self.supply.put_poor(place)
        elif not told.held and not told.final:
            self._shut_s = max(self._shut_s, now + min(told.retry_after_s or WAIT_S[0], 60.0))
            self.supply.put(place)
        elif not told.held and told.decision_id == "" and told.code == OVER_RATE:
            self.supply.put(place)
        else:
            self._count(place, arm, told)
            if told.ok:
                pace.answered(told.latency_s)
            elif told.status in (429, 503):
                pace.pushed_back(now, began_s, told.retry_after_s)
            if told.final:
                self._close(place, DONE if told.ok else FAILED, told.model)
            else:
                tries = self.supply.tries[place]
                self.supply.put_later(place, now + max(told.retry_after_s, WAIT_S[min(tries, len(WAIT_S)) - 1]))

    def _count(self, place: int, arm: int, told: Told) -> None:
        self.supply.tries[place] += 1
        self.spent_now += told.cost_nanousd
        if told.ok and told.cost_nanousd:
            predicted = float(self.plan.estimates.cost_usd[place, arm])
            self.learnt.add(self.plan.estimates.arms[arm].model, usd(told.cost_nanousd), predicted)

    def _close(self, place: int, state: int, model: str) -> None:
        self.supply.end(place, state)
        self.by_model[model or "none"] += 1
        self._answered += 1

    def heard_away(self, place: int, arm: int, told: Told) -> None:
        """What came of a prompt at a provider's batch endpoint; one without an end goes back in line."""
        self._count(place, arm, told)
        if told.final:
            self._close(place, DONE if told.ok else FAILED, told.model)
        else:
            self.come_back([place])

    def come_back(self, places: Sequence[int]) -> None:
        """Prompts that a provider's batch endpoint did not answer are asked one by one, of the same model."""
        arms = self.plan.estimates.arms
        for place in places:
            away = arms[self.supply.arm[place]]
            live = [i for i, one in enumerate(arms) if one.model == away.model and one.via == "live"]
            if live:
                self.supply.arm[place] = live[0]
            self.supply.put(place)
        self._wakes.set()

    def _afford(self, place: int | None) -> int | None:
        """Nothing is under way, and still there is no money for this prompt: another arm, or none at all."""
        if place is None:
            return None
        table, prompt = self.plan.estimates, self.plan.prompts[place]
        left = inf if self.limit is None else self.limit - self.spent_now
        tried = self.supply.refused.get(place, set())
        fits = (table.quality[place] >= table.floor[place]) & np.isfinite(table.cost_usd[place])
        for arm in np.argsort(-table.quality[place], kind="stable").tolist():
            if arm in tried or not fits[arm] or table.arms[arm].via != "live":
                continue
            tried = self.supply.refused.setdefault(place, set())
            tried.add(arm)
            if self.asker.worst(prompt, self.ways(place, arm)) <= left:
                self.supply.arm[place] = arm
                self._short = 0.0
                return place
        self._carry(self._give_up(place))
        return None

    async def _give_up(self, place: int) -> None:
        message = "the job's budget is used up: what is left does not cover the most that this prompt may cost"
        await self.asker.give_up(self.plan.prompts[place], 429, "budget_exhausted", message)
        self._close(place, FAILED, "")

    # ---- look

    async def look(self) -> None:
        """Now and then: keep the lease, learn what is wished, plan again, say how it goes."""
        now = self.terms.now()
        if now - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now
        if not self.wish and not self.ended_early:
            self._replan_if_due(now)
        progress = progress_of(self)
        self.terms.on_progress(progress)
        if now - self._asked_s >= RENEW_EVERY_S:
            self._asked_s = now
            await self._renew(progress, now)

    async def _renew(self, progress: Progress, now: float) -> None:
        """A database that is away costs nothing but time: without a lease to be sure of, nothing new starts."""
        try:
            wish = await asyncio.to_thread(self.jobs.renew, self.job, progress, self.terms.clock())
        except SQLAlchemyError as fault:
            log.warning("the lease of %s can't be renewed: %s", self.job.id, fault)
            return
        self._renewed_s = now
        self.lost = self.lost or wish is None
        if wish is not None and wish != self.wish:
            self.wish = wish
            state: State = {"": "running", "pause": "paused", "cancel": "cancelling"}[wish]  # type: ignore[assignment]
            await asyncio.to_thread(self.jobs.change, self.job, state, self.terms.clock())

    def _replan_if_due(self, now: float) -> None:
        done = self._answered - self._planned_at
        least = max(8, REPLAN_SHARE * len(self.plan.prompts))
        due = done >= least or (done and now - self._planned_s >= REPLAN_EVERY_S)
        if due and (self._planning is None or self._planning.done()):
            self._planned_at, self._planned_s = self._answered, now
            self._planning = asyncio.create_task(self._replan())

    async def _replan(self) -> None:
        """The rest, with what is left of money and time and with what the calls have taught."""
        rest = self.supply.rest()
        if not len(rest):
            return
        table = self.learnt.corrected(self.plan.estimates, self.paces)
        live = np.array([arm.via == "live" for arm in table.arms])
        table = replace(table, cost_usd=np.where(live, table.cost_usd, np.float32(np.inf)))
        busy = np.flatnonzero((self.supply.state == BUSY) | (self.supply.state == AWAY))
        under_way = forecast.expected_usd(self.plan.estimates.cost_usd, self.supply.arm, busy, self.learnt.ratios())
        left_usd = inf if self.limit is None else max(0.0, usd(self.limit - self.spent_now) - under_way)
        limits = [*self.plan.capacities, *forecast.measured(table.arms, self.paces, self.job.card.concurrency)]
        fresh = await asyncio.to_thread(
            replan, table, rest, left_usd, deadline_s=max(0.001, self.left_s), capacities=limits,
            taste=Taste() if self.limit is not None else Taste(usd_price=self.plan.usd_price),
        )  # fmt: skip
        self.shortfall = fresh.shortfall
        self.replans += 1
        self.supply.plan(rest, fresh.arm)
        self._wakes.set()

    # ---- inside

    def _carry(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self.parts.add(task)
        task.add_done_callback(self._carried)

    def _carried(self, task: asyncio.Task[None]) -> None:
        self.parts.discard(task)
        self._wakes.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("a part of %s failed", self.job.id, exc_info=task.exception())

    async def _sleep(self) -> None:
        """Until something ends or is due."""
        now = self.terms.now()
        due = [LOOK_EVERY_S, *(pace.opens_s - now for pace in self.paces.values() if pace.opens_s > now)]
        if self.supply.wakes_s() is not None:
            due.append((self.supply.wakes_s() or 0.0) - now)
        try:
            await asyncio.wait_for(self._wakes.wait(), max(0.001, min(due)))
        except TimeoutError:
            pass
        self._wakes.clear()

    async def _drain(self) -> None:
        """Calls under way get their time to end, but none where the job is another's now."""
        if self._planning is not None:
            await asyncio.gather(self._planning, return_exceptions=True)
        if self.tasks and not self.lost:
            await asyncio.wait(self.tasks, timeout=self.terms.drain_s)
        under_way = [*self.tasks, *self.parts]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)

