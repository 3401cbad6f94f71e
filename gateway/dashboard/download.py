"""Lists as CSV files."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO
from itertools import islice
from typing import Any

from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from gateway.dashboard.units import iso

MOST_ROWS = 100_000
PAGE_ROWS = 1000
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def pages(page: Callable[[str], tuple[Sequence[BaseModel], str | None]]) -> Iterator[BaseModel]:
    """At most MOST_ROWS rows of a list. `page` reads the page at a cursor: its rows and the next cursor, or None."""
    cursor: str | None = ""
    left = MOST_ROWS
    while cursor is not None and left > 0:
        rows, cursor = page(cursor)
        yield from rows[:left]
        left -= len(rows)


def as_csv(
    name: str, shape: type[BaseModel], rows: Iterable[BaseModel], *, but: Sequence[str] = ()
) -> StreamingResponse:
    """One line per row, one column per field except those in `but`; times are in UTC. Texts that a spreadsheet would
    evaluate as formulas are quoted.
    """
    columns = [field for field in shape.model_fields if field not in but]
    heads = ["time" if column == "time_s" else column for column in columns]

    def parts() -> Iterator[str]:
        cells = ([_cell(column, getattr(row, column)) for column in columns] for row in rows)
        yield _lines([heads])
        while part := list(islice(cells, PAGE_ROWS)):
            yield _lines(part)

    day = iso(time.time())[:10]
    headers = {
        "content-disposition": f'attachment; filename="headgate-{name}-{day}.csv"', "cache-control": "no-store",
        "x-content-type-options": "nosniff",
    }  # fmt: skip
    return StreamingResponse(parts(), media_type="text/csv; charset=utf-8", headers=headers)


def _lines(rows: Sequence[Sequence[str]]) -> str:
    text = StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if column == "time_s":
        return iso(value)
    if isinstance(value, list):
        return " ".join(value)
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else str(value)
