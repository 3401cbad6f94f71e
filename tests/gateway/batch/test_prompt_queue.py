from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batch.prompt_queue import BUSY, DONE, FAILED, OPEN, WAITS, PromptQueue
from gateway.batch.types import UNASSIGNED, Arm

ARMS = (Arm("small"), Arm("large"), Arm("small", via="batch"))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_prompt_is_taken_once(data: st.DataObject) -> None:
    """Prompts are taken, put back, deferred, left without budget, and moved between arms; in the end each was taken
    once.
    """
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
        act = data.draw(st.sampled_from(["put", "later", "unfunded", "done", "failed"]))
        if act in ("done", "failed"):
            queue.end(place, DONE if act == "done" else FAILED)
            ended.add(place)
        else:
            put_later = partial(queue.put_later, at_s=now + 2)
            puts: dict[str, Any] = {"put": queue.put, "later": put_later, "unfunded": queue.put_unfunded}
            puts[act](place)
    queue.wake(now + 100)
    queue.plan(queue.rest(), np.zeros(n, np.int16))
    while (place := queue.take_unfunded()) is not None or (place := queue.take(lambda arm: True)) is not None:
        assert place not in ended
        queue.end(place, DONE)
        ended.add(place)
    assert ended == set(range(n))


def test_a_closed_arm_is_skipped() -> None:
    """Prompts are served in order as far as their arms are open; prompts without an arm wait for a new plan."""
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
