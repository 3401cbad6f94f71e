"""Reads the lines of a job's input from JSONL, CSV, TSV or Parquet: each as the bytes of a JSON value, with its number.

One line or one small block of rows is in memory at a time. A line that can't be read at all is a `Problem`; the
contents of lines are not checked here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from gateway.batch.types import BadJob, Problem

Lines = Iterator["tuple[int, bytes] | Problem"]
PARQUET_ROWS = 1024
_KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
_FOREIGN = {
    b"\x1f\x8b": "compressed by gzip", b"PK\x03\x04": "a ZIP archive", b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip
"""Formats that can't be read, by the first bytes of the file."""
_encode = msgspec.json.Encoder().encode


def kind_of(path: Path) -> str:
    """jsonl, csv, tsv or parquet, by the ending of the name or else by the file's first bytes."""
    known = _KINDS.get(path.suffix.lower())
    if known:
        return known
    with path.open("rb") as file:
        return "parquet" if file.read(4) == b"PAR1" else "jsonl"


def lines_of(path: Path, *, max_line_bytes: int, kind: str = "") -> Lines:
    """Every line of the file in order. Raises BadJob where the file doesn't exist, is empty, or has another format."""
    if not path.is_file():
        raise BadJob([Problem(0, "", f"{path}: no such file", "no_file")])
    if path.stat().st_size == 0:
        raise BadJob([Problem(0, "", f"{path.name}: the file is empty", "empty_file")])
    kind = kind or kind_of(path)
    if kind == "parquet":
        return _parquet_rows(path)
    _refuse_foreign(path)
    if kind in ("csv", "tsv"):
        return _csv_rows(path, max_line_bytes, "\t" if kind == "tsv" else ",")
    return _json_lines(path, max_line_bytes)


def _refuse_foreign(path: Path) -> None:
    """Raise one BadJob for the whole file where it has a foreign format and every line would be a problem."""
    with path.open("rb") as file:
        start = file.read(4)
    for mark, what in _FOREIGN.items():
        if start.startswith(mark):
            raise BadJob([Problem(0, "", f"{path.name}: {what}; give it as plain UTF-8 text", "invalid_text")])


def _json_lines(path: Path, max_bytes: int) -> Lines:
    """The lines that aren't blank; blank lines count in the numbers."""
    with path.open("rb") as file:
        number = 0
        while record := file.readline(max_bytes + 2):
            number += 1
            if len(record) > max_bytes and not record.endswith(b"\n"):
                yield _too_long(number, max_bytes)
                while record and not record.endswith(b"\n"):
                    record = file.readline(1 << 20)
                continue
            record = record.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else record.strip()
            if record:
                yield number, record


def _too_long(number: int, max_bytes: int) -> Problem:
    return Problem(number, "", f"longer than the {max_bytes:,} bytes a request may have", "request_too_large")


def _csv_rows(path: Path, max_bytes: int, delimiter: str) -> Lines:
    """Rows with the header's names, numbered by the line on which each begins; empty cells are left out."""
    before = csv.field_size_limit(max_bytes)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            yield from _named_rows(path, rows)
    finally:
        csv.field_size_limit(before)


def _named_rows(path: Path, rows: Any) -> Lines:
    header: list[str] = []
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Problem(number, "", f"not CSV: {error}", "invalid_csv")
            continue
        if not header:
            header = _header(path, row)
        elif len(row) != len(header):
            if row:
                yield Problem(number, "", f"{len(row)} cells for {len(header)} columns", "invalid_csv")
        else:
            yield _row(number, {name: cell for name, cell in zip(header, row, strict=True) if cell})


def _header(path: Path, row: list[str]) -> list[str]:
    names = [name.strip() for name in row]
    twice = [name for name in names if names.count(name) > 1]
    if twice or not all(names):
        fault = f"two columns have the name {twice[0]!r}" if twice else "a column has no name"
        raise BadJob([Problem(1, "", f"{path}: {fault}", "invalid_csv")])
    return names


def _row(number: int, row: dict[str, Any]) -> tuple[int, bytes] | Problem:
    try:
        return number, _encode(row)
    except (UnicodeEncodeError, TypeError, msgspec.MsgspecError, ValueError) as error:
        return Problem(number, "", f"can't be read as text: {error}", "invalid_text")


def _parquet_rows(path: Path) -> Lines:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise BadJob([Problem(0, "", f"{path}: not a Parquet file ({error})", "invalid_parquet")]) from error
    number = 0
    with file:
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield _row(number, {name: value for name, value in row.items() if value is not None})
