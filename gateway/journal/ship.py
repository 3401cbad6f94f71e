"""Ships records from the workers' spools into the store: each record once, in batches, however often it is killed.

A batch and its end offset are committed together, so a shipper that dies resumes exactly there. A segment is deleted
only when it has no writer any more and its last byte has been committed. While the database can't be reached, the
spools wait and nothing is lost. Damaged records, and those that the database refuses, go to a `.bad` file beside the
segment and are counted, so that no record can stop the shipper.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import sqlalchemy as sa

from gateway.journal.durable import database_said
from gateway.journal.frames import SUFFIX, Frame, framed, read_frames
from gateway.journal.record import Record
from gateway.journal.tables import spool_offsets
from gateway.journal.upsert import put_row
from gateway.journal.write import write_records

log = logging.getLogger(__name__)

_BATCH_RECORDS = 1000
_READ_BYTES = 4 * 1024 * 1024
_STALE_DRAFT_S = 60.0
_UNSTORABLE = (sa.exc.DataError, sa.exc.IntegrityError, ValueError, TypeError, OverflowError)
"""Errors of a record that the database can't store; any other error is the database's."""
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


@dataclass(slots=True)
class ShipState:
    """The state of shipping, for health checks and metrics."""

    shipped: int = 0
    quarantined: int = 0
    waiting_bytes: int = 0
    """Bytes in the spools that are not in the store yet."""
    fault: str = ""
    """Error of the last pass; empty where it succeeded."""


class Shipper:
    """Ships one folder of segments. Only one shipper at a time owns a folder; the passes of another do nothing."""

    def __init__(self, directory: Path, engine: sa.Engine, *, read_bytes: int = _READ_BYTES) -> None:
        self.directory = directory
        self.state = ShipState()
        self._engine = engine
        self._read_bytes = read_bytes
        self._lock = -1
        self._reached: dict[str, int] = {}
        """Shipped bytes of each segment, by its name without the suffix."""

    def run(self, stop: threading.Event, *, pause_s: float = 0.25, longest_pause_s: float = 5.0) -> None:
        """Ship until `stop` is set, then once more. The pause grows while the database can't be reached."""
        wait_s = pause_s
        while not stop.wait(wait_s):
            wait_s = pause_s if self.try_pass() else min(2 * wait_s, longest_pause_s)
        self.try_pass()
        self.close()

    def try_pass(self) -> bool:
        """Make one pass; errors are kept in `state` and not raised. Returns whether it succeeded."""
        try:
            self.ship_all()
        except (sa.exc.SQLAlchemyError, OSError) as fault:
            if not self.state.fault:
                log.warning("journal: shipping waits: %s", database_said(fault) or fault)
            self.state.fault = str(fault)
            return False
        if self.state.fault:
            log.info("journal: shipping goes on")
        self.state.fault = ""
        return True

    def ship_all(self) -> int:
        """Ship every complete record, and return their number. Raises SQLAlchemyError where the database can't be used,
        and OSError.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._own_folder():
            return 0
        before = self.state.shipped
        _remove_stale_drafts(self.directory)
        try:
            for segment in sorted(self.directory.glob(f"*{SUFFIX}")):
                self._ship_segment(segment)
        finally:
            self.state.waiting_bytes = self._waiting_bytes()
        return self.state.shipped - before

    def _waiting_bytes(self) -> int:
        """Bytes of all segments that are not in the store."""
        sizes: dict[str, int] = {}
        for segment in self.directory.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                sizes[segment.stem] = segment.stat().st_size
        self._reached = {stem: at for stem, at in self._reached.items() if stem in sizes}
        return sum(size - self._reached.get(stem, 0) for stem, size in sizes.items())

    def close(self) -> None:
        """Release the folder to another shipper."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _own_folder(self) -> bool:
        if self._lock < 0:
            lock = os.open(self.directory / "shipper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if not _try_lock(lock, fcntl.LOCK_EX):
                os.close(lock)
                return False
            self._lock = lock
        return True

    def _ship_segment(self, path: Path) -> None:
        with path.open("rb") as file:
            final = _try_lock(file.fileno(), fcntl.LOCK_SH)  # before the size is read, so that no byte is missed
            size = os.fstat(file.fileno()).st_size
            with self._engine.connect() as connection:
                at = self._reached[path.stem] = shipped_bytes(connection, path.stem)
            read_bytes = self._read_bytes
            while at < size:
                data = os.pread(file.fileno(), min(read_bytes, size - at), at)
                if not data:
                    break
                whole = at + len(data) == size
                frames = list(read_frames(data, final=final and whole, base=at))
                if not frames and whole:
                    break
                read_bytes = self._read_bytes if frames else 2 * read_bytes
                for first in range(0, len(frames), _BATCH_RECORDS):
                    at = self._reached[path.stem] = self._ship_frames(path, frames[first : first + _BATCH_RECORDS])
        if final and at >= size:
            path.unlink()

    def _ship_frames(self, path: Path, frames: Sequence[Frame]) -> int:
        """Ship one batch; returns its end offset."""
        end = frames[-1].end
        try:
            bad = self._commit(path, frames, end)
        except _UNSTORABLE:
            bad = self._commit_one_by_one(path, frames, end)
        self.state.shipped += len(frames) - bad
        self.state.quarantined += bad
        return end

    def _commit(self, path: Path, frames: Sequence[Frame], end: int) -> int:
        """Commit the batch and its end offset in one transaction; returns the number of frames that are no records."""
        bad: list[Frame] = []
        with self._engine.begin() as connection:
            write_records(connection, _records_in(frames, bad))
            _set_shipped_bytes(connection, path.stem, end)
            _quarantine(path, bad)
        return len(bad)

    def _commit_one_by_one(self, path: Path, frames: Sequence[Frame], end: int) -> int:
        """The same for a batch with a record that can't be stored; returns the number of those too."""
        bad: list[Frame] = []
        with self._engine.begin() as connection:
            _set_shipped_bytes(connection, path.stem, end)
            for frame in frames:
                try:
                    with connection.begin_nested():
                        write_records(connection, _records_in([frame], bad))
                except _UNSTORABLE as fault:
                    log.warning("journal: a record is set aside in %s.bad: %s", path.stem, fault)
                    bad.append(frame)
            _quarantine(path, bad)
        return len(bad)


def shipped_bytes(connection: sa.Connection, segment: str) -> int:
    """Bytes of a segment that are in the store."""
    query = sa.select(spool_offsets.c.shipped_bytes).where(spool_offsets.c.segment == segment)
    return connection.execute(query).scalar_one_or_none() or 0


def _set_shipped_bytes(connection: sa.Connection, segment: str, end: int) -> None:
    put_row(connection, spool_offsets, {"segment": segment, "shipped_bytes": end, "time_s": time.time()})


def decode_record(payload: bytes) -> Record | None:
    """The record, or None where the bytes are no record or one of an unknown kind, as of a later release."""
    try:
        return _decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _records_in(frames: Iterable[Frame], bad: list[Frame]) -> Iterator[Record]:
    """The records, each decoded when it is asked for; frames that are none are added to `bad`."""
    for frame in frames:
        record = None if frame.damaged else decode_record(frame.payload)
        if record is None:
            bad.append(frame)
        else:
            yield record


def _quarantine(segment: Path, frames: Sequence[Frame]) -> None:
    """Append what can't be shipped to the segment's `.bad` file, whole records as frames: renamed to .seg, a later
    release can ship them. A pass that is repeated after a crash may write it twice.
    """
    if not frames:
        return
    with segment.with_suffix(".bad").open("ab") as file:
        for frame in frames:
            file.write(frame.payload if frame.damaged else framed(frame.payload))
        file.flush()
        os.fsync(file.fileno())


def _try_lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_stale_drafts(directory: Path) -> None:
    """Delete drafts of segments whose writer died before it could name them."""
    for draft in directory.glob("*.new"):
        try:
            if time.time() - draft.stat().st_mtime > _STALE_DRAFT_S:
                draft.unlink()
        except FileNotFoundError:
            continue
