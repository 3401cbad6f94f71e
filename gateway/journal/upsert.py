"""Statements that write rows of the journal in SQLite and PostgreSQL: insert, replace, and add to counters.

PostgreSQL gets the rows of a batch as one JSON array, because binding each value takes several times as long, during
which other shippers wait for the counters' rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

Row = dict[str, Any]


def put_row(connection: sa.Connection, table: sa.Table, row: Row) -> None:
    """Insert one row, or replace the row with the same key."""
    put_rows(connection, table, [row])


def put_rows(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Row],
    newer_than: sa.Column[Any] | None = None,
) -> None:
    """Insert rows or replace those with the same keys; of several with the same key the last one counts. With
    `newer_than`, a stored row is only replaced where that column isn't smaller in the new one.
    """
    names = _key_of(table)
    last = list({tuple([row[name] for name in names]): row for row in rows}.values())
    if connection.dialect.name == "postgresql" and len(last) > 1:
        connection.execute(_upsert_statement("postgresql", table, newer_than, True), json_rows(last))
    else:
        connection.execute(_upsert_statement(connection.dialect.name, table, newer_than), last)


def insert_into(connection: sa.Connection, table: sa.Table) -> Any:
    """The dialect's insert, which has `on_conflict_do_update`."""
    return _insert_of(connection.dialect.name, table)


@cache
def insert_many(table: sa.Table) -> Any:
    """PostgreSQL's insert of the rows in `json_rows`, in their order."""
    names = table.c.keys()
    columns = [sa.column(column.name, column.type) for column in table.c]
    found = sa.func.json_populate_recordset(
        sa.literal_column(f'NULL::"{table.name}"'), sa.cast(sa.bindparam("rows", type_=sa.Text), postgresql.JSON)
    )
    return postgresql.insert(table).from_select(names, sa.select(*columns).select_from(found))


def json_rows(rows: Sequence[Row]) -> dict[str, str]:
    """The parameter of `insert_many`. Raises ValueError where a text is not valid Unicode."""
    return {"rows": msgspec.json.encode(rows).decode()}


def _insert_of(dialect: str, table: sa.Table, many: bool = False) -> Any:  # the two dialects' types share no base
    if many:
        return insert_many(table)
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


@cache
def _upsert_statement(
    dialect: str, table: sa.Table, newer_than: sa.Column[Any] | None, many: bool = False
) -> Any:
    """The statement of `put_rows`, cached because making it takes longer than running it."""
    insert = _insert_of(dialect, table, many)
    changed = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
    condition = None if newer_than is None else insert.excluded[newer_than.name] >= newer_than
    return insert.on_conflict_do_update(index_elements=_key_of(table), set_=changed, where=condition)


def add_counts(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Row], counters: tuple[str, ...]
) -> None:
    """Add to counters, in the order of their keys, so that two shippers can't deadlock."""
    if not rows:
        return
    names = _key_of(table)
    in_order = sorted(rows, key=lambda row: tuple(row[name] for name in names))
    if connection.dialect.name == "sqlite":
        statement, columns = _adding_driver_sql(table, counters)
        connection.exec_driver_sql(statement, [tuple([row[name] for name in columns]) for row in in_order])
    else:
        connection.execute(_adding("postgresql", table, counters), json_rows(in_order))


@cache
def _adding(dialect: str, table: sa.Table, counters: tuple[str, ...]) -> Any:
    insert = _insert_of(dialect, table, dialect == "postgresql")
    sums = {name: table.c[name] + insert.excluded[name] for name in counters}
    return insert.on_conflict_do_update(index_elements=_key_of(table), set_=sums)


@cache
def _adding_driver_sql(table: sa.Table, counters: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The statement for SQLite's driver, and the columns in the order of its placeholders."""
    return str(_adding("sqlite", table, counters).compile(dialect=sqlite.dialect())), tuple(table.c.keys())


@cache
def _key_of(table: sa.Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.primary_key)


def clean(text: str) -> str:
    """The text without NUL characters, which PostgreSQL's text can't hold."""
    return text.replace("\x00", "") if "\x00" in text else text


def json_list(ids: Iterable[str]) -> str:
    """The ids as a JSON array, for SQLite's `json_each`."""
    return msgspec.json.encode(list(ids)).decode()
