"""What decides who is asked and how fast: pure, by clocks given."""

from __future__ import annotations

from functools import partial

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batch.forecast import Learnt, seconds_left
from gateway.batch.pace import LEAST, Pace
from gateway.batch.supply import BUSY, DONE, FAILED, OPEN, WAITS, Supply
from gateway.batch.types import UNASSIGNED, Arm

ARMS = (Arm("small"), Arm("large"), Arm("small", via="batch"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), max_size=60))
def test_a_pace_stays_between_one_call_and_its_most(history: list[tuple[bool, int]]) -> None:
    """Whatever answers and refusals come; a refusal's wait is always kept."""
    pace, now = Pace(20), 0.0
    for good, value in history:
        now += 1.0
        if good:
            pace.answered(value)
        else:
            pace.pushed_back(now, now - 0.5, value)
            assert not value or not pace.lets_pass(now + value / 2)
        assert LEAST <= pace.limit <= 20


def test_a_burst_of_refusals_halves_a_pace_once() -> None:
    """Calls begun before the cut say nothing new; one begun after it does."""
    pace = Pace(16)
    for _ in range(5):
        pace.pushed_back(10.0, 9.0, 0.0)
    assert pace.limit == 4.0
    pace.pushed_back(12.0, 11.0, 0.0)
    assert pace.limit == 2.0


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_prompt_is_taken_once_whatever_is_replanned(data: st.DataObject) -> None:
    """Taken, put back, put off, made poor, moved between arms: never twice at a time, and in the end each once."""
    n = data.draw(st.integers(1, 12))
    supply = Supply(ARMS[:2], np.array(data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n)), np.int16))
    supply.fill()
    now, ended = 0.0, set[int]()
    for _ in range(data.draw(st.integers(0, 40))):
        now += 1.0
        supply.wake(now)
        if data.draw(st.booleans()):
            arm = np.array(data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n)), np.int16)
            supply.plan(supply.rest(), arm)
        place = supply.take_poor() if data.draw(st.booleans()) else supply.take(lambda arm: True)
        if place is None:
            continue
        assert supply.state[place] == BUSY and place not in ended
        act = data.draw(st.sampled_from(["put", "later", "poor", "done", "failed"]))
        if act in ("done", "failed"):
            supply.end(place, DONE if act == "done" else FAILED)
            ended.add(place)
        else:
            put_later = partial(supply.put_later, at_s=now + 2)
            {"put": supply.put, "later": put_later, "poor": supply.put_poor}[act](place)
    supply.wake(now + 100)
    supply.plan(supply.rest(), np.zeros(n, np.int16))
    while (place := supply.take_poor()) is not None or (place := supply.take(lambda arm: True)) is not None:
        assert place not in ended
        supply.end(place, DONE)
        ended.add(place)
    assert ended == set(range(n))


def test_a_closed_arm_is_passed_over_and_those_without_one_wait_for_a_plan() -> None:
    """Lines are served in turn, as far as their arms are let."""
    supply = Supply(ARMS, np.array([0, 1, 2, UNASSIGNED, 0], np.int16))
    supply.fill()
    assert [place.tolist() for _, place in supply.at_endpoints()] == [[2]]
    taken = [supply.take(lambda arm: arm.model == "large") for _ in range(2)]
    assert taken == [1, None] and supply.rest().tolist() == [0, 2, 3, 4]
    assert supply.waiting() == {"small": 3, "large": 1}
    supply.put_later(1, 5.0)
    assert supply.state[1] == WAITS and supply.wakes_s() == 5.0 and not supply.is_dry
    supply.wake(5.0)
    assert supply.state[1] == OPEN


def test_costs_are_corrected_by_what_was_paid() -> None:
    """Twice the prediction, seen often enough, doubles what is predicted; a model never asked follows in part."""
    learnt = Learnt(ARMS)
    assert learnt.ratio("small") == 1.0
    for _ in range(100):
        learnt.add("small", 2.0, 1.0)
    assert 1.9 < learnt.ratio("small") < 2.0 and 1.5 < learnt.ratio("large") < 2.0
    learnt.add("small", 1.0, 0.0)
    learnt.add("small", 1.0, float("inf"))
    assert np.isfinite(learnt.ratios()).all()


def test_the_time_left_is_that_of_the_tightest_limit() -> None:
    """All calls at once, or one model's own pace; a model that never answered takes what was predicted."""
    small, large = Pace(8), Pace(8)
    small.answered(1.0)
    large.answered(1.0)
    large.limit = 1.0
    paces = {"small": small, "large": large}
    assert seconds_left({"small": 40, "large": 0}, paces, 4, {}) == 10.0
    assert seconds_left({"small": 4, "large": 30}, paces, 8, {}) == 30.0
    assert seconds_left({"new": 8}, {"new": Pace(8)}, 8, {"new": 2.0}) == 2.0
