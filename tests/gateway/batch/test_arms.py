"""The arms of a job, which are its ways of answering, and their limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.batch.arms import capacities_of, columns, endpoint_of, joined, with_endpoints, with_samples
from gateway.batch.assign import assign
from gateway.batch.types import Arm, Capacity
from gateway.money.limits import Limit
from tests.gateway.batch.planned import LARGE, MODELS, SMALL, config, estimates, plan_context

DAY_S = 86_400.0


def test_samples_gain_what_the_binomial_model_says() -> None:
    """Best of k costs k answers and is right with probability 1 - (1 - p)^k, as far as the selection finds the right
    one.
    """
    job = estimates(50, 2, 0)
    wide = with_samples(job, (2, 4), selection=1.0)
    assert [arm.label for arm in wide.arms] == ["m0", "m1", "m0 x2", "m1 x2", "m0 x4", "m1 x4"]
    np.testing.assert_allclose(wide.quality[:, 4:], 1 - (1 - job.quality) ** 4, rtol=1e-5)
    np.testing.assert_allclose(wide.cost_usd[:, 2:4], 2 * job.cost_usd)
    assert (wide.quality_shift_sd[2:] > job.quality_shift_sd.max()).all()
    none = with_samples(job, (2,), selection=0.0)
    np.testing.assert_allclose(none.quality[:, 2:], job.quality)
    with pytest.raises(ValueError):
        with_samples(job, (1,))


def test_samples_go_where_they_gain_most() -> None:
    """A budget of one and a half answers per prompt buys second samples where they gain most per dollar."""
    job = estimates(400, 1, 3, barred=0.0)
    wide = with_samples(job, (2,), selection=1.0)
    chosen = assign(wide, float(job.cost_usd.sum()) * 1.5)
    gain = (job.quality - job.quality**2)[:, 0] / job.cost_usd[:, 0]
    twice = chosen.arm == 1
    assert 0.2 < twice.mean() < 0.8
    assert np.median(gain[twice]) > np.median(gain[~twice])


def test_columns_and_joined_are_inverses() -> None:
    """Arms can be taken apart and put together again."""
    job = estimates(20, 4, 0)
    again = joined(columns(job, [0, 1]), columns(job, [2, 3]))
    assert again.arms == job.arms
    for name, array in job.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)


def test_a_providers_batch_endpoint_is_an_arm(tmp_path: Path) -> None:
    """It has its own price and window. It is available only if configured for every deployment, and if the deadline
    leaves the time.
    """
    offering = {"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9/v1", "batch_discount": 0.5}
    plain = {"name": "other", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"}
    models = [*({"provider": "up", **model} for model in MODELS), {"provider": "other", **MODELS[1]}]
    chosen = config(tmp_path, providers=[offering, plain], models=models)
    assert endpoint_of(chosen, SMALL) == (0.5, DAY_S)
    assert endpoint_of(chosen, LARGE) is None
    job = estimates(10, 2, 0)
    named = joined(columns(job, [0]), columns(job, [1]))
    named = replace(named, arms=(Arm(SMALL), Arm(LARGE)))
    wide = with_endpoints(named, chosen, 2 * DAY_S)
    assert [(arm.model, arm.via) for arm in wide.arms] == [(SMALL, "live"), (LARGE, "live"), (SMALL, "batch")]
    assert wide.arms[2].window_s == DAY_S
    np.testing.assert_allclose(wide.cost_usd[:, 2], named.cost_usd[:, 0] * 0.5)
    assert len(with_endpoints(named, chosen, DAY_S / 2).arms) == 2


def test_limits_become_capacities(tmp_path: Path) -> None:
    """A model with two providers takes its share from each. Samples count as calls; batch endpoints take none."""
    providers = [
        {"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9/v1", "rpm": 600, "tpm": 60_000},
        {"name": "other", "kind": "openai", "base_url": "http://127.0.0.1:9/v1"},
    ]
    models = [{"provider": "up", **MODELS[0]}, {"provider": "up", **MODELS[1]},
              {"provider": "other", **MODELS[1], "weight": 3.0}]  # fmt: skip
    context = plan_context(tmp_path, providers=providers, models=models,
                routes=[{"name": "auto", "models": [SMALL, LARGE], "rpm": 120}])  # fmt: skip
    arms = (Arm(SMALL), Arm(LARGE, samples=2), Arm(LARGE, via="batch", window_s=DAY_S))
    found = capacities_of(
        context.config, context.book, arms, routes=["auto"], concurrency=16, limits=[Limit("key:k", tpm=6_000)]
    )
    assert found == (
        Capacity("provider up: requests", 10.0, requests=(1.0, 0.5, 0.0)),
        Capacity("provider up: tokens", 1_000.0, input_tokens=(1.0, 0.5, 0.0), output_tokens=(1.0, 0.25, 0.0)),
        Capacity("route auto: requests", 2.0, requests=(1.0, 2.0, 0.0)),
        Capacity("key:k: tokens", 100.0, input_tokens=(1.0, 2.0, 0.0), output_tokens=(1.0, 1.0, 0.0)),
        Capacity("calls at once", 16.0, seconds=(1.0, 1.0, 0.0)),
    )
