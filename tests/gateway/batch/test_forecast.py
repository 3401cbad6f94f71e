from __future__ import annotations

import numpy as np

from gateway.batch.concurrency import ConcurrencyLimiter
from gateway.batch.forecast import CostRatios, seconds_left
from gateway.batch.types import Arm

ARMS = (Arm("small"), Arm("large"), Arm("small", via="batch"))


def test_costs_are_corrected_by_what_was_paid() -> None:
    """Costs of twice the prediction, seen often enough, double the prediction; a model that was never asked follows in
    part.
    """
    cost_ratios = CostRatios(ARMS)
    assert cost_ratios.ratio("small") == 1.0
    for _ in range(100):
        cost_ratios.add("small", 2.0, 1.0)
    assert 1.9 < cost_ratios.ratio("small") < 2.0 and 1.5 < cost_ratios.ratio("large") < 2.0
    cost_ratios.add("small", 1.0, 0.0)
    cost_ratios.add("small", 1.0, float("inf"))
    assert np.isfinite(cost_ratios.ratios()).all()


def test_the_remaining_time_is_that_of_the_tightest_limit() -> None:
    """It is the limit of all calls or one model's own pace; a model without an answer has its predicted latency."""
    small, large = ConcurrencyLimiter(8), ConcurrencyLimiter(8)
    small.answered(1.0)
    large.answered(1.0)
    large.limit = 1.0
    limiters = {"small": small, "large": large}
    assert seconds_left({"small": 40, "large": 0}, limiters, 4, {}) == 10.0
    assert seconds_left({"small": 4, "large": 30}, limiters, 8, {}) == 30.0
    assert seconds_left({"new": 8}, {"new": ConcurrencyLimiter(8)}, 8, {"new": 2.0}) == 2.0
