"""The chaos run in its short form: real servers fail under load, and every promise is checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS, SHORT
from tests.chaos.run import Report, Scale, run
from tests.chaos.stage import missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


def silent(report: Report) -> list[str]:
    """Faults during which no request was answered."""
    return [one.fault for one in report.results if not one.skipped and not sum(one.after.values())]


async def test_the_worst_faults_under_load(tmp_path: Path) -> None:
    """Redis loses its data, PostgreSQL and a worker are killed, a disk is full, a clock is wrong: the gateway recovers
    by itself, with no wrong answer, nothing acknowledged that is lost or stored twice, and no budget overspent.
    """
    faults = [fault for fault in FAULTS if fault.name in SHORT]
    assert len(faults) == len(SHORT)
    report = await run(tmp_path, faults, Scale(clients=6, answers=20, longest_s=2.0), lambda name: None)
    assert (report.complaints, silent(report)) == ([], [])


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_every_fault_under_load(tmp_path: Path) -> None:
    """The long form, as `python -m tests.chaos` prints it."""
    report = await run(tmp_path, FAULTS, Scale(answers=150), lambda name: None)
    assert (report.complaints, silent(report)) == ([], [])
