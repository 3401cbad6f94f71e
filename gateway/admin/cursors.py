"""Where the next page of a list begins: the time and the id of the last row, for rows of one moment are told by id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.errors import CallerError


class Row(Protocol):
    """What lists are ordered by."""

    time_s: float
    id: str


def cursor_of(time_s: float, id: str) -> str:
    return f"{time_s!r}:{id}"


def next_cursor(rows: Sequence[Row], limit: int) -> str | None:
    """None: a page that is not full is the last."""
    return cursor_of(rows[-1].time_s, rows[-1].id) if len(rows) == limit else None


def read_cursor(cursor: str) -> tuple[float, str] | None:
    """None: the first page. Raises CallerError."""
    if not cursor:
        return None
    time_text, _, id = cursor.partition(":")
    try:
        return float(time_text), id
    except ValueError:
        raise CallerError("cursor is not one of ours", param="cursor") from None
