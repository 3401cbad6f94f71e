"""Whether a candidate may replace the incumbent, beside known truths."""

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
    """Large, right .95 of the time, and small, right .5 of it, by even chance."""
    records = explored(count, seed=seed, chance=0.5, text=False)
    pairs = zip(records[::2], records[1::2], strict=True)
    return log_of([(record, said.score) for record, said in pairs])  # type: ignore[union-attr, misc]


def everywhere(log: Log, chances: np.ndarray) -> np.ndarray:
    return np.tile(chances, (len(log), 1))


@pytest.mark.parametrize(
    ("knobs", "same"),
    [(Knobs(cost_weight=0.3),) * 2, (Knobs(cost_weight=0.9),) * 2, (Knobs(min_quality=0.5), Knobs(cost_weight=0.5))],
)
def test_an_answer_is_worth_what_the_router_would_choose_by(knobs: Knobs, same: Knobs) -> None:
    """Quality and money as the decision rule weighs them; with a floor alone, as the default weight does."""
    log = replace(world(20), cost_usd=np.linspace(0.0, 0.04, 20))
    unknown = [float("nan")] * 20
    given = Forecast([""] * 20, log.score.tolist(), unknown, log.cost_usd.tolist(), unknown, unknown)
    assert worth(log, knobs, 0.02) == pytest.approx(utilities(given, same, 0.02))
    assert np.isfinite(worth(log, Knobs(cost_weight=1.0), 0.0)).all()


def test_the_reference_is_what_the_dearest_model_costs() -> None:
    """On average, where it was chosen; one dollar where all is free."""
    log = world(200)
    dear = replace(log, cost_usd=np.where(log.action == 1, np.arange(200) / 100, 0.5))
    assert reference_of(dear) == pytest.approx(dear.cost_usd[log.action == 1].mean())
    assert reference_of(replace(log, cost_usd=np.zeros(200))) == 1.0


def test_the_better_candidate_passes_and_the_worse_does_not() -> None:
    """By the difference of what both are worth, the truth within; what came before exploration is left out."""
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


def test_a_candidate_that_is_no_better_passes_as_seldom_as_it_says() -> None:
    """In about 5 % of logs in which both models are right as often."""
    log, rng, passed = world(300), np.random.default_rng(0), 0
    for _ in range(120):
        score = (rng.random(300) < 0.7).astype(float)
        passed += judge(replace(log, score=score), everywhere(log, LARGE), everywhere(log, EVEN), score).passed
    assert 0.01 <= passed / 120 <= 0.05 + 2 * (0.05 * 0.95 / 120) ** 0.5


def test_what_the_log_cannot_tell_passes_nothing() -> None:
    """Nobody scored anything; the candidate does what was never tried."""
    log = world(300)
    silent = judge(log, everywhere(log, LARGE), everywhere(log, SMALL), np.full(300, np.nan))
    assert not silent.passed and "nobody scored" in silent.reason
    never = replace(log, logged=everywhere(log, SMALL), action=np.ones(300, np.intp))
    refused = judge(never, everywhere(log, LARGE), everywhere(log, SMALL), log.score)
    assert not refused.passed and refused.refusal is not None and refused.difference is None


def test_two_differences_together_are_those_of_all_rounds() -> None:
    """Two parts of a sample of even spread, each with its interval, pool to the mean of the whole."""
    whole = np.tile([0.0, 1.0], 150) + np.repeat([0.3, -0.1], [100, 200])
    parts = [mean_interval(part, effective=1e9) for part in (whole[:100], whole[100:])]
    assert pooled(*parts) == pytest.approx(whole.mean(), abs=1e-3)
    assert pooled(parts[0], None) == parts[0].value
    assert pooled(parts[0], replace(parts[1], low=1.0, high=1.0)) == parts[0].value
