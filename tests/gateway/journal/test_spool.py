from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.errors import CallerError, HeadgateError
from gateway.journal.frames import read_frames
from gateway.journal.lookup import record_feedback
from gateway.journal.record import DecisionRecord, Record, new_id
from gateway.journal.schema import migrate, open_engine
from gateway.journal.ship import Shipper, decode_record
from gateway.journal.spool import Spool, spooled_bytes
from gateway.journal.tables import decisions
from tests.gateway.journal.records import decision, feedback


def records_in(directory: Path) -> list[Record | None]:
    return [
        decode_record(frame.payload)
        for path in sorted(directory.glob("*.seg"))
        for frame in read_frames(path.read_bytes(), final=True)
    ]


def test_appended_records_can_be_read_at_once(tmp_path: Path) -> None:
    """A record is in the file when `append` returns, without close or flush."""
    spool = Spool(tmp_path)
    assert spool.append(decision(1)) and spool.append(feedback(1, 0.5))
    assert records_in(tmp_path) == [decision(1), feedback(1, 0.5)]


def test_segments_are_rotated_by_size_and_by_age(tmp_path: Path) -> None:
    """A full or old segment is closed and a new one begun; nothing is lost."""
    now = [0.0]
    spool = Spool(tmp_path, segment_bytes=2000, segment_age_s=60.0, clock=lambda: now[0])
    for number in range(10):
        spool.append(decision(number))
    by_size = len(list(tmp_path.glob("*.seg")))
    assert by_size > 2
    now[0] = 61.0
    spool.append(decision(10))
    assert len(list(tmp_path.glob("*.seg"))) == by_size + 1
    assert sorted(record.id for record in records_in(tmp_path) if isinstance(record, DecisionRecord)) == sorted(
        f"dec_{n}" for n in range(11)
    )


def test_a_segment_is_locked_while_it_is_written(tmp_path: Path) -> None:
    """A reader tells a live segment from a finished one by its lock."""
    spool = Spool(tmp_path)
    spool.append(decision(1))
    with next(tmp_path.glob("*.seg")).open("rb") as segment:
        with pytest.raises(BlockingIOError):
            fcntl.flock(segment, fcntl.LOCK_SH | fcntl.LOCK_NB)
        spool.close()
        fcntl.flock(segment, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_a_full_spool_drops_and_counts_records(tmp_path: Path) -> None:
    """Nothing is raised, an alarm is logged, and once there is room records are written again."""
    now = [0.0]
    spool = Spool(tmp_path, segment_bytes=1000, max_bytes=3000, clock=lambda: now[0])
    results = [spool.append(decision(number)) for number in range(20)]
    assert not all(results) and results[0]
    assert spool.lost == results.count(False)
    assert "3000 bytes" in spool.alarm
    assert spooled_bytes(tmp_path) < 3000 + 2000
    for path in tmp_path.glob("*.seg"):
        path.unlink()
    now[0] = 2.0
    assert spool.append(decision(21))
    assert spool.alarm == ""


def test_a_segment_is_kept_while_no_other_can_be_begun(tmp_path: Path) -> None:
    """Without a free file descriptor, or in a read-only folder, the open segment is written to and rotated later."""
    now = [0.0]
    spool = Spool(tmp_path, segment_bytes=2000, segment_age_s=60.0, clock=lambda: now[0])
    assert spool.append(decision(0))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most[1]))
    try:
        now[0] = 61.0
        written = [spool.append(decision(number)) for number in range(1, 10)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, most)
    assert all(written) and (spool.lost, spool.alarm) == (0, "")
    assert len(list(tmp_path.glob("*.seg"))) == 1
    now[0] = 63.0
    assert spool.append(decision(10))
    assert len(list(tmp_path.glob("*.seg"))) == 2
    kept = [record.id for record in records_in(tmp_path) if isinstance(record, DecisionRecord)]
    assert sorted(kept) == sorted(f"dec_{n}" for n in range(11))


def test_a_deleted_segment_is_restored_and_shipped_once(tmp_path: Path) -> None:
    """Whether it was deleted alone or with its folder, half shipped or not, written to again or only closed, each
    record is stored once.
    """
    now, run = [0.0], tmp_path / "run"
    spool = Spool(run / "spool", clock=lambda: now[0])
    engine = open_engine(f"sqlite:///{tmp_path}/journal.db")
    migrate(str(engine.url))
    shipper = Shipper(run / "spool", engine)
    for number in range(3):
        assert spool.append(decision(number))
    shipper.ship_all()
    assert spool.append(decision(3))
    shutil.rmtree(run)
    now[0] = 2.0
    assert spool.append(decision(4))
    next((run / "spool").glob("*.seg")).unlink()
    assert spool.append(decision(5))
    now[0] = 4.0
    assert spool.append(decision(6))
    with next((run / "spool").glob("*.seg")).open("rb") as segment, pytest.raises(BlockingIOError):
        fcntl.flock(segment, fcntl.LOCK_SH | fcntl.LOCK_NB)
    shutil.rmtree(run)
    spool.close()
    shipper.ship_all()
    with engine.connect() as connection:
        stored = connection.execute(sa.select(decisions.c.id)).scalars().all()
    assert sorted(stored) == [f"dec_{number}" for number in range(7)]
    assert (spool.lost, [*run.rglob("*.seg")]) == (0, [])
    shipper.close()
    engine.dispose()


def test_a_short_write_leaves_no_torn_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a full disk takes half a record, that half is removed, and the next record is complete."""
    spool = Spool(tmp_path)
    spool.append(decision(1))
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, bytes(data)[: len(data) // 2]))
    assert not spool.append(decision(2))
    monkeypatch.undo()
    assert spool.append(decision(3))
    assert records_in(tmp_path) == [decision(1), decision(3)]
    assert spool.lost == 1


def test_a_record_that_cannot_be_encoded_is_dropped(tmp_path: Path) -> None:
    """The request that made it isn't affected."""
    spool = Spool(tmp_path)
    odd: dict[str, Any] = {"why": object()}
    assert not spool.append(decision(1, cache_why=odd))
    assert not spool.append(decision(2, route="\ud800"))
    assert spool.append(decision(3))
    assert records_in(tmp_path) == [decision(3)]


async def test_feedback_is_synced_before_it_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fdatasync has returned for the record's own segment before the answer is sent."""
    synced: list[str] = []
    real = os.fdatasync

    def fdatasync(file: int) -> None:
        real(file)
        synced.append(os.readlink(f"/proc/self/fd/{file}"))

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    spool = Spool(tmp_path)
    await record_feedback(spool, feedback(1, 0.5))
    assert synced == [str(next(tmp_path.glob("*.seg")))]
    await asyncio.gather(*(record_feedback(spool, feedback(number, 0.5)) for number in range(2, 5)))
    assert len(records_in(tmp_path)) == 4


async def test_feedback_that_cannot_be_stored_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a full spool or a failing disk the answer is 503."""
    with pytest.raises(HeadgateError) as full:
        await record_feedback(Spool(tmp_path, max_bytes=0), feedback(1, 0.5))
    assert (full.value.status, full.value.code) == (503, "journal_unavailable")

    def failing(_file: int) -> None:
        raise OSError(5, "input/output error")

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(HeadgateError) as broken:
        await record_feedback(Spool(tmp_path), feedback(1, 0.5))
    assert broken.value.status == 503


@pytest.mark.parametrize("changes", [{"score": 1.5}, {"score": float("nan")}, {"decision_id": ""}])
async def test_invalid_feedback_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """A score outside [0, 1], or no id, is the client's error, and nothing is written."""
    spool = Spool(tmp_path)
    score = changes.pop("score", 0.5)
    with pytest.raises(CallerError):
        await record_feedback(spool, feedback(1, score, **changes))
    assert records_in(tmp_path) == []


def test_ids_are_unique_and_sort_by_time() -> None:
    """Ids of a later millisecond sort later."""
    ids = [new_id("dec") for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert [id[:16] for id in ids] == sorted(id[:16] for id in ids)
