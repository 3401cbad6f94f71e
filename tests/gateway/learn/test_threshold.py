"""The effect of another cascade threshold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from msgspec.structs import replace

from gateway.journal.record import AttemptRecord, EvidenceRecord
from gateway.learn.dataset import Log, Scored, log_of
from gateway.learn.threshold import at_threshold, climbs
from routers.intervals import mean_interval
from routers.simple import Weighted
from tests.gateway.learn.world import Town


def climbed(n: int, thresholds: tuple[float, ...], seed: int = 0) -> Log:
    """A journal of small -> large cascades, each with one of these thresholds at random. The first answer is right with
    its confidence; the second is right nine times in ten and costs ten times as much.
    """
    rng = np.random.default_rng(seed)
    rows: list[Scored] = []
    for record, _ in Town(seed).decisions(Weighted({"small": 1.0}), n):
        confidence, floor = float(rng.random()), float(rng.choice(thresholds))
        kept = confidence >= floor
        first = AttemptRecord(
            model="small", latency_s=0.1, cost_nanousd=1000, evidence=EvidenceRecord(confidence=confidence)
        )
        second = AttemptRecord(model="large", latency_s=0.5, cost_nanousd=10_000)
        attempts = (first,) if kept else (first, second)
        right = rng.random() < (confidence if kept else 0.9)
        made = replace(
            record, plan=("small", "large"), thresholds=(floor, None), attempts=attempts,
            answered_model=attempts[-1].model, cost_nanousd=sum(one.cost_nanousd for one in attempts),
            latency_s=sum(one.latency_s or 0.0 for one in attempts),
        )  # fmt: skip
        rows.append((made, float(right)))
    return log_of(rows)


@pytest.mark.parametrize("accept_at", [0.35, 0.6])
def test_a_threshold_between_tried_ones_is_valued(accept_at: float) -> None:
    """Requests with the other threshold give the missing outcome; the interval contains the truth."""
    answer = at_threshold(climbed(3000, (0.2, 0.8)), accept_at)
    quality = 0.9 * accept_at + (1 - accept_at**2) / 2
    figure = answer.figures["quality"].then
    assert figure.low - 0.01 <= quality <= figure.high + 0.01
    assert answer.figures["cost_usd"].then.value == pytest.approx(1e-6 + 1e-5 * accept_at, rel=0.06)
    assert answer.then_shares["kept"] == pytest.approx(1 - accept_at, abs=0.04)


def test_intervals_count_the_error_of_the_twins() -> None:
    """On top of the sampling error of the rounds, for each round that changes sides."""
    log = climbed(2000, (0.2, 0.8))
    found = climbs(log)
    band = found.kept & (found.confidence < 0.9)
    alike = (found.confidence >= found.confidence[band].min()) & (found.confidence <= found.confidence[band].max())
    twins = log.score[alike & ~found.kept]
    then = np.where(band, twins.mean(), log.score)
    error = 1.96 * band.sum() / 2000 * twins.std(ddof=1) / len(twins) ** 0.5
    figure = at_threshold(log, 0.9).figures["quality"]
    assert figure.then.value == pytest.approx(then.mean()) and error > 0.005
    assert figure.then.half_width == pytest.approx(mean_interval(then).half_width + error, rel=1e-4)
    assert figure.difference.half_width == pytest.approx(mean_interval(then - log.score).half_width + error, rel=1e-4)


def test_unscored_answers_are_not_counted() -> None:
    """If one answer in five is scored, the estimate is the logged quality plus the difference, and near the truth. If
    none of the answers that would change sides is scored, the estimate is refused.
    """
    log = climbed(6000, (0.2, 0.8))
    unheard = np.where(np.arange(len(log)) % 5 > 0, np.nan, log.score)
    figure = at_threshold(dataclasses.replace(log, score=unheard), 0.6).figures["quality"]
    assert figure.then.value == pytest.approx(figure.now.value + figure.difference.value)
    assert figure.then.value == pytest.approx(0.9 * 0.6 + (1 - 0.6**2) / 2, abs=0.02)
    found = climbs(log)
    unheard = np.where(found.kept & (found.confidence < 0.6), np.nan, log.score)
    refused = at_threshold(dataclasses.replace(log, score=unheard), 0.6).refusals["quality"]
    assert refused.reason == "20% of the answers would change sides, none of them has a known quality"
    assert refused.explored_calls == 0


def test_sides_may_be_scored_at_different_rates() -> None:
    """Scored answers of kept and of escalated rounds count for all of their side, now and with the other threshold. Of
    20 intervals at least 17 hold the truth.
    """
    accept_at = 0.6
    now = float(np.mean([0.9 * floor + (1 - floor**2) / 2 for floor in (0.2, 0.8)]))
    then = 0.9 * accept_at + (1 - accept_at**2) / 2
    truths = {"now": now, "then": then, "difference": then - now}
    missed: dict[str, list[float]] = {name: [] for name in truths}
    outside = dict.fromkeys(truths, 0)
    for seed in range(10):
        log = climbed(2000, (0.2, 0.8), seed)
        found = climbs(log)
        for kept_share, escalated_share in ((0.8, 0.2), (0.2, 0.8)):
            share = np.full(len(log), escalated_share)
            share[found.place[found.kept]] = kept_share
            heard = np.where(np.random.default_rng(seed).random(len(log)) < share, log.score, np.nan)
            figure = at_threshold(dataclasses.replace(log, score=heard), accept_at).figures["quality"]
            for name, truth in truths.items():
                one = getattr(figure, name)
                missed[name].append(abs(one.value - truth))
                outside[name] += not one.low <= truth <= one.high
    assert max(outside.values()) <= 3, outside
    assert all(np.mean(errors) < 0.02 for errors in missed.values()), missed


def test_a_higher_threshold_than_any_tried_is_refused() -> None:
    """The second model's answers to requests that were always kept are unknown."""
    answer = at_threshold(climbed(500, (0.3,)), 0.7)
    assert set(answer.refusals) == {"quality", "cost_usd", "latency_s"}
    assert answer.refusals["quality"].explored_calls == 30


def test_a_lower_threshold_has_a_known_cost_and_no_quality() -> None:
    """The first answer and its price are known, but it wasn't scored."""
    answer = at_threshold(climbed(500, (0.7,)), 0.4)
    assert set(answer.refusals) == {"quality"}
    assert answer.figures["cost_usd"].then.value == pytest.approx(1e-6 + 1e-5 * 0.4, rel=0.2)
    assert answer.figures["cost_usd"].difference.high < 0


def test_the_threshold_in_force_changes_nothing() -> None:
    """The predicted figures are those of the log."""
    answer = at_threshold(climbed(300, (0.5,)), 0.5)
    assert all(figure.difference.value == 0.0 for figure in answer.figures.values()) and not answer.refusals
