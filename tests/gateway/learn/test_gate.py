"""Whether a candidate may replace the incumbent, against known true values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gateway.learn.dataset import Log, log_of
from gateway.learn.gate import judge, pooled, reference_of, worth
from routers.intervals import mean_interval
from routers.select import Forecast, utilities
from routers.types import Knobs
from tests.gateway.admin.traffic import explored

EVEN = np.array([0.5, 0.5])
LARGE, SMALL = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def world(count: int, seed: int = 0) -> Log:
    """`large` is right .95 of the time and `small` .5, chosen with equal probability."""
    records = explored(count, seed=seed, chance=0.5, text=False)
    pairs = zip(records[::2], records[1::2], strict=True)
    return log_of([(record, said.score) for record, said in pairs])  # type: ignore[union-attr, misc]


def everywhere(log: Log, chances: np.ndarray) -> np.ndarray:
    return np.tile(chances, (len(log), 1))


@pytest.mark.parametrize(
    ("knobs", "same"),
    [(Knobs(cost_weight=0.3),) * 2, (Knobs(cost_weight=0.9),) * 2, (Knobs(min_quality=0.5), Knobs(cost_weight=0.5))],
)
def test_an_answers_worth_is_the_routers_objective(knobs: Knobs, same: Knobs) -> None:
    """Quality and cost are weighed as by the decision rule; with a quality floor alone, by the default weight."""
    log = replace(world(20), cost_usd=np.linspace(0.0, 0.04, 20))
    unknown = [float("nan")] * 20
    given = Forecast([""] * 20, log.score.tolist(), unknown, log.cost_usd.tolist(), unknown, unknown)
    assert worth(log, knobs, 0.02) == pytest.approx(utilities(given, same, 0.02))
    assert np.isfinite(worth(log, Knobs(cost_weight=1.0), 0.0)).all()


def test_the_reference_cost_is_the_most_expensive_models() -> None:
    """It is the mean where that model was chosen; one dollar if all models are free."""
    log = world(200)
    dear = replace(log, cost_usd=np.where(log.action == 1, np.arange(200) / 100, 0.5))
    assert reference_of(dear) == pytest.approx(dear.cost_usd[log.action == 1].mean())
    assert reference_of(replace(log, cost_usd=np.zeros(200))) == 1.0


def test_a_better_candidate_passes_and_a_worse_one_does_not() -> None:
    """The interval of the difference contains the truth; rounds from before exploration are left out."""
    log = world(600)
    before = np.arange(600) < 200
    mute = replace(log, logged=np.where(before[:, None], SMALL, log.logged), action=np.where(before, 1, log.action))
    for one in (log, mute):
        found = judge(one, everywhere(one, LARGE), everywhere(one, SMALL), one.score)
        assert found.passed and found.difference is not None and found.candidate is not None
        assert found.difference.low <= 0.45 <= found.difference.high
        assert found.incumbent is not None and found.incumbent.low <= 0.5 <= found.incumbent.high
        assert found.candidate.value - found.incumbent.value == pytest.approx(found.difference.value)
    worse = judge(log, everywhere(log, SMALL), everywhere(log, LARGE), log.score)
    assert not worse.passed and worse.difference is not None and worse.difference.high < 0.0
    alike = judge(log, everywhere(log, EVEN), everywhere(log, EVEN), log.score)
    assert not alike.passed and alike.difference is not None and alike.difference.value == 0.0


def test_an_equal_candidate_rarely_passes() -> None:
    """It passes in about 5 % of the logs in which both models are equally good."""
    log, rng, passed = world(300), np.random.default_rng(0), 0
    for _ in range(120):
        score = (rng.random(300) < 0.7).astype(float)
        passed += judge(replace(log, score=score), everywhere(log, LARGE), everywhere(log, EVEN), score).passed
    assert 0.01 <= passed / 120 <= 0.05 + 2 * (0.05 * 0.95 / 120) ** 0.5


def test_nothing_passes_without_evidence() -> None:
    """There are no scores, or the candidate does what was never tried."""
    log = world(300)
    silent = judge(log, everywhere(log, LARGE), everywhere(log, SMALL), np.full(300, np.nan))
    assert not silent.passed and "nobody scored" in silent.reason
    never = replace(log, logged=everywhere(log, SMALL), action=np.ones(300, np.intp))
    refused = judge(never, everywhere(log, LARGE), everywhere(log, SMALL), log.score)
    assert not refused.passed and refused.refusal is not None and refused.difference is None


def test_two_differences_are_pooled() -> None:
    """Those of two parts of a sample with equal variance pool to the mean of the whole."""
    whole = np.tile([0.0, 1.0], 150) + np.repeat([0.3, -0.1], [100, 200])
    parts = [mean_interval(part, effective=1e9) for part in (whole[:100], whole[100:])]
    assert pooled(*parts) == pytest.approx(whole.mean(), abs=1e-3)
    assert pooled(parts[0], None) == parts[0].value
    assert pooled(parts[0], replace(parts[1], low=1.0, high=1.0)) == parts[0].value
