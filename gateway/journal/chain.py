"""Stored responses as they follow one another: each row holds what its turn adds, and which response it continues.

An older row holds its whole conversation, and continues none. A deleted response is hidden at once; what it holds stays
as long as one that isn't deleted follows it, and an hour in any case, since such a one may be on its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from gateway.journal.record import ResponseRecord
from gateway.journal.tables import responses

Row = dict[str, Any]
ERASED_AFTER_S = 3600.0
_AT_ONCE = 1000
_c = responses.c
_LINK = (_c.id, _c.previous_response_id)


def chain_query(id: str, tenant: str) -> sa.Select[Any]:
    """The rows of a response and of those before it, in no order; one that loops back is there once."""
    mine = _c.tenant == tenant
    links = sa.select(*_LINK).where(_c.id == id, mine).cte("links", recursive=True)
    before = sa.select(*_LINK).where(mine).join(links, links.c.previous_response_id == _c.id)
    links = links.union(before)
    return sa.select(responses).join(links, links.c.id == _c.id)


def record_of(row: Row) -> ResponseRecord:
    return ResponseRecord(**{**row, "input": row["input"].encode(), "output": row["output"].encode()})


def put_responses(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """In the order of time. A deletion hides what it deletes, whichever comes first; nothing older replaces it."""
    insert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(responses)
    new, old = insert.excluded, _c
    later = new.time_s >= old.time_s
    content = sa.and_(sa.not_(new.deleted), sa.or_(later, old.input == ""))
    told = ("decision_id", "model", "previous_response_id", "input", "output")
    changed = {name: sa.case((content, new[name]), else_=old[name]) for name in told}
    changed |= {name: sa.case((later, new[name]), else_=old[name]) for name in ("time_s", "deleted")}
    ours = old.tenant == new.tenant
    connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed, where=ours), rows)


def erase_deleted(engine: sa.Engine, now_s: float) -> None:
    """Empties deleted responses that nobody's conversation needs any more."""
    ripe = sa.and_(_c.deleted, _c.input != "", _c.time_s < now_s - ERASED_AFTER_S)
    others = sa.or_(sa.not_(_c.deleted), _c.input != "")
    empty = sa.update(responses).values(input="", output="", previous_response_id="")
    _sweep(engine, ripe, others, lambda ids: empty.where(_c.id.in_(ids)))


def forget_responses(engine: sa.Engine, old_s: float) -> int:
    """Deletes those older than that, but none that a younger one follows; how many."""
    remove = sa.delete(responses)
    return _sweep(engine, _c.time_s < old_s, sa.true(), lambda ids: remove.where(_c.id.in_(ids)))


def _sweep(engine: sa.Engine, wanted: Any, counts: Any, act: Any) -> int:
    """Acts on the rows wanted that are followed by none that `counts`, the newest first: what follows one is newer."""
    done = 0
    edge: tuple[float, str] | None = None
    while True:
        query = sa.select(_c.time_s, *_LINK).where(wanted).order_by(_c.time_s.desc(), _c.id.desc())
        if edge is not None:
            query = query.where(sa.tuple_(_c.time_s, _c.id) < sa.tuple_(*edge))
        with engine.begin() as connection:
            rows = connection.execute(query.limit(_AT_ONCE)).all()
            before = {row.id: row.previous_response_id for row in rows}
            theirs = _c.previous_response_id.in_(list(before)), _c.previous_response_id != ""  # so says the index
            free = unfollowed(before, connection.execute(sa.select(*_LINK).where(*theirs, counts)).all())
            if free:
                connection.execute(act(free))
        done += len(free)
        if len(rows) < _AT_ONCE:
            return done
        edge = rows[-1].time_s, rows[-1].id


def unfollowed(before: dict[str, str], follow: Iterable[Any]) -> list[str]:
    """Of ids, with what each continues, those that only such as these follow; `follow`: (id, what it continues)."""
    followers: dict[str, set[str]] = {id: set() for id in before}
    for id, previous in follow:
        followers[previous].add(id)
    free: list[str] = []
    ready = [id for id, known in followers.items() if not known]
    while ready:
        free.append(id := ready.pop())
        waits = followers.get(before[id])
        if waits is not None:
            waits.discard(id)
            if not waits:
                ready.append(before[id])
    return free
