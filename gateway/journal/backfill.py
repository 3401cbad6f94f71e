"""Adds decisions to the rollups that were stored without them, by a release from before the rollups.

A decision's row says whether it has been counted, and is marked in the transaction that counts it, so that each is
counted once, even if several processes do it and are killed.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from gateway.journal.outcome import flags_of
from gateway.journal.record import DecisionRecord
from gateway.journal.rollup import rollup_rows
from gateway.journal.rollup_tables import ADDED, rollups
from gateway.journal.tables import decisions
from gateway.journal.upsert import add_counts

BATCH_ROWS = 500
_decode = msgspec.json.Decoder(DecisionRecord, strict=False).decode


def count_old(engine: sa.Engine, batch_rows: int = BATCH_ROWS) -> int:
    """Count one batch, and return its size; 0 where all are counted."""
    query = (
        sa.select(decisions.c.id, decisions.c.payload)
        .where(decisions.c.counted == 0)
        .limit(batch_rows)
        .with_for_update(skip_locked=True)  # PostgreSQL; SQLite has one writer
    )
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        found = [(row.id, _decode(row.payload)) for row in connection.execute(query)]
        if not found:
            return 0
        mark = (
            sa.update(decisions)
            .where(decisions.c.id == sa.bindparam("row_id"))
            .values(counted=1, flags=sa.bindparam("row_flags"))
        )
        connection.execute(mark, [{"row_id": id, "row_flags": flags_of(record)} for id, record in found])
        add_counts(connection, rollups, rollup_rows(record for _, record in found), ADDED)
    return len(found)


def waiting(engine: sa.Engine) -> bool:
    """Whether some decision has not been counted."""
    with engine.connect() as connection:
        query = sa.select(sa.literal(1)).where(decisions.c.counted == 0).limit(1)
        return connection.execute(query).first() is not None
