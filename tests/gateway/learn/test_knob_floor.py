from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gateway.learn.alarms import expected_quality
from gateway.learn.asking import to_label
from gateway.learn.blind import against_blind
from gateway.learn.dataset import Log, log_of
from gateway.learn.knob_floor import Unsupported, certify_knob, coverage, drifted
from routers.ope import Array, Refusal
from tests.gateway.admin.traffic import explored


def world(count: int, seed: int = 0, chance: float = 0.5) -> Log:
    """Two models chosen at random: `large` is right .95 and `small` .5 of the time."""
    records = explored(count, seed=seed, chance=chance, text=False)
    pairs = zip(records[::2], records[1::2], strict=True)
    return log_of([(record, said.score) for record, said in pairs])  # type: ignore[union-attr, misc]


def always(log: Log, share_of_small: float) -> Array:
    return np.tile([1.0 - share_of_small, share_of_small], (len(log), 1))  # models are sorted: large, small


def policies(log: Log) -> dict[float, Array]:
    """Cost weights as shares of the small model."""
    return {share: always(log, share) for share in (0.0, 0.2, 0.5, 1.0)}


def test_the_promise_is_broken_as_rarely_as_stated() -> None:
    """Over many journals a certified setting is below the true floor in at most 5 %, plus two standard errors."""
    floor, broken, certified = 0.85, 0, 0
    for seed in range(30):
        log = world(300, seed=seed)
        found = certify_knob(log, policies(log), 0, floor, 0.95)
        if not isinstance(found, Unsupported):
            certified += 1
            truth = (1 - found.cost_weight) * 0.95 + found.cost_weight * 0.5
            broken += truth < floor * 0.95
    assert broken / 30 <= 0.05 + 2 * (0.05 * 0.95 / 30) ** 0.5
    assert certified > 0


def seldom_scored(log: Log, shares: tuple[float, float], seed: int = 0) -> Log:
    """Only this share of each model's answers was scored."""
    spoken = np.random.default_rng(seed).random(len(log)) < np.array(shares)[log.action]
    return replace(log, score=np.where(spoken, log.score, np.nan))


def test_a_rarely_scored_reference_does_not_lower_the_floor() -> None:
    """The small model's answers are scored ten times as often; no floor is certified for it or reported as kept."""
    for seed in range(5):
        log = seldom_scored(world(1500, seed=seed), (0.1, 1.0))
        found = certify_knob(log, policies(log), 0, 0.9, 0.95)
        assert isinstance(found, Unsupported) or found.cost_weight == 0.0
        assert drifted(log, 0, 1.0, float("nan")) == "withdrawn"
        assert (share := coverage(log, 0)) is not None and share.low <= 0.7625 <= share.high
    mute = seldom_scored(world(1500), (0.0, 1.0))
    refused = certify_knob(mute, policies(mute), 0, 0.9, 0.95)
    assert isinstance(refused, Unsupported) and "no answer of large was scored" in refused.reason


def test_decisions_before_the_references_first_one_do_not_count() -> None:
    """A route that begins to explore can be certified from what it explored."""
    log = world(1200, seed=9)
    first = np.arange(len(log)) < 400
    mute = replace(
        log, logged=np.where(first[:, None], [0.0, 1.0], log.logged), action=np.where(first, 1, log.action)
    )
    found, rest = (certify_knob(one, policies(one), 0, 0.6, 0.95) for one in (mute, log.rows(~first)))
    assert not isinstance(found, Unsupported) and not isinstance(rest, Unsupported)
    assert found.cost_weight == rest.cost_weight and found.rows == pytest.approx(rest.rows, abs=30)


def test_too_little_data_and_an_impossible_floor_are_refused() -> None:
    """With few rows the refusal says how many would do; without the reference it says that it must be explored."""
    few = certify_knob(world(30), policies(world(30)), 0, 0.9, 0.95)
    assert isinstance(few, Unsupported) and few.rows_needed == 50
    some = certify_knob(world(80), policies(world(80)), 0, 0.9, 0.95)
    assert isinstance(some, Unsupported) and (some.rows_needed or 0) > 80
    log = world(200)
    never = replace(log, logged=np.tile([0.0, 1.0], (len(log), 1)), action=np.ones(len(log), np.intp))
    refused = certify_knob(never, policies(never), 0, 0.9, 0.95)
    assert isinstance(refused, Unsupported) and "explore" in refused.reason
    with pytest.raises(ValueError, match="floor"):
        certify_knob(log, policies(log), 0, 0.0, 0.95)


def test_the_decisions_that_a_refusal_asks_for_are_about_enough() -> None:
    """With half as many the same setting passes in few journals, with one and a half times as many in most."""

    def asked(count: int, seed: int = 0) -> int:
        found = certify_knob(log := world(count, seed=seed), {0.1: always(log, 0.1)}, 0, 0.9, 0.95)
        return found.rows_needed or 0 if isinstance(found, Unsupported) else 0

    needed = asked(60)
    assert needed > 60
    passed = [sum(not asked(count, seed) for seed in range(1, 11)) for count in (needed // 2, round(1.5 * needed))]
    assert passed[0] <= 3 and passed[1] >= 6


def test_coverage_is_the_share_of_the_references_quality() -> None:
    """With half of the answers from each model it is about (.95 + .5) / 2 of .95, and the interval contains that."""
    found = coverage(world(2000, seed=4), 0)
    assert found is not None and found.low <= 0.7625 <= found.high and found.half_width < 0.1
    assert coverage(world(10), 0) is None


def test_the_interval_of_coverage_is_that_of_a_bootstrap() -> None:
    """The delta method and the bootstrap agree within a sixth."""
    log, rng = world(600, seed=8), np.random.default_rng(0)
    drawn = [coverage(log.rows(rng.integers(0, 600, 600)), 0) for _ in range(150)]
    found = coverage(log, 0)
    assert found is not None
    assert found.half_width == pytest.approx(1.96 * np.std([one.value for one in drawn if one]), rel=1 / 6)


def test_drift_withdraws_only_where_quality_fell() -> None:
    """Far below the floor the certificate is withdrawn; at the floor nothing happens."""
    sunk = world(3000, seed=5)
    assert drifted(sunk, 0, 1.0, float("nan")) == "withdrawn"
    assert drifted(sunk, 0, 0.7, float("nan")) == "valid"
    usual = float(np.mean(expected_quality(sunk)))
    assert drifted(sunk, 0, 0.7, usual) == "valid" and drifted(sunk, 0, 0.7, usual + 0.2) == "tighten"


def test_random_routing_saves_nothing_against_chance() -> None:
    """Without enough scores nothing is reported."""
    found = against_blind(world(1500, seed=6))
    assert not isinstance(found, Refusal)
    assert found.saved_usd.low <= 0.0 <= found.saved_usd.high
    few, log = against_blind(world(20)), world(200)
    assert isinstance(few, Refusal) and (few.calls, few.overlap.rounds) == (0, 20)
    assert str(few) == "not enough evidence (scored answers: 20 of the 50 needed; send feedback, or label answers)"
    never = against_blind(replace(log, logged=always(log, 1.0), action=np.ones(200, np.intp)))
    assert isinstance(never, Refusal) and "never tried" in never.reason


def test_routing_by_the_query_saves_against_chance() -> None:
    """Each model answers one half of the questions, and four in five go to the right one. A random choice between two
    models is right half the time, and would need the more expensive model for as many more.
    """
    rng, log = np.random.default_rng(0), world(1500)
    kind = rng.integers(0, 2, 1500)
    logged = np.where(np.arange(2) == kind[:, None], 0.8, 0.2)
    action = np.where(rng.random(1500) < 0.8, kind, 1 - kind)
    found = against_blind(
        replace(log, logged=logged, action=action, score=(action == kind) * 1.0, cost_usd=2.0 - action)
    )
    assert not isinstance(found, Refusal) and found.rounds == 1500
    assert found.quality_gain.low <= 0.3 <= found.quality_gain.high and found.quality_gain.half_width < 0.1
    assert found.saved_usd.value == pytest.approx(0.0, abs=0.6)


def test_the_most_informative_unlabelled_answers_come_first() -> None:
    """None is listed twice, none that is labelled, and a model without labels comes before one with many."""
    log = world(400, seed=7)
    known = log.action == 0
    suggested = to_label(log, known, 30)
    places = [one.place for one in suggested]
    assert len(set(places)) == 30 and not known[places].any()
    assert [one.gain for one in suggested] == sorted((one.gain for one in suggested), reverse=True)
    half = np.arange(len(log)) % 2 == 0
    fresh = [log.action[one.place] for one in to_label(log, half & known, 40)]
    assert np.mean(fresh) > 0.5  # 1 is the model without scores
    assert to_label(log, np.ones(len(log), bool), 5) == []
