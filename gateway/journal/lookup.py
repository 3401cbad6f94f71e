"""What a worker asks of the journal off its hot path: a decision just made, feedback to keep, what was spent.

A record may still lie in a spool: so the store is asked, then the spools, then the store again, since it may
have been shipped in between. All of it blocks. A database that is away is no reason to miss what is in a spool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from gateway.journal.durable import append_durably, record_feedback, unavailable
from gateway.journal.frames import SUFFIX, read_frames
from gateway.journal.record import DecisionRecord, FeedbackRecord, ResponseRecord
from gateway.journal.ship import decode_record
from gateway.journal.store import Store
from gateway.journal.tables import spool_offsets
from gateway.journal.write import Row

__all__ = ["append_durably", "find_decision", "find_response", "record_feedback", "spend_since"]

Found = TypeVar("Found", DecisionRecord, FeedbackRecord, ResponseRecord)


def find_decision(
    opened: Callable[[], Store], directory: Path, id: str, tenant: str | None = None
) -> DecisionRecord | None:
    """By decision, response or request id; of one tenant, or of any where None."""

    def matches(record: DecisionRecord) -> bool:
        mine = tenant is None or record.tenant == tenant
        return mine and id in (record.id, record.response_id, record.request_id)

    def look_in_spools() -> DecisionRecord | None:
        return newest_in_spools(directory, id, DecisionRecord, matches)

    return _find(lambda: opened().decision(id, tenant), look_in_spools)


def find_response(
    opened: Callable[[], Store], directory: Path, id: str, tenant: str
) -> ResponseRecord | None:
    """A stored /v1/responses object of this tenant; None where there is none or it was deleted."""

    def matches(record: ResponseRecord) -> bool:
        return record.id == id and record.tenant == tenant

    def look_in_spools() -> ResponseRecord | None:
        return newest_in_spools(directory, id, ResponseRecord, matches)

    # a deletion still in a spool outranks the row, so the spools come first
    found = look_in_spools() or _find(lambda: opened().response(id, tenant), look_in_spools)
    return None if found is None or found.deleted else found


def spend_since(store: Store, directory: Path, since_s: float) -> list[Row]:
    """Spend per tenant, key and route since that hour, what is still in spools included: the ledger's start.

    Rows have tenant, key_id, route, requests and cost_nanousd. The spools are read before the database, so
    what is shipped meanwhile is known by its segment's offset and counted once.
    """
    since_hour = int(since_s) // 3600
    spooled = list(_spooled_decisions(directory, since_hour))
    rows, shipped = _consistent_spend(store, since_s)
    totals = {(row["tenant"], row["key_id"], row["route"]): dict(row) for row in rows}
    for segment, end, record in spooled:
        if end > shipped.get(segment, 0):
            account = (record.tenant, record.key_id, record.route)
            blank = dict(zip(("tenant", "key_id", "route"), account, strict=True))
            total = totals.setdefault(account, {**blank, "requests": 0, "cost_nanousd": 0})
            total["requests"] += 1
            total["cost_nanousd"] += record.cost_nanousd
    return list(totals.values())


def newest_in_spools(
    directory: Path, id: str, kind: type[Found], matches: Callable[[Found], bool]
) -> Found | None:
    """The latest record of a kind that names `id` and matches, among what has not been shipped."""
    needle = id.encode(errors="ignore")
    newest: Found | None = None
    for _, data in _segments(directory):
        if needle not in data:
            continue
        for frame in read_frames(data, final=False):
            record = decode_record(frame.payload) if needle in frame.payload else None
            if not isinstance(record, kind) or not matches(record):
                continue
            if newest is None or record.time_s >= newest.time_s:
                newest = record
    return newest


def _find(in_store: Callable[[], Found | None], in_spools: Callable[[], Found | None]) -> Found | None:
    fault: Exception | None = None
    for look in (in_store, in_spools, in_store):
        try:
            if (found := look()) is not None:
                return found
        except sa.exc.SQLAlchemyError as error:
            fault = error
    if fault is not None:
        raise unavailable("the database is away") from fault
    return None


def _consistent_spend(store: Store, since_s: float) -> tuple[list[Row], dict[str, int]]:
    """Counters and the offsets they include: read again where a batch was committed in between."""
    offsets = _offsets(store)
    while True:
        rows = store.spend_since(since_s)
        after = _offsets(store)
        if after == offsets:
            return rows, offsets
        offsets = after


def _offsets(store: Store) -> dict[str, int]:
    query = sa.select(spool_offsets.c.segment, spool_offsets.c.shipped_bytes)
    with store.engine.connect() as connection:
        return {row.segment: row.shipped_bytes for row in connection.execute(query)}


def _spooled_decisions(directory: Path, since_hour: int) -> Iterator[tuple[str, int, DecisionRecord]]:
    """Segment, end of the frame, record."""
    for segment, data in _segments(directory):
        for frame in read_frames(data, final=False):
            record = None if frame.damaged else decode_record(frame.payload)
            if isinstance(record, DecisionRecord) and int(record.time_s) // 3600 >= since_hour:
                yield segment, frame.end, record


def _segments(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Oldest first; one that is shipped away meanwhile is skipped."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            yield path.stem, path.read_bytes()
        except FileNotFoundError:
            continue
