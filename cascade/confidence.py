"""Turns evidence into one number: how likely an answer is right.

The number only ranks the answers of one model; trained cascades turn it into a probability for each model and kind of
question (cascade.posterior). What is not known stays NaN: a missing signal never counts as a bad one.
"""

from __future__ import annotations

from math import exp, inf, isfinite, isnan, nan

from cascade.types import Evidence

CONFIDENCE_FLOOR = 1e-4
"""Keeps -log(1 - p) finite at certainty."""


def vetoed(evidence: Evidence) -> bool:
    """Whether a check failed, so that the answer can't be used whatever its probability."""
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


def _as_shown(model: str, evidence: Evidence) -> float:
    return confidence(evidence)


RAW = _as_shown
"""A plan's confidence where nothing was learned: the raw confidence, whichever model answered."""
