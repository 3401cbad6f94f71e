"""Jobs with wrong cost predictions and a failing provider: budgets and deadlines are kept all the same."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize  # noqa: F401 - its import would stall the first job for longer than its deadline

from gateway.batch.run import Runner
from gateway.batch.types import Arm
from tests.gateway.batch.made import Done, carried, chat, estimates, plan
from tests.live import Live, live

MODELS: list[Any] = [
    {"name": "small", "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0, "max_output_tokens": 64},
    {"name": "large", "input_usd_per_mtok": 5.0, "output_usd_per_mtok": 20.0, "max_output_tokens": 64},
]
ARMS = (Arm("small"), Arm("large"))
ROUTES = [{"name": "auto", "models": ["small", "large"], "router": "cheapest"}]
INPUT, MOST_OUTPUT = 12, 64


@dataclass(frozen=True, slots=True)
class World:
    """One job's truth and its predictions, drawn from a seed."""

    prompts: int
    wrong: float
    """Predicted divided by true cost."""
    budget_usd: float
    deadline_s: float
    """Infinite means without a deadline."""
    scripts: dict[str, list[dict[str, Any]]]


def world(seed: int) -> World:
    draw = random.Random(seed)
    count = draw.randrange(20, 50)
    late = draw.random() < 0.25
    scripts = {name: [step(draw, 0.4 if late else 0.02) for _ in range(400)] for name in ("small", "large")}
    mean = (INPUT * 1.0 + 20 * 2.0) / 1e6
    return World(
        count,
        draw.choice((0.5, 0.7, 1.0, 1.4, 2.0)),
        mean * count * draw.choice((0.4, 1.0, 2.0, 5.0, 20.0)) + 1e-4,
        draw.uniform(0.8, 2.0) if late else math.inf,
        scripts,
    )


def step(draw: random.Random, slowest_s: float) -> dict[str, Any]:
    """The upstream's next behaviour: mostly answers of any length, sometimes a failure or a refusal."""
    chance = draw.random()
    if chance < 0.01:
        return {"status": 500}
    if chance < 0.08:
        return {"status": 429, "retry_after_s": 0.02}
    if chance < 0.085:
        return {"fault": "close"}
    if chance < 0.095:
        return {"status": 400, "error": "no"}
    used = {"input_tokens": INPUT, "output_tokens": min(MOST_OUTPUT, int(draw.expovariate(1 / 20)) + 1)}
    return {**used, "delay_s": draw.uniform(0.0, slowest_s), "text": "said"}


async def simulate(gateway: Live, folder: Path, seed: int) -> tuple[World, Done]:
    given = world(seed)
    gateway.upstream.scripts.__init__(given.scripts)  # type: ignore[misc]
    for deployment in gateway.services.fleet.all():
        deployment.breaker.__init__()  # type: ignore[misc]
    bodies = [chat("auto", f"job {seed} asks {n}", max_tokens=MOST_OUTPUT) for n in range(given.prompts)]
    true = {"small": (INPUT * 1.0 + 20 * 2.0) / 1e6, "large": (INPUT * 5.0 + 20 * 20.0) / 1e6}
    believed = {name: cost * given.wrong for name, cost in true.items()}
    table = estimates(ARMS, given.prompts, {"small": 0.5, "large": 0.8}, believed)
    table.latency_s[:] = np.float32(0.02)
    made = plan(folder / f"plan-{seed}", bodies, table, budget_usd=given.budget_usd, deadline_s=given.deadline_s)

    def start(runner: Runner) -> None:
        if not math.isinf(given.deadline_s):
            runner.job.card.deadline_s = time.time() + given.deadline_s
            runner.span_s = given.deadline_s

    return given, await carried(gateway.services, made, folder / f"job-{seed}", on_start=start, concurrency=6)


def check(given: World, done: Done, gateway: Live) -> None:
    """Checks that the budget held, that every line was answered once, and that the deadline was met or a shortfall
    reported before. A process that couldn't run for a quarter of the job's time had no chance to report it.
    """
    assert done.spent_usd <= given.budget_usd, f"spent {done.spent_usd} of {given.budget_usd}"
    assert gateway.services.ledger.overrun_nanousd == 0
    ids = [line["custom_id"] for line in done.output + done.errors]
    assert sorted(ids) == sorted(f"row-{n}" for n in range(1, given.prompts + 1))
    assert done.job.state in ("completed", "expired")
    ends = done.job.card.deadline_s
    if ends is not None and (done.job.state == "expired" or done.job.card.times["finalizing"] > ends + 1.0):
        looks = [one for one in done.progress if one.time_s < ends]
        times = [one.time_s for one in looks] + [ends]
        starved = max((later - earlier for earlier, later in pairwise(times)), default=math.inf) > given.deadline_s / 4
        told = any("deadline" in one.warning or "time left" in one.warning for one in looks)
        assert starved or told, "the deadline passed without a word"


@dataclass(slots=True)
class Sum:
    """Totals of all jobs."""

    jobs: int = 0
    whole: int = 0
    expired: int = 0
    over_budget: int = 0
    used: list[float] = field(default_factory=list)
    """Shares of the budget that were used, where it was short."""


async def run_jobs(tmp_path: Path, seeds: Sequence[int]) -> Sum:
    """Runs and checks each job."""
    found = Sum()
    async with live(tmp_path, models=MODELS, routes=ROUTES, scripts={}) as gateway:
        for seed in seeds:
            given, done = await simulate(gateway, tmp_path, seed)
            check(given, done, gateway)
            found.jobs += 1
            found.whole += not done.errors
            found.expired += done.job.state == "expired"
            found.over_budget += done.spent_usd > given.budget_usd
            if any((line["response"] or {}).get("status_code") == 429 for line in done.errors):
                found.used.append(done.spent_usd / given.budget_usd)
        await gateway.rest()
    return found


async def test_simulated_jobs_keep_their_budgets_and_report_delays(tmp_path: Path) -> None:
    """Twelve jobs are simulated; the slow form simulates two hundred."""
    found = await run_jobs(tmp_path, range(12))
    assert (found.jobs, found.over_budget) == (12, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(4))
async def test_two_hundred_simulated_jobs(tmp_path: Path, part: int) -> None:
    """None exceeds its budget."""
    found = await run_jobs(tmp_path, range(part * 50, part * 50 + 50))
    used = np.mean(found.used) if found.used else math.nan
    print(f"jobs {part * 50} on: {found.whole} whole, {found.expired} expired, short budgets used to {used:.1%}")
    assert (found.jobs, found.over_budget) == (50, 0)
