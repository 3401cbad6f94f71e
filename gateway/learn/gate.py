"""Decides whether a candidate version may replace the incumbent: only if it is better with 95 % confidence.

Both are valued on the same logged rounds, by quality minus cost at the exchange rate of the route's cost weight. The
one-sided 95 % bound is on their difference, paired round by round (doubly robust). Where the log has too little
evidence the gate refuses, and says how much more is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gateway.learn.dataset import Log
from routers import ope
from routers.intervals import Z95_ONE_SIDED, Interval, difference_interval
from routers.ope import Array, Refusal
from routers.select import DEFAULT_COST_WEIGHT, exchange_rate
from routers.types import Knobs

ONE_SIDED = 0.90
"""The lower end of a two-sided 90 % interval is a one-sided 95 % bound."""


@dataclass(frozen=True, slots=True)
class GateVerdict:
    """Whether the candidate passed, and by how much it is better."""

    passed: bool
    reason: str
    difference: Interval | None = None
    candidate: Interval | None = None
    incumbent: Interval | None = None
    refusal: Refusal | None = None

    def as_dict(self) -> dict[str, object]:
        verdict: dict[str, object] = {"passed": self.passed, "reason": self.reason}
        for name in ("difference", "candidate", "incumbent"):
            found: Interval | None = getattr(self, name)
            if found is not None:
                verdict[name] = found.as_dict()
        return verdict


def worth(log: Log, knobs: Knobs, reference_usd: float) -> Array:
    """The reward of each round: quality minus the exchange rate times cost; NaN where it has no score.

    For a route with a quality floor instead of a cost weight the default weight is used.
    """
    weight = DEFAULT_COST_WEIGHT if knobs.cost_weight is None else knobs.cost_weight
    rate = min(exchange_rate(weight), 1e3)
    return np.asarray(log.score - rate * log.cost_usd / max(reference_usd, 1e-12))


def reference_of(log: Log) -> float:
    """Mean cost of a call of the route's dearest model in dollars; 1 where all models are free."""
    paid = log.mean_cost_usd()
    dearest = float(np.nanmax(paid)) if np.isfinite(paid).any() else 0.0
    return dearest if dearest > 0 else 1.0


def judge(log: Log, candidate: Array, incumbent: Array, reward: Array) -> GateVerdict:
    """The verdict on a candidate. `candidate` and `incumbent`: probabilities of the models on the log, (n, m);
    `reward`: (n,), NaN where it is unknown.
    """
    start = ope.supported_from(log.logged, candidate)
    log, reward = log.rows(np.arange(start, len(log))), reward[start:]
    candidate, incumbent = candidate[start:], incumbent[start:]
    if not np.isfinite(reward).any():
        return GateVerdict(False, "nobody scored any answer")
    rounds = log.rounds(reward)
    verdict = ope.judged(rounds, candidate, log.mean_cost_usd())
    if isinstance(verdict, Refusal):
        return GateVerdict(False, str(verdict), refusal=verdict)
    model = ope.cross_fitted(log.covariates(), rounds)
    gap = ope.difference(rounds, candidate, incumbent, model, confidence=ONE_SIDED)
    theirs = ope.valued(rounds, candidate, model, confidence=ONE_SIDED).best
    ours = ope.valued(rounds, incumbent, model, confidence=ONE_SIDED).best
    passed = gap.low > 0.0
    reason = f"worth {theirs.value:.4f} against {ours.value:.4f}, difference at least {gap.low:+.4f}"
    return GateVerdict(passed, reason, gap, theirs, ours)


def compared(candidate: Array, incumbent: Array) -> Interval:
    """Difference of the mean rewards of two randomised parts of the traffic, candidate minus incumbent, with one-sided
    95 % bounds.
    """
    return difference_interval(candidate, incumbent, Z95_ONE_SIDED)


def failed(canary: Interval, gate: Interval | None, margin: float, *, settled: bool) -> bool:
    """Whether a canary must be rolled back: it is significantly worse, or no more rounds are waited for (`settled`) and
    its estimate is worse by the margin, or worse at all when pooled with the gate's.
    """
    seems_worse = canary.value <= -margin or pooled(canary, gate) < 0.0
    return canary.high < 0.0 or (settled and seems_worse)


def pooled(canary: Interval, gate: Interval | None) -> float:
    """The two differences pooled by inverse variance; the canary's alone where the gate's is None. They are
    independent, because a canary's rounds come after those that the gate read.
    """
    if gate is None or not (canary.half_width > 0 and gate.half_width > 0):
        return canary.value
    mine, theirs = canary.half_width**-2, gate.half_width**-2
    return (mine * canary.value + theirs * gate.value) / (mine + theirs)
