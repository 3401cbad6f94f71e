from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.dashboard import measured, opened, walks


@pytest.mark.parametrize("count", [4000, pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_no_page_scans_a_table(tmp_path: Path, count: int) -> None:
    """Every query of every page uses an index on a journal of that size."""
    admin, _ = opened(tmp_path / "journal.db", tmp_path, count)
    report = measured(admin)
    assert len(report["pages"]) >= 25
    assert report["scans"] == []


@pytest.mark.parametrize(
    ("step", "statement", "walked"),
    [
        ("SCAN decisions", "SELECT a FROM decisions LIMIT 5", True),
        ("SCAN decisions USING INDEX x", "SELECT a FROM decisions", True),
        ("SCAN decisions USING INDEX x", "SELECT a FROM decisions LIMIT 5", False),
        ("SEARCH decisions USING INDEX x (a=?)", "SELECT a FROM decisions", False),
        ("SCAN rollups", "SELECT a FROM rollups", False),
    ],
)
def test_a_scan_is_recognised_by_its_plan(step: str, statement: str, walked: bool) -> None:
    """A scan of a table that grows with the traffic, unless a limit cuts an index off."""
    assert walks(step, statement) is walked
