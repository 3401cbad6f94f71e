"""The latest decisions of a route with their scores, without reading the older ones."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from gateway.journal.export import settle_score
from gateway.journal.record import DecisionRecord
from gateway.journal.tables import decisions, feedback
from gateway.journal.upsert import Row
from gateway.learn.rounds import OF_JOBS, is_round

PAGE_ROWS = 500
Scored = tuple[DecisionRecord, float | None]
Place = tuple[float, str]
"""Time and id of a decision."""
_decode = msgspec.json.Decoder(DecisionRecord, strict=False).decode


def latest_scored(
    engine: sa.Engine, route: str, *, limit: int, rounds: int | None = None, since_s: float = 0.0
) -> list[Scored]:
    """In the order of time; of feedback the score that counts. Decisions that no model answered are among them, those
    of batch jobs are not: one long job would leave room for no round.
    `rounds`: so many to learn from are enough.
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
    """At most so many decisions of the route before that place, the newest first; those of batch jobs are left out.
    `including`: that place's, too.
    """
    query = sa.select(decisions.c.id, decisions.c.payload).where(*_asked(route, before, since_s, including))
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(*_newest()).limit(count)).all()
        said = feedback_on(connection, [row.id for row in rows])
    return [(_decode(row.payload), settle_score(said.get(row.id, []))) for row in rows]


def last_scored(engine: sa.Engine, route: str, before: Place | None, since_s: float = 0.0) -> Place | None:
    """The newest decision before that place which somebody scored; None: nobody scored any. Reads no records."""
    scored = sa.exists().where(feedback.c.decision_id == decisions.c.id, feedback.c.score.is_not(None))
    query = sa.select(decisions.c.time_s, decisions.c.id).where(*_asked(route, before, since_s), scored)
    with engine.connect() as connection:
        row = connection.execute(query.order_by(*_newest()).limit(1)).first()
    return None if row is None else (row.time_s, row.id)


def joined_to_route(engine: sa.Engine, route: str) -> sa.ColumnElement[bool]:
    """For decisions that are joined to their feedback: as an expression, since SQLite would begin with all decisions of
    the route. PostgreSQL knows better, by its statistics.
    """
    column = decisions.c.route
    return (sa.func.coalesce(column, "") if engine.dialect.name == "sqlite" else column) == route


def place_of(one: Scored) -> Place:
    """What `read_back` goes on before."""
    return one[0].time_s, one[0].id


def _asked(
    route: str, before: Place | None, since_s: float, including: bool = False
) -> list[sa.ColumnElement[bool]]:
    asked = [decisions.c.route == route, decisions.c.time_s >= since_s, decisions.c.router.not_like(OF_JOBS)]
    if before is not None:
        own, other = sa.tuple_(decisions.c.time_s, decisions.c.id), sa.tuple_(*before)
        asked.append(own <= other if including else own < other)
    return asked


def _newest() -> tuple[sa.ColumnElement[float], sa.ColumnElement[str]]:
    return decisions.c.time_s.desc(), decisions.c.id.desc()


def feedback_on(connection: sa.Connection, ids: list[str]) -> dict[str, list[Row]]:
    """What was said of these decisions."""
    found: dict[str, list[Row]] = {}
    names = ("decision_id", "score", "source", "time_s")
    query = sa.select(*(feedback.c[name] for name in names)).where(feedback.c.decision_id.in_(ids))
    for row in connection.execute(query).mappings():
        found.setdefault(row["decision_id"], []).append(dict(row))
    return found
