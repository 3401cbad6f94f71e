"""Evidence to one number: how likely is this answer right?

Uncalibrated, the number orders answers of one model and no more; `Calibrated` (fitted in cascade.calibrate)
turns it into a probability per model. What is not known stays NaN: a missing signal is never a bad one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, inf, isfinite, isnan, log, nan

from cascade.types import Evidence

CONFIDENCE_FLOOR = 1e-4
"""Keeps -log(1 - p) finite at certainty."""


def vetoed(evidence: Evidence) -> bool:
    """True: something that was checked says the answer can't be used, whatever its probability."""
    return (
        evidence.refused is True
        or evidence.schema_valid is False
        or evidence.tools_parse is False
        or evidence.checks_passed is False
    )


def confidence(evidence: Evidence) -> float:
    """Raw confidence in [0, 1] from whatever is known; NaN where nothing is.

    Log-probabilities give the geometric mean of the mean and the least token probability (one token: its
    probability); agreement and a judge's score stand beside it with equal weight.
    """
    if vetoed(evidence):
        return 0.0
    if evidence.checks_passed is True:
        return 1.0
    known = [p for p in (_from_logprobs(evidence), evidence.agreement, evidence.judged) if isfinite(p)]
    return min(1.0, max(0.0, sum(known) / len(known))) if known else nan


def _from_logprobs(evidence: Evidence) -> float:
    mean, least = evidence.mean_logprob, evidence.min_logprob
    if isnan(mean) and evidence.output_tokens > 0:
        mean = evidence.sum_logprob / evidence.output_tokens
    if isnan(mean) and isnan(least):
        return nan
    known = [x for x in (mean, least) if x < inf]
    return exp(min(0.0, sum(known) / len(known))) if known else nan


def spread(p: float) -> float:
    """-log(1 - p): pulls apart the confidences near one, where most of a large model's answers lie."""
    return -log(1.0 - min(max(p, 0.0), 1.0) + CONFIDENCE_FLOOR)


@dataclass(frozen=True, slots=True)
class Curve:
    """A logistic on (p, -log(1 - p)) of the raw confidence: P(correct) of one model."""

    slope: float
    slope_spread: float
    intercept: float

    def __call__(self, raw: float) -> float:
        z = self.slope * raw + self.slope_spread * spread(raw) + self.intercept
        return 1.0 / (1.0 + exp(-min(max(z, -30.0), 30.0)))


@dataclass(frozen=True, slots=True)
class Calibrated:
    """P(correct) by model from fitted curves; a model without one keeps its raw confidence."""

    curves: Mapping[str, Curve] = field(default_factory=dict)

    def __call__(self, model: str, evidence: Evidence) -> float:
        raw = confidence(evidence)
        curve = self.curves.get(model)
        if curve is None or isnan(raw) or vetoed(evidence):
            return raw
        return curve(raw)


RAW = Calibrated()
