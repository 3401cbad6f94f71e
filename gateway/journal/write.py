"""Writes one shipped batch of records as rows and counters, in the caller's transaction.

A decision that is stored already changes nothing, counters included, so shipping it twice is harmless. Of two feedbacks
or responses with the same id, the later one is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from gateway.journal.chain import put_responses
from gateway.journal.outcome import flags_of
from gateway.journal.record import (
    AuditRecord,
    DecisionRecord,
    FeedbackRecord,
    JobStartRecord,
    Record,
    ResponseRecord,
)
from gateway.journal.rollup import Sums, rows_of, tally
from gateway.journal.rollup_tables import ADDED, rollups
from gateway.journal.tables import LATENCY_COLUMNS, audit, decisions, latency_bucket, spend, stats
from gateway.journal.upsert import Row, add_counts, clean, insert_into, insert_many, json_list, json_rows
from gateway.journal.write_feedback import attach_waiting, take_turn, write_feedback
from gateway.journal.write_job_items import write_job_items

_AT_ONCE = 64
"""Decisions to read, insert and count before the next ones are read. So few stay in the processor's caches meanwhile,
which takes a seventh off the time of storing a batch.
"""
_MINUTE_S = 60
_HOUR_S = 3600
_INSERT_DECISION = str(sqlite.insert(decisions).compile(dialect=sqlite.dialect()))
_KNOWN_DECISIONS = "SELECT id FROM decisions WHERE id IN (SELECT value FROM json_each(?))"
_COUNTERS = (
    "requests", "errors", "cache_hits", "escalations", "cost_nanousd", "saved_nanousd", "input_tokens",
    "output_tokens", *LATENCY_COLUMNS,
)  # fmt: skip

_TEXT_COLUMNS = (
    "id", "request_id", "response_id", "tenant", "key_id", "route", "model", "answered_model", "router", "cache",
)  # fmt: skip
_LATENCY_AT = _COUNTERS.index(LATENCY_COLUMNS[0])
_Minute = tuple[int, str, str]
"""Start in Unix seconds, route, answered model."""
_Hour = tuple[int, str, str, str]
"""Start in Unix seconds, tenant, key's id, route."""


def write_records(connection: sa.Connection, records: Iterable[Record]) -> None:
    """Insert a batch and add it to the counters. `records` is read once, decisions a few at a time."""
    by_kind: defaultdict[type, list[Any]] = defaultdict(list)
    of_jobs: list[Record] = []

    def decided() -> Iterator[DecisionRecord]:
        for record in records:
            if isinstance(record, JobStartRecord) or (isinstance(record, DecisionRecord) and record.job):
                of_jobs.append(record)
            if isinstance(record, DecisionRecord):
                yield record
            else:
                by_kind[type(record)].append(record)

    new_ids = write_decisions(connection, decided())
    write_job_items(connection, of_jobs, new_ids)
    write_feedback(connection, by_kind[FeedbackRecord])
    write_responses(connection, by_kind[ResponseRecord])
    write_audit(connection, by_kind[AuditRecord])


def write_decisions(connection: sa.Connection, records: Iterable[DecisionRecord]) -> set[str]:
    """Insert new decisions, add them to the counters, and attach feedback that waits for them; returns the new ids."""
    sums: Sums = {}
    counts: defaultdict[_Minute, list[int]] = defaultdict(lambda: [0] * len(_COUNTERS))
    spent: defaultdict[_Hour, list[int]] = defaultdict(lambda: [0, 0])
    stored: set[str] = set()
    source = iter(records)
    while some := list(islice(source, _AT_ONCE)):
        new_ids = _insert_new(connection, some)
        for record in {record.id: record for record in some if clean(record.id) in new_ids}.values():
            _count(counts[_minute_of(record)], record)
            _spend(spent[_hour_of(record)], record)
            tally(sums, record)
        stored |= new_ids
    if stored:
        minutes, hours, spans = _stats_rows(counts), _spend_rows(spent), rows_of(sums)
        take_turn(connection)
        add_counts(connection, stats, minutes, _COUNTERS)
        add_counts(connection, spend, hours, ("requests", "cost_nanousd"))
        add_counts(connection, rollups, spans, ADDED)
        attach_waiting(connection, stored)
    return stored


def _insert_new(connection: sa.Connection, records: Sequence[DecisionRecord]) -> set[str]:
    """Insert the decisions that are not stored yet; returns their ids."""
    rows = {row["id"]: row for row in map(_decision_row, records)}
    if connection.dialect.name != "sqlite":
        insert = insert_many(decisions).on_conflict_do_nothing().returning(decisions.c.id)
        return set(connection.execute(insert, json_rows(list(rows.values()))).scalars())
    # SQLite has one writer, so nothing changes between these two statements. Its driver takes tuples directly, which
    # costs a third of SQLAlchemy's time per row.
    for (id,) in connection.exec_driver_sql(_KNOWN_DECISIONS, (json_list(rows),)).all():
        del rows[id]
    if rows:
        connection.exec_driver_sql(_INSERT_DECISION, [tuple(row.values()) for row in rows.values()])
    return set(rows)


def write_responses(connection: sa.Connection, records: Sequence[ResponseRecord]) -> None:
    """Store responses. A deletion is kept, so that a late copy can't restore a deleted one."""
    if records:
        put_responses(connection, [_response_row(one) for one in sorted(records, key=lambda record: record.time_s)])


def write_audit(connection: sa.Connection, records: Sequence[AuditRecord]) -> None:
    """Add entries to the audit log; existing ones never change."""
    if records:
        rows = [_audit_row(record) for record in records]
        connection.execute(insert_into(connection, audit).on_conflict_do_nothing(), rows)


def _decision_row(record: DecisionRecord) -> Row:
    """The row of a decision, in the order of the table's columns."""
    payload = msgspec.json.encode(_without_answer(record)).decode()
    if "\\u0000" in payload:
        record = msgspec.structs.replace(record, **{name: clean(getattr(record, name)) for name in _TEXT_COLUMNS})
    return {
        "id": record.id,
        "time_s": record.time_s,
        "request_id": record.request_id,
        "response_id": record.response_id,
        "tenant": record.tenant,
        "key_id": record.key_id,
        "route": record.route,
        "model": record.model,
        "answered_model": record.answered_model,
        "router": record.router,
        "cost_nanousd": record.cost_nanousd,
        "status": record.status,
        "cache": record.cache,
        "latency_s": record.latency_s,
        "payload": payload,
        "flags": flags_of(record),
        "counted": 1,
    }


def _without_answer(record: DecisionRecord) -> DecisionRecord:
    return msgspec.structs.replace(record, job_answer=b"") if record.job_answer else record


def _response_row(record: ResponseRecord) -> Row:
    return {
        "id": clean(record.id),
        "time_s": record.time_s,
        "decision_id": clean(record.decision_id),
        "tenant": clean(record.tenant),
        "model": clean(record.model),
        "previous_response_id": clean(record.previous_response_id),
        "input": "" if record.deleted else record.input.decode(),
        "output": "" if record.deleted else record.output.decode(),
        "deleted": record.deleted,
    }


def _audit_row(record: AuditRecord) -> Row:
    return {
        "id": clean(record.id),
        "time_s": record.time_s,
        "actor": clean(record.actor),
        "action": clean(record.action),
        "target": clean(record.target),
        "detail": msgspec.json.encode(record.detail).decode(),
    }


def _minute_of(record: DecisionRecord) -> _Minute:
    return int(record.time_s) // _MINUTE_S * _MINUTE_S, clean(record.route), clean(record.answered_model)


def _hour_of(record: DecisionRecord) -> _Hour:
    hour_s = int(record.time_s) // _HOUR_S * _HOUR_S
    return hour_s, clean(record.tenant), clean(record.key_id), clean(record.route)


def _count(counts: list[int], record: DecisionRecord) -> None:
    """Add a decision to counts in the order of `_COUNTERS`."""
    counts[0] += 1
    counts[1] += record.status >= 400
    counts[2] += record.from_cache
    counts[3] += bool(record.model) and record.answered_model in record.plan[1:]
    counts[4] += record.cost_nanousd
    counts[5] += record.saved_nanousd
    for attempt in record.attempts:
        into, out = attempt.tokens
        counts[6] += into
        counts[7] += out
    if record.latency_s is not None:
        counts[_LATENCY_AT + latency_bucket(record.latency_s)] += 1


def _spend(total: list[int], record: DecisionRecord) -> None:
    total[0] += 1
    total[1] += record.cost_nanousd


def _stats_rows(counts: Mapping[_Minute, Sequence[int]]) -> list[Row]:
    return [
        {"minute_s": minute_s, "route": route, "model": model, **dict(zip(_COUNTERS, numbers, strict=True))}
        for (minute_s, route, model), numbers in counts.items()
    ]


def _spend_rows(spent: Mapping[_Hour, Sequence[int]]) -> list[Row]:
    return [
        {
            "hour_s": hour_s,
            "tenant": tenant,
            "key_id": key_id,
            "route": route,
            "requests": requests,
            "cost_nanousd": cost_nanousd,
        }
        for (hour_s, tenant, key_id, route), (requests, cost_nanousd) in spent.items()
    ]
