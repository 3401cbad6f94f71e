"""The chaos run in its short form: real servers struck under load, every promise checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS, SHORT
from tests.chaos.run import Report, Scale, run
from tests.chaos.stage import missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


def check(report: Report) -> None:
    """No wrong answer, nothing acknowledged lost or stored twice, no budget overspent."""
    assert not report.complaints, report.complaints
    for result in report.results:
        if not result.skipped:
            assert result.during or result.after, result.fault
            assert sum(result.after.values()) > 0, result.fault


async def test_the_worst_faults_under_load(tmp_path: Path) -> None:
    """Redis lost, PostgreSQL killed, a worker killed, a full disk, a wrong clock: all is well again by itself."""
    faults = [fault for fault in FAULTS if fault.name in SHORT]
    assert len(faults) == len(SHORT)
    check(await run(tmp_path, faults, Scale(clients=6, answers=20, longest_s=2.0), lambda name: None))


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_every_fault_under_load(tmp_path: Path) -> None:
    """The long form: what `python -m tests.chaos` prints."""
    check(await run(tmp_path, FAULTS, Scale(answers=150), lambda name: None))
