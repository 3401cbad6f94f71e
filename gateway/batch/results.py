"""A finished job's answers: every line of the input exactly once, as OpenAI's batch format has it.

Answers go to one file and errors to another, as JSONL or, by the name's ending, as Parquet. A file appears whole or
not at all.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from gateway.batch.ask import error_code
from gateway.batch.jobs import Item, Jobs
from gateway.batch.types import Duplicate, Plan, Problem
from gateway.prices import usd

encode = msgspec.json.encode
UNANSWERED = {
    "completed": ("batch_incomplete", "This request could not be executed."),
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}
_PAGE = 1000
_LINE_BREAKS = [(chr(code).encode(), rb"\u%04x" % code) for code in (0x85, 0x2028, 0x2029)]


@dataclass(frozen=True, slots=True)
class Result:
    """What one line came to."""

    line: int
    custom_id: str
    job: str
    item: Item | None
    """None: it was never asked to the end."""
    why: str
    """How the job ended, for a line without an item."""
    own: bool = True
    """False: a duplicate, which costs nothing."""
    fault: Problem | None = None
    """Why this line was left out of the job."""

    @property
    def ok(self) -> bool:
        return self.item is not None and self.item.state == "done"

    def as_line(self) -> bytes:
        """One line of OpenAI's output or error file."""
        response = error = None
        if self.item is not None:
            response = {
                "status_code": self.item.status,
                "request_id": self.item.decision_id,
                "body": on_one_line(self.item.answer),
            }
        else:
            code, message = self._unanswered()
            error = {"code": code, "message": message}
        found = {"id": f"batch_req_{self.job[6:]}_{self.line}", "custom_id": self.custom_id, "response": response,
                 "error": error}  # fmt: skip
        return unbroken(encode(found)) + b"\n"

    def _unanswered(self) -> tuple[str, str]:
        if self.fault is not None:
            return self.fault.code, f"line {self.line}: {self.fault.message}"
        return UNANSWERED.get(self.why, UNANSWERED["completed"])

    def as_row(self) -> dict[str, Any]:
        """One row of a Parquet file."""
        item = self.item
        code = "" if self.ok else error_code(item.answer) if item else self._unanswered()[0]
        return {
            "line": self.line,
            "custom_id": self.custom_id,
            "status_code": item.status if item else 0,
            "request_id": item.decision_id if item else "",
            "model": item.model if item else "",
            "cost_usd": usd(item.cost_nanousd) if item and self.own else 0.0,
            "body": item.answer.decode() if item else "",
            "error_code": code,
        }


def results(jobs: Jobs, job: str, plan: Plan, why: str) -> Iterator[Result]:
    """Every line, in the input's order, but a duplicate follows the line it repeats: nothing is read twice. Lines that
    were left out as bad are errors of the job.
    """
    items = iter(jobs.items(job, answers=True))
    item = next(items, None)
    twins = {index: list(group) for index, group in groupby(sorted(plan.duplicates, key=_index), key=_index)}
    bad = deque(sorted((one for one in plan.problems if one.line), key=_line))
    for prompt in plan.prompts:
        while bad and bad[0].line <= prompt.line:
            fault = bad.popleft()
            if fault.line != prompt.line:  # else it was answered all the same
                yield _of_bad_line(fault, job, why)
        while item is not None and item.place < prompt.line:
            item = next(items, None)
        mine = item if item is not None and item.place == prompt.line else None
        ended = mine if mine is not None and mine.state in ("done", "failed") else None
        yield Result(prompt.line, prompt.custom_id, job, ended, why)
        for twin in twins.get(prompt.index, ()):
            yield Result(twin.line, twin.custom_id, job, ended, why, own=False)
    for fault in bad:
        yield _of_bad_line(fault, job, why)


def _of_bad_line(fault: Problem, job: str, why: str) -> Result:
    return Result(fault.line, fault.custom_id, job, None, why, fault=fault)


def _line(problem: Problem) -> int:
    return problem.line


def _index(duplicate: Duplicate) -> int:
    return duplicate.index


def write(results: Iterable[Result], out: Path, errors_out: Path) -> tuple[int, int]:
    """Both files, each in place of what was there; how many answers and errors."""
    counts = [0, 0]
    with ExitStack() as stack:
        writers = [stack.enter_context(closing(_open(path))) for path in (out, errors_out)]
        for result in results:
            which = 0 if result.ok else 1
            writers[which].add(result)
            counts[which] += 1
        for writer in writers:
            writer.keep()
    return counts[0], counts[1]


def _open(path: Path) -> _Lines | _Rows:
    path.parent.mkdir(parents=True, exist_ok=True)
    return _Rows(path) if path.suffix == ".parquet" else _Lines(path)


class _Lines:
    """JSONL."""

    def __init__(self, path: Path) -> None:
        self.path, self.draft = path, path.with_name(f"{path.name}.new")
        self._file = self.draft.open("wb")

    def add(self, result: Result) -> None:
        self._file.write(result.as_line())

    def keep(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.draft.replace(self.path)

    def close(self) -> None:
        try:
            self._file.close()
        finally:
            self.draft.unlink(missing_ok=True)


class _Rows:
    """Parquet."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa  # heavy, and only Parquet needs it
        import pyarrow.parquet as pq

        self.path, self.draft = path, path.with_name(f"{path.name}.new")
        text, number = pa.string(), pa.float64()
        self._schema = pa.schema(
            [("line", pa.int64()), ("custom_id", text), ("status_code", pa.int32()), ("request_id", text),
             ("model", text), ("cost_usd", number), ("body", text), ("error_code", text)]
        )  # fmt: skip
        self._table = pa.Table.from_pylist
        self._writer = pq.ParquetWriter(self.draft, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, result: Result) -> None:
        self._rows.append(result.as_row())
        if len(self._rows) >= _PAGE:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._table(self._rows, schema=self._schema))
        self._rows = []

    def keep(self) -> None:
        self._flush()
        self._writer.close()
        self.draft.replace(self.path)

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            self.draft.unlink(missing_ok=True)


def unbroken(line: bytes) -> bytes:
    """With escapes for what JSON lets stand and readers of lines, the official client's among them, break at."""
    for raw, escaped in _LINE_BREAKS:
        if raw in line:
            line = line.replace(raw, escaped)
    return line


def on_one_line(body: bytes) -> msgspec.Raw | None:
    """The answer as it came, without the line breaks that providers set it in; None: it is no JSON."""
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return msgspec.Raw(msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body)
