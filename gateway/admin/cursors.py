"""Cursors of paged lists: the time and the id of a page's last row. The id distinguishes rows of the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.errors import CallerError


class Row(Protocol):
    """A row of a paged list: lists are ordered by time, then by id."""

    time_s: float
    id: str


def cursor_of(time_s: float, id: str) -> str:
    return f"{time_s!r}:{id}"


def next_cursor(rows: Sequence[Row], limit: int) -> str | None:
    """The cursor of the next page; None where this page isn't full, and so is the last."""
    return cursor_of(rows[-1].time_s, rows[-1].id) if len(rows) == limit else None


def read_cursor(cursor: str) -> tuple[float, str] | None:
    """Time and id of a cursor; None, the first page, for an empty one. Raises CallerError where it is malformed."""
    if not cursor:
        return None
    time_text, _, id = cursor.partition(":")
    try:
        return float(time_text), id
    except ValueError:
        raise CallerError("the cursor is malformed: send `next` of the page before", param="cursor") from None
