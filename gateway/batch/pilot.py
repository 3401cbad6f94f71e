"""Asks a small sample of the job's prompts of every model, to correct the job's estimates before it is planned.

Costs, lengths and latencies are corrected model by model, by the ratio of measured to predicted values. Quality is
corrected where the input has the right answers (`reference`) or the operator has a check: each model's predictions are
shifted by the mean measured error, shrunk towards 0 while there are few answers. The pilot has a budget of its own.
"""

from __future__ import annotations

import asyncio
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.answer import Answering
from gateway.batch.gather import Gathered
from gateway.batch.plan import Pilot, Piloted
from gateway.batch.types import Estimates, Floats, PilotReport, Prompt
from gateway.call import Arrival, CallOptions, read_call
from gateway.checker import Checker
from gateway.config.types import Config
from gateway.errors import HeadgateError
from gateway.file_inputs import call_with_files
from gateway.keys import Caller
from gateway.money.ledger import Account
from gateway.money.prices import nanousd, usd
from gateway.reply import Heard
from gateway.services import Services
from gateway.wire.peek import peek

PILOT_SHARE = 0.02
"""Default budget of the pilot, as a share of the job's budget."""
AT_ONCE = 8
"""Calls at once."""
TIMEOUT_S = 120.0
PRIOR_CALLS = 4.0
"""Number of calls that a prior ratio of 1 counts for, for cost, length and latency."""
WIDE_SHIFT = 0.15
"""Least prior standard deviation of a model's common quality error: a job's prompts may differ much from those that the
router was trained on.
"""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Sample:
    """The size of the pilot and how its answers are scored."""

    prompts: int
    most_usd: float
    check: str = ""
    """A command that reads an answer on standard input and exits 0 if it is right, 1 if it is wrong."""
    tenant: str = "default"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """One call of the pilot."""

    index: int
    """Index of the prompt."""
    place: int
    """Index of the arm."""
    answered: bool
    cost_usd: float = 0.0
    output_tokens: float = 0.0
    latency_s: float = 0.0
    score: float = math.nan
    """In [0, 1]; NaN where the quality is unknown."""


def pilot_of(config: Config, sample: Sample) -> Pilot:
    """The pilot as a function for `plan_job`; it opens its own gateway services for its calls."""

    def pilot(gathered: Gathered) -> Piloted:
        fresh, report = updated(gathered.estimates, asyncio.run(asked(config, gathered, sample)))
        planned = len(chosen_cells(gathered.estimates, sample.prompts, sample.seed))
        return fresh, replace(report, skipped=planned - report.calls)

    return pilot


# -- asking


async def asked(config: Config, gathered: Gathered, sample: Sample) -> list[Observation]:
    """Make the pilot's calls, prompt by prompt, until the sample or its budget is used up."""
    from gateway.batch.runtime import job_runtime

    async with job_runtime(config) as runtime:
        asker = _Asker(runtime.services, sample)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(prompt: Prompt, place: int) -> Observation | None:
            async with gate:
                return await asker.ask(prompt, gathered.estimates.arms[place].model, place)

        cells = chosen_cells(gathered.estimates, sample.prompts, sample.seed)
        prompts = {index: gathered.prompts[index] for index, _ in cells}
        observations = await asyncio.gather(*(one(prompts[index], place) for index, place in cells))
    return [observation for observation in observations if observation is not None]


def chosen_cells(estimates: Estimates, prompts: int, seed: int) -> list[tuple[int, int]]:
    """Randomly drawn prompts, each with every arm that may answer it, the cheapest first, as (prompt, arm)."""
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(estimates))[:prompts].tolist()
    able = np.isfinite(estimates.cost_usd[drawn])
    mean = np.where(able, estimates.cost_usd[drawn], 0.0).sum(0) / np.maximum(able.sum(0), 1)
    order = np.argsort(mean, kind="stable").tolist()
    return [(index, place) for row, index in enumerate(drawn) for place in order if able[row, place]]


class _Asker:
    """Asks single models through the request path, on the pilot's own account."""

    def __init__(self, services: Services, sample: Sample) -> None:
        self.s = services
        self.answering = Answering(services)
        account = Account(f"pilot:{services.ids.new('pilot')}", nanousd(sample.most_usd), "total")
        self.caller = Caller("pilot", "pilot", tenant=sample.tenant, explore=False, accounts=(account,))
        self.checker = Checker(shlex.split(sample.check)) if sample.check else None

    async def ask(self, prompt: Prompt, model: str, place: int) -> Observation | None:
        """Make one call; None where the money left doesn't cover it, or a file that it names can't be read."""
        now = self.s.now()
        arrival = Arrival({}, "", self.s.ids.new("req"), now)
        most = self.s.config.server.max_messages
        call = read_call(prompt.surface, prompt.body, arrival, max_messages=most, timeout_s=TIMEOUT_S)
        try:
            call = await call_with_files(self.s, call, self.caller.tenant)
        except HeadgateError:  # the job reports it when it runs
            return None
        call = msgspec.structs.replace(call, options=CallOptions(route=model, cache="none"))
        heard = Heard()
        exchange = await self.answering.answer(call, heard, self.caller)
        if exchange is None:
            return None
        if heard.status != 200 or not exchange.attempts:
            return Observation(prompt.index, place, False, usd(exchange.cost_nanousd))
        usage = exchange.attempts[-1].usage
        text = _text(bytes(heard.body), prompt.surface)
        return Observation(
            prompt.index, place, True, usd(exchange.cost_nanousd),
            float(usage.output_tokens + usage.reasoning_tokens), self.s.now() - now,
            await self._score(text, prompt.reference),
        )  # fmt: skip

    async def _score(self, text: str, reference: str) -> float:
        if self.checker is not None:
            right = await self.checker.check(text)
            return math.nan if right is None else float(right)
        return float(agrees(text, reference)) if reference else math.nan


def _text(body: bytes, surface: str) -> str:
    try:
        return peek(body, surface).text
    except HeadgateError:
        return ""


def agrees(text: str, reference: str) -> bool:
    """Whether an answer agrees with the reference: both are equal, the reference is the answer's last number, or the
    reference is a line of the answer or the end of one.
    """
    answer, right = _plain(text), _plain(reference)
    if answer == right:
        return True
    if _NUMBER.fullmatch(right):
        numbers = _NUMBER.findall(answer.replace(",", ""))
        return bool(numbers) and float(numbers[-1]) == float(right)
    lines = [_plain(line) for line in text.splitlines()]
    return any(line == right or line.endswith((f" {right}", f":{right}", f"({right})")) for line in lines)


def _plain(text: str) -> str:
    """The text without case, repeated spaces, and surrounding punctuation or markup."""
    return " ".join(text.split()).casefold().strip(" .*`\"'")


# -- learning from it


def updated(estimates: Estimates, observations: Sequence[Observation]) -> Piloted:
    """The estimates corrected by the pilot's observations, and the pilot's report."""
    cost, cost_sd, cost_ratio = estimates.cost_usd.copy(), estimates.cost_shift_sd.copy(), dict[str, float]()
    tokens, latency = estimates.output_tokens.copy(), estimates.latency_s.copy()
    quality, quality_sd, quality_shift = estimates.quality.copy(), estimates.quality_shift_sd.copy(), dict[str, float]()
    for place, arm in enumerate(estimates.arms):
        own = [one for one in observations if one.place == place and one.answered]
        if not own:
            continue
        rows = np.array([one.index for one in own], np.intp)
        ratio, sd = _ratio([one.cost_usd for one in own], estimates.cost_usd[rows, place])
        if ratio is not None:
            cost[:, place] *= np.float32(ratio)
            cost_sd[place], cost_ratio[arm.label] = sd, ratio
        for matrix, name in ((tokens, "output_tokens"), (latency, "latency_s")):
            factor, _ = _ratio([getattr(one, name) for one in own], matrix[rows, place])
            matrix[:, place] *= np.float32(1.0 if factor is None else factor)
        scored = [one for one in own if not math.isnan(one.score)]
        if scored:
            shift, shift_sd = _shift(estimates, place, scored)
            quality[:, place] = np.clip(quality[:, place] + np.float32(shift), 0.0, 1.0)
            quality_sd[place], quality_shift[arm.label] = shift_sd, shift
    fresh = replace(
        estimates, cost_usd=cost, cost_shift_sd=cost_sd, output_tokens=tokens, latency_s=latency, quality=quality,
        quality_shift_sd=quality_sd,
    )  # fmt: skip
    return fresh, PilotReport(
        calls=len(observations),
        failures=sum(not one.answered for one in observations),
        cost_usd=sum(one.cost_usd for one in observations),
        scored=sum(not math.isnan(one.score) for one in observations),
        cost_ratio=cost_ratio,
        quality_shift=quality_shift,
    )


def _ratio(measured: Sequence[float], predicted: Floats) -> tuple[float | None, float]:
    """The ratio of measured to predicted values, shrunk towards 1, and its standard error as a share of it; None where
    nothing was predicted.
    """
    expected = predicted.astype(np.float64)
    total = float(expected.sum())
    if not (math.isfinite(total) and total > 0):
        return None, 0.0
    values, n = np.array(measured, np.float64), len(measured)
    prior = PRIOR_CALLS * total / n
    ratio = (float(values.sum()) + prior) / (total + prior)
    spread = float(((values - ratio * expected) ** 2).sum()) / max(n - 1, 1)
    error = math.sqrt(n * spread) / max(total * ratio, 1e-300)
    return ratio, float(max(error, 0.5 / n))


def _shift(estimates: Estimates, place: int, scored: Sequence[Observation]) -> tuple[float, float]:
    """Posterior mean and standard deviation of an arm's common quality error, under a normal prior whose deviation is
    the estimates' `quality_shift_sd`, but at least WIDE_SHIFT.
    """
    rows: NDArray[np.intp] = np.array([one.index for one in scored], np.intp)
    errors = np.array([one.score for one in scored]) - estimates.quality[rows, place].astype(np.float64)
    noise = max(float(np.mean((errors - errors.mean()) ** 2)), 0.05)
    prior = max(float(estimates.quality_shift_sd[place]), WIDE_SHIFT) ** 2
    precision = len(scored) / noise + 1.0 / prior
    return float(errors.sum() / noise / precision), math.sqrt(1.0 / precision)
