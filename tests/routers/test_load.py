"""Routing under load: waiting has a price per second, so quality falls before availability does."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest

from routers.bench.load import BOUND_S, compared, served
from routers.select import Forecast, spent, utilities
from routers.types import Knobs


def busy(queue_s: float) -> Forecast:
    return Forecast(("local", "remote"), [0.7, 0.75], [0.1] * 2, [0.0, 2e-3], [0.5 + queue_s, 1.0], [0.0] * 2)


def test_traffic_leaves_a_queue_and_comes_back() -> None:
    """The free model answers while it is idle, and the paid one as soon as waiting costs more than its price."""
    knobs = Knobs(cost_weight=0.5, wait_usd_per_s=1e-3)
    picks = [int(np.argmax(utilities(busy(queue), knobs, 2e-3))) for queue in (0.0, 1.0, 5.0, 0.0)]
    assert picks == [0, 0, 1, 0]
    assert int(np.argmax(utilities(busy(5.0), Knobs(cost_weight=0.5), 2e-3))) == 0


def test_an_unknown_delay_counts_as_the_known_ones() -> None:
    """A model without a known delay is neither preferred nor avoided; without a price per second, time costs nothing.
    """
    given = Forecast(("a", "b", "c"), [0.5] * 3, [0.1] * 3, [1.0] * 3, [2.0, nan, 4.0], [0.0] * 3)
    assert spent(given, Knobs(wait_usd_per_s=0.5)) == [2.0, 2.5, 3.0]
    assert spent(given, Knobs()) == [1.0] * 3


def test_a_router_that_sees_the_queue_stays_available() -> None:
    """When the load rises to four times the local capacity, static routing times out; routing by the queue answers
    nearly all requests in time at nearly the same quality.
    """
    blind = served(Knobs(cost_weight=0.5), sees_queue=False, requests=1500)
    seeing = served(Knobs(cost_weight=0.5, wait_usd_per_s=1e-3, max_latency_s=BOUND_S), sees_queue=True, requests=1500)
    assert blind.availability < 0.5
    assert seeing.availability > 0.99
    assert seeing.quality_of_peak > 0.9
    assert seeing.local_share == pytest.approx(0.35, abs=0.2)


def test_means_over_ramps_have_intervals() -> None:
    """The half width is Student's, over the runs."""
    runs = [served(Knobs(cost_weight=0.5), sees_queue=False, seed=seed).availability for seed in range(3)]
    told = compared(3)["static"]["availability"]
    assert told["value"] == pytest.approx(np.mean(runs))
    assert told["half_width"] == pytest.approx(4.303 * np.std(runs, ddof=1) / np.sqrt(3), rel=1e-3)
