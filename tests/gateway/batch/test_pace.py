"""What decides who is asked and how fast: pure, by clocks given."""

from __future__ import annotations

from functools import partial

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batch.concurrency import LEAST, ConcurrencyLimiter
from gateway.batch.forecast import CostRatios, seconds_left
from gateway.batch.prompt_queue import BUSY, DONE, FAILED, OPEN, WAITS, PromptQueue
from gateway.batch.types import UNASSIGNED, Arm

ARMS = (Arm("small"), Arm("large"), Arm("small", via="batch"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), max_size=60))
def test_a_pace_stays_between_one_call_and_its_most(history: list[tuple[bool, int]]) -> None:
    """Whatever answers and refusals come; a refusal's wait is always kept."""
    limiter, now = ConcurrencyLimiter(20), 0.0
    for good, value in history:
        now += 1.0
        if good:
            limiter.answered(value)
        else:
            limiter.pushed_back(now, now - 0.5, value)
            assert not value or not limiter.lets_pass(now + value / 2)
        assert LEAST <= limiter.limit <= 20


def test_a_burst_of_refusals_halves_a_pace_once() -> None:
    """Calls begun before the cut say nothing new; one begun after it does."""
    limiter = ConcurrencyLimiter(16)
    for _ in range(5):
        limiter.pushed_back(10.0, 9.0, 0.0)
    assert limiter.limit == 4.0
    limiter.pushed_back(12.0, 11.0, 0.0)
    assert limiter.limit == 2.0


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_prompt_is_taken_once_whatever_is_replanned(data: st.DataObject) -> None:
    """Taken, put back, put off, made poor, moved between arms: never twice at a time, and in the end each once."""
    n = data.draw(st.integers(1, 12))
    queue = PromptQueue(ARMS[:2], np.array(data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n)), np.int16))
    queue.fill()
    now, ended = 0.0, set[int]()
    for _ in range(data.draw(st.integers(0, 40))):
        now += 1.0
        queue.wake(now)
        if data.draw(st.booleans()):
            arm = np.array(data.draw(st.lists(st.integers(-1, 1), min_size=n, max_size=n)), np.int16)
            queue.plan(queue.rest(), arm)
        place = queue.take_unfunded() if data.draw(st.booleans()) else queue.take(lambda arm: True)
        if place is None:
            continue
        assert queue.state[place] == BUSY and place not in ended
        act = data.draw(st.sampled_from(["put", "later", "poor", "done", "failed"]))
        if act in ("done", "failed"):
            queue.end(place, DONE if act == "done" else FAILED)
            ended.add(place)
        else:
            put_later = partial(queue.put_later, at_s=now + 2)
            {"put": queue.put, "later": put_later, "poor": queue.put_unfunded}[act](place)
    queue.wake(now + 100)
    queue.plan(queue.rest(), np.zeros(n, np.int16))
    while (place := queue.take_unfunded()) is not None or (place := queue.take(lambda arm: True)) is not None:
        assert place not in ended
        queue.end(place, DONE)
        ended.add(place)
    assert ended == set(range(n))


def test_a_closed_arm_is_passed_over_and_those_without_one_wait_for_a_plan() -> None:
    """Lines are served in turn, as far as their arms are let."""
    queue = PromptQueue(ARMS, np.array([0, 1, 2, UNASSIGNED, 0], np.int16))
    queue.fill()
    assert [place.tolist() for _, place in queue.at_endpoints()] == [[2]]
    taken = [queue.take(lambda arm: arm.model == "large") for _ in range(2)]
    assert taken == [1, None] and queue.rest().tolist() == [0, 2, 3, 4]
    assert queue.waiting() == {"small": 3, "large": 1}
    queue.put_later(1, 5.0)
    assert queue.state[1] == WAITS and queue.wakes_s() == 5.0 and not queue.is_dry
    queue.wake(5.0)
    assert queue.state[1] == OPEN


def test_costs_are_corrected_by_what_was_paid() -> None:
    """Twice the prediction, seen often enough, doubles what is predicted; a model never asked follows in part."""
    cost_ratios = CostRatios(ARMS)
    assert cost_ratios.ratio("small") == 1.0
    for _ in range(100):
        cost_ratios.add("small", 2.0, 1.0)
    assert 1.9 < cost_ratios.ratio("small") < 2.0 and 1.5 < cost_ratios.ratio("large") < 2.0
    cost_ratios.add("small", 1.0, 0.0)
    cost_ratios.add("small", 1.0, float("inf"))
    assert np.isfinite(cost_ratios.ratios()).all()


def test_the_time_left_is_that_of_the_tightest_limit() -> None:
    """All calls at once, or one model's own pace; a model that never answered takes what was predicted."""
    small, large = ConcurrencyLimiter(8), ConcurrencyLimiter(8)
    small.answered(1.0)
    large.answered(1.0)
    large.limit = 1.0
    limiters = {"small": small, "large": large}
    assert seconds_left({"small": 40, "large": 0}, limiters, 4, {}) == 10.0
    assert seconds_left({"small": 4, "large": 30}, limiters, 8, {}) == 30.0
    assert seconds_left({"new": 8}, {"new": ConcurrencyLimiter(8)}, 8, {"new": 2.0}) == 2.0
