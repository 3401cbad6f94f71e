"""The nouns of a climb: the plan, one rung of it, what came of it, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, nan
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

AS_ASKED: Mapping[str, Any] = MappingProxyType({})
"""No field of the request is changed."""


class PlanError(ValueError):
    """The plan can't be climbed: no step, a cycle, a rung without price, a floor outside (0, 1]."""


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
    """Least P(correct) (or raw confidence, as the plan's acceptance says) that keeps this answer;
    -inf keeps any answer."""
    worst_cost_usd: float = 0.0
    """Most that one attempt can cost: what the plan's hold is made of."""
    overrides: Mapping[str, object] = AS_ASKED
    """Fields of the request to change for this step (see `Rung.overrides`)."""
    reads_confidence: bool | None = None
    """None: as `accept_at` says; a step that must show something is read."""

    @property
    def reads(self) -> bool:
        """True: this step's evidence will be looked at, so the driver must ask for it."""
        return self.accept_at > -inf if self.reads_confidence is None else self.reads_confidence


def price_of(model: str, worst_cost_usd: Mapping[str, float]) -> float:
    """Most that one attempt can cost. PlanError where nobody knows."""
    worst = worst_cost_usd.get(model, nan)
    if not 0.0 <= worst < inf:
        raise PlanError(f"{model!r} has no price, so its climb could not be bounded")
    return worst


class Plan(msgspec.Struct, frozen=True):
    """What to try, in which order, and when to stop. A plan without a step is refused."""

    steps: tuple[Step, ...]
    fallbacks: tuple[Step, ...] = ()
    """Tried in order when a step fails for good; never escalated to."""
    limits: Limits = Limits()
    retries: int = 1
    """Attempts beyond the first on the same model, for failures that may pass."""
    strategy: Strategy | None = None
    """What decides between keeping and asking on; None: climb the steps in order."""
    confidence: Confidence | None = None
    """Evidence to P(correct); None: `cascade.confidence.confidence`, uncalibrated."""
    speculates: bool = False
    """Climbed in order, each step starts together with the one after it: faster where the first is not kept, and what
    the other had cost by then is paid where it is."""

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
    """True: no verdict can send this answer back, so it may stream to the client as it comes."""
    timeout_s: float
    delay_s: float = 0.0
    """Back-off before the attempt."""
    reads_confidence: bool = False
    """True: ask the model for log-probabilities (or whatever its evidence is)."""
    overrides: Mapping[str, object] = AS_ASKED
    """Fields of the request to change for this attempt (temperature of a sample, say)."""
    beside: tuple[Rung, ...] = ()
    """Rungs to run at the same time; their outcomes go back in `Outcome.beside`, in this order. A driver
    that can't may ignore them: the strategy asks again for what it still needs."""
    enough: Callable[[Outcome], bool] | None = None
    """Of a rung with others beside it: True for an outcome that will be kept, so that the driver may cut off what still
    runs (failure "cancelled", with what it had cost). None: all are waited for."""


class Evidence(msgspec.Struct, frozen=True):
    """What an answer shows about its own worth. NaN and None are 'not known', never zero."""

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
    """Share of other samples that agree, 0..1."""
    judged: float = nan
    text: str = ""
    """The answer's text, for scorers; never logged."""
    calls: str = ""
    """The tools it calls, with their arguments, written alike where they are alike."""

    @property
    def said(self) -> str:
        """What a model is shown of the answer."""
        return f"{self.text}\n{self.calls}" if self.text and self.calls else self.text or self.calls


class Outcome(msgspec.Struct, frozen=True):
    """What came of one rung. `failure` empty: an answer came."""

    model: str
    failure: str = ""
    """One of gateway.errors.FAILURES."""
    may_pass: bool = False
    """The failure may pass if tried again on the same model."""
    may_move: bool = True
    """Another model may still answer (False: the request itself is at fault, or bytes have been sent)."""
    retry_after_s: float = 0.0
    evidence: Evidence = Evidence()
    cost_usd: float = 0.0
    elapsed_s: float = 0.0
    """Seconds from the start of the climb to the end of this attempt."""
    latency_s: float = 0.0
    beside: tuple[Outcome, ...] = ()
    """What came of `Rung.beside`."""
    attempts: int = 1
    """Calls it took: with a hedge two."""


class Verdict(msgspec.Struct, frozen=True):
    """How the climb ended. `kept` indexes `outcomes`; None: no answer could be kept."""

    kept: int | None
    model: str
    reason: str
    """accepted | only | last | fallback | exhausted | failed | deadline | budget | attempts | abstained"""
    spent_usd: float
    attempts: int
    outcomes: tuple[Outcome, ...] = ()
    """Every attempt in the order it was sent in; those of `beside` after the rung they ran beside."""
    confidence: float = nan
    """P(correct) of the kept answer as the plan reads its evidence; NaN: nothing was read."""
    text: str = ""
    """Not empty: the answer's text is this one, composed from several outcomes (`Keep.text`)."""


class Ask(msgspec.Struct, frozen=True):
    """A strategy's move: try these steps now (several: at the same time)."""

    steps: tuple[Step, ...]
    then: tuple[Step, ...] = ()
    """What the strategy might ask after this; empty: whatever comes is kept, so it may stream."""
    enough: Callable[[Outcome], bool] | None = None
    """See `Rung.enough`."""
    streams: bool = True
    """False: the answer kept may be another one, or be rewritten, so nothing may stream."""
    why: str = "last"
    """Reason of the verdict where this step's answer is kept for want of another step."""


class Keep(msgspec.Struct, frozen=True):
    """A strategy's move: stop. `kept` indexes the history; None: nothing is good enough."""

    kept: int | None
    reason: str = "accepted"
    text: str = ""
    """Not empty: the answer is this text, composed from several, in the kept outcome's frame."""


Fits = Callable[[Step], bool]
"""Whether one more attempt on this step is within attempts, money and time."""


class Confidence(Protocol):
    """Evidence of a model's answer to P(correct) in [0, 1]; NaN where nothing is known."""

    def __call__(self, model: str, evidence: Evidence) -> float: ...


class Strategy(Protocol):
    """Decides from what has come so far; stateless, so that a climb can be replayed from its record."""

    def next(self, history: Sequence[Outcome], fits: Fits) -> Ask | Keep:
        """Failed outcomes stand in the history too. The same history gives the same move."""
        ...

    def best(self, history: Sequence[Outcome]) -> int | None:
        """Index of the answer to keep when a limit ends the climb now; None: no answer has come."""
        ...
