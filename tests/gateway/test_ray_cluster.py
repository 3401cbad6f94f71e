"""A machine too busy for Ray's first start is asked again; other faults are told at once."""

from __future__ import annotations

import pytest

from gateway.ray_cluster import TRIES, _start_own


class Starts:
    """Ray's `init`, which fails so many times as it does on a busy machine, or otherwise."""

    def __init__(self, failures: int, message: str = "The current node timed out during startup. This could") -> None:
        self.failures, self.message, self.asked = failures, message, 0

    def init(self, **options: object) -> None:
        self.asked += 1
        if self.asked <= self.failures:
            raise Exception(self.message)


def test_a_slow_start_is_tried_again() -> None:
    """As often as it takes, up to a bound."""
    ray = Starts(TRIES - 1)
    _start_own(ray, 2)
    assert ray.asked == TRIES
    with pytest.raises(Exception, match="timed out during startup"):
        _start_own(Starts(TRIES), 2)


def test_another_fault_is_not_tried_again() -> None:
    """It would only come again."""
    ray = Starts(1, "no such file")
    with pytest.raises(Exception, match="no such file"):
        _start_own(ray, 2)
    assert ray.asked == 1
