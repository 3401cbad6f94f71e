"""How background responses under way are stored and shown.

Each is a record in the journal, as a finished one is, with a mark that names the worker that generates it and a
deadline. A response whose worker is dead or whose deadline has passed is shown as failed, so none stays under way for
ever.
"""

from __future__ import annotations

import asyncio
import fcntl
import secrets
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from gateway.journal.record import ResponseRecord
from gateway.stored.event_streams import EventStream
from gateway.wire.body import encode_json

MARK = "headgate_under_way"
STATES = ("queued", "in_progress")
ENDED_EARLY = "The gateway ended before the response did."


class Mark(msgspec.Struct):
    """The worker that generates a response, and the deadline as Unix time in seconds. Stored in the record."""

    worker: str
    until_s: float
    streamed: bool = False
    """True if its events are stored for readers (gateway/stored/event_streams.py)."""


class BackgroundJob:
    """A background response that this worker is generating."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the response is to end early: cancelled, deleted, or the worker closes."""
        self.task: asyncio.Task[None] | None = None
        self.stream: EventStream | None = None
        """Its events, if the response is streamed."""

    async def end(self) -> None:
        """End it early, and wait until its last record is written."""
        if not self.is_over.done():
            self.is_over.set_result(None)
        if self.task is not None:
            await asyncio.wait({self.task})


class Worker:
    """Shows that this process is alive, by a file lock that the system releases when it dies."""

    def __init__(self, run_dir: str) -> None:
        self._folder = Path(run_dir) / "background"
        self.name = secrets.token_hex(8)
        self._lock: BinaryIO | None = None

    def begin(self) -> None:
        if self._lock is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self._folder / self.name).open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def end(self) -> None:
        if self._lock is not None:
            (self._folder / self.name).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def is_gone(self, name: str) -> bool:
        """True if that worker of this run folder is dead. False also for workers of other machines, which can't be seen
        from here.
        """
        try:
            with (self._folder / name).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def as_it_stands(record: ResponseRecord, worker: Worker, now_s: float) -> ResponseRecord:
    """The record as a client may see it: without its mark, and failed if nobody generates it any more."""
    mark = mark_of(record)
    if mark is None:
        return record
    response = msgspec.json.decode(record.output)
    del response[MARK]
    if now_s > mark.until_s or worker.is_gone(mark.worker):
        response |= failed(ENDED_EARLY)
    return msgspec.structs.replace(record, output=encode_json(response))


def mark_of(record: ResponseRecord) -> Mark | None:
    """The mark of a response under way; None if it has ended."""
    stored = msgspec.json.decode(record.output).get(MARK) if MARK.encode() in record.output else None
    return None if stored is None else msgspec.convert(stored, Mark)


def failed(message: str, code: str = "") -> dict[str, Any]:
    """The fields of a failed response. `code`: "server_error" where empty."""
    return {"status": "failed", "error": {"code": code or "server_error", "message": message}}
