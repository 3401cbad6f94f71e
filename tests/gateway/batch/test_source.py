"""Lines of files: numbered and bounded, whatever the file contains."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batch.source import kind_of, lines_of
from gateway.batch.types import BadJob, Problem

MOST = 1_000_000


def read(path: Path, most: int = MOST, kind: str = "") -> list[tuple[int, object] | Problem]:
    return [
        line if isinstance(line, Problem) else (line[0], json.loads(line[1]))
        for line in lines_of(path, max_line_bytes=most, kind=kind)
    ]


def test_json_lines_are_numbered_and_blank_ones_count(tmp_path: Path) -> None:
    """A byte order mark isn't part of the first line; blank lines count."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": 2}')
    assert read(path) == [(1, {"a": 1}), (4, {"a": 2})]


def test_a_line_that_is_too_long_is_reported_and_skipped(tmp_path: Path) -> None:
    """It is never in memory completely; the lines after it keep their numbers."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'"short"\n' + b'"' + b"x" * 5_000 + b'"\n"after"\n' + b"y" * 3_000)
    found = read(path, most=100)
    assert [line if isinstance(line, tuple) else (line.line, line.code) for line in found] == [
        (1, "short"), (2, "request_too_large"), (3, "after"), (4, "request_too_large"),
    ]  # fmt: skip


def test_csv_rows_are_numbered_by_their_first_line(tmp_path: Path) -> None:
    """A cell may contain line breaks; an empty cell counts as absent; a row with another number of cells is reported.
    """
    path = tmp_path / "a.csv"
    path.write_text('prompt,id\n"two\nlines",a\nalone\n"say ""hi""",\n')
    found = read(path)
    assert found[0] == (2, {"prompt": "two\nlines", "id": "a"})
    assert isinstance(found[1], Problem) and (found[1].line, found[1].code) == (4, "invalid_csv")
    assert found[2] == (5, {"prompt": 'say "hi"'})


def test_csv_that_is_not_utf_8_is_reported_by_row(tmp_path: Path) -> None:
    """Invalid bytes make one row bad, and not the file."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt\nfine\n\xff\xfe\nfine again\n")
    found = read(path)
    assert [line.code if isinstance(line, Problem) else line[0] for line in found] == [2, "invalid_text", 4]


@pytest.mark.parametrize("header", ["prompt,prompt", "prompt,"])
def test_a_csv_header_must_name_each_column_once(tmp_path: Path, header: str) -> None:
    """Otherwise the name would be ambiguous."""
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\na,b\n")
    with pytest.raises(BadJob, match="column"):
        read(path)


def test_tabs_and_parquet_have_the_same_rows(tmp_path: Path) -> None:
    """Every kind of file gives the same lines; nulls count as absent."""
    rows = [{"prompt": "a", "floor": 0.5}, {"prompt": "b"}]
    table = pyarrow.table({"prompt": ["a", "b"], "floor": [0.5, None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.tsv").write_text("prompt\tfloor\na\t0.5\nb\t\n")
    assert [line[1] for line in read(tmp_path / "a.parquet") if isinstance(line, tuple)] == rows
    assert [line[1] for line in read(tmp_path / "a.tsv") if isinstance(line, tuple)] == [
        {"prompt": "a", "floor": "0.5"}, {"prompt": "b"},
    ]  # fmt: skip


def test_missing_empty_and_invalid_files_are_refused(tmp_path: Path) -> None:
    """The code says which of them it is."""
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "wrong.parquet").write_bytes(b"no parquet at all")
    for name, code in (("none.jsonl", "no_file"), ("empty.jsonl", "empty_file"), ("wrong.parquet", "invalid_parquet")):
        with pytest.raises(BadJob) as caught:
            read(tmp_path / name)
        assert caught.value.problems[0].code == code


def test_a_file_without_a_known_extension_is_recognised_by_its_first_bytes(tmp_path: Path) -> None:
    """Parquet has a mark; everything else is read as JSON lines."""
    table = pyarrow.table({"prompt": ["a"]})
    pyarrow.parquet.write_table(table, tmp_path / "upload")
    (tmp_path / "other").write_text('"a"\n')
    assert kind_of(tmp_path / "upload") == "parquet"
    assert kind_of(tmp_path / "other") == "jsonl"


_cells = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(_cells, max_size=6))
def test_any_text_survives_csv(tmp_path_factory: pytest.TempPathFactory, rows: list[str]) -> None:
    """What a CSV writer wrote is read back unchanged."""
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "n"])
        writer.writerows([row, "1"] for row in rows)
    assert [line[1] for line in read(path) if isinstance(line, tuple)] == [{"prompt": row, "n": "1"} for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("a.jsonl", gzip.compress(b"{}", mtime=0), "gzip"), ("a.csv", b"PK\x03\x04...", "ZIP"),
     ("a", "{}".encode("utf-16"), "UTF-16"), ("a.ndjson", b"\x28\xb5\x2f\xfd.", "zstd")],
)  # fmt: skip
def test_a_binary_file_is_reported_once(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """Otherwise each of its lines would be reported as broken."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadJob, match=said):
        list(lines_of(tmp_path / name, max_line_bytes=1000))
