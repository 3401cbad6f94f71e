"""The latest decisions of a route with their scores, without reading the older ones."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from gateway.journal.export import feedback_on, settle_score
from gateway.journal.record import DecisionRecord
from gateway.journal.tables import decisions, feedback
from gateway.learn.rounds import OF_JOBS, is_round

PAGE_ROWS = 500
Scored = tuple[DecisionRecord, float | None]
Place = tuple[float, str]
"""Time and id of a decision."""
_decode = msgspec.json.Decoder(DecisionRecord, strict=False).decode


def latest_scored(
    engine: sa.Engine, route: str, *, limit: int, rounds: int | None = None, since_s: float = 0.0
) -> list[Scored]:
    """The route's latest decisions with their scores, in the order of time. Decisions without an answer are included;
    those of batch jobs are not, because one long job would crowd out all others. With `rounds`, reading stops once
    there are so many decisions to learn from.
    """
    found: list[Scored] = []
    left = limit if rounds is None else rounds
    before: Place | None = None
    while len(found) < limit and left > 0:
        page = read_back(engine, route, before, min(PAGE_ROWS, limit - len(found)), since_s)
        if not page:
            break
        before = place_of(page[-1])
        found += page
        left -= sum(is_round(record) for record, _ in page)
    return found[::-1]


def read_back(
    engine: sa.Engine, route: str, before: Place | None, count: int, since_s: float = 0.0, *, including: bool = False
) -> list[Scored]:
    """At most `count` decisions of the route before that place, the newest first, without those of batch jobs. With
    `including`, the decision at that place is included.
    """
    query = sa.select(decisions.c.id, decisions.c.payload).where(*_conditions(route, before, since_s, including))
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(*_newest()).limit(count)).all()
        feedbacks = feedback_on(connection, [row.id for row in rows])
    return [(_decode(row.payload), settle_score(feedbacks.get(row.id, []))) for row in rows]


def last_scored(engine: sa.Engine, route: str, before: Place | None, since_s: float = 0.0) -> Place | None:
    """The newest scored decision before that place; None where there is none. Reads no records."""
    scored = sa.exists().where(feedback.c.decision_id == decisions.c.id, feedback.c.score.is_not(None))
    query = sa.select(decisions.c.time_s, decisions.c.id).where(*_conditions(route, before, since_s), scored)
    with engine.connect() as connection:
        row = connection.execute(query.order_by(*_newest()).limit(1)).first()
    return None if row is None else (row.time_s, row.id)


def joined_to_route(engine: sa.Engine, route: str) -> sa.ColumnElement[bool]:
    """The condition on the route in a join of feedback and decisions. For SQLite it is an expression, which no index
    fits, because SQLite would otherwise start with all decisions of the route.
    """
    column = decisions.c.route
    return (sa.func.coalesce(column, "") if engine.dialect.name == "sqlite" else column) == route


def place_of(one: Scored) -> Place:
    """The place of a decision, for `read_back` to continue from."""
    return one[0].time_s, one[0].id


def _conditions(
    route: str, before: Place | None, since_s: float, including: bool = False
) -> list[sa.ColumnElement[bool]]:
    conditions = [decisions.c.route == route, decisions.c.time_s >= since_s, decisions.c.router.not_like(OF_JOBS)]
    if before is not None:
        own, other = sa.tuple_(decisions.c.time_s, decisions.c.id), sa.tuple_(*before)
        conditions.append(own <= other if including else own < other)
    return conditions


def _newest() -> tuple[sa.ColumnElement[float], sa.ColumnElement[str]]:
    return decisions.c.time_s.desc(), decisions.c.id.desc()

