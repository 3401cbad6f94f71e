"""The nouns of a climb: the plan, one rung of it, what came of it, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, nan


@dataclass(frozen=True, slots=True)
class Limits:
    """What the whole climb may spend, retries, fallbacks and escalations included."""

    max_attempts: int = 4
    max_cost_usd: float = inf
    deadline_s: float = 600.0
    """Seconds from the start of the climb."""


@dataclass(frozen=True, slots=True)
class Step:
    """One model of a plan, and what its answer must show to be kept."""

    model: str
    accept_at: float = -inf
    """Least P(correct) (or raw confidence, as the plan's acceptance says) that keeps this answer;
    -inf keeps any answer."""
    worst_cost_usd: float = 0.0
    """Most that one attempt can cost: what the plan's hold is made of."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to try, in which order, and when to stop. A plan without a step is refused."""

    steps: tuple[Step, ...]
    fallbacks: tuple[Step, ...] = ()
    """Tried in order when a step fails for good; never escalated to."""
    limits: Limits = field(default_factory=Limits)
    retries: int = 1
    """Attempts beyond the first on the same model, for failures that may pass."""


@dataclass(frozen=True, slots=True)
class Rung:
    """What the driver is to do next."""

    model: str
    final: bool
    """True: no verdict can send this answer back, so it may stream to the client as it comes."""
    timeout_s: float
    delay_s: float = 0.0
    """Back-off before the attempt."""
    reads_confidence: bool = False
    """True: ask the model for log-probabilities (or whatever its evidence is)."""
    overrides: Mapping[str, object] = field(default_factory=dict)
    """Fields of the request to change for this attempt (temperature of a sample, say)."""


@dataclass(frozen=True, slots=True)
class Evidence:
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one rung. `failure` empty: an answer came."""

    model: str
    failure: str = ""
    """One of gateway.errors.FAILURES."""
    may_pass: bool = False
    """The failure may pass if tried again on the same model."""
    may_move: bool = True
    """Another model may still answer (False: the request itself is at fault, or bytes have been sent)."""
    retry_after_s: float = 0.0
    evidence: Evidence = field(default_factory=Evidence)
    cost_usd: float = 0.0
    elapsed_s: float = 0.0
    """Seconds from the start of the climb to the end of this attempt."""
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the climb ended. `kept` indexes the outcomes; None: no answer could be kept."""

    kept: int | None
    model: str
    reason: str
    """accepted | only | last | exhausted | failed | deadline | budget | attempts | abstained"""
    spent_usd: float
    attempts: int
