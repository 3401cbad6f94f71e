"""Responses under way in the background, as whoever looks at one may see it.

Each is a record in the journal as a finished one is, with a mark that says which worker makes it and until when: one
whose worker is gone, or whose time is over, has failed. None hangs for ever.
"""

from __future__ import annotations

import asyncio
import fcntl
import secrets
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from gateway.event_streams import EventStream
from gateway.journal.record import ResponseRecord
from gateway.wire.body import encode_json

MARK = "headgate_under_way"
STATES = ("queued", "in_progress")
LEFT = "The gateway ended before the response did."


class Mark(msgspec.Struct):
    """Who makes it, and until when (Unix seconds) at the latest."""

    worker: str
    until_s: float
    streamed: bool = False
    """Its events are told to whoever listens (gateway/event_streams.py)."""


class Making:
    """One that this worker makes."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done: nobody wants it any more."""
        self.task: asyncio.Task[None] | None = None
        self.told: EventStream | None = None
        """Where it is streamed."""

    async def end(self) -> None:
        """Returns when its last record is written."""
        if not self.is_over.done():
            self.is_over.set_result(None)
        if self.task is not None:
            await asyncio.wait({self.task})


class Worker:
    """This process, as long as it lives: a lock that the system lets go when it dies."""

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
        """Whether that worker of this run folder was killed. One elsewhere isn't known to be."""
        try:
            with (self._folder / name).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def as_it_stands(record: ResponseRecord, worker: Worker, now_s: float) -> ResponseRecord:
    """A record under way as a client may see it; the same where it is over."""
    if MARK.encode() not in record.output:
        return record
    response = msgspec.json.decode(record.output)
    told = response.pop(MARK, None)
    if told is not None:
        mark = msgspec.convert(told, Mark)
        if now_s > mark.until_s or worker.is_gone(mark.worker):
            response |= failed(LEFT)
    return msgspec.structs.replace(record, output=encode_json(response))


def mark_of(record: ResponseRecord) -> Mark | None:
    """None: it has ended."""
    told = msgspec.json.decode(record.output).get(MARK) if MARK.encode() in record.output else None
    return None if told is None else msgspec.convert(told, Mark)


def failed(message: str, code: str = "") -> dict[str, Any]:
    return {"status": "failed", "error": {"code": code or "server_error", "message": message}}
