"""Deletes what is too old from the journal's database. It blocks: call it off the event loop.

Keys, settings, router versions, the audit log and spend are kept for good.
"""

from __future__ import annotations

import sqlalchemy as sa

from gateway.journal.chain import erase_deleted, forget_responses
from gateway.journal.conversations import Conversations
from gateway.journal.events import Events
from gateway.journal.rollup_tables import KEPT_S, rollups, sessions
from gateway.journal.tables import decisions, feedback, spool_offsets, stats

_BATCH_ROWS = 1000
_OFFSETS_KEPT_S = 7 * 86400.0
STATS_KEPT_S = 400 * 86400.0


def forget_old(engine: sa.Engine, now_s: float, keep_days: float, most: int | None = None) -> int:
    """Delete rows older than `keep_days`, a batch per transaction, and return their number; counters after 400 days,
    sums as `KEPT_S` says. `most`: stop after so many decisions and feedbacks, even if there are more.
    """
    old_s = now_s - keep_days * 86400.0
    gone = 0
    for table in (decisions, feedback):
        gone += _forget(engine, table, old_s, None if most is None else most - gone)
        if gone == most:
            return gone
    gone += forget_responses(engine, old_s)
    erase_deleted(engine, now_s)
    gone += Conversations(engine).forget(old_s)
    Events(engine).forget(old_s)
    with engine.begin() as connection:
        connection.execute(sa.delete(spool_offsets).where(spool_offsets.c.time_s < now_s - _OFFSETS_KEPT_S))
        connection.execute(sa.delete(stats).where(stats.c.minute_s < int(now_s - STATS_KEPT_S)))
        for span_s, kept_s in KEPT_S.items():
            old = rollups.c.span_s == span_s, rollups.c.start_s < int(now_s - kept_s)
            connection.execute(sa.delete(rollups).where(*old))
        connection.execute(sa.delete(sessions).where(sessions.c.expires_s < now_s))
    return gone


def _forget(engine: sa.Engine, table: sa.Table, old_s: float, most: int | None) -> int:
    gone = 0
    while gone != most:
        rows = _BATCH_ROWS if most is None else min(_BATCH_ROWS, most - gone)
        batch = sa.select(table.c.id).where(table.c.time_s < old_s).limit(rows)
        with engine.begin() as connection:
            count = connection.execute(sa.delete(table).where(table.c.id.in_(batch))).rowcount
        gone += count
        if count < rows:
            break
    return gone
