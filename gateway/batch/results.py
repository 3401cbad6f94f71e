"""Writes a finished job's results in OpenAI's batch format: every line of the input exactly once.

Answers go to one file and errors to another, as JSONL, or as Parquet where the name ends in .parquet. A file appears
whole or not at all.
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
from gateway.money.prices import usd

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
    """The result of one line."""

    line: int
    custom_id: str
    job: str
    item: Item | None
    """The answer or final failure; None where the line has neither."""
    why: str
    """How the job ended (completed, expired, cancelled, failed); the reason for a line without an item."""
    own: bool = True
    """False for a duplicate, which costs nothing."""
    fault: Problem | None = None
    """The fault for which the line was left out of the job; None where it was not."""

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
        fields = {"id": f"batch_req_{self.job[6:]}_{self.line}", "custom_id": self.custom_id, "response": response,
                  "error": error}  # fmt: skip
        return unbroken(encode(fields)) + b"\n"

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
    """The result of every line, in the input's order, but a duplicate follows the line that it repeats, so that nothing
    is read twice. Lines that were left out as bad have errors.
    """
    items = iter(jobs.items(job, answers=True))
    item = next(items, None)
    twins = {index: list(group) for index, group in groupby(sorted(plan.duplicates, key=_index), key=_index)}
    bad = deque(sorted((one for one in plan.problems if one.line), key=_line))
    for prompt in plan.prompts:
        while bad and bad[0].line <= prompt.line:
            fault = bad.popleft()
            if fault.line != prompt.line:  # a prompt with a problem was planned with a lower floor and answered
                yield _of_bad_line(fault, job, why)
        while item is not None and item.place < prompt.line:
            item = next(items, None)
        own = item if item is not None and item.place == prompt.line else None
        ended = own if own is not None and own.state in ("done", "failed") else None
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
    """Write both files, replacing existing ones. Returns the numbers of answers and of errors."""
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
    """Writes JSONL."""

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
    """Writes Parquet."""

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
    """The line with escapes for characters that JSON allows in strings but that readers of lines, the official client
    included, take for line breaks.
    """
    for raw, escaped in _LINE_BREAKS:
        if raw in line:
            line = line.replace(raw, escaped)
    return line


def on_one_line(body: bytes) -> msgspec.Raw | None:
    """The answer without line breaks between its JSON tokens; None where it is not JSON."""
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return msgspec.Raw(msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body)
