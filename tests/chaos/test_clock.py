"""The effects of a clock that is suddenly wrong."""

from __future__ import annotations

import time

import pytest

from gateway.serve.control import not_ahead


def test_a_clock_that_jumps_ahead_deletes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retention counts the time that has passed; a clock that is set back deletes less."""
    real = time.time
    begun = real() - time.monotonic()
    monkeypatch.setattr(time, "time", lambda: real() + 40 * 86_400)
    assert abs(not_ahead(begun) - real()) < 60
    monkeypatch.setattr(time, "time", lambda: real() - 86_400)
    assert abs(not_ahead(begun) - (real() - 86_400)) < 60
