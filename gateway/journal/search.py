"""Searches decisions by an index that covers all conditions, without reading their records.

A filter that fits few decisions could make a query scan all of them. So a page scans a limited number of entries of the
index and reports how far back it came, and the next page continues from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from gateway.journal.outcome import ERROR, NAMES
from gateway.journal.store import Store
from gateway.journal.tables import decisions
from gateway.journal.upsert import Row, clean

LOOKED_AT = 60_000
"""Most index entries that are scanned for one page."""
_SUMMARY = [column for column in decisions.c if column.name not in ("payload", "counted")]
_KEYED = ("tenant", "route", "answered_model")
"""Columns that have an index of their own in the order of time."""


@dataclass(frozen=True, slots=True)
class DecisionFilter:
    """Selects decisions; an empty field selects all."""

    tenant: str = ""
    route: str = ""
    answered_model: str = ""
    key_id: str = ""
    since_s: float = 0.0
    until_s: float = float("inf")
    outcome: str = ""
    """ok, or one of gateway.journal.outcome.NAMES."""
    min_cost_usd: float | None = None
    max_cost_usd: float | None = None
    errors_only: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """One page, newest first. `after`: where the next page begins; None where there is none."""

    rows: list[Row]
    after: tuple[float, str] | None
    searched_until_s: float | None = None
    """Unix time back to which was searched, where the search stopped early; else None."""


def search(store: Store, selection: DecisionFilter, before: tuple[float, str] | None, limit: int) -> Found:
    """One page of decisions. `before`: the `after` of the page before; None for the first one."""
    conditions = _conditions(selection)
    with store.engine.connect() as connection:
        if sum(bool(getattr(selection, name)) for name in _KEYED) == len(conditions) <= 1:
            if conditions and connection.dialect.name == "sqlite":  # else it may scan all rows for a rare name
                conditions = [sa.func.unlikely(conditions[0])]
            rows = connection.execute(_page(_span(selection, before), conditions, limit)).mappings().all()
            return _found([dict(row) for row in rows], limit)
        last = connection.execute(_horizon(selection, before)).first()
        span = _span(selection, before)
        if last is not None:
            span.append(sa.tuple_(decisions.c.time_s, decisions.c.id) >= sa.tuple_(last.time_s, last.id))
        ids = sa.select(decisions.c.id).where(*span, *conditions).order_by(*_newest()).limit(limit)
        names = list(connection.execute(ids).scalars())
        rows = connection.execute(sa.select(*_SUMMARY).where(decisions.c.id.in_(names))).mappings().all()
    ordered = sorted((dict(row) for row in rows), key=lambda row: (row["time_s"], row["id"]), reverse=True)
    found = _found(ordered, limit)
    if found.after is None and last is not None:
        return Found(ordered, (last.time_s, last.id), last.time_s)
    return found


def _found(rows: list[Row], limit: int) -> Found:
    full = len(rows) == limit
    return Found(rows, (rows[-1]["time_s"], rows[-1]["id"]) if full else None)


def _page(
    span: list[sa.ColumnElement[bool]], conditions: list[sa.ColumnElement[bool]], limit: int
) -> sa.Select[tuple[object, ...]]:
    return sa.select(*_SUMMARY).where(*span, *conditions).order_by(*_newest()).limit(limit)


def _horizon(selection: DecisionFilter, before: tuple[float, str] | None) -> sa.Select[tuple[float, str]]:
    """The query for the last entry that a page scans; it has no row where there are fewer entries."""
    query = sa.select(decisions.c.time_s, decisions.c.id).where(*_span(selection, before)).order_by(*_newest())
    return query.offset(LOOKED_AT).limit(1)


def _span(selection: DecisionFilter, before: tuple[float, str] | None) -> list[sa.ColumnElement[bool]]:
    span: list[sa.ColumnElement[bool]] = []
    if selection.since_s > 0:
        span.append(decisions.c.time_s >= selection.since_s)
    if selection.until_s < float("inf"):
        span.append(decisions.c.time_s < selection.until_s)
    if before is not None:
        span.append(sa.tuple_(decisions.c.time_s, decisions.c.id) < sa.tuple_(*before))
    return span


def _conditions(selection: DecisionFilter) -> list[sa.ColumnElement[bool]]:
    columns = (*_KEYED, "key_id")
    found = [decisions.c[name] == clean(value) for name in columns if (value := getattr(selection, name))]
    if selection.outcome:
        bit = NAMES.get(selection.outcome)
        found.append(decisions.c.flags == 0 if bit is None else decisions.c.flags.op("&")(bit) != 0)
    if selection.errors_only:
        found.append(decisions.c.flags.op("&")(ERROR) != 0)
    if selection.min_cost_usd is not None:
        found.append(decisions.c.cost_nanousd >= round(selection.min_cost_usd * 1e9))
    if selection.max_cost_usd is not None:
        found.append(decisions.c.cost_nanousd <= round(selection.max_cost_usd * 1e9))
    return found


def _newest() -> tuple[sa.ColumnElement[float], sa.ColumnElement[str]]:
    return decisions.c.time_s.desc(), decisions.c.id.desc()
