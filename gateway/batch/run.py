"""Runs a planned job: as many calls at once as providers and money allow, never a cent above the budget.

One loop decides (`launch`, `hear`, `look`); tasks only make the calls. The job's own account in the ledger holds the
worst case of every call before it starts, so the budget is kept however wrong the predictions are; predictions only
decide which model is asked. Measured costs and latencies correct the predictions, and the rest of the job is planned
again. Everything that must survive is in the journal: when a runner dies, its lease lapses, and the next runner
continues where the records end.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf, isfinite
from typing import Protocol

import numpy as np

from gateway.batch import forecast
from gateway.batch.ask import BUSY as BUSY_STATUS
from gateway.batch.ask import ArmCall, Asker, CallResult, PreparedCall
from gateway.batch.concurrency import ConcurrencyLimiter
from gateway.batch.jobs import Item, Job, Jobs, Part, Wish
from gateway.batch.lease import Lease, LostLease, RunnerOptions
from gateway.batch.prompt_queue import AWAY, DONE, FAILED, PromptQueue
from gateway.batch.replanning import Replanning
from gateway.batch.report import progress_of
from gateway.batch.types import UNASSIGNED, Arm, Plan
from gateway.keys import Caller
from gateway.money.ledger import Account
from gateway.money.prices import nanousd, usd
from gateway.services import Services
from routers.types import Estimate

log = logging.getLogger("headgate.batch")

LOOK_EVERY_S = 0.5
WAIT_S = (0.25, 1.0, 4.0, 15.0)
"""Seconds to wait before a prompt's second call, its third, and so on."""
OUT_OF_MONEY = "insufficient_quota"
OVER_RATE = "rate_limit_exceeded"


class Endpoints(Protocol):
    """Providers' own batch endpoints (gateway/batch/endpoint.py)."""

    async def parts(self, runner: Runner) -> Sequence[Part]:
        """The parts to run: those of earlier runners that have not ended, and new ones."""
        ...

    async def run(self, runner: Runner, part: Part) -> None:
        """Run one part until each of its prompts has a result (`heard_away`) or is given back (`come_back`)."""
        ...


class Runner:
    """One run of one job, from a claim to the job's end or to `stop`."""

    def __init__(
        self, services: Services, jobs: Jobs, job: Job, plan: Plan, caller: Caller, options: RunnerOptions, spent: int
    ) -> None:
        """`spent`: nano-dollars that the job has cost so far, including those at risk."""
        self.jobs, self.job, self.plan, self.options = jobs, job, plan, options
        self.s = services
        self.spent_before, self.spent_now = spent, 0
        self.limit = None if job.card.budget_usd is None else max(0, nanousd(job.card.budget_usd) - spent)
        self.account = Account(f"batch:{job.owner}", self.limit, "total")
        self.asker = Asker(services, job.id, self._of_job(caller))
        self.queue = PromptQueue(plan.estimates.arms, plan.assignment.arm)
        self.limiters = {arm.model: ConcurrencyLimiter(job.card.concurrency) for arm in plan.estimates.arms}
        self.predicted_s = forecast.predicted_latencies(plan.estimates)
        self.climbs = any(arm.rule >= 0 for arm in plan.estimates.arms)
        """Whether the plan has arms that escalate to better models."""
        self.cost_ratios = forecast.CostRatios(plan.estimates.arms)
        self.tasks: set[asyncio.Task[None]] = set()
        self.parts: set[asyncio.Task[None]] = set()
        self.stopped = False
        self.last = job.progress
        """The progress at the end of `run`."""
        self.by_model: Counter[str] = Counter()
        self.span_s = self.left_s
        """Seconds from the beginning of this run to the deadline."""
        self.lines = np.ones(len(plan.prompts), np.int64)
        """How many lines of the input each prompt stands for."""
        for duplicate in plan.duplicates:
            self.lines[duplicate.index] += 1
        self._wakes = asyncio.Event()
        self.held = 0
        """Nano-dollars: the most that all calls under way may cost."""
        self.short = False
        """Whether a prompt waits for money and nothing has been settled since."""
        self.unafforded = 0
        """Prompts sent to another arm than planned, because the money left did not cover the planned arm's worst case.
        """
        self._shut_s = 0.0
        self._looked_s = -inf
        self.answered = 0
        """Prompts that have ended under this runner."""
        self.ended_elsewhere = 0
        """Prompts that ended under an earlier plan and are not in this one."""
        self.lease = Lease(jobs, job, options)
        self.replanning = Replanning(self)

    def _of_job(self, caller: Caller) -> Caller:
        return replace(caller, accounts=(*caller.accounts, self.account), explore=False)

    def go_by(self, caller: Caller) -> None:
        """Make further calls with the key's present permissions and accounts."""
        self.asker.caller = self._of_job(caller)

    # ---- from begin to end

    def resume(self, items: Sequence[Item], parts: Sequence[Part]) -> None:
        """Take over what the journal records; prompts in a part that has not ended stay at their provider."""
        for item in items:
            ended = item.state in ("done", "failed")
            if (place := self.plan.prompts.place_of(item.place)) is None:  # it is a duplicate in this plan
                self.ended_elsewhere += ended
                continue
            self.queue.tries[place] = item.tries
            if ended:
                self.queue.end(place, DONE if item.state == "done" else FAILED)
                self.by_model[item.model or "none"] += 1
        for part in parts:
            if part.state == "sent":
                left = [place for place in self.places(part) if self.queue.state[place] < AWAY]
                self.queue.state[left] = AWAY
        self.queue.fill()

    def places(self, part: Part) -> list[int]:
        """The numbers that the part's prompts have in this plan; lines that are no prompt of this plan are left out."""
        found = [self.plan.prompts.place_of(line) for line in part.lines]
        return [place for place in found if place is not None]

    async def run(self, endpoints: Endpoints | None = None) -> None:
        """Run until every prompt has ended, the job is cancelled, its deadline has passed, or `stop` is called. Raises
        LostLease where another runner has taken the job.
        """
        if endpoints is not None:
            for part in await endpoints.parts(self):
                self._carry(endpoints.run(self, part))
        for _, places in self.queue.at_endpoints():
            self.come_back(places.tolist())
        try:
            while not self.over:
                self.look()
                self.launch()
                await self._sleep()
        finally:
            await self._drain()
        self.last = progress_of(self)
        self.options.on_progress(self.last)
        if self.lost:
            raise LostLease("another runner has taken the job")

    @property
    def over(self) -> bool:
        """Whether the loop ends: there is nothing left to do, or this runner may not go on."""
        return self.stopped or self.lost or (self.over_for_good and not (self.tasks or self.parts))

    @property
    def over_for_good(self) -> bool:
        """Whether nothing is left for another runner."""
        return self.ended_early or not (self.queue.state <= AWAY).any()

    @property
    def ended_early(self) -> bool:
        """Whether no further call is made although prompts are left: the job is cancelled, or its deadline has passed.
        """
        return self.wish == "cancel" or self.left_s <= 0

    @property
    def wish(self) -> Wish:
        """What a user has asked of the job (pause, cancel)."""
        return self.lease.wish

    @property
    def lost(self) -> bool:
        """Whether another runner has the job now."""
        return self.lease.lost

    @property
    def left_s(self) -> float:
        """Seconds to the deadline, negative after it; infinite where there is none."""
        return inf if self.job.card.deadline_s is None else self.job.card.deadline_s - self.options.clock()

    def stop(self, drain_s: float = 0.0) -> None:
        """Give calls under way the longer of `drain_s` and the options' `drain_s` seconds to end, and leave the rest to
        the next runner.
        """
        self.options = replace(self.options, drain_s=max(drain_s, self.options.drain_s))
        self.stopped = True
        self._wakes.set()

    # ---- launch

    def launch(self) -> None:
        """Start every call that may start now."""
        now = self.options.now()
        idle = self.stopped or self.lost or self.wish or self.ended_early
        if idle or now < self._shut_s or not self.lease.is_sure:
            return
        self.queue.wake(now)
        while len(self.tasks) < self.job.card.concurrency:
            place = self._next(now)
            if place is None or not self._start(place, now):
                break
        if not self.tasks and not self.parts:
            self.unstick()

    def _next(self, now: float) -> int | None:
        """The next prompt to ask. Those that wait for money go first and alone, so that others don't take it."""
        if self.queue.unfunded:
            return None if self.short else self.queue.take_unfunded()
        return self.queue.take(lambda arm: arm.via == "live" and self._lets(arm, now))

    def _lets(self, arm: Arm, now: float) -> bool:
        """Whether a call of this arm may start. After a refusal one call goes first, the others once it is answered."""
        limiter, fleet = self.limiters[arm.model], self.s.fleet
        if not (limiter.lets_pass(now) and fleet.healthy(arm.model, self.s.now())):
            return False
        return not limiter.in_flight or any(not one.breaker.opens_s for one in fleet.deployments(arm.model))

    @property
    def free(self) -> float:
        """Nano-dollars of the job's budget that are neither spent nor held; infinite where there is no budget."""
        return inf if self.limit is None else self.limit - self.spent_now - self.held

    def _start(self, place: int, now: float) -> bool:
        """Start one call; False where the money left doesn't cover it now."""
        arm = int(self.queue.arm[place])
        ready = self.asker.ready(self.plan.prompts[place], self.arm_call(place, arm))
        if ready.worst_nanousd > self.free:
            self._wait_for_money(place, arm)
            return False
        self.limiters[self.queue.arms[arm].model].begin()
        self.held += ready.worst_nanousd
        task = asyncio.create_task(self._ask(ready, arm, now))
        self.tasks.add(task)
        task.add_done_callback(partial(self._ended, self.tasks))
        return True

    def _wait_for_money(self, place: int, arm: int) -> None:
        self.short = True
        self.queue.refused.setdefault(place, set()).add(arm)
        self.queue.put_unfunded(place)

    def unstick(self) -> None:
        """Called when no call is under way: a prompt that waits for money gets an arm that the money left covers, and
        prompts without an arm get the cheapest one.
        """
        if self.short and (place := self.queue.take_unfunded()) is not None:
            self.afford(place)
        elif self.queue.is_dry:
            table = self.plan.estimates
            live = np.array([arm.via == "live" for arm in table.arms])
            for place in self.queue.rest().tolist():
                may = live & (table.quality[place] >= table.floor[place]) & np.isfinite(table.cost_usd[place])
                cheapest = int(np.where(may, table.cost_usd[place], np.inf).argmin())
                self.queue.arm[place] = cheapest if may[cheapest] else UNASSIGNED
                if may[cheapest]:
                    self.queue.put(place)
                else:
                    self._give_up(place)
            self._wakes.set()

    def _ended(self, among: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        among.discard(task)
        if among is self.parts:
            self.short = False
        self._wakes.set()
        if not task.cancelled() and task.exception() is not None:
            kind = "background task" if among is self.parts else "call"
            log.error("a %s of %s failed inside the gateway", kind, self.job.id, exc_info=task.exception())

    async def _ask(self, ready: PreparedCall, arm: int, began_s: float) -> None:
        place, limiter = ready.prompt.index, self.limiters[self.queue.arms[arm].model]
        limit_s = min(self.s.config.server.request_timeout_s, max(0.001, self.left_s))
        try:
            result = await self.asker.ask(ready, tries=self.queue.tries[place], timeout_s=limit_s)
        except BaseException:
            self.queue.put(place)
            raise
        finally:
            limiter.end()
            self.held -= ready.worst_nanousd
        self.hear(place, arm, result, began_s)

    def arm_call(self, place: int, number: int) -> ArmCall:
        """How an arm answers this prompt, and which models its answer may be escalated to: those of the plan's cascade,
        or all better ones where the plan has no cascade and the job wants one.
        """
        table, arm = self.plan.estimates, self.plan.estimates.arms[number]
        if arm.rule >= 0:
            single = (i for i, other in enumerate(table.arms) if other.is_one_call)
            estimates = {table.arms[i].model: self._estimate(place, i) for i in single}
            own = estimates.pop(arm.model)
            return ArmCall(arm, own.quality, own.cost_usd, tuple(estimates.values()))
        own = self._estimate(place, number)
        better: tuple[Estimate, ...] = ()
        if self.job.card.cascade and arm.samples == 1 and not self.climbs:
            better = tuple(
                self._estimate(place, i)
                for i, other in enumerate(table.arms)
                if other.is_one_call and other.model != arm.model
                and table.quality[place, i] > own.quality and isfinite(table.cost_usd[place, i])
            )  # fmt: skip
        return ArmCall(arm, own.quality, own.cost_usd, better)

    def _estimate(self, place: int, number: int) -> Estimate:
        table = self.plan.estimates
        model, quality = table.arms[number].model, float(table.quality[place, number])
        return Estimate(model, quality, 0.0, float(table.cost_usd[place, number]))

    # ---- hear

    def hear(self, place: int, arm: int, result: CallResult, began_s: float) -> None:
        """Take the result of one call."""
        now = self.options.now()
        if not result.held:
            self._hear_refusal(place, arm, result, now)
            return
        self._count(place, arm, result)
        limiter = self.limiters[self.plan.estimates.arms[arm].model]
        if result.ok:
            limiter.answered(result.latency_s)
        elif result.status in BUSY_STATUS:
            limiter.pushed_back(now, began_s, result.retry_after_s)
        if result.final:
            self._close(place, DONE if result.ok else FAILED, result.model)
        else:
            patience = WAIT_S[min(self.queue.tries[place], len(WAIT_S)) - 1]
            self.queue.put_later(place, now + (result.retry_after_s or patience))

    def _hear_refusal(self, place: int, arm: int, result: CallResult, now: float) -> None:
        """Take a refusal before money was held: a budget of the key, tenant or route is short, or a rate limit is
        reached.
        """
        if result.code == OUT_OF_MONEY:
            self._wait_for_money(place, arm)
        elif result.final and result.code != OVER_RATE:
            self._carry(self._fail(place, result.status, result.code, "refused"))
        else:
            self._shut_s = max(self._shut_s, now + min(result.retry_after_s or WAIT_S[0], 60.0))
            self.queue.put(place)

    def _count(self, place: int, arm: int, result: CallResult) -> None:
        self.short = False  # its hold is settled, so other prompts may use what it did not cost
        self.queue.tries[place] += 1
        self.spent_now += result.cost_nanousd
        if result.ok and result.cost_nanousd:
            predicted = float(self.plan.estimates.cost_usd[place, arm])
            self.cost_ratios.add(self.plan.estimates.arms[arm].paid_as, usd(result.cost_nanousd), predicted)

    def _close(self, place: int, state: int, model: str) -> None:
        self.queue.end(place, state)
        self.by_model[model or "none"] += 1
        self.answered += 1

    def heard_away(self, place: int, arm: int, result: CallResult) -> None:
        """Take the result of a prompt at a provider's batch endpoint; one that is not final is queued again."""
        self._count(place, arm, result)
        if result.final:
            self._close(place, DONE if result.ok else FAILED, result.model)
        else:
            self.come_back([place])

    def opens_in_s(self, model: str) -> float:
        """Seconds until another call of this model may start: its provider may have asked to wait, or its breaker may
        be open.
        """
        now = self.s.now()
        opens = min((one.breaker.opens_s for one in self.s.fleet.deployments(model)), default=0.0)
        return max(0.0, opens - now, self.limiters[model].opens_s - self.options.now())

    def wake(self) -> None:
        """Make the loop check again which calls may start."""
        self._wakes.set()

    def come_back(self, places: Sequence[int]) -> None:
        """Queue prompts that a provider's batch endpoint did not answer as single calls of the same model."""
        arms = self.plan.estimates.arms
        for place in places:
            away = arms[self.queue.arm[place]]
            live = [i for i, one in enumerate(arms) if one.model == away.model and one.via == "live"]
            if live:
                self.queue.arm[place] = live[0]
            self.queue.put(place)
        self._wakes.set()

    def afford(self, place: int) -> None:
        """Find another arm for a prompt that the budget doesn't cover though nothing is under way, or give it up."""
        table, prompt = self.plan.estimates, self.plan.prompts[place]
        tried = self.queue.refused.setdefault(place, set())
        fits = (table.quality[place] >= table.floor[place]) & np.isfinite(table.cost_usd[place])
        for arm in np.argsort(-table.quality[place], kind="stable").tolist():
            if arm in tried or not fits[arm] or table.arms[arm].via != "live":
                continue
            tried.add(arm)
            if self.asker.ready(prompt, self.arm_call(place, arm)).worst_nanousd <= self.free:
                self.queue.arm[place] = arm
                self.queue.put(place)
                self.unafforded += 1
                self.short = bool(self.queue.unfunded)
                self._wakes.set()
                return
        self._give_up(place)

    def _give_up(self, place: int) -> None:
        message = "the budget is used up: the money left does not cover this prompt's worst-case cost"
        self._carry(self._fail(place, 429, "budget_exhausted", message))

    async def _fail(self, place: int, status: int, code: str, message: str) -> None:
        await self.asker.give_up(self.plan.prompts[place], status, code, message)
        self._close(place, FAILED, "")

    # ---- look

    def look(self) -> None:
        """At most every `_look_s` seconds: renew the lease, read the users' wish, replan, and report progress."""
        now = self.options.now()
        if now - self._looked_s < self._look_s:
            return
        self._looked_s = now
        if not self.wish and not self.ended_early:
            self.replanning.start_if_due(now)
        progress = progress_of(self)
        self.options.on_progress(progress)
        self.lease.renew_if_due(progress)

    @property
    def _look_s(self) -> float:
        """Least seconds between two looks: fewer near a deadline, so that a shortfall is reported before it happens."""
        return min(LOOK_EVERY_S, max(0.02, self.left_s / 10))

    # ---- inside

    def _carry(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self.parts.add(task)
        task.add_done_callback(partial(self._ended, self.parts))

    async def _sleep(self) -> None:
        """Sleep until something ends or is due."""
        now = self.options.now()
        due = [self._look_s, *(limiter.opens_s - now for limiter in self.limiters.values() if limiter.opens_s > now)]
        if (wakes_s := self.queue.wakes_s()) is not None:
            due.append(wakes_s - now)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.001, min(due))):
                await self._wakes.wait()
        self._wakes.clear()

    async def _drain(self) -> None:
        """Give calls under way `drain_s` seconds to end, and cancel them all at once where another runner has the job.
        """
        await self.replanning.end()
        await self.lease.end()
        if self.tasks and not self.lost:
            await asyncio.wait(self.tasks, timeout=self.options.drain_s)
        under_way = [*self.tasks, *self.parts]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
