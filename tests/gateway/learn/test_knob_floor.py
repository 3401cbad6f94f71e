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
    """Two models by chance: large is right .95, small .5 of the time."""
    records = explored(count, seed=seed, chance=chance, text=False)
    pairs = zip(records[::2], records[1::2], strict=True)
    return log_of([(record, said.score) for record, said in pairs])  # type: ignore[union-attr, misc]


def always(log: Log, share_of_small: float) -> Array:
    return np.tile([1.0 - share_of_small, share_of_small], (len(log), 1))  # models are sorted: large, small


def policies(log: Log) -> dict[float, Array]:
    """Cost weights as shares of the small model."""
    return {share: always(log, share) for share in (0.0, 0.2, 0.5, 1.0)}


def test_the_promise_is_broken_as_seldom_as_it_says() -> None:
    """Over many journals: a certified setting misses the true floor in no more than 5 %, two standard errors on top."""
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
    """Only that share of each model's answers was scored."""
    spoken = np.random.default_rng(seed).random(len(log)) < np.array(shares)[log.action]
    return replace(log, score=np.where(spoken, log.score, np.nan))


def test_a_reference_that_is_seldom_scored_lowers_no_bar() -> None:
    """Scores come of the small model's answers ten times as often: no floor is certified for it, nor told as kept."""
    for seed in range(5):
        log = seldom_scored(world(1500, seed=seed), (0.1, 1.0))
        found = certify_knob(log, policies(log), 0, 0.9, 0.95)
        assert isinstance(found, Unsupported) or found.cost_weight == 0.0
        assert drifted(log, 0, 1.0, float("nan")) == "withdrawn"
        assert (share := coverage(log, 0)) is not None and share.low <= 0.7625 <= share.high
    mute = seldom_scored(world(1500), (0.0, 1.0))
    refused = certify_knob(mute, policies(mute), 0, 0.9, 0.95)
    assert isinstance(refused, Unsupported) and "no answer of large was scored" in refused.reason


def test_decisions_from_before_the_reference_was_tried_do_not_count() -> None:
    """A route that begins to explore can be certified by what it explored."""
    log = world(1200, seed=9)
    first = np.arange(len(log)) < 400
    mute = replace(
        log, logged=np.where(first[:, None], [0.0, 1.0], log.logged), action=np.where(first, 1, log.action)
    )
    found, rest = (certify_knob(one, policies(one), 0, 0.6, 0.95) for one in (mute, log.rows(~first)))
    assert not isinstance(found, Unsupported) and not isinstance(rest, Unsupported)
    assert found.cost_weight == rest.cost_weight and found.rows == pytest.approx(rest.rows, abs=30)


def test_too_little_data_is_refused_with_what_is_missing_and_so_is_the_impossible() -> None:
    """Few rows: how many would do. A reference that was never tried: that it must be explored."""
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
    """With half as many the same setting passes in few journals, with half as many again in most."""

    def asked(count: int, seed: int = 0) -> int:
        found = certify_knob(log := world(count, seed=seed), {0.1: always(log, 0.1)}, 0, 0.9, 0.95)
        return found.rows_needed or 0 if isinstance(found, Unsupported) else 0

    needed = asked(60)
    assert needed > 60
    passed = [sum(not asked(count, seed) for seed in range(1, 11)) for count in (needed // 2, round(1.5 * needed))]
    assert passed[0] <= 3 and passed[1] >= 6


def test_coverage_is_the_share_of_the_references_quality() -> None:
    """Half small, half large: about (.95 + .5) / 2 of .95, and the interval holds it."""
    found = coverage(world(2000, seed=4), 0)
    assert found is not None and found.low <= 0.7625 <= found.high and found.half_width < 0.1
    assert coverage(world(10), 0) is None


def test_the_interval_of_coverage_is_that_of_resampled_decisions() -> None:
    """The delta method and the bootstrap agree within a sixth."""
    log, rng = world(600, seed=8), np.random.default_rng(0)
    drawn = [coverage(log.rows(rng.integers(0, 600, 600)), 0) for _ in range(150)]
    found = coverage(log, 0)
    assert found is not None
    assert found.half_width == pytest.approx(1.96 * np.std([one.value for one in drawn if one]), rel=1 / 6)


def test_drift_withdraws_where_quality_sank_and_is_silent_where_it_did_not() -> None:
    """Far below the floor: withdrawn. At it: nothing."""
    sunk = world(3000, seed=5)
    assert drifted(sunk, 0, 1.0, float("nan")) == "withdrawn"
    assert drifted(sunk, 0, 0.7, float("nan")) == "valid"
    usual = float(np.mean(expected_quality(sunk)))
    assert drifted(sunk, 0, 0.7, usual) == "valid" and drifted(sunk, 0, 0.7, usual + 0.2) == "tighten"


def test_chance_is_no_better_than_chance() -> None:
    """A log that was drawn blindly saves nothing; without enough scores nothing is said."""
    found = against_blind(world(1500, seed=6))
    assert not isinstance(found, Refusal)
    assert found.saved_usd.low <= 0.0 <= found.saved_usd.high
    few, log = against_blind(world(20)), world(200)
    assert isinstance(few, Refusal) and (few.calls, few.overlap.rounds) == (0, 20)
    assert str(few) == "not enough evidence (scored answers: 20 of the 50 needed; send feedback, or label answers)"
    never = against_blind(replace(log, logged=always(log, 1.0), action=np.ones(200, np.intp)))
    assert isinstance(never, Refusal) and "never tried" in never.reason


def test_a_route_that_reads_its_queries_gains_on_chance() -> None:
    """Each model answers one half of the queries: four in five go where they are answered. One of two that is chosen
    blindly is right half the time, and the route pays the dearer one's price for as many more.
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


def test_what_is_asked_for_next_is_what_nobody_labelled_yet() -> None:
    """Best first, nothing twice, nothing that is labelled; a model without labels comes before one with many."""
    log = world(400, seed=7)
    known = log.action == 0
    suggested = to_label(log, known, 30)
    places = [one.place for one in suggested]
    assert len(set(places)) == 30 and not known[places].any()
    assert [one.gain for one in suggested] == sorted((one.gain for one in suggested), reverse=True)
    half = np.arange(len(log)) % 2 == 0
    fresh = [log.action[one.place] for one in to_label(log, half & known, 40)]
    assert np.mean(fresh) > 0.5  # 1: the model of which nothing is known
    assert to_label(log, np.ones(len(log), bool), 5) == []
