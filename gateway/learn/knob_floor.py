"""A quality floor for a route's knob, certified on its own randomised traffic; refused where that can't support it.

Every cost weight, safest first, is tested against "its quality is below the floor's share of the reference's", by a
gambler's wealth on inverse-propensity terms (cascade.calibrate.betting_p; valid at any number of rows). A term of round
i is w_i s_i - floor * r_i s_i, with w and r how much likelier the weight's policy and the reference alone make what was
chosen; its mean is the policy's quality minus the floor's. Testing stops at the first weight that fails, so the whole
search spends one error budget (Angelopoulos et al. 2021).

Not to be confused with a certified cascade's promise (gateway.learn.promises): that one is of a confidence threshold
and rests on requests that both models answered; this one is of a cost weight and needs no request answered twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cascade.calibrate import LEAST_ROWS, betting_p, rows_for
from cascade.drift import Drift, DriftSignal
from gateway.learn.alarms import expected_quality
from gateway.learn.dataset import Log
from routers.intervals import Interval, half_width
from routers.ope import Array, Rounds, effective_rounds, importance, supported_from

ASSUMPTION = "requests are exchangeable with these decisions, and their scores are what quality means"
BOUND = "betting test on inverse-propensity terms, one fixed sequence of cost weights"
LEAST_SINCE = 30


@dataclass(frozen=True, slots=True)
class KnobFloor:
    """A certified cost weight and its evidence."""

    cost_weight: float
    p_value: float
    quality_share: float
    cost_usd: float
    reference_cost_usd: float
    rows: int
    mean_expected: float
    """Mean quality that the router expected of its choices, with which later rounds are compared for drift."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """Why there is no certificate."""

    reason: str
    rows: int
    rows_needed: int | None = None


def certify_knob(
    log: Log, policies: Mapping[float, Array], reference: int, floor: float, confidence: float
) -> KnobFloor | Unsupported:
    """`policies`: by cost weight, safest first, the probabilities (n, m) on the log. Scored rounds alone count."""
    if not 0.0 < floor <= 1.0 or not 0.0 < confidence < 1.0:
        raise ValueError(f"floor {floor} must be in (0, 1] and confidence {confidence} in (0, 1)")
    start = supported_from(log.logged, log.always(reference))
    log = log.rows(np.arange(start, len(log)))
    policies = {weight: target[start:] for weight, target in policies.items()}
    scored = log.rows(log.labelled)
    n = len(scored)
    if n < LEAST_ROWS:
        return Unsupported(f"{n} scored decisions; no floor is certified from fewer than {LEAST_ROWS}", n, LEAST_ROWS)
    rounds = log.rounds(log.score)
    if rounds.known_share[reference] <= 0.0:
        return Unsupported(f"no answer of {log.models[reference]} was scored", n)
    if (scored.logged[:, reference] <= 0.0).mean() > 0.02:
        return Unsupported(f"{log.models[reference]} was not tried in most decisions: set the route's `explore`", n)
    ours, largest = _weights(log, rounds, log.always(reference)), _largest(scored, rounds)
    passed = None
    for weight, target in policies.items():
        theirs = _weights(log, rounds, target)
        slack = (theirs - floor * ours) * scored.score
        p = betting_p(np.clip(slack / largest, -floor, 1.0), floor)
        if p > 1.0 - confidence:
            if passed is None:
                return _refused(slack / largest, confidence, floor, weight)
            break
        passed = weight, p, theirs
    if passed is None:
        return Unsupported("the route's router has no setting to certify", n)
    weight, p, theirs = passed
    worth, best = _ratio(theirs, scored.score), _ratio(ours, scored.score)
    expected = expected_quality(scored)
    mean_expected = float(np.nanmean(expected)) if np.isfinite(expected).any() else float("nan")
    return KnobFloor(
        weight, p, worth / max(best, 1e-12), _ratio(theirs, scored.cost_usd), _ratio(ours, scored.cost_usd), n,
        mean_expected,
    )  # fmt: skip


def coverage(log: Log, reference: int) -> Interval | None:
    """Logged quality as a share of the reference's, with a 95 % interval by the delta method; None where too few rounds
    are scored.
    """
    scored = log.rows(log.labelled)
    if len(scored) < LEAST_SINCE:
        return None
    rounds = log.rounds(log.score)
    weights, alike = _weights(log, rounds, log.always(reference)), _weights(log, rounds, log.logged)
    if effective_rounds(weights) < LEAST_SINCE / 2:
        return None
    worth, best = _ratio(alike, scored.score), _ratio(weights, scored.score)
    if best <= 0.0:
        return None
    share = worth / best
    mine = alike * (scored.score - worth) / float(alike.mean())
    residual = mine - share * weights * (scored.score - best) / float(weights.mean())
    return Interval.around(share, half_width(residual) / best)


def drifted(log: Log, reference: int, floor: float, mean_expected: float) -> DriftSignal:
    """The signal of a drift monitor after these rounds, which came since the certificate was issued."""
    watch = Drift(floor, min(max(mean_expected, 0.0), 1.0) if mean_expected == mean_expected else 0.5)
    scored = log.rows(log.labelled)
    if mean_expected == mean_expected:
        for one in expected_quality(log).tolist():
            watch.observe(one)
    if len(scored) and (scored.logged[:, reference] > 0).all():
        rounds = log.rounds(log.score)
        weights, alike = _weights(log, rounds, log.always(reference)), _weights(log, rounds, log.logged)
        largest = _largest(scored, rounds)
        for score, weight, own in zip(scored.score.tolist(), weights.tolist(), alike.tolist(), strict=True):
            watch.audit(own * score / largest, weight * score / largest)
    return watch.standing


def _weights(log: Log, rounds: Rounds, target: Array) -> Array:
    """Importance weights of the scored rounds, with a mean of 1 for the logged policy itself."""
    return importance(rounds, target)[log.labelled] * rounds.known_rounds / len(log)


def _largest(scored: Log, rounds: Rounds) -> float:
    """The largest possible importance weight."""
    chances = scored.logged * rounds.known_share * len(rounds.action) / rounds.known_rounds
    return float(1.0 / chances[chances > 0].min())


def _ratio(weights: Array, values: Array) -> float:
    return float(weights @ values) / max(float(weights.sum()), 1e-12)


def _refused(slack: Array, confidence: float, floor: float, weight: float) -> Unsupported:
    n, needed = len(slack), rows_for(slack, floor, confidence)
    if needed is None:
        return Unsupported(f"even cost weight {weight:g} is below {floor:.0%} of the reference on these decisions", n)
    return Unsupported("too few scored decisions to tell the safest setting from the floor", n, max(needed, n + 1))
