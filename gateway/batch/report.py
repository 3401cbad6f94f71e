"""The progress of a running job: counts, money, time to the end, and a warning of a shortfall before it happens."""

from __future__ import annotations

from math import inf, isfinite
from typing import TYPE_CHECKING

import numpy as np

from gateway.batch import forecast
from gateway.batch.jobs import Progress
from gateway.batch.prompt_queue import AWAY, DONE, FAILED
from gateway.batch.types import UNASSIGNED
from gateway.money.prices import nanousd

if TYPE_CHECKING:
    from gateway.batch.run import Runner

LAST_SHARE = 0.1
"""The share of the time from the run's start to the deadline that counts as the last moments."""


def progress_of(run: Runner) -> Progress:
    """The progress of the job now."""
    queue, lines, job = run.queue, run.lines, run.job
    waiting = queue.waiting()
    left_s = forecast.seconds_left(waiting, run.limiters, job.card.concurrency, run.predicted_s)
    left_s += max((run.opens_in_s(model) for model, count in waiting.items() if count), default=0.0)
    rest = np.flatnonzero(queue.state <= AWAY)
    cost = forecast.expected_usd(run.plan.estimates.cost_usd, queue.arm, rest, run.cost_ratios.ratios())
    spent = run.spent_before - job.at_risk_nanousd + run.spent_now
    return Progress(
        total=int(lines.sum()),
        done=int(lines[queue.state == DONE].sum()),
        failed=int(lines[queue.state == FAILED].sum()),
        in_flight=len(run.tasks),
        at_provider=int((queue.state == AWAY).sum()),
        spent_nanousd=spent,
        expected_nanousd=spent + nanousd(cost),
        at_risk_nanousd=job.at_risk_nanousd,
        quality=_quality(run),
        rate_per_s=sum(waiting.values()) / left_s if 0 < left_s < inf else 0.0,
        eta_s=left_s if isfinite(left_s) else None,
        concurrency=min(job.card.concurrency, int(sum(limiter.limit for limiter in run.limiters.values()))),
        replans=run.replanning.count,
        warning=_warning(run, left_s, len(rest)),
        by_model=dict(run.by_model),
        time_s=run.options.clock(),
    )


def _quality(run: Runner) -> float | None:
    """Mean predicted quality of the prompts that are or will be answered; None where there are none."""
    arm = run.queue.arm
    known = np.flatnonzero((arm != UNASSIGNED) & (run.queue.state != FAILED))
    return float(run.plan.estimates.quality[known, arm[known]].mean()) if len(known) else None


def _warning(run: Runner, eta_s: float, rest: int) -> str:
    """The most urgent warning, or empty. `rest`: prompts that are not answered yet."""
    left_s = run.left_s
    if rest and left_s <= 0:
        return f"the deadline has passed: {rest} prompts are not answered"
    if rest and isfinite(eta_s) and eta_s > left_s:
        late = max(1, round(rest * (1 - left_s / eta_s)))
        return f"at the present pace about {late} of {rest} prompts will not be answered by the deadline"
    if rest and left_s < _last_moments_s(run):
        return f"{rest} prompts are not answered yet, {left_s:.1f} s before the deadline"
    if run.replanning.shortfall:
        return f"the budget and the time left do not suffice for {run.replanning.shortfall} of {rest} prompts"
    if run.unafforded:
        return (
            f"{run.unafforded} prompts went to another model than planned, because the money left does not cover the "
            "planned model's worst-case cost (a smaller max_tokens lowers it)"
        )
    return ""


def _last_moments_s(run: Runner) -> float:
    """Seconds before the deadline in which open prompts are warned of, whatever pace was measured."""
    slowest = max((limiter.latency_s for limiter in run.limiters.values()), default=0.0)
    return max(2 * slowest, LAST_SHARE * run.span_s)
