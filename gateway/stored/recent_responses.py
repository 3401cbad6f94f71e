"""The newest stored responses in memory, so that the next turn of a conversation need not read the database."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import msgspec

from gateway.journal.record import ResponseRecord

REMEMBERED = 512
REMEMBERED_BYTES = 32 * 1024 * 1024
"""Most bytes of all remembered responses together."""
REMEMBERED_S = 300.0
"""A response is read from the database again after this long, because another machine may have deleted it."""
DELETED = "responses.deleted"
"""File in the run folder that a worker touches when it deletes a response, so that the others forget theirs."""
LARGE_BYTES = 64 * 1024
"""A conversation longer than this is remembered only with its latest turn, not with each of them."""


class Remembered(msgspec.Struct, gc=False):
    """A response in memory."""

    record: ResponseRecord
    before: bytes | None
    """The items of the turns before this response's, as JSON; None where they were not read."""
    since_s: float
    """Unix time at which it was remembered."""

    @property
    def size(self) -> int:
        return len(self.record.input) + len(self.record.output) + len(self.before or b"")


class RecentResponses:
    """The responses that one worker remembers, by tenant and id."""

    def __init__(self, run_dir: Path, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], Remembered] = OrderedDict()
        self._bytes = 0
        self._deleted = run_dir / DELETED
        self._deleted_at = _changed_at(self._deleted)

    def remember(self, record: ResponseRecord, before: bytes | None = None) -> None:
        """Keep a response. `before` has the items of the turns before it as JSON, None where not known."""
        recent = self._kept.get((record.tenant, record.id))
        if before is None and recent is not None:
            before = recent.before
        self.forget(record.tenant, record.id)
        self._kept[record.tenant, record.id] = new = Remembered(record, before, self._clock())
        self._bytes += new.size
        while len(self._kept) > REMEMBERED or self._bytes > REMEMBERED_BYTES:
            self.forget(*next(iter(self._kept)))

    def follow(self, record: ResponseRecord, before: bytes | None) -> None:
        """Keep a response in place of the one that it continues if that is large, since it includes that one."""
        last = self._kept.get((record.tenant, record.previous_response_id))
        if last is not None and last.size > LARGE_BYTES:
            self.forget(record.tenant, record.previous_response_id)
        self.remember(record, before)

    def recall(self, tenant: str, id: str) -> Remembered | None:
        """A response. All of them are dropped first where any worker has deleted a response since."""
        if (deleted_at := _changed_at(self._deleted)) != self._deleted_at:
            self._deleted_at = deleted_at
            self._forget_all()
        recent = self._kept.get((tenant, id))
        if recent is None or abs(self._clock() - recent.since_s) < REMEMBERED_S:
            return recent
        self.forget(tenant, id)
        return None

    def note_deleted(self) -> None:
        """Drop all responses, here and in the other workers of this machine, because one was deleted."""
        self._deleted.parent.mkdir(parents=True, exist_ok=True)
        self._deleted.touch()
        self._forget_all()

    def forget(self, tenant: str, id: str) -> None:
        recent = self._kept.pop((tenant, id), None)
        self._bytes -= recent.size if recent is not None else 0

    def _forget_all(self) -> None:
        self._kept.clear()
        self._bytes = 0


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
