"""Ray's start is tried again on a busy machine; other faults are raised at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.ray_cluster import TRIES, _start_own


class Starts:
    """A double of Ray's `init` that fails this many times, as on a busy machine or otherwise."""

    def __init__(self, failures: int, message: str = "The current node timed out during startup. This could") -> None:
        self.failures, self.message, self.asked = failures, message, 0

    def init(self, **options: object) -> None:
        self.asked += 1
        if self.asked <= self.failures:
            raise Exception(self.message)


def test_a_slow_start_is_tried_again() -> None:
    """A start that times out is tried again, up to a bound."""
    ray = Starts(TRIES - 1)
    _start_own(ray, 2)
    assert ray.asked == TRIES
    with pytest.raises(Exception, match="timed out during startup"):
        _start_own(Starts(TRIES), 2)


def test_another_fault_is_not_tried_again() -> None:
    """Any other fault is raised at once, because it would only come again."""
    ray = Starts(1, "no such file")
    with pytest.raises(Exception, match="no such file"):
        _start_own(ray, 2)
    assert ray.asked == 1


def test_native_output_leaves_a_commands_own_alone() -> None:
    """What native code writes to file descriptor 1 goes to standard error."""
    script = "import os; from gateway.ray_cluster import _keep_stdout as k; k(); os.write(1, b'raylet'); print('told')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("told\n", "raylet")
