"""The soak in its short form, and the computation of its slope."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.soak.run import slope, soak


async def test_nothing_is_left_after_mixed_load(tmp_path: Path) -> None:
    """After streams, disconnects, failing upstreams and bad input there is no task, socket, slot or hold left."""
    verdict = await soak(tmp_path, minutes=2, clients=16, requests=1200)
    assert verdict.requests >= 1200
    assert verdict.leaks == {}
    assert {"200", "400", "502", "left"} <= set(verdict.statuses)


@pytest.mark.slow
async def test_memory_stays_flat(tmp_path: Path) -> None:
    """After at least a hundred thousand requests the slope exceeds 1 MB per 100,000 by no more than its interval."""
    verdict = await soak(tmp_path, minutes=30, clients=32)
    assert verdict.leaks == {}
    assert verdict.slope - verdict.slope_error <= 1.0, verdict


def test_the_slope_is_found_in_noise() -> None:
    """Two megabytes per 100,000 requests with correlated noise lie inside the interval, and a slope of zero doesn't."""
    rng = np.random.default_rng(3)
    requests = np.linspace(0, 1e6, 1200)
    noise = np.convolve(rng.normal(0, 2e5, 1220), np.ones(21) / 21, "valid")
    for grows in (0.0, 2.0):
        line, error = slope([(int(x), int(1e8 + grows * 10 * x + n)) for x, n in zip(requests, noise, strict=True)])
        assert abs(line - grows) <= 2 * error and error < 0.5
