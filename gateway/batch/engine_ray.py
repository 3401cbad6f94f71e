"""Runs a job on Ray: Ray Data passes its prompts through actors, each with its own gateway services (extra `ray`).

The driver keeps the budget: it holds the worst case of every prompt of a wave before the wave starts, so that actors
can't overspend together. Actors write answers into the spool of their machine and ship it, as the embedded engine does;
a job may therefore begin on one engine and end on the other.
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
from gateway.config.types import Config
from gateway.keys import Caller
from gateway.ray_cluster import start_ray

BLOCK = 32
"""Prompts that an actor gets at once."""
MOST_IN_WAVE = 50_000
LOOK_EVERY_S = 0.2
PATIENCE_S = 30.0
"""Most seconds that an actor waits between the calls of one prompt in total, before it returns the prompt."""
Columns = dict[str, Any]


async def execute_on_ray(
    runtime: JobRuntime, config: Config, job: Job, plan: Plan, caller: Caller, options: RunnerOptions, workers: int,
    stop: asyncio.Event,
) -> Job:  # fmt: skip
    """Run a claimed job to its end, or until `stop`. Raises LostLease, and ConfigError where Ray is not installed."""
    runner = await take_over(runtime.services, runtime.jobs, job, plan, caller, options)
    start_ray(workers)
    _hide_progress_bars()
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
        raise LostLease("another runner has taken the job")
    if runner.stopped and not runner.over_for_good:
        await asyncio.to_thread(runtime.jobs.release, job, runner.last)
    else:
        await finish(runtime.services, runtime.jobs, job, plan, runner, LocalFiles())
    return await asyncio.to_thread(runtime.jobs.find, job.id)


def _hide_progress_bars() -> None:
    """Turn Ray Data's own progress bars off."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False


def wave(runner: Runner) -> list[int]:
    """Take the next prompts whose worst cases together are within the budget."""
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
    """Answer the prompts on the actors while the wave's worst case is held, and wait for a replanning under way."""
    worst = sum(_worst(runner, place) for place in places)
    hold = await runtime.services.ledger.hold((runner.account,), worst)
    runner.held += worst
    before = runner.spent_now
    try:
        answers = asyncio.create_task(asyncio.to_thread(_answer_all, config, runner, list(places), workers))
        while not answers.done():
            await asyncio.wait({answers}, timeout=LOOK_EVERY_S)
            runner.look()
        for result in answers.result():
            runner.hear(result.place, int(runner.queue.arm[result.place]), result, 0.0)
    finally:
        runner.held -= worst
        hold.settle(runner.spent_now - before)
        left = [place for place in places if runner.queue.state[place] == BUSY]
        for place in left:
            runner.queue.put(place)
    await runner.replanning.end()


async def _settle_rest(runner: Runner) -> None:
    """Called when the money left covers no further prompt as planned: prompts get other arms or are given up."""
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


def _answer_all(config: Config, runner: Runner, places: list[int], workers: int) -> list[CallResult]:
    """Answer the prompts in one execution of Ray Data. Blocks."""
    import ray

    rows = [_row(runner, place) for place in places]
    arguments = {
        "config": config, "job": runner.job.id, "caller": asdict(replace(runner.asker.caller, accounts=())),
        "concurrency": max(1, runner.job.card.concurrency // workers),
    }  # fmt: skip
    prompts = ray.data.from_items(rows, override_num_blocks=max(workers, -(-len(rows) // BLOCK)))
    results = prompts.map_batches(
        Answerer, fn_constructor_kwargs=arguments, batch_size=BLOCK, batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=1,
    )  # fmt: skip
    return [CallResult(**row) for row in results.iter_rows()]


def _row(runner: Runner, place: int) -> dict[str, Any]:
    prompt: Prompt = runner.plan.prompts[place]
    arm_call = runner.arm_call(place, int(runner.queue.arm[place]))
    call = {"arm_call": msgspec.json.encode(arm_call).decode(), "tries": runner.queue.tries[place]}
    return {**asdict(prompt), "body": prompt.body.decode(), **call}


class Answerer:
    """An actor: gateway services without a server. Ray makes one in each worker process and gives it blocks of prompts.
    """

    def __init__(self, config: Config, job: str, caller: dict[str, Any], concurrency: int) -> None:
        from gateway.app import build_services
        from gateway.batch.runtime import open_jobs
        from gateway.config.settings import Current
        from gateway.journal.ship import Shipper

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
        """Ask one prompt, again while its failures cost nothing: a failed call that cost money must be settled by the
        driver before the next is held for.
        """
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
