"""Alarms are raised when something is wrong with learning, and not in a healthy run."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from msgspec.structs import replace

from gateway.journal.record import DecisionRecord
from gateway.learn.alarms import calibration, changes, raised
from gateway.learn.dataset import Scored, log_of
from gateway.learn.retrain import trained
from routers.plugin import PluginRouter
from routers.simple import Weighted
from routers.types import Knobs
from tests.gateway.learn.world import Town

EVEN = Weighted({"small": 1.0, "middle": 1.0, "large": 1.0})
KNOBS = Knobs(cost_weight=0.5)
CALIBRATED = {"small": 0.55, "middle": 0.7, "large": 0.935}
"""Each model's mean score in the town."""


def serving(seed: int) -> PluginRouter:
    return trained(log_of(Town(seed).decisions(EVEN, 600)), "linear", "1", 0.1).router


def expecting(rows: list[Scored], expected: dict[str, float]) -> list[Scored]:
    """The same rounds with a router that expects these scores of its models."""

    def told(record: DecisionRecord) -> DecisionRecord:
        candidates = [replace(one, quality=expected.get(one.model)) for one in record.candidates]
        return replace(record, candidates=tuple(candidates))

    return [(told(record), score) for record, score in rows]


def test_a_healthy_run_raises_no_alarm() -> None:
    """In none of 60 looks at five runs of 2,400 requests each, a third of them scored."""
    seen = Counter[str]()
    for seed in range(5):
        rows = Town(9000 + seed).decisions(serving(500 + seed), 2400, knobs=KNOBS, labelled=0.3)
        for upto in range(200, 2401, 200):
            seen.update(alarm.kind for alarm in raised(log_of(rows[:upto])) if alarm.kind != "calibration")
    assert not seen


def test_a_run_of_right_answers_is_no_calibration_alarm() -> None:
    """30 right answers in a row of a model that is right in 88 of 100 happen by chance in every fiftieth log."""
    rows = expecting(Town(1).decisions(Weighted({"large": 1.0}), 400), {"large": 0.88})
    right = [row for row in rows if row[1] == 1.0]
    assert not calibration(log_of(right[:32]))
    assert [one.model for one in calibration(log_of(right))] == ["large"]


def test_overestimated_scores_raise_an_alarm() -> None:
    """On poems alone the small model is right one time in five; with true estimates there is no alarm."""
    rows = Town(2).decisions(EVEN, 900)
    assert not calibration(log_of(expecting(rows, CALIBRATED)))
    (high,) = calibration(log_of(expecting(rows, {**CALIBRATED, "small": 0.8})))
    (low,) = calibration(log_of(expecting(rows, {**CALIBRATED, "small": 0.3})))
    assert high.message == f"small scores {-high.value:.2f} below what the router expects" and high.value < -0.15
    assert low.message == f"small scores {low.value:.2f} above what the router expects" and low.value > 0.15


@pytest.mark.parametrize("how", ["cascade", "fallback"])
def test_calibration_ignores_other_models_answers(how: str) -> None:
    """A cascade keeps a model's better answers and asks another for the rest, and a fallback answers in a model's
    place.
    """
    rows = expecting(Town(3).decisions(EVEN, 900), CALIBRATED)
    if how == "cascade":
        answered = [(replace(record, plan=(record.model, "large")), 1.0) for record, _ in rows]
    else:
        answered = [(replace(record, answered_model="other", plan=(record.model,)), 1.0) for record, _ in rows]
    assert not calibration(log_of(answered))
    if how == "fallback":
        late = [*rows[:450], *answered[450:]]
        assert not changes(log_of(late)), "the model did not change: another one answered"


def test_a_models_change_is_detected_and_chance_is_not() -> None:
    """No alarm is raised in 400 logs of a model that stays right in 95 of 100; there is one in each of 40 logs in which
    it falls to half of them.
    """
    rng = np.random.default_rng(0)
    log = log_of(expecting(Town(4).decisions(Weighted({"small": 1.0}), 600), {"small": 0.9}))
    right = (rng.random((400, 600)) < 0.95).astype(float)
    assert not any(changes(dataclasses.replace(log, score=score)) for score in right)
    right[:, 500:] = rng.random((400, 100)) < 0.5
    assert all(changes(dataclasses.replace(log, score=score)) for score in right[:40])


@pytest.mark.parametrize(("right", "seen"), [(0.95, 190), (0.9, 175)])
def test_a_good_models_fall_is_detected_within_forty_answers(right: float, seen: int) -> None:
    """A fall of .35 is detected in at least this many of 200 logs; a false alarm is raised in at most two of 400 (in
    one of 1,000).
    """
    rng = np.random.default_rng(8)
    log = log_of(expecting(Town(4).decisions(Weighted({"small": 1.0}), 600), {"small": 0.9}))
    score = (rng.random((400, 600)) < right).astype(float)
    assert sum(bool(changes(dataclasses.replace(log, score=one))) for one in score) <= 2
    score[:200, 560:] = rng.random((200, 40)) < right - 0.35
    assert sum(bool(changes(dataclasses.replace(log, score=one))) for one in score[:200]) >= seen


@pytest.mark.parametrize(
    ("sure", "share", "known", "lately", "kinds"),
    [
        (0.99, 0.5, 0.6, 0.6, set()),
        (1.0, 0.5, 0.6, 0.6, {"starved"}),
        (0.992, 0.5, 0.6, 0.6, {"starved"}),
        (0.99, 0.95, 0.6, 0.6, set()),
        (0.99, 0.96, 0.6, 0.6, {"concentrated"}),
        (0.99, 0.5, 0.0, 0.0, {"unlabelled"}),
        (0.99, 0.5, 0.02, 0.02, set()),
        (0.99, 0.5, 0.6, 0.25, {"label delay"}),
        (0.99, 0.5, 0.6, 0.35, set()),
        (0.99, 0.5, 0.15, 0.0, set()),
        (0.99, 0.5, 0.25, 0.0, {"label delay"}),
    ],
)
def test_each_alarm_has_its_threshold(sure: float, share: float, known: float, lately: float, kinds: set[str]) -> None:
    """`sure`: probability of the chosen model; `share`: share of requests that one model gets; `known` and `lately`:
    share of scored answers among the first 300 and the last 100.
    """
    log = log_of(Town(7).decisions(EVEN, 400))
    logged = np.full((400, 3), (1.0 - sure) / 2)
    action = np.where(np.arange(400) % 100 < 100 * share, 0, 1)
    logged[np.arange(400), action] = sure
    rank = np.arange(400) * 37 % 100  # each hundred in another order
    score = np.where(rank < 100 * np.where(np.arange(400) < 300, known, lately), 0.7, np.nan)
    found = raised(dataclasses.replace(log, logged=logged, action=action, score=score))
    assert {one.kind for one in found} == kinds
    assert all(one.model == log.models[0] for one in found if one.kind == "concentrated")


def test_a_router_is_stale_only_without_training() -> None:
    """A candidate every 200 rounds that the gate refuses counts as learning."""
    log = log_of(Town(5).decisions(EVEN, 1500))
    since_s, lately_s = log.records[0].time_s, log.records[1400].time_s
    assert "stale" in {one.kind for one in raised(log, version_since_s=since_s)}
    assert "stale" not in {one.kind for one in raised(log, version_since_s=since_s, trained_until_s=lately_s)}


class Poems(Town):
    """The town, when nobody asks for sums any more."""

    def question(self) -> tuple[str, str]:
        while True:
            kind, text = super().question()
            if kind == "poem":
                return kind, text


def test_a_shift_of_requests_raises_an_alarm() -> None:
    """Only poems come instead of poems and sums."""
    before, after = Town(6).decisions(EVEN, 600), Poems(7).decisions(EVEN, 600)
    assert "feature drift" in {one.kind for one in raised(log_of([*before, *after]))}
