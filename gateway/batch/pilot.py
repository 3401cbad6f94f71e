"""A small sample asked of every model before the job, so that its estimates stand on this job's own prompts.

Costs, lengths and latencies are corrected model by model by what was paid over what was predicted. Quality is, where
the input knows the right answers (`reference`) or the operator has a check: each model's predictions are shifted by
what was found beyond them, drawn towards no shift while little is known. Nothing is asked beyond the pilot's own money.
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
from gateway.config import Config
from gateway.errors import HeadgateError
from gateway.file_inputs import call_with_files
from gateway.keys import Caller
from gateway.ledger import Account
from gateway.prices import nanousd, usd
from gateway.reply import Heard
from gateway.services import Services
from gateway.wire.answer import peek

PILOT_SHARE = 0.02
"""Of a job's budget: what its pilot may cost where nothing else is said."""
AT_ONCE = 8
TIMEOUT_S = 120.0
PRIOR_CALLS = 4.0
"""Calls that a model's own predictions of cost, length and latency count for."""
WIDE_SHIFT = 0.15
"""A job's prompts may lie far from what a router was trained on: how far, before any has been seen."""
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Sample:
    """How large the pilot is."""

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
    """The prompt's."""
    place: int
    """The arm's."""
    answered: bool
    cost_usd: float = 0.0
    output_tokens: float = 0.0
    latency_s: float = 0.0
    score: float = math.nan
    """In [0, 1]; NaN: nobody could tell."""


def pilot_of(config: Config, sample: Sample) -> Pilot:
    """The pilot as a step of planning; it opens a gateway of its own for its calls."""

    def pilot(gathered: Gathered) -> Piloted:
        fresh, report = updated(gathered.estimates, asyncio.run(asked(config, gathered, sample)))
        wanted = len(chosen_cells(gathered.estimates, sample.prompts, sample.seed))
        return fresh, replace(report, skipped=wanted - report.calls)

    return pilot


# -- asking


async def asked(config: Config, gathered: Gathered, sample: Sample) -> list[Observation]:
    """Every call of the pilot, prompt by prompt, until the sample or its money is used up."""
    from gateway.batch.runtime import job_runtime

    async with job_runtime(config) as runtime:
        asker = _Asker(runtime.services, sample)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(prompt: Prompt, place: int) -> Observation | None:
            async with gate:
                return await asker.ask(prompt, gathered.estimates.arms[place].model, place)

        cells = chosen_cells(gathered.estimates, sample.prompts, sample.seed)
        prompts = {index: gathered.prompts[index] for index, _ in cells}
        found = await asyncio.gather(*(one(prompts[index], place) for index, place in cells))
    return [observation for observation in found if observation is not None]


def chosen_cells(estimates: Estimates, prompts: int, seed: int) -> list[tuple[int, int]]:
    """Prompts drawn at random one after the other, each with every arm that may answer it, the cheapest first."""
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(estimates))[:prompts].tolist()
    able = np.isfinite(estimates.cost_usd[drawn])
    mean = np.where(able, estimates.cost_usd[drawn], 0.0).sum(0) / np.maximum(able.sum(0), 1)
    order = np.argsort(mean, kind="stable").tolist()
    return [(index, place) for row, index in enumerate(drawn) for place in order if able[row, place]]


class _Asker:
    """Asks single models through the request path, on an account of the pilot's own."""

    def __init__(self, services: Services, sample: Sample) -> None:
        self.s = services
        self.answering = Answering(services)
        account = Account(f"pilot:{services.ids.new('pilot')}", nanousd(sample.most_usd), "total")
        self.caller = Caller("pilot", "pilot", tenant=sample.tenant, explore=False, accounts=(account,))
        self.checker = Checker(shlex.split(sample.check)) if sample.check else None

    async def ask(self, prompt: Prompt, model: str, place: int) -> Observation | None:
        """Make one call; None where no money was left for it, or a file that it names can't be had."""
        now = self.s.now()
        arrival = Arrival({}, "", self.s.ids.new("req"), now)
        most = self.s.config.server.max_messages
        call = read_call(prompt.surface, prompt.body, arrival, max_messages=most, timeout_s=TIMEOUT_S)
        try:
            call = await call_with_files(self.s, call, self.caller.tenant)
        except HeadgateError:  # when the job runs, it is told
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
    """Whether an answer gives the reference: the same words, its last number, or the reference on a line or as the
    end of a line of its own.
    """
    said, right = _plain(text), _plain(reference)
    if said == right:
        return True
    if _NUMBER.fullmatch(right):
        numbers = _NUMBER.findall(said.replace(",", ""))
        return bool(numbers) and float(numbers[-1]) == float(right)
    lines = [_plain(line) for line in text.splitlines()]
    return any(line == right or line.endswith((f" {right}", f":{right}", f"({right})")) for line in lines)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().strip(" .*`\"'")


# -- learning from it


def updated(estimates: Estimates, observations: Sequence[Observation]) -> Piloted:
    """The estimates as the pilot corrects them, and what it showed."""
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
        for matrix, seen in ((tokens, "output_tokens"), (latency, "latency_s")):
            times, _ = _ratio([getattr(one, seen) for one in own], matrix[rows, place])
            matrix[:, place] *= np.float32(1.0 if times is None else times)
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


def _ratio(seen: Sequence[float], predicted: Floats) -> tuple[float | None, float]:
    """What was seen over what was predicted, drawn towards 1, and its standard error as a share; None where nothing
    was predicted.
    """
    expected = predicted.astype(np.float64)
    total = float(expected.sum())
    if not (math.isfinite(total) and total > 0):
        return None, 0.0
    found, n = np.array(seen, np.float64), len(seen)
    prior = PRIOR_CALLS * total / n
    ratio = (float(found.sum()) + prior) / (total + prior)
    spread = float(((found - ratio * expected) ** 2).sum()) / max(n - 1, 1)
    error = math.sqrt(n * spread) / max(total * ratio, 1e-300)
    return ratio, float(max(error, 0.5 / n))


def _shift(estimates: Estimates, place: int, scored: Sequence[Observation]) -> tuple[float, float]:
    """Posterior mean and deviation of an arm's common error: normal, its prior deviation the one stated so far."""
    rows: NDArray[np.intp] = np.array([one.index for one in scored], np.intp)
    beyond = np.array([one.score for one in scored]) - estimates.quality[rows, place].astype(np.float64)
    noise = max(float(np.mean((beyond - beyond.mean()) ** 2)), 0.05)
    prior = max(float(estimates.quality_shift_sd[place]), WIDE_SHIFT) ** 2
    precision = len(scored) / noise + 1.0 / prior
    return float(beyond.sum() / noise / precision), math.sqrt(1.0 / precision)
