"""Deletes old data of batch jobs: files when they expire, jobs and their answers when decisions of their age are
deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from gateway.batch.jobs import ENDED
from gateway.journal.tables import file_chunks, files, job_items, job_parts, jobs

_AT_ONCE = 100


def delete_expired_batches(engine: sa.Engine, now_s: float, keep_days: float) -> int:
    """Delete ended jobs older than `keep_days`, and expired files, a few per transaction. Returns the number of jobs
    and files deleted.
    """
    gone = 0
    old = sa.select(jobs.c.id).where(jobs.c.state.in_(ENDED), jobs.c.created_s < now_s - keep_days * 86400.0)
    while ids := _some(engine, old):
        with engine.begin() as connection:
            _delete_jobs(connection, ids)
        gone += len(ids)
    expired = sa.select(files.c.id).where(files.c.expires_s.is_not(None), files.c.expires_s < now_s)
    while ids := _some(engine, expired):
        with engine.begin() as connection:
            _delete_files(connection, ids)
        gone += len(ids)
    return gone


def delete_batch(engine: sa.Engine, id: str) -> bool:
    """Delete one ended job and the files that belong to it; False where it has not ended or does not exist."""
    with engine.begin() as connection:
        over = sa.select(jobs.c.id).where(jobs.c.id == id, jobs.c.state.in_(ENDED))
        if connection.execute(over).first() is None:
            return False
        _delete_jobs(connection, [id])
        _delete_files(connection, sa.select(files.c.id).where(files.c.tenant == id))
    return True


def _delete_jobs(connection: sa.Connection, ids: Sequence[str]) -> None:
    for table, column in ((job_items, job_items.c.job), (job_parts, job_parts.c.job), (jobs, jobs.c.id)):
        connection.execute(sa.delete(table).where(column.in_(ids)))


def _delete_files(connection: sa.Connection, ids: Sequence[str] | sa.Select[Any]) -> None:
    connection.execute(sa.delete(file_chunks).where(file_chunks.c.file.in_(ids)))
    connection.execute(sa.delete(files).where(files.c.id.in_(ids)))


def _some(engine: sa.Engine, query: sa.Select[Any]) -> list[str]:
    with engine.connect() as connection:
        return [id for (id,) in connection.execute(query.limit(_AT_ONCE))]
