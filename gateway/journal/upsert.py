"""The statements by which rows get into the journal's tables, in SQLite and PostgreSQL: insert, replace, add up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

Row = dict[str, Any]


def put_row(connection: sa.Connection, table: sa.Table, row: Row) -> None:
    """Inserts one row or replaces the one of its key."""
    put_rows(connection, table, [row])


def put_rows(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Row],
    newer_than: sa.Column[Any] | None = None,
) -> None:
    """Upsert: the last row of a key wins; over a stored one only where its `newer_than` is not older."""
    names = _key_of(table)
    last = {tuple([row[name] for name in names]): row for row in rows}
    connection.execute(_upsert_statement(connection.dialect.name, table, newer_than), list(last.values()))


def insert_into(connection: sa.Connection, table: sa.Table) -> Any:
    return _insert_of(connection.dialect.name, table)


def _insert_of(dialect: str, table: sa.Table) -> Any:  # the two dialects' types share no base
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


@cache
def _upsert_statement(dialect: str, table: sa.Table, newer_than: sa.Column[Any] | None) -> Any:
    """The statement of `put_rows`; making one costs more than running it."""
    insert = _insert_of(dialect, table)
    changed = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
    condition = None if newer_than is None else insert.excluded[newer_than.name] >= newer_than
    return insert.on_conflict_do_update(index_elements=_key_of(table), set_=changed, where=condition)


def add_counts(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Row], counters: tuple[str, ...]
) -> None:
    """Adds to counters, in the order of their keys so that two shippers can't deadlock."""
    if not rows:
        return
    names = _key_of(table)
    in_order = sorted(rows, key=lambda row: tuple(row[name] for name in names))
    dialect = connection.dialect.name
    if dialect == "sqlite":
        statement, columns = _adding_driver_sql(table, counters)
        connection.exec_driver_sql(statement, [tuple([row[name] for name in columns]) for row in in_order])
    else:
        connection.execute(_adding(dialect, table, counters), in_order)


@cache
def _adding(dialect: str, table: sa.Table, counters: tuple[str, ...]) -> Any:
    insert = _insert_of(dialect, table)
    sums = {name: table.c[name] + insert.excluded[name] for name in counters}
    return insert.on_conflict_do_update(index_elements=_key_of(table), set_=sums)


@cache
def _adding_driver_sql(table: sa.Table, counters: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """As SQLite's driver takes it, and the columns in the order of its placeholders."""
    return str(_adding("sqlite", table, counters).compile(dialect=sqlite.dialect())), tuple(table.c.keys())


@cache
def _key_of(table: sa.Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.primary_key)


def clean(text: str) -> str:
    """Without NUL, which PostgreSQL's text can't hold."""
    return text.replace("\x00", "") if "\x00" in text else text


def json_list(ids: Iterable[str]) -> str:
    """For `json_each`."""
    return msgspec.json.encode(list(ids)).decode()
