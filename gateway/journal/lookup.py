"""A worker's look-ups in the journal, off its hot path: decisions, responses, and spending.

A record may still be in a spool, so the store is searched, then the spools, then the store again, because the record
may have been shipped in between. Every function blocks. Records in the spools are found even if the database can't be
reached.
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
from gateway.journal.sums import sums
from gateway.journal.tables import spool_offsets
from gateway.journal.upsert import Row

__all__ = ["append_durably", "find_chain", "find_decision", "find_response", "record_feedback", "spend_since"]

_RESPONSE = b"response.1"
"""The tag that every encoded response record contains."""
Found = TypeVar("Found", DecisionRecord, FeedbackRecord, ResponseRecord)


def find_decision(
    opened: Callable[[], Store], directory: Path, id: str, tenant: str | None = None
) -> DecisionRecord | None:
    """The decision with this decision, response or request id, of `tenant`, or of any where that is None."""

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

    spooled = look_in_spools()
    if spooled is None:
        found = _find(lambda: opened().response(id, tenant), look_in_spools)
    else:
        found = spooled if spooled.deleted else _latest(opened, spooled)
    return None if found is None or found.deleted else found


def _latest(opened: Callable[[], Store], spooled: ResponseRecord) -> ResponseRecord:
    """The response's later state where the store has one, written by another worker; else the spooled one."""
    try:
        stored = opened().response(spooled.id, spooled.tenant)
    except sa.exc.SQLAlchemyError:
        return spooled
    return stored if stored is not None and _is_later(stored, spooled) else spooled


def find_chain(opened: Callable[[], Store], directory: Path, id: str, tenant: str) -> list[ResponseRecord]:
    """The response and its previous ones, the newest first, as far as they exist; empty where it was deleted. Deleted
    previous ones are included. A chain that is a loop ends with the first response that occurs again.
    """
    known, gone = _spooled_responses(directory, tenant)  # first: records shipped meanwhile are then in the store
    away: Exception | None = None
    asked: set[str] = set()
    found: list[ResponseRecord] = []
    seen: set[str] = set()
    next_id = id
    # a "#" marks a place in a conversation, which ends the chain
    while next_id and next_id not in seen and "#" not in next_id:
        if next_id not in asked and (next_id == id or next_id not in known):
            try:
                stored = opened().response_chain(next_id, tenant)
            except sa.exc.SQLAlchemyError as fault:
                stored, away = {}, fault
            asked |= {next_id, *stored}
            gone |= {one.id: one for one in stored.values() if one.deleted and _is_later(one, gone.get(one.id))}
            known |= {
                id: one
                for id, one in stored.items()
                if id not in known or (not one.deleted and _is_later(one, known[id]))
            }
        record = known.get(next_id)
        if record is None and away is not None:
            raise unavailable("the database is away") from away
        if record is None or (next_id == id and _is_later(gone.get(id), record)):
            return found
        seen.add(next_id)
        found.append(record)
        next_id = record.previous_response_id
    return [*found, known[next_id]] if next_id in seen else found


def _is_later(one: ResponseRecord | None, other: ResponseRecord | None) -> bool:
    return one is not None and (other is None or one.time_s >= other.time_s)


def spend_since(store: Store, directory: Path, since_s: float) -> list[Row]:
    """Spending per tenant, key and route from the hour of `since_s` on, including the spools; the ledger starts from
    it.

    Rows have tenant, key_id, route, requests and cost_nanousd. The spools are read before the database, so that records
    that are shipped meanwhile are recognised by their segment's offset and counted once.
    """
    since_hour = int(since_s) // 3600
    spooled = list(_spooled_decisions(directory, since_hour))
    rows, shipped = _consistent(store, lambda: store.spend_since(since_s))
    totals = {(row["tenant"], row["key_id"], row["route"]): dict(row) for row in rows}
    for segment, end, record in spooled:
        if end > shipped.get(segment, 0):
            account = (record.tenant, record.key_id, record.route)
            blank = dict(zip(("tenant", "key_id", "route"), account, strict=True))
            total = totals.setdefault(account, {**blank, "requests": 0, "cost_nanousd": 0})
            total["requests"] += 1
            total["cost_nanousd"] += record.cost_nanousd
    return list(totals.values())


def spend_by_minute(store: Store, directory: Path, since_s: float, until_s: float) -> list[Row]:
    """Spending by route and minute, including the spools: rows of route, start_s and cost_nanousd. A minute may have
    several rows.
    """
    spooled = list(_spooled_decisions(directory, int(since_s) // 3600))
    by, names = ("route", "start_s"), ("cost_nanousd",)
    rows, shipped = _consistent(store, lambda: sums(store, 60, since_s, until_s, by=by, names=names))
    return rows + [
        {"route": record.route, "start_s": int(record.time_s) // 60 * 60, "cost_nanousd": record.cost_nanousd}
        for segment, end, record in spooled
        if end > shipped.get(segment, 0) and since_s <= record.time_s < until_s
    ]


def newest_in_spools(
    directory: Path, id: str, kind: type[Found], matches: Callable[[Found], bool]
) -> Found | None:
    """The latest record of a kind in the spools that contains `id` and matches."""
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


def _spooled_responses(
    directory: Path, tenant: str
) -> tuple[dict[str, ResponseRecord], dict[str, ResponseRecord]]:
    """The tenant's responses in the spools by id, each in its latest state, and their deletions by id."""
    known: dict[str, ResponseRecord] = {}
    gone: dict[str, ResponseRecord] = {}
    for _, data in _segments(directory):
        if _RESPONSE not in data:
            continue
        for frame in read_frames(data, final=False):
            record = decode_record(frame.payload) if _RESPONSE in frame.payload else None
            if isinstance(record, ResponseRecord) and record.tenant == tenant:
                kept = gone if record.deleted else known
                if _is_later(record, kept.get(record.id)):
                    kept[record.id] = record
    return known, gone


def _find(in_store: Callable[[], Found | None], in_spools: Callable[[], Found | None]) -> Found | None:
    """The record, searched in the store, the spools and the store again. Raises HeadgateError 503 where it was not
    found and the database can't be reached.
    """
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


def _consistent(store: Store, read: Callable[[], list[Row]]) -> tuple[list[Row], dict[str, int]]:
    """Counters, and the spools' offsets that they include. Both are read again where a batch was committed meanwhile.
    """
    offsets = _offsets(store)
    while True:
        rows = read()
        after = _offsets(store)
        if after == offsets:
            return rows, offsets
        offsets = after


def _offsets(store: Store) -> dict[str, int]:
    query = sa.select(spool_offsets.c.segment, spool_offsets.c.shipped_bytes)
    with store.engine.connect() as connection:
        return {row.segment: row.shipped_bytes for row in connection.execute(query)}


def _spooled_decisions(directory: Path, since_hour: int) -> Iterator[tuple[str, int, DecisionRecord]]:
    """Decisions in the spools from that hour on, each with its segment and the end of its frame."""
    for segment, data in _segments(directory):
        for frame in read_frames(data, final=False):
            record = None if frame.damaged else decode_record(frame.payload)
            if isinstance(record, DecisionRecord) and int(record.time_s) // 3600 >= since_hour:
                yield segment, frame.end, record


def _segments(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the segments, oldest first; segments that are deleted meanwhile are skipped."""
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            yield path.stem, path.read_bytes()
        except FileNotFoundError:
            continue
