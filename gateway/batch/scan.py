"""Reads and estimates blocks of lines: the part of planning that takes time per line, so it can run in many processes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from cache.key import Partition
from gateway.batch.dedupe import Mode, keys_of
from gateway.batch.estimate import Forecasts, forecasts
from gateway.batch.read import LineReader, Request
from gateway.batch.source import Lines
from gateway.batch.types import Problem, record_of
from gateway.serve.aside import forked
from routers.cores import one_core
from routers.features import Featurizer

BLOCK_LINES = 512
_AHEAD = 3
"""Blocks per process that may be read ahead of the one whose result is awaited."""

Line = tuple[int, bytes] | Problem


@dataclass(slots=True)
class Good:
    """The lines of a block that can be answered, as one list per field, because many small objects would take longer to
    send between processes than to compute.
    """

    lines: list[int] = field(default_factory=list)
    custom_ids: list[str] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    """The prompts as they go into the plan's file."""
    floors: list[float] = field(default_factory=list)
    input_tokens: list[int] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    questions: list[Partition | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, request: Request, key: bytes, question: Partition | None) -> None:
        asked = request.call.described
        self.lines.append(request.line)
        self.custom_ids.append(request.custom_id)
        self.records.append(
            record_of(
                request.line, request.custom_id, request.url, request.body, asked.text, request.floor, request.reference
            )
        )
        self.floors.append(request.floor)
        self.input_tokens.append(asked.input_tokens)
        self.routes.append(request.route.name)
        self.keys.append(key)
        self.questions.append(question)


@dataclass(frozen=True, slots=True)
class Scan:
    """The result of a block; row i of `estimates` belongs to the i-th good line."""

    good: Good
    problems: tuple[Problem, ...]
    estimates: Forecasts
    lines: int
    bytes: int


@dataclass(frozen=True)
class Scanner:
    """Reads and estimates blocks of lines."""

    reader: LineReader
    models: tuple[str, ...]
    """The columns of the estimates."""
    tenant: str
    mode: Mode
    embedder: Featurizer | None = None
    """The embedder for routers that were trained on its vectors; None where there are none."""
    featurizer: Featurizer = field(default_factory=Featurizer)
    """The scanner's own, because its memory is not thread-safe."""

    def scan(self, block: Sequence[Line]) -> Scan:
        found = [line if isinstance(line, Problem) else self.reader.judge(*line) for line in block]
        problems = [line for line in found if isinstance(line, Problem)]
        asked = [line for line in found if isinstance(line, Request)]
        estimates = forecasts(asked, self.models, self.featurizer, self.embedder)
        best = _best(estimates)
        good, kept = Good(), []
        for row, request in enumerate(asked):
            problem = _hopeless(request, estimates.refused[row], best[row])
            if problem is not None:
                problems.append(problem)
                continue
            kept.append(row)
            good.add(request, *keys_of(request, self.tenant, self.mode, self.featurizer.version))
        size = sum(len(line[1]) for line in block if not isinstance(line, Problem))
        return Scan(good, tuple(problems), estimates.rows(np.array(kept, np.intp)), len(block), size)


def _best(estimates: Forecasts) -> list[float]:
    """The largest predicted quality of each prompt among the models that may answer it; 0 where none may."""
    able = np.isfinite(estimates.cost_usd)
    best: list[float] = np.max(estimates.quality, axis=1, initial=0.0, where=able).tolist()
    return best


def _hopeless(request: Request, refused: str, best: float) -> Problem | None:
    """Why no model may answer this line; None where one may."""
    if refused:
        short = all(reason.endswith("context too short") for reason in refused.split("; "))
        code = "context_length_exceeded" if short else "no_eligible_model"
        tokens = request.call.described.input_tokens
        return Problem(request.line, request.custom_id, f"no model may answer its {tokens:,} tokens ({refused})", code)
    if request.floor > best:
        message = f"no model is expected to reach a quality of {request.floor:g}; the best reaches {best:.3f}"
        return Problem(request.line, request.custom_id, message, "floor_unreachable")
    return None


def scanned(scanner: Scanner, lines: Lines, processes: int) -> Generator[Scan, None, None]:
    """The results of all blocks, in order; only a few blocks are read ahead.

    Each process computes on one core: the matrix products of a block are too small to gain from more threads.
    """
    several = forked(processes, _begin, (scanner,)) if processes > 1 else None
    if several is None:
        for block in _blocks(lines):
            with one_core():
                scan = scanner.scan(block)
            yield scan
        return
    waiting: deque[Future[Scan]] = deque()
    with several as pool:
        for block in _blocks(lines):
            waiting.append(pool.submit(_scan, block))
            if len(waiting) >= _AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _blocks(lines: Lines) -> Iterator[list[Line]]:
    block: list[Line] = []
    for line in lines:
        block.append(line)
        if len(block) == BLOCK_LINES:
            yield block
            block = []
    if block:
        yield block


_own: list[Scanner] = []
"""In a child process, the scanner that it inherited when it was forked."""


def _begin(scanner: Scanner) -> None:
    one_core().__enter__()
    _own[:] = [scanner]


def _scan(block: list[Line]) -> Scan:
    return _own[0].scan(block)
