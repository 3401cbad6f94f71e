"""The worker's side of the journal: appends a record with one write, never waits, and never fails the request.

A record survives a crash of the process once `append` has returned (it is in the page cache), and a power loss once
`sync` has returned. A spool has one writer, the event loop of one worker. A segment is locked (flock) while its writer
lives, so that a reader can tell a finished segment from one in use.

When the disk is full or the spools have reached `max_bytes`, new records are dropped and counted in `lost`: requests
are still answered, and older records are kept. `append` then returns False, so that callers can refuse what must not be
lost (feedback); `alarm` has the reason. Writing resumes by itself. If the open segment is deleted, it is restored with
all its records.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from math import inf
from pathlib import Path

import msgspec

from gateway.journal.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, SUFFIX, seal
from gateway.journal.record import Record

log = logging.getLogger("headgate.journal")

_FULL_RECHECK_S = 1.0
_LOOK_EVERY_S = 1.0
"""Seconds between two checks that the open segment is still in its folder."""
_LARGEST_KEPT_BUFFER_BYTES = 1024 * 1024


def spool_dir(run_dir: str | Path) -> Path:
    """The folder of all workers' segments."""
    return Path(run_dir) / "spool"


class Spool:
    """Append-only segments of one worker. Not thread-safe, but `sync` may run while records are appended."""

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int = 16 * 1024 * 1024,
        segment_age_s: float = 300.0,
        max_bytes: int = 4 * 1024 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.segment_bytes = segment_bytes
        self.segment_age_s = segment_age_s
        self.max_bytes = max_bytes
        """Most bytes of all workers' segments together."""
        self.lost = 0
        """Records dropped since the start."""
        self.alarm = ""
        """Why records are being dropped now; empty where they are not."""
        self._clock = clock
        self._encode_into = msgspec.msgpack.Encoder().encode_into
        self._buffer = bytearray(4096)
        self._file = -1
        self._size = 0
        self._name = ""
        """Name of the open segment, without its suffix."""
        self._look_at = -inf
        self._turn_at = -inf
        self._full_until = 0.0
        self._listed = -1
        """Descriptor of the open segment once its directory entry has been forced to disk."""

    def append(self, record: Record) -> bool:
        """Write one record; False where it was dropped and counted in `lost`. Never raises."""
        try:
            now = self._clock()
            if self._size >= self.segment_bytes or now >= self._look_at:
                self._look(now)
            buffer = self._buffer
            self._encode_into(record, buffer, HEADER_BYTES)
            seal(buffer)
            self._write(buffer)
        except (OSError, ValueError, TypeError, OverflowError, msgspec.MsgspecError) as fault:
            return self._drop(fault)
        return True

    async def sync(self) -> None:
        """Force the open segment to disk. Call it right after `append`, with no await between them.

        Raises OSError where the disk fails. If the caller is cancelled, the work ends in the background.
        """
        if self._file < 0:
            return
        segment, listed = self._file, self._listed == self._file
        folder = None if listed else self.directory
        await asyncio.shield(asyncio.to_thread(_force_to_disk, os.dup(segment), folder))
        if segment == self._file:
            self._listed = segment

    def close(self) -> None:
        """Close the open segment, so that the shipper can finish it."""
        if self._file >= 0:
            with suppress(OSError):
                self._restore()
            os.close(self._file)
            self._file, self._look_at = -1, -inf

    def _write(self, buffer: bytearray) -> None:
        if len(buffer) > MAX_PAYLOAD_BYTES:
            raise ValueError(f"a record of {len(buffer)} bytes is over the limit of {MAX_PAYLOAD_BYTES}")
        written = os.write(self._file, buffer)
        if written != len(buffer):
            os.ftruncate(self._file, self._size)
            raise OSError(28, "no space for a whole record")
        self._size += written
        if self.alarm:
            self.alarm = ""
        if written > _LARGEST_KEPT_BUFFER_BYTES:
            self._buffer = bytearray(4096)

    def _drop(self, fault: Exception) -> bool:
        self.lost += 1
        self.alarm = f"journal records are being dropped: {fault}"
        return False

    def _look(self, now: float) -> None:
        """Restore a deleted segment, and start a new one where it is time. Raises OSError where no record can be kept.
        """
        self._restore()
        if self._file < 0 or self._size >= self.segment_bytes or now >= self._turn_at:
            self._turn(now)
        self._look_at = now + _LOOK_EVERY_S

    def _restore(self) -> None:
        """Restore the open segment where it was deleted, under its name, by which the store records what is shipped."""
        if self._file < 0 or os.fstat(self._file).st_nlink:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        file = _open_locked(self.directory, self._name, self._file)
        os.close(self._file)
        self._file, self._listed = file, -1
        log.error("the open segment %s was deleted; it is restored with all its %d bytes", self._name, self._size)

    def _turn(self, now: float) -> None:
        """Start a new segment, or continue the open one where none can be started now. Raises OSError where there is no
        open one, or the spools have reached `max_bytes`.
        """
        if self._file >= 0 and self._size == 0:
            self._turn_at = now + self.segment_age_s
            return
        if now < self._full_until:
            raise OSError(28, f"the spools hold {self.max_bytes} bytes that have not been shipped")
        try:
            fresh, name = self._begin(now)
        except OSError:
            if now < self._full_until or self._file < 0:
                raise
            self._turn_at = now + _FULL_RECHECK_S  # the open segment can still be written
            return
        self.close()
        self._file, self._name, self._size, self._listed = fresh, name, 0, -1
        self._turn_at = now + self.segment_age_s

    def _begin(self, now: float) -> tuple[int, str]:
        self.directory.mkdir(parents=True, exist_ok=True)
        if spooled_bytes(self.directory) >= self.max_bytes:
            self._full_until = now + _FULL_RECHECK_S
            raise OSError(28, f"the spools hold {self.max_bytes} bytes that have not been shipped")
        name = f"{int(time.time() * 1000):012x}-{uuid.uuid4().hex}"
        return _open_locked(self.directory, name), name


def spooled_bytes(directory: Path) -> int:
    """Bytes in segments that have not been shipped."""
    total = 0
    for entry in os.scandir(directory):
        if entry.name.endswith(SUFFIX):
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue  # the shipper has deleted it meanwhile
    return total


def _open_locked(directory: Path, name: str, deleted: int = -1) -> int:
    """Open a new segment, locked before it gets the name by which readers find it; it begins with the contents of the
    `deleted` one, if any. Returns its descriptor.
    """
    draft = directory / f"{name}.new"
    file = os.open(draft, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if deleted >= 0:
            with open(deleted, "rb", closefd=False) as before, open(file, "wb", closefd=False) as after:
                before.seek(0)
                shutil.copyfileobj(before, after)
        os.rename(draft, directory / f"{name}{SUFFIX}")
    except BaseException:
        os.close(file)
        draft.unlink(missing_ok=True)
        raise
    return file


def _force_to_disk(file: int, directory: Path | None) -> None:
    """Sync a file through a duplicate descriptor, which is closed, and then the directory where one is given."""
    try:
        os.fdatasync(file)
    finally:
        os.close(file)
    if directory is not None:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
