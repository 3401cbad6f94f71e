"""Writes the state and result of each prompt of a batch job, from the records of its calls: one row per prompt."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from gateway.journal.record import DecisionRecord, JobStartRecord, Record
from gateway.journal.tables import job_items
from gateway.journal.upsert import Row, clean, insert_into

ENDED = ("done", "failed")
"""Final states of a prompt."""


def write_job_items(connection: sa.Connection, records: Iterable[Record], new_ids: set[str]) -> None:
    """Update the prompts' rows. Only decisions in `new_ids` count, so that each call's cost is added once."""
    rows: dict[tuple[str, int], Row] = {}
    for record in records:
        if isinstance(record, JobStartRecord):
            _start_item(rows, record)
        elif isinstance(record, DecisionRecord) and record.job and clean(record.id) in new_ids:
            new_ids = new_ids - {clean(record.id)}
            _answer_item(rows, record)
    if not rows:
        return
    insert = insert_into(connection, job_items)
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
