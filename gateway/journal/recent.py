"""The latest decisions of a route with their scores, without reading the older ones."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from gateway.journal.export import settle_score
from gateway.journal.record import DecisionRecord
from gateway.journal.tables import decisions, feedback
from gateway.journal.upsert import Row
from gateway.learn.rounds import OF_JOBS, is_round

_PAGE_ROWS = 500
_decode = msgspec.json.Decoder(DecisionRecord, strict=False).decode


def latest_scored(
    engine: sa.Engine, route: str, *, limit: int, rounds: int | None = None, since_s: float = 0.0
) -> list[tuple[DecisionRecord, float | None]]:
    """In the order of time; of feedback the score that counts. Decisions that no model answered are among them, those
    of batch jobs are not: one long job would leave room for no round.
    `rounds`: so many to learn from are enough.
    """
    found: list[tuple[DecisionRecord, float | None]] = []
    left = limit if rounds is None else rounds
    before: tuple[float, str] | None = None
    while len(found) < limit and left > 0:
        query = (
            sa.select(decisions.c.time_s, decisions.c.id, decisions.c.payload)
            .where(
                decisions.c.route == route, decisions.c.time_s >= since_s, decisions.c.router.not_like(OF_JOBS)
            )
            .order_by(decisions.c.time_s.desc(), decisions.c.id.desc())
            .limit(min(_PAGE_ROWS, limit - len(found)))
        )
        if before is not None:
            query = query.where(sa.tuple_(decisions.c.time_s, decisions.c.id) < sa.tuple_(*before))
        with engine.connect() as connection:
            rows = connection.execute(query).all()
            said = feedback_on(connection, [row.id for row in rows])
        if not rows:
            break
        before = (rows[-1].time_s, rows[-1].id)
        page = [(_decode(row.payload), settle_score(said.get(row.id, []))) for row in rows]
        found += page
        left -= sum(is_round(record) for record, _ in page)
    return found[::-1]


def feedback_on(connection: sa.Connection, ids: list[str]) -> dict[str, list[Row]]:
    """What was said of these decisions."""
    found: dict[str, list[Row]] = {}
    names = ("decision_id", "score", "source", "time_s")
    query = sa.select(*(feedback.c[name] for name in names)).where(feedback.c.decision_id.in_(ids))
    for row in connection.execute(query).mappings():
        found.setdefault(row["decision_id"], []).append(dict(row))
    return found
