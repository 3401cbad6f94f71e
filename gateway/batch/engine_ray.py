"""The same job on Ray: prompts flow through Ray Data over actors, each a whole gateway of its own (extra `ray`).

Money stays with the driver: it holds the worst case of every prompt before the wave that carries it leaves, so no
actor can spend what another has. Actors write answers into the spool of their machine, as the embedded engine does,
and ship it; so a job may even begin on one engine and end on the other. Nothing distributed here is ours.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import msgspec
import numpy as np

from gateway.batch.ask import ArmCall, Asker, CallResult
from gateway.batch.execute import LocalFiles, finish, take_over
from gateway.batch.jobs import Job
from gateway.batch.lease import LostLease, RunnerOptions
from gateway.batch.prompt_queue import BUSY
from gateway.batch.report import progress_of
from gateway.batch.run import Runner
from gateway.batch.runtime import JobRuntime
from gateway.batch.types import UNASSIGNED, Plan, Prompt
from gateway.config import Config
from gateway.keys import Caller
from gateway.ray_cluster import start_ray

BLOCK = 32
"""Prompts that an actor is handed together."""
MOST_IN_WAVE = 50_000
LOOK_EVERY_S = 0.2
PATIENCE_S = 30.0
"""Longest that an actor waits for a provider that has had enough."""
Columns = dict[str, Any]


async def execute_on_ray(
    runtime: JobRuntime, config: Config, job: Job, plan: Plan, caller: Caller, options: RunnerOptions, workers: int,
    stop: asyncio.Event,
) -> Job:  # fmt: skip
    """Run a claimed job to its end, or until `stop`. Raises LostLease, and ConfigError where Ray is not installed."""
    runner = await take_over(runtime.services, runtime.jobs, job, plan, caller, options)
    start_ray(workers)
    _hush()
    for _, away in runner.queue.at_endpoints():
        runner.come_back(away.tolist())
    while not (stop.is_set() or runner.lost or runner.over_for_good):
        places = wave(runner)
        if places:
            await _execute_wave(runtime, config, runner, places, workers)
        else:
            await _settle_rest(runner)
    runner.stopped = stop.is_set()
    await runner.lease.end()
    runner.last = progress_of(runner)
    if runner.lost:
        raise LostLease("another runner has the job")
    if runner.stopped and not runner.over_for_good:
        await asyncio.to_thread(runtime.jobs.release, job, runner.last)
    else:
        await finish(runtime.services, runtime.jobs, job, plan, runner, LocalFiles())
    return await asyncio.to_thread(runtime.jobs.find, job.id)


def _hush() -> None:
    """Ray Data draws bars of its own."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False


def wave(runner: Runner) -> list[int]:
    """The next prompts whose worst cases the budget holds together; taken out of line."""
    runner.queue.wake(float("inf"))
    free, places = runner.free, list[int]()
    for place in runner.queue.rest().tolist():
        arm = int(runner.queue.arm[place])
        if arm == UNASSIGNED or len(places) >= MOST_IN_WAVE:
            continue
        worst = _worst(runner, place)
        if worst > free:
            break
        free -= worst
        places.append(place)
    runner.queue.state[places] = BUSY
    return places


def _worst(runner: Runner, place: int) -> int:
    arm_call = runner.arm_call(place, int(runner.queue.arm[place]))
    return runner.asker.ready(runner.plan.prompts[place], arm_call).worst_nanousd


async def _execute_wave(
    runtime: JobRuntime, config: Config, runner: Runner, places: Sequence[int], workers: int
) -> None:
    """Through the actors and back, the whole wave's worst case held meanwhile; then the rest is planned again."""
    worst = sum(_worst(runner, place) for place in places)
    hold = await runtime.services.ledger.hold((runner.account,), worst)
    runner.held += worst
    before = runner.spent_now
    try:
        heard = asyncio.create_task(asyncio.to_thread(_pass, config, runner, list(places), workers))
        while not heard.done():
            await asyncio.wait({heard}, timeout=LOOK_EVERY_S)
            runner.look()
        for result in heard.result():
            runner.hear(result.place, int(runner.queue.arm[result.place]), result, 0.0)
    finally:
        runner.held -= worst
        hold.settle(runner.spent_now - before)
        left = [place for place in places if runner.queue.state[place] == BUSY]
        for place in left:
            runner.queue.put(place)
    await runner.replanning.end()


async def _settle_rest(runner: Runner) -> None:
    """No prompt left can be paid as planned: dearer ones change their arm or are given up."""
    runner.short = bool(runner.queue.unfunded)
    rest = runner.queue.rest().tolist()
    for place in rest:
        if runner.queue.arm[place] == UNASSIGNED:
            runner.unstick()
            break
    for place in runner.queue.rest().tolist():
        runner.afford(place)
    while runner.parts:
        await asyncio.wait(set(runner.parts))


def _pass(config: Config, runner: Runner, places: list[int], workers: int) -> list[CallResult]:
    """One execution of Ray Data; blocks."""
    import ray

    rows = [_row(runner, place) for place in places]
    given = {
        "config": config, "job": runner.job.id, "caller": asdict(replace(runner.asker.caller, accounts=())),
        "concurrency": max(1, runner.job.card.concurrency // workers),
    }  # fmt: skip
    asked = ray.data.from_items(rows, override_num_blocks=max(workers, -(-len(rows) // BLOCK)))
    answered = asked.map_batches(
        Answerer, fn_constructor_kwargs=given, batch_size=BLOCK, batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=1,
    )  # fmt: skip
    return [CallResult(**row) for row in answered.iter_rows()]


def _row(runner: Runner, place: int) -> dict[str, Any]:
    prompt: Prompt = runner.plan.prompts[place]
    arm_call = runner.arm_call(place, int(runner.queue.arm[place]))
    call = {"arm_call": msgspec.json.encode(arm_call).decode(), "tries": runner.queue.tries[place]}
    return {**asdict(prompt), "body": prompt.body.decode(), **call}


class Answerer:
    """An actor: a gateway without a door. Ray makes one in each worker process and hands it blocks of prompts."""

    def __init__(self, config: Config, job: str, caller: dict[str, Any], concurrency: int) -> None:
        from gateway.app import build_services
        from gateway.batch.runtime import open_jobs
        from gateway.journal.ship import Shipper
        from gateway.settings import Current

        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.services = build_services(config, Current(config.server.run_dir), 0)
        self.asker = Asker(self.services, job, Caller(**caller))
        self.gate = asyncio.Semaphore(concurrency)
        shipper = Shipper(self.services.spool_dir, open_jobs(config).engine)
        threading.Thread(target=shipper.run, args=(threading.Event(),), daemon=True).start()

    def __call__(self, block: Columns) -> Columns:
        results = self.loop.run_until_complete(self._all(block))
        rows = [asdict(one) | {"body": b""} for one in results]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    async def _all(self, block: Columns) -> list[CallResult]:
        return await asyncio.gather(*(self._one(row) for row in _rows(block)))

    async def _one(self, row: dict[str, Any]) -> CallResult:
        """Asked again while it costs nothing: what a try has cost must be settled before another is held for."""
        arm_call = msgspec.json.decode(row.pop("arm_call"), type=ArmCall)
        tries = int(row.pop("tries"))
        prompt = Prompt(**{**row, "body": row["body"].encode()})
        waited_s = 0.0
        async with self.gate:
            while True:
                timeout_s = self.services.config.server.request_timeout_s
                result = await self.asker.ask(self.asker.ready(prompt, arm_call), tries=tries, timeout_s=timeout_s)
                if result.final or result.cost_nanousd or waited_s >= PATIENCE_S:
                    return result
                wait_s = result.retry_after_s or min(4.0, 0.25 * 2**tries)
                tries, waited_s = tries + 1, waited_s + wait_s
                await asyncio.sleep(wait_s)


def _rows(block: Columns) -> Iterator[dict[str, Any]]:
    for values in zip(*block.values(), strict=True):
        yield {name: getattr(value, "item", lambda v=value: v)() for name, value in zip(block, values, strict=True)}
