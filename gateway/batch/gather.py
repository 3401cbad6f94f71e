"""Reads a job's input in one pass: distinct prompts go into the plan's file, estimates into arrays, faults into a list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gateway.batch.dedupe import Deduper
from gateway.batch.estimate import (
    GUESSED_COST_SHIFT,
    GUESSED_QUALITY_SHIFT,
    LEARNED_COST_SHIFT,
    LEARNED_QUALITY_SHIFT,
    MATRICES,
    Forecasts,
)
from gateway.batch.scan import Good, Scan, Scanner, scanned
from gateway.batch.source import Lines
from gateway.batch.types import Arm, BadJob, Duplicate, Estimates, Floats, Problem, Prompts, PromptWriter

FIRST_S, PER_TOKEN_S = 0.7, 0.02
"""Assumed latency of a model without a learnt one: seconds to the first token, and seconds per output token."""
MOST_PROBLEMS = 10_000
"""Most problems that are kept one by one; further ones are only counted."""


@dataclass(frozen=True)
class Gathered:
    """The contents of an input."""

    prompts: Prompts
    duplicates: tuple[Duplicate, ...]
    problems: tuple[Problem, ...]
    estimates: Estimates
    routes: tuple[str, ...]
    """Names of the routes that answer the prompts, sorted."""


@dataclass(frozen=True, slots=True)
class GatherOptions:
    """How to read an input."""

    scanner: Scanner
    deduper: Deduper
    file: Path
    """The file that the prompts are written to."""
    processes: int = 1
    skip_bad: bool = False
    on_progress: Callable[[int, int], None] = lambda lines, size: None
    """Called with the lines and bytes of each block."""


def gather(lines: Lines, options: GatherOptions) -> Gathered:
    """Read the whole input. Raises BadJob with every problem where a line is bad and bad lines aren't skipped, or where
    no line is left.
    """
    collector = _Collector(options)
    try:
        for block in scanned(options.scanner, lines, options.processes):
            collector.take(block)
            options.on_progress(block.lines, block.bytes)
    except BaseException:
        collector.writer.close()
        raise
    prompts = collector.writer.close()
    if collector.bad_lines and not options.skip_bad:
        count = f"{collector.bad_lines} of {collector.lines}"
        raise BadJob(collector.problems, f"{count} line(s) can't be answered; first: {collector.problems[0]}")
    if not len(prompts):
        raise BadJob([*collector.problems, Problem(0, "", "no line asks anything", "empty_file")])
    return Gathered(
        prompts, tuple(collector.duplicates), tuple(collector.problems), collector.estimates(),
        tuple(sorted(collector.routes)),
    )  # fmt: skip


class _Collector:
    """Joins the blocks in the order of the input."""

    def __init__(self, options: GatherOptions) -> None:
        self.scanner, self.deduper = options.scanner, options.deduper
        self.writer = PromptWriter(options.file)
        self.problems: list[Problem] = []
        self.duplicates: list[Duplicate] = []
        self.routes: set[str] = set()
        self.lines = self.bad_lines = 0
        self._count = 0
        self._ids: dict[str, int] = {}
        self._floors: list[float] = []
        self._inputs: list[int] = []
        self._parts: dict[str, list[Floats]] = {name: [] for name in MATRICES}
        models = len(options.scanner.models)
        self._learned, self._measured = np.zeros(models, bool), np.zeros(models, bool)

    def take(self, block: Scan) -> None:
        self.lines += block.lines
        problems = list(block.problems)
        if self._take_all(block.good):
            kept = np.arange(len(block.good))
        else:
            kept = np.array([row for row in range(len(block.good)) if self._accept(block.good, row, problems)], np.intp)
        self._keep(block.estimates, kept)
        self.bad_lines += len(problems)
        problems.sort(key=lambda problem: problem.line)
        self.problems += problems[: max(0, MOST_PROBLEMS - len(self.problems))]

    def _take_all(self, good: Good) -> bool:
        """Take a whole block in one step, where none of its lines can be a duplicate, as is usual. False where its rows
        must be taken one by one.
        """
        ids, keys = good.custom_ids, [key for key in good.keys if key]
        if any(good.questions) or len(set(ids)) < len(ids) or len(set(keys)) < len(keys):
            return False
        if not (self._ids.keys().isdisjoint(ids) and self.deduper.is_new(keys)):
            return False
        self._ids.update(zip(ids, good.lines, strict=True))
        self.deduper.add_all(good.keys, good.floors, self._count)
        self.writer.put_all(good.records, good.lines)
        self._floors += good.floors
        self._inputs += good.input_tokens
        self.routes.update(good.routes)
        self._count += len(good)
        return True

    def _accept(self, good: Good, row: int, problems: list[Problem]) -> bool:
        """Take one line. True where it became a prompt, False where it is a duplicate or has a fault."""
        line, custom_id, route, floor = good.lines[row], good.custom_ids[row], good.routes[row], good.floors[row]
        first = self._ids.setdefault(custom_id, line)
        if first != line:
            message = f"line {first} has the same custom_id"
            problems.append(Problem(line, custom_id, message, "duplicate_custom_id"))
            return False
        key, question = good.keys[row], good.questions[row]
        same = self.deduper.find(key, question, route, floor)
        if same is not None:
            self.duplicates.append(Duplicate(line, custom_id, *same))
            return False
        self.deduper.add(key, question, route, floor, self._count)
        self.writer.put_all([good.records[row]], [line])
        self._floors.append(floor)
        self._inputs.append(good.input_tokens[row])
        self.routes.add(route)
        self._count += 1
        return True

    def _keep(self, estimates: Forecasts, rows: NDArray[np.intp]) -> None:
        own = estimates if len(rows) == len(estimates.quality) else estimates.rows(rows)
        for name, parts in self._parts.items():
            parts.append(getattr(own, name))
        self._learned |= estimates.learned
        self._measured |= estimates.measured

    def estimates(self) -> Estimates:
        """The estimates of all models that may answer at least one prompt. Blocks are freed as they are joined."""
        whole = {name: _joined(self._parts.pop(name)) for name in MATRICES}
        used = np.flatnonzero(np.isfinite(whole["cost_usd"]).any(0))
        if len(used) < len(self.scanner.models):
            whole = {name: np.ascontiguousarray(matrix[:, used]) for name, matrix in whole.items()}
        barred = ~np.isfinite(whole["cost_usd"])
        for name in ("quality", "quality_sd", "output_tokens"):
            whole[name][barred] = 0.0
        latency, assumed = whole["latency_s"], np.float32(FIRST_S) + np.float32(PER_TOKEN_S) * whole["output_tokens"]
        np.copyto(latency, assumed, where=~np.isfinite(latency))
        shift = np.where(self._learned[used], LEARNED_QUALITY_SHIFT, GUESSED_QUALITY_SHIFT)
        cost_shift = np.where(self._measured[used], LEARNED_COST_SHIFT, GUESSED_COST_SHIFT)
        return Estimates(
            arms=tuple(Arm(self.scanner.models[place]) for place in used.tolist()),
            **whole,
            input_tokens=np.array(self._inputs, np.float32),
            floor=np.array(self._floors, np.float32),
            quality_shift_sd=shift.astype(np.float32),
            cost_shift_sd=cost_shift.astype(np.float32),
        )


def _joined(parts: list[Floats]) -> Floats:
    """The blocks' matrices as one; each block is freed as soon as it is copied."""
    whole = np.empty((sum(map(len, parts)), parts[0].shape[1]), np.float32)
    start = 0
    for place, part in enumerate(parts):
        whole[start : start + len(part)] = part
        start += len(part)
        parts[place] = part[:0]
    return whole
