"""Chains of stored responses: each row holds the items of its own turn and the id of the previous response.

Rows of older releases hold their whole conversation and have no previous response. A deleted response is hidden at
once; its content is kept while a response that isn't deleted follows it, and for at least an hour, because such a
response may still be in a spool.
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
    """The rows of a response and of all previous ones, in no order; each once, even where the chain is a loop."""
    mine = _c.tenant == tenant
    links = sa.select(*_LINK).where(_c.id == id, mine).cte("links", recursive=True)
    before = sa.select(*_LINK).where(mine).join(links, links.c.previous_response_id == _c.id)
    links = links.union(before)
    return sa.select(responses).join(links, links.c.id == _c.id)


def record_of(row: Row) -> ResponseRecord:
    return ResponseRecord(**{**row, "input": row["input"].encode(), "output": row["output"].encode()})


def put_responses(connection: sa.Connection, rows: Sequence[Row]) -> None:
    """Store rows, which must be in the order of time. A deletion hides its response, whichever of them is stored first,
    and older rows never replace newer ones.
    """
    insert: Any = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(responses)
    new, old = insert.excluded, _c
    later = new.time_s >= old.time_s
    content = sa.and_(sa.not_(new.deleted), sa.or_(later, old.input == ""))
    names = ("decision_id", "model", "previous_response_id", "input", "output")
    changed = {name: sa.case((content, new[name]), else_=old[name]) for name in names}
    changed |= {name: sa.case((later, new[name]), else_=old[name]) for name in ("time_s", "deleted")}
    ours = old.tenant == new.tenant
    connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=changed, where=ours), rows)


def erase_deleted(engine: sa.Engine, now_s: float) -> None:
    """Empty deleted responses that no other response follows any more."""
    ripe = sa.and_(_c.deleted, _c.input != "", _c.time_s < now_s - ERASED_AFTER_S)
    others = sa.or_(sa.not_(_c.deleted), _c.input != "")
    empty = sa.update(responses).values(input="", output="", previous_response_id="")
    _sweep(engine, ripe, others, lambda ids: empty.where(_c.id.in_(ids)))


def forget_responses(engine: sa.Engine, old_s: float) -> int:
    """Delete responses older than the Unix time `old_s`, except those that a younger one follows; returns their number.
    """
    remove = sa.delete(responses)
    return _sweep(engine, _c.time_s < old_s, sa.true(), lambda ids: remove.where(_c.id.in_(ids)))


def _sweep(engine: sa.Engine, chosen: Any, counts: Any, act: Any) -> int:
    """Apply `act` to the `chosen` rows that no row with the property `counts` follows, and return their number. The
    newest come first, because a follower is newer than what it follows.
    """
    done = 0
    edge: tuple[float, str] | None = None
    while True:
        query = sa.select(_c.time_s, *_LINK).where(chosen).order_by(_c.time_s.desc(), _c.id.desc())
        if edge is not None:
            query = query.where(sa.tuple_(_c.time_s, _c.id) < sa.tuple_(*edge))
        with engine.begin() as connection:
            rows = connection.execute(query.limit(_AT_ONCE)).all()
            before = {row.id: row.previous_response_id for row in rows}
            # the second condition is that of the partial index
            theirs = _c.previous_response_id.in_(list(before)), _c.previous_response_id != ""
            free = unfollowed(before, connection.execute(sa.select(*_LINK).where(*theirs, counts)).all())
            if free:
                connection.execute(act(free))
        done += len(free)
        if len(rows) < _AT_ONCE:
            return done
        edge = rows[-1].time_s, rows[-1].id


def unfollowed(before: dict[str, str], follow: Iterable[Any]) -> list[str]:
    """The ids that nothing follows but ids in the result itself. `before`: the previous id of each id; `follow`: (id,
    previous id) of all rows that follow one of them.
    """
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
