"""The nouns of a climb: the plan, one rung of it, what came of it, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, nan
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

AS_ASKED: Mapping[str, Any] = MappingProxyType({})
"""Leaves every field of the request as it is."""


class PlanError(ValueError):
    """The plan can't be climbed: it has no step, repeats a model, has a rung without a price, or a floor outside (0,
    1].
    """


class Limits(msgspec.Struct, frozen=True):
    """What the whole climb may spend, retries, fallbacks and escalations included."""

    max_attempts: int = 4
    max_cost_usd: float = inf
    deadline_s: float = 600.0
    """Seconds from the start of the climb."""


class Step(msgspec.Struct, frozen=True):
    """One model of a plan, and what its answer must show to be kept."""

    model: str
    accept_at: float = -inf
    """Least confidence, by the plan's `confidence`, with which this answer is kept; -inf keeps any answer."""
    worst_cost_usd: float = 0.0
    """Most dollars that one attempt can cost; the plan's hold is the sum of these."""
    overrides: Mapping[str, Any] = AS_ASKED
    """Fields of the request to change for this step (see `Rung.overrides`)."""
    reads_confidence: bool | None = None
    """Whether the answer's evidence is read. None: it is read where `accept_at` asks for a confidence."""

    @property
    def reads(self) -> bool:
        """Whether this step's evidence is read, so that the driver must ask for it."""
        return self.accept_at > -inf if self.reads_confidence is None else self.reads_confidence


def price_of(model: str, worst_cost_usd: Mapping[str, float]) -> float:
    """Most dollars that one attempt can cost. Raises PlanError where the model has no price."""
    worst = worst_cost_usd.get(model, nan)
    if not 0.0 <= worst < inf:
        raise PlanError(f"{model!r} has no price, so its climb could not be bounded")
    return worst


class Plan(msgspec.Struct, frozen=True):
    """What to try, in which order, and when to stop. Raises PlanError for a plan without a step."""

    steps: tuple[Step, ...]
    fallbacks: tuple[Step, ...] = ()
    """Tried in order when a step fails for good; never escalated to."""
    limits: Limits = Limits()
    retries: int = 1
    """Attempts beyond the first on the same model, for failures that may pass."""
    strategy: Strategy | None = None
    """Decides whether to keep an answer or to ask again; None climbs the steps in order."""
    confidence: Confidence | None = None
    """Turns evidence into P(correct); None uses the uncalibrated `cascade.confidence.confidence`."""
    speculates: bool = False
    """Whether each step starts together with the next one. That is faster where the first answer is not kept; where it
    is, the other's cost up to then is paid in vain.
    """

    def __post_init__(self) -> None:
        if not self.steps:
            raise PlanError("a plan needs at least one step")
        if self.retries < 0 or self.limits.max_attempts < 1:
            raise PlanError("a plan needs at least one attempt and no negative number of retries")
        if self.strategy is None and len(self.steps) + len(self.fallbacks) > 1:
            models = [step.model for step in (*self.steps, *self.fallbacks)]
            if len(set(models)) != len(models):
                raise PlanError(f"a model stands twice in the plan: {models}")


class Rung(msgspec.Struct, frozen=True):
    """The next step that the driver is to take."""

    model: str
    final: bool
    """True where this answer will be kept in any case, so that it may stream to the client."""
    timeout_s: float
    delay_s: float = 0.0
    """Seconds to wait before the attempt."""
    reads_confidence: bool = False
    """True where the model must be asked for log-probabilities, or whatever its evidence is."""
    overrides: Mapping[str, Any] = AS_ASKED
    """Fields of the request to change for this attempt (temperature of a sample, say)."""
    beside: tuple[Rung, ...] = ()
    """Rungs to run at the same time; their outcomes go back in `Outcome.beside`, in this order. A driver
    that can't may ignore them: the strategy asks again for what it still needs."""
    enough: Callable[[Outcome], bool] | None = None
    """For a rung with others beside it: returns True for an outcome that will be kept, so that the driver may cancel
    the others (failure "cancelled", with their cost so far). None: the driver waits for all.
    """


class Evidence(msgspec.Struct, frozen=True):
    """Evidence of how good an answer is. NaN and None mean 'not known', never zero."""

    mean_logprob: float = nan
    """Mean log-probability per output token, natural logarithm."""
    min_logprob: float = nan
    sum_logprob: float = nan
    output_tokens: int = 0
    refused: bool | None = None
    schema_valid: bool | None = None
    tools_parse: bool | None = None
    checks_passed: bool | None = None
    agreement: float = nan
    """Share of the other samples that agree, 0 to 1."""
    judged: float = nan
    text: str = ""
    """The answer's text, for scorers; never logged."""
    calls: str = ""
    """The tool calls of the answer with their arguments, in a canonical form."""

    @property
    def said(self) -> str:
        """The answer as it is shown to another model: its text and its tool calls."""
        return f"{self.text}\n{self.calls}" if self.text and self.calls else self.text or self.calls


class Outcome(msgspec.Struct, frozen=True):
    """The outcome of one rung: an answer, or a failure."""

    model: str
    failure: str = ""
    """One of gateway.errors.FAILURES; empty where an answer came."""
    may_pass: bool = False
    """Whether another attempt on the same model may succeed."""
    may_move: bool = True
    """Whether another model may still answer. False where the request itself is at fault, or bytes have been sent."""
    retry_after_s: float = 0.0
    evidence: Evidence = Evidence()
    cost_usd: float = 0.0
    """Counts towards `Limits.max_cost_usd`. The gateway leaves it 0: its plans have no such limit, because it holds the
    worst case of the whole plan before it begins.
    """
    elapsed_s: float = 0.0
    """Seconds from the start of the climb to the end of this attempt."""
    latency_s: float = 0.0
    beside: tuple[Outcome, ...] = ()
    """Outcomes of `Rung.beside`, in its order."""
    attempts: int = 1
    """Number of calls that it took: two with a hedge."""


class Verdict(msgspec.Struct, frozen=True):
    """How the climb ended. `kept` indexes `outcomes`, and is None where no answer was kept."""

    kept: int | None
    model: str
    reason: str
    """accepted | only | last | fallback | exhausted | failed | deadline | budget | attempts | abstained"""
    spent_usd: float
    attempts: int
    outcomes: tuple[Outcome, ...] = ()
    """Every attempt in the order it was sent in; those of `beside` after the rung they ran beside."""
    text: str = ""
    """The answer's text where it was composed from several outcomes (`Keep.text`); else empty."""


class Ask(msgspec.Struct, frozen=True):
    """A strategy's move: try these steps now, at the same time where there are several."""

    steps: tuple[Step, ...]
    then: tuple[Step, ...] = ()
    """Steps that the strategy might ask next. Where empty, the answer is kept in any case and may stream."""
    enough: Callable[[Outcome], bool] | None = None
    """See `Rung.enough`."""
    streams: bool = True
    """False where the kept answer may be another one, or may be rewritten, so that nothing may stream."""
    why: str = "last"
    """The verdict's reason where this step's answer is kept because no other step is left."""


class Keep(msgspec.Struct, frozen=True):
    """A strategy's move: stop. `kept` indexes the history, and is None where no answer is good enough."""

    kept: int | None
    reason: str = "accepted"
    text: str = ""
    """The answer's text where it is composed from several outcomes; all else is taken from the kept one."""


Fits = Callable[[Step], bool]
"""Whether one more attempt on this step is within the limits of attempts, money and time."""


class Confidence(Protocol):
    """Turns the evidence of a model's answer into P(correct) in [0, 1]; NaN where nothing is known."""

    def __call__(self, model: str, evidence: Evidence) -> float: ...


class Strategy(Protocol):
    """Decides from the outcomes so far. It is stateless, so that a climb can be replayed from its record."""

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        """The next move. The history includes failed outcomes; the same history always gives the same move."""
        ...

    def best(self, history: Sequence[Outcome]) -> int | None:
        """Index of the answer to keep where a limit ends the climb now; None where there is no answer."""
        ...
