"""Records into rows: what one shipped batch changes, inside the transaction its caller opened.

A record that is there already changes nothing, counters included, so shipping twice is harmless. Of two
feedbacks or responses of one id the later one stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from gateway.journal.chain import put_responses
from gateway.journal.outcome import flags_of
from gateway.journal.record import (
    ANY_TENANT,
    INPUT_BUCKETS,
    OUTPUT_BUCKETS,
    AuditRecord,
    DecisionRecord,
    FeedbackRecord,
    JobStartRecord,
    Record,
    ResponseRecord,
)
from gateway.journal.rollup import rollup_rows
from gateway.journal.rollup_tables import ADDED, rollups
from gateway.journal.tables import (
    LATENCY_COLUMNS,
    audit,
    decisions,
    feedback,
    job_items,
    latency_bucket,
    spend,
    stats,
)

Row = dict[str, Any]
_MINUTE_S = 60
_HOUR_S = 3600
ENDED = ("done", "failed")
"""States of a batch job's prompt that nothing changes any more."""
_SAID_BY = ("response_id", "request_id")
"""Other names a decision goes by, the more telling one first."""
_INSERT_DECISION = str(sqlite.insert(decisions).compile(dialect=sqlite.dialect()))
_KNOWN_DECISIONS = "SELECT id FROM decisions WHERE id IN (SELECT value FROM json_each(?))"
_SPOKEN_OF = "SELECT id, decision_id, tenant FROM feedback WHERE decision_id IN (SELECT value FROM json_each(?))"
_ANY_WAITING = sa.select(feedback.c.id).where(feedback.c.decision_id.is_(None)).limit(1)
_COUNTERS = (
    "requests", "errors", "cache_hits", "escalations", "cost_nanousd", "saved_nanousd", "input_tokens",
    "output_tokens", *LATENCY_COLUMNS,
)  # fmt: skip

_TEXT_COLUMNS = (
    "id", "request_id", "response_id", "tenant", "key_id", "route", "model", "answered_model", "router", "cache",
)  # fmt: skip
_LATENCY_AT = _COUNTERS.index(LATENCY_COLUMNS[0])


def write_records(connection: sa.Connection, records: Iterable[Record]) -> None:
    """Inserts a batch and adds it to the counters."""
    by_kind: defaultdict[type, list[Any]] = defaultdict(list)
    in_order = list(records)
    for record in in_order:
        by_kind[type(record)].append(record)
    new_ids = write_decisions(connection, by_kind[DecisionRecord])
    write_job_items(connection, in_order, new_ids)
    write_feedback(connection, by_kind[FeedbackRecord])
    write_responses(connection, by_kind[ResponseRecord])
    write_audit(connection, by_kind[AuditRecord])


def write_decisions(connection: sa.Connection, records: Sequence[DecisionRecord]) -> set[str]:
    """New decisions, their counters, and the feedback that was waiting for them; the ids that were new."""
    if not records:
        return set()
    new_ids = _insert_new(connection, records)
    fresh = {record.id: record for record in records if clean(record.id) in new_ids}.values()
    add_counts(connection, stats, _stats_rows(fresh), _COUNTERS)
    add_counts(connection, spend, _spend_rows(fresh), ("requests", "cost_nanousd"))
    add_counts(connection, rollups, rollup_rows(fresh), ADDED)
    _attach_waiting(connection, fresh)
    return new_ids


def _insert_new(connection: sa.Connection, records: Sequence[DecisionRecord]) -> set[str]:
    """Inserts the decisions that are not there yet; their ids."""
    rows = {row["id"]: row for row in map(_decision_row, records)}
    if connection.dialect.name != "sqlite":
        insert = _insert(connection, decisions).on_conflict_do_nothing().returning(decisions.c.id)
        return set(connection.execute(insert, list(rows.values())).scalars())
    # SQLite has one writer, so nothing comes between these two; and its driver takes tuples as they are,
    # which costs a third of what SQLAlchemy needs for a row.
    for (id,) in connection.exec_driver_sql(_KNOWN_DECISIONS, (_json_list(rows),)).all():
        del rows[id]
    if rows:
        connection.exec_driver_sql(_INSERT_DECISION, [tuple(row.values()) for row in rows.values()])
    return set(rows)


def write_job_items(connection: sa.Connection, records: Iterable[Record], new_ids: set[str]) -> None:
    """What each prompt of a batch job has come to: one row a prompt, its calls' costs added up, once each."""
    rows: dict[tuple[str, int], Row] = {}
    for record in records:
        if isinstance(record, JobStartRecord):
            _start_item(rows, record)
        elif isinstance(record, DecisionRecord) and record.job and clean(record.id) in new_ids:
            new_ids = new_ids - {clean(record.id)}
            _answer_item(rows, record)
    if not rows:
        return
    insert = _insert(connection, job_items)
    ended = sa.or_(*(job_items.c.state == state for state in ENDED))
    sums = {name: job_items.c[name] + insert.excluded[name] for name in ("tries", "cost_nanousd")}
    others = [column.name for column in job_items.c if not column.primary_key and column.name not in sums]
    later = {name: sa.case((ended, job_items.c[name]), else_=insert.excluded[name]) for name in others}
    upsert = insert.on_conflict_do_update(index_elements=["job", "place"], set_=sums | later)
    connection.execute(upsert, [rows[key] for key in sorted(rows)])


def _start_item(rows: dict[tuple[str, int], Row], record: JobStartRecord) -> None:
    row = _item(rows, record.job, record.index)
    if row["state"] not in ENDED:
        row |= {"state": "started", "worst_nanousd": record.worst_nanousd, "time_s": record.time_s}


def _answer_item(rows: dict[tuple[str, int], Row], record: DecisionRecord) -> None:
    row = _item(rows, record.job, record.job_index)
    row["tries"] += 1
    row["cost_nanousd"] += record.cost_nanousd
    if row["state"] in ENDED:
        return
    state = "open" if not record.job_final else "done" if record.status < 400 else "failed"
    row |= {
        "state": state,
        "worst_nanousd": 0,
        "decision_id": clean(record.id),
        "model": clean(record.answered_model),
        "status": record.status,
        "time_s": record.time_s + (record.latency_s or 0.0),
        "answer": record.job_answer,
    }


def _item(rows: dict[tuple[str, int], Row], job: str, place: int) -> Row:
    blank = {"state": "open", "tries": 0, "worst_nanousd": 0, "cost_nanousd": 0, "decision_id": "", "model": "",
             "status": 0, "time_s": 0.0, "answer": b""}  # fmt: skip
    return rows.setdefault((job, place), {"job": job, "place": place, **blank})


def write_feedback(connection: sa.Connection, records: Sequence[FeedbackRecord]) -> None:
    """New or newer feedback, attached to its decision where that is known already."""
    if not records:
        return
    rows = [_feedback_row(record) for record in sorted(records, key=lambda record: record.time_s)]
    _find_decisions(connection, rows)
    _put(connection, feedback, rows, newer_than=feedback.c.time_s)


def write_responses(connection: sa.Connection, records: Sequence[ResponseRecord]) -> None:
    """Stored responses; a deletion stays, so that a late copy can't bring one back."""
    if records:
        put_responses(connection, [_response_row(one) for one in sorted(records, key=lambda record: record.time_s)])


def write_audit(connection: sa.Connection, records: Sequence[AuditRecord]) -> None:
    """Who changed what; never changed afterwards."""
    if records:
        rows = [_audit_row(record) for record in records]
        connection.execute(_insert(connection, audit).on_conflict_do_nothing(), rows)


def put_row(connection: sa.Connection, table: sa.Table, row: Row) -> None:
    """Inserts one row or replaces the one of its key."""
    _put(connection, table, [row])


def clean(text: str) -> str:
    """Without NUL, which PostgreSQL's text can't hold."""
    return text.replace("\x00", "") if "\x00" in text else text


def _insert(connection: sa.Connection, table: sa.Table) -> Any:
    return _insert_of(connection.dialect.name, table)


def _insert_of(dialect: str, table: sa.Table) -> Any:  # the two dialects' types share no base
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


def _put(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Row],
    newer_than: sa.Column[Any] | None = None,
) -> None:
    """Upsert: the last row of a key wins; over a stored one only where its `newer_than` is not older."""
    names = _key_of(table)
    last = {tuple([row[name] for name in names]): row for row in rows}
    connection.execute(_putting(connection.dialect.name, table, newer_than), list(last.values()))


@cache
def _putting(dialect: str, table: sa.Table, newer_than: sa.Column[Any] | None) -> Any:
    """The statement of `_put`; making one costs more than running it."""
    insert = _insert_of(dialect, table)
    changed = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
    condition = None if newer_than is None else insert.excluded[newer_than.name] >= newer_than
    return insert.on_conflict_do_update(index_elements=_key_of(table), set_=changed, where=condition)


def add_counts(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Row], counters: tuple[str, ...]
) -> None:
    """Adds to counters, in the order of their keys so that two shippers can't deadlock."""
    if not rows:
        return
    names = _key_of(table)
    in_order = sorted(rows, key=lambda row: tuple(row[name] for name in names))
    dialect = connection.dialect.name
    if dialect == "sqlite":
        statement, columns = _adding_driver_sql(table, counters)
        connection.exec_driver_sql(statement, [tuple([row[name] for name in columns]) for row in in_order])
    else:
        connection.execute(_adding(dialect, table, counters), in_order)


@cache
def _adding(dialect: str, table: sa.Table, counters: tuple[str, ...]) -> Any:
    insert = _insert_of(dialect, table)
    sums = {name: table.c[name] + insert.excluded[name] for name in counters}
    return insert.on_conflict_do_update(index_elements=_key_of(table), set_=sums)


@cache
def _adding_driver_sql(table: sa.Table, counters: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """As SQLite's driver takes it, and the columns in the order of its placeholders."""
    return str(_adding("sqlite", table, counters).compile(dialect=sqlite.dialect())), tuple(table.c.keys())


@cache
def _key_of(table: sa.Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.primary_key)


def _decision_row(record: DecisionRecord) -> Row:
    """In the order of the table's columns."""
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


def _feedback_row(record: FeedbackRecord) -> Row:
    return {
        "id": clean(record.id),
        "time_s": record.time_s,
        "tenant": clean(record.tenant),
        "decision_id": clean(record.decision_id) or None,
        "response_id": clean(record.response_id),
        "request_id": clean(record.request_id),
        "score": record.score,
        "label": clean(record.label),
        "comment": clean(record.comment),
        "source": clean(record.source),
    }


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


def _stats_rows(records: Iterable[DecisionRecord]) -> list[Row]:
    sums: dict[tuple[int, str, str], list[int]] = {}
    for record in records:
        key = int(record.time_s) // _MINUTE_S * _MINUTE_S, clean(record.route), clean(record.answered_model)
        counts = sums.get(key)
        if counts is None:
            counts = sums[key] = [0] * len(_COUNTERS)
        _count(counts, record)
    return [
        {"minute_s": minute_s, "route": route, "model": model, **dict(zip(_COUNTERS, counts, strict=True))}
        for (minute_s, route, model), counts in sums.items()
    ]


def _count(counts: list[int], record: DecisionRecord) -> None:
    """Adds a decision to counts in the order of `_COUNTERS`."""
    counts[0] += 1
    counts[1] += record.status >= 400
    counts[2] += record.from_cache
    counts[3] += bool(record.model) and record.answered_model in record.plan[1:]
    counts[4] += record.cost_nanousd
    counts[5] += record.saved_nanousd
    for attempt in record.attempts:
        for bucket, tokens in attempt.usage.items():
            if bucket in INPUT_BUCKETS:
                counts[6] += tokens
            elif bucket in OUTPUT_BUCKETS:
                counts[7] += tokens
    if record.latency_s is not None:
        counts[_LATENCY_AT + latency_bucket(record.latency_s)] += 1


def _spend_rows(records: Iterable[DecisionRecord]) -> list[Row]:
    sums: defaultdict[tuple[int, str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for record in records:
        hour_s = int(record.time_s) // _HOUR_S * _HOUR_S
        total = sums[hour_s, clean(record.tenant), clean(record.key_id), clean(record.route)]
        total[0] += 1
        total[1] += record.cost_nanousd
    return [
        {
            "hour_s": hour_s,
            "tenant": tenant,
            "key_id": key_id,
            "route": route,
            "requests": requests,
            "cost_nanousd": cost_nanousd,
        }
        for (hour_s, tenant, key_id, route), (requests, cost_nanousd) in sums.items()
    ]


def _find_decisions(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Fills `decision_id` from the response or request id, within the feedback's own tenant; another's is none."""
    _own_only(connection, rows)
    for name in _SAID_BY:
        wanted = {row[name] for row in rows if row["decision_id"] is None and row[name]}
        if not wanted:
            continue
        column = decisions.c[name]
        query = sa.select(column, decisions.c.tenant, decisions.c.id).where(column.in_(wanted))
        latest_last = connection.execute(query.order_by(decisions.c.time_s))
        found = {}
        for key, tenant, id in latest_last:
            found[key, tenant] = found[key, ANY_TENANT] = (id, tenant)
        for row in rows:
            if row["decision_id"] is None and (owner := found.get((row[name], row["tenant"]))):
                row["decision_id"], row["tenant"] = owner


def _own_only(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Whoever knows or guesses a decision's id can't speak of it but within its tenant."""
    wanted = {row["decision_id"] for row in rows if row["decision_id"]}
    if not wanted:
        return
    query = sa.select(decisions.c.id, decisions.c.tenant).where(decisions.c.id.in_(wanted))
    owners = {row.id: row.tenant for row in connection.execute(query)}
    for row in rows:
        owner = owners.get(row["decision_id"], row["tenant"])
        if row["tenant"] == ANY_TENANT:
            row["tenant"] = owner
        elif row["tenant"] != owner:
            row["decision_id"] = None


def _attach_waiting(connection: sa.Connection, records: Iterable[DecisionRecord]) -> None:
    """Feedback can be shipped before its decision: another worker wrote it. Mostly none is waiting."""
    _own_early(connection, records)
    if connection.execute(_ANY_WAITING).first() is None:
        return
    owners = {
        (tenant, name, clean(id)): (clean(record.id), clean(record.tenant))
        for record in records
        for name, id in (("response_id", record.response_id), ("request_id", record.request_id))
        if id
        for tenant in (clean(record.tenant), ANY_TENANT)
    }
    names = {id for _, _, id in owners}
    waiting = sa.select(feedback).where(
        feedback.c.decision_id.is_(None),
        sa.or_(feedback.c.response_id.in_(names), feedback.c.request_id.in_(names)),
    )
    for row in connection.execute(waiting).mappings().all():
        owner = next((owners.get((row["tenant"], name, row[name])) for name in _SAID_BY if row[name]), None)
        if owner:
            update = sa.update(feedback).where(feedback.c.id == row["id"])
            connection.execute(update.values(decision_id=owner[0], tenant=owner[1]))


def _own_early(connection: sa.Connection, records: Iterable[DecisionRecord]) -> None:
    """As `_own_only`, for what was said of these decisions before they came."""
    tenants = {clean(record.id): clean(record.tenant) for record in records}
    if connection.dialect.name == "sqlite":  # binding the ids one by one takes more than twice as long
        found = connection.exec_driver_sql(_SPOKEN_OF, (_json_list(tenants),))
    else:
        query = sa.select(feedback.c.id, feedback.c.decision_id, feedback.c.tenant)
        found = connection.execute(query.where(feedback.c.decision_id.in_(tenants)))
    for id, decision_id, tenant in found.all():
        owner = tenants[decision_id]
        if tenant != owner:
            right = {"tenant": owner} if tenant == ANY_TENANT else {"decision_id": None}
            connection.execute(sa.update(feedback).where(feedback.c.id == id).values(right))


def _json_list(ids: Iterable[str]) -> str:
    """For `json_each`."""
    return msgspec.json.encode(list(ids)).decode()
