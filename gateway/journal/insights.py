"""Results that take seconds to compute, stored so that pages can read the latest one in a millisecond."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import sqlalchemy as sa

from gateway.journal.rollup_tables import insights
from gateway.journal.store import Store
from gateway.journal.upsert import put_row


def keep_insight(store: Store, kind: str, name: str, value: Any) -> None:
    """Store a result, replacing the one before."""
    text = msgspec.json.encode(value).decode()
    with store.engine.begin() as connection:
        put_row(connection, insights, {"kind": kind, "name": name, "time_s": time.time(), "value": text})


def insight(store: Store, kind: str, name: str) -> tuple[float, Any] | None:
    """The Unix time of a result and the result; None where there is none yet."""
    query = sa.select(insights.c.time_s, insights.c.value).where(insights.c.kind == kind, insights.c.name == name)
    with store.engine.connect() as connection:
        row = connection.execute(query).first()
    return None if row is None else (row.time_s, msgspec.json.decode(row.value))


def insights_of(store: Store, kind: str) -> dict[str, tuple[float, Any]]:
    """All results of a kind, with their times, by name."""
    query = sa.select(insights.c.name, insights.c.time_s, insights.c.value).where(insights.c.kind == kind)
    with store.engine.connect() as connection:
        return {row.name: (row.time_s, msgspec.json.decode(row.value)) for row in connection.execute(query)}
