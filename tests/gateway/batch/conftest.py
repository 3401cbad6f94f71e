"""Plans of small jobs end by their gap here, never by the clock: a busy machine makes the same ones."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.batch import assign
from gateway.batch.exact import exact
from tests.until import PATIENCE_S


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Branch and bound gets a minute of the wall clock instead of the second or two that a person waits for."""

    def patient(program: Any, *, time_limit_s: float, gap: float) -> Any:
        return exact(program, time_limit_s=PATIENCE_S, gap=gap)

    monkeypatch.setattr(assign, "exact", patient)
