"""Forecasts the cost and the duration of the rest of a job from the calls so far.

Predicted costs are corrected model by model, by the ratio of paid to predicted cost, which is shrunk towards 1 while
there are few calls. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite

import numpy as np
from numpy.typing import NDArray

from gateway.batch.concurrency import ConcurrencyLimiter
from gateway.batch.types import UNASSIGNED, Arm, Capacity, Estimates, Floats

PRIOR_CALLS = 4.0
"""Number of calls that the prior ratio of 1 counts for."""


class CostRatios:
    """Ratios of paid to predicted cost, by model; climbs that start with a model have a ratio of their own."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = arms
        self._paid: dict[str, float] = {}
        self._predicted: dict[str, float] = {}
        self._calls: dict[str, int] = {}

    def add(self, model: str, paid_usd: float, predicted_usd: float) -> None:
        """Learn from an answered call. A prediction of zero or infinity teaches nothing."""
        if not (isfinite(predicted_usd) and predicted_usd > 0):
            return
        self._paid[model] = self._paid.get(model, 0.0) + paid_usd
        self._predicted[model] = self._predicted.get(model, 0.0) + predicted_usd
        self._calls[model] = self._calls.get(model, 0) + 1

    def ratio(self, model: str) -> float:
        """Paid over predicted cost of a call of this model, shrunk towards the ratio over all models."""
        calls = self._calls.get(model, 0)
        if not calls:
            return self._common()
        prior = PRIOR_CALLS * self._predicted[model] / calls
        return (self._paid[model] + prior * self._common()) / (self._predicted[model] + prior)

    def ratios(self) -> Floats:
        """The ratio of each arm, shape (arms,)."""
        return np.array([self.ratio(arm.paid_as) for arm in self.arms], np.float32)

    def _common(self) -> float:
        """The ratio over all models, shrunk towards 1: calls of one model say something about the prompts."""
        predicted, calls = sum(self._predicted.values()), sum(self._calls.values())
        if not calls:
            return 1.0
        prior = PRIOR_CALLS * predicted / calls
        return (sum(self._paid.values()) + prior) / (predicted + prior)

    def corrected(self, estimates: Estimates, limiters: dict[str, ConcurrencyLimiter]) -> Estimates:
        """The estimates with corrected costs, and with measured latencies of the models that have been timed."""
        latency = estimates.latency_s.copy()
        for place, arm in enumerate(estimates.arms):
            limiter = limiters.get(arm.model)
            if limiter is not None and limiter.latency_s and arm.via == "live" and arm.rule < 0:
                latency[:, place] = limiter.latency_s * max(1, arm.samples)
        return replace(estimates, cost_usd=estimates.cost_usd * self.ratios(), latency_s=latency)


def expected_usd(cost_usd: Floats, arm: NDArray[np.int16], rest: NDArray[np.intp], ratios: Floats) -> float:
    """Expected dollars for the prompts `rest` with their present arms; those without one cost nothing."""
    arms = arm[rest]
    known = arms != UNASSIGNED
    costs = cost_usd[rest[known], arms[known]] * ratios[arms[known]]
    return float(costs[np.isfinite(costs)].sum())


def seconds_left(
    waiting: dict[str, int], limiters: dict[str, ConcurrencyLimiter], concurrency: int, predicted_s: Mapping[str, float]
) -> float:
    """Seconds until the last waiting call has ended; infinite where a latency is unknown. `waiting`: numbers of calls
    by model, including those under way. The predicted latency is used for models that have not answered yet.
    """
    together = 0.0
    longest = 0.0
    for model, count in waiting.items():
        limiter = limiters.get(model)
        if not count or limiter is None:
            continue
        latency_s = limiter.latency_s or predicted_s.get(model, inf)
        together += count * latency_s
        longest = max(longest, count * latency_s / limiter.limit)
    return max(longest, together / concurrency)


def predicted_latencies(estimates: Estimates) -> dict[str, float]:
    """Mean predicted latency of one call in seconds, by model; models without a prediction are left out."""
    found: dict[str, float] = {}
    for place, arm in enumerate(estimates.arms):
        latency = estimates.latency_s[:, place]
        known = latency[np.isfinite(latency)]
        if arm.via == "live" and arm.rule < 0 and len(known):
            found.setdefault(arm.model, float(known.mean()) / max(1, arm.samples))
    return found


def measured(arms: Sequence[Arm], limiters: dict[str, ConcurrencyLimiter], concurrency: int) -> list[Capacity]:
    """The concurrency limits as capacities: call-seconds of all models together, and calls of each limited model."""
    live = [float(arm.via == "live") for arm in arms]
    found = [Capacity("calls at once", float(concurrency), seconds=tuple(live))]
    for model, limiter in limiters.items():
        if limiter.latency_s and limiter.limit < limiter.most:
            own = tuple(float(arm.model == model and arm.via == "live") for arm in arms)
            found.append(Capacity(f"concurrency of {model}", limiter.rate_per_s, requests=own))
    return found
