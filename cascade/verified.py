"""AutoMix with a POMDP, learnt from logged answers: which model drafts, which one takes over, and when.

A draft's logged confidence is read as the share of favourable verdicts on it (log-probability of "true" where a model
was asked whether its answer is right). Every pair of a cheaper and a more expensive model is tried at several rates of
quality against money (Aggarwal et al. 2024, section 3.3); the cheapest that keeps a share of the best model's quality
serves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.typing import NDArray

from cascade.planner import PlanRequest, cheapest
from cascade.posterior import Matrix
from cascade.prompts import verification
from cascade.types import Plan
from cascade.verify import Pomdp, SelfVerification, fit_pomdp, verdicts_within

LEAST_ROWS = 50
RATES = (0.0, *np.geomspace(0.03, 3.0, 7).tolist())
"""Quality points per cost of the most expensive model."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The drafting model, the model to escalate to, the rule between them, and its quality and cost on the training
    rows.
    """

    draft: str
    escalate: str
    rule: Pomdp
    quality: float
    cost_usd: float


@dataclass(frozen=True, slots=True)
class VerifiedCascade:
    """Pairs for a gateway that plans climbs by self-verification."""

    pairs: Sequence[Pair]
    best_single: float
    writes: bool = field(default=True, init=False)

    def pair_for(self, share: float = 1.0) -> Pair:
        """The cheapest that kept that share of the best single model's quality; the best where none did."""
        return cheapest(self.pairs, share * self.best_single)

    def least_chance(self, share: float, risk: float) -> float:
        """Always infinite: this cascade has no calibrated probability of an answer, so it can't abstain."""
        return inf

    def plan(self, request: PlanRequest, share: float = 1.0, most_wrong: float | None = None) -> Plan:
        """Draft, verdicts, and who takes over; the chosen model alone where one of the two can't be asked."""
        pair, alone = self.pair_for(share), request.choice.model
        both = (pair.draft, pair.escalate)
        if request.absent(both) or not request.messages:
            return Plan((request.step(alone),), request.stand_ins((alone,)), request.limits, request.retries)
        draft, better = map(request.step, both)
        votes = verdicts_within(request.limits.max_attempts)
        strategy = SelfVerification(
            draft, draft, lambda answer: verification(request.messages, answer), better, pair.rule, votes
        )
        steps = (draft, *(draft,) * votes, better)
        return Plan(steps, request.stand_ins(both), request.limits, request.retries, strategy)


def fit_pairs(
    models: Sequence[str], logprob: Matrix, scores: Matrix, answer_usd: Matrix, read_usd: Matrix
) -> Iterator[Pair]:
    """Every pair at every rate, from (n, m) logged answers; rows without the draft's confidence teach it nothing."""
    price = answer_usd.mean(0)
    for i in range(len(models)):
        known = np.isfinite(logprob[:, i])
        if known.sum() < LEAST_ROWS:
            continue
        shares, small = np.exp(np.minimum(logprob[known, i], 0.0)), scores[known, i]
        for j in np.flatnonzero(price > price[i]).tolist():
            large, extra = scores[known, j], answer_usd[known, j]
            for rate in RATES:
                rule = fit_pomdp(shares, small, large, rate / float(price.max()), extra)
                quality, cost = walked(rule, shares, small, large, read_usd[known, i], extra)
                yield Pair(models[i], models[j], rule, float(quality.mean()), float(cost.mean()))


def walked(
    rule: Pomdp, shares: Matrix, small: Matrix, large: Matrix, read_usd: Matrix, extra_usd: Matrix
) -> tuple[Matrix, Matrix]:
    """Score and cost of the rule on every row."""
    kept: NDArray[np.bool_] = np.array([rule.keeps(float(share)) for share in shares])
    return np.where(kept, small, large), read_usd + np.where(kept, 0.0, extra_usd)
