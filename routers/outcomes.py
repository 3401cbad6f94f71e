"""Outcome data: the score and cost of each model on each query, read, checked and laid out as matrices.

A folder holds `queries.parquet` and `outcomes.parquet`. Beside its `task` a query may say `subtask` (read as part of
the task's name) and `src`, where it was taken from, which is learnt from too. Every defect is refused with the file,
the row and the field at fault; cells that nobody observed are NaN and stay NaN. `answer_cost_usd`, where present, is
what an answer costs; `cost_usd` may also hold the price of a self-check and is kept apart as `checked_cost_usd`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix

_NUMBERS = (
    "cost_usd",
    "answer_cost_usd",
    "input_tokens",
    "output_tokens",
    "latency_s",
    "confidence",
    "propensity",
)
OVERSHOOT = 0.05
"""A score outside [0, 1] by at most this much, as some text metrics give, is clipped."""
SPLITS = frozenset({"train", "test", ""})
PRICED_SHARE = 0.95
"""Share of the queries on which a model must have both a score and a cost to be compared by `fully_priced`."""


class DataError(ValueError):
    """The data can't be used; the message names the file, the row and the field."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """n queries by m models. Matrices are (n, m), NaN where not observed or not recorded."""

    query_ids: tuple[str, ...]
    texts: tuple[str, ...]
    tasks: tuple[str, ...]
    splits: NDArray[np.str_]
    models: tuple[str, ...]
    scores: Matrix
    cost_usd: Matrix
    checked_cost_usd: Matrix
    """Answer and self-check together, where the data says so; else as `cost_usd`."""
    input_tokens: Matrix
    output_tokens: Matrix
    latency_s: Matrix
    confidence: Matrix
    propensity: Matrix
    sources: tuple[str, ...] = ()
    """The source of each query: a label finer than its task, known for training rows only. Empty where the data states
    none.
    """

    def rows(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> Outcomes:
        """The data of those queries alone."""
        places = np.arange(len(self.query_ids))[kept].tolist()
        return Outcomes(**{f.name: _cut(getattr(self, f.name), places, f.name) for f in fields(self)})

    def columns(self, models: Sequence[str]) -> Outcomes:
        """The data of those models alone, in that order. DataError names a model that the data doesn't know."""
        for model in models:
            if model not in self.models:
                raise DataError(f"outcomes.parquet: no model {model!r}; it has {', '.join(self.models)}")
        places = [self.models.index(model) for model in models]
        whole: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        matrices = {name: v[:, places] for name, v in whole.items() if isinstance(v, np.ndarray) and v.ndim == 2}
        return Outcomes(**{**whole, **matrices, "models": tuple(models)})

    def checksum(self) -> str:
        """Checksum of the queries, models and scores that a router was trained on."""
        digest = hashlib.sha256("\n".join((*self.query_ids, "", *self.models)).encode())
        digest.update(np.ascontiguousarray(self.scores).tobytes())
        return digest.hexdigest()


def _cut(value: Any, places: list[int], name: str) -> Any:
    if name == "models" or (name == "sources" and not value):
        return value
    return value[places] if isinstance(value, np.ndarray) else tuple(value[i] for i in places)


def read_outcomes(folder: Path, *, unanswered: bool = False) -> Outcomes:
    """The data of a folder. Raises DataError where it can't be used. `unanswered`: whether queries without any outcome
    are allowed.
    """
    return laid_out(_table(folder / "queries.parquet"), _table(folder / "outcomes.parquet"), unanswered=unanswered)


def fully_priced(data: Outcomes) -> Outcomes:
    """The models with a score and a cost on nearly all queries, on the queries where all of them have both. DataError
    where fewer than two models are left.
    """
    known = np.asarray(np.isfinite(data.scores) & np.isfinite(data.cost_usd))
    kept = [m for m, share in zip(data.models, known.mean(0).tolist(), strict=True) if share >= PRICED_SHARE]
    if len(kept) < 2:
        raise DataError(
            f"outcomes.parquet: field cost_usd: not two models have one on {PRICED_SHARE:.0%} of the queries"
        )
    data = data.columns(kept)
    return data.rows(np.asarray((np.isfinite(data.scores) & np.isfinite(data.cost_usd)).all(1)))


def _table(path: Path) -> dict[str, list[Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error})") from error
    wanted = {"query_id", "task", "subtask", "src", "split", "text", "model", "score", *_NUMBERS}
    return {name: table[name].to_pylist() for name in table.column_names if name in wanted}


def laid_out(queries: dict[str, list[Any]], outcomes: dict[str, list[Any]], *, unanswered: bool = False) -> Outcomes:
    """Columns to matrices, every cell checked."""
    _require("queries.parquet", queries, ("query_id", "text"))
    _require("outcomes.parquet", outcomes, ("query_id", "model", "score"))
    _named("queries.parquet", queries, "query_id")
    for name in ("query_id", "model"):
        _named("outcomes.parquet", outcomes, name)
    ids = [str(value) for value in queries["query_id"]]
    place = _unique(ids)
    texts = _texts(queries["text"])
    splits = _splits(queries.get("split") or [""] * len(ids))
    models = tuple(sorted({str(model) for model in outcomes["model"]}))
    if len(models) < 2:
        raise DataError(f"outcomes.parquet: field model: {len(models)} model(s); routing needs two or more")
    cells = _cells(outcomes, place, {model: j for j, model in enumerate(models)})
    shape = (len(ids), len(models))
    scores = _matrix_of("score", outcomes["score"], cells, shape, (0.0, 1.0), required=True)
    unlabelled = np.flatnonzero(~np.isfinite(scores).any(1))
    if len(unlabelled) and not unanswered:
        first = int(unlabelled[0])
        raise DataError(
            f"queries.parquet: row {first}: query_id {ids[first]!r} has no outcome ({len(unlabelled)} such rows)"
        )
    found = {name: _number(name, outcomes, cells, shape) for name in _NUMBERS}
    checked = found.pop("cost_usd")
    answer = found.pop("answer_cost_usd")
    return Outcomes(
        tuple(ids), texts, _tasks(queries, len(ids)),
        splits, models, scores, np.where(np.isfinite(answer), answer, checked), checked, **found,
        sources=tuple(str(source or "") for source in queries.get("src") or ()),
    )  # fmt: skip


def _require(file: str, table: dict[str, list[Any]], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in table:
            raise DataError(f"{file}: no field {name}")
        if not table[name]:
            raise DataError(f"{file}: no rows")


def _named(file: str, table: dict[str, list[Any]], name: str) -> None:
    for row, value in enumerate(table[name]):
        if value is None or value == "":
            raise DataError(f"{file}: row {row}: field {name}: {value!r} names none")


def _unique(ids: list[str]) -> dict[str, int]:
    place: dict[str, int] = {}
    for row, query_id in enumerate(ids):
        if place.setdefault(query_id, row) != row:
            raise DataError(
                f"queries.parquet: row {row}: field query_id: {query_id!r} was already row {place[query_id]}"
            )
    return place


def _texts(values: list[Any]) -> tuple[str, ...]:
    for row, text in enumerate(values):
        if not isinstance(text, str):
            raise DataError(f"queries.parquet: row {row}: field text: {text!r} is no text")
    return tuple(values)


def _tasks(queries: dict[str, list[Any]], n: int) -> tuple[str, ...]:
    """`task`, or `task/subtask` where the data knows finer ones; empty where it knows none."""
    tasks = [str(task or "") for task in queries.get("task") or [""] * n]
    finer = queries.get("subtask") or [None] * n
    return tuple(f"{task}/{sub}" if sub else task for task, sub in zip(tasks, finer, strict=True))


def _splits(values: list[Any]) -> NDArray[np.str_]:
    for row, split in enumerate(values):
        if (split or "") not in SPLITS:
            raise DataError(f"queries.parquet: row {row}: field split: {split!r} is neither train nor test")
    return np.array([split or "" for split in values], dtype=np.str_)


def _cells(
    outcomes: dict[str, list[Any]], place: dict[str, int], column: dict[str, int]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    rows, columns = [], []
    seen: dict[tuple[int, int], int] = {}
    for row, (query_id, model) in enumerate(zip(outcomes["query_id"], outcomes["model"], strict=True)):
        if str(query_id) not in place:
            raise DataError(f"outcomes.parquet: row {row}: field query_id: {query_id!r} is not in queries.parquet")
        cell = (place[str(query_id)], column[str(model)])
        if seen.setdefault(cell, row) != row:
            raise DataError(
                f"outcomes.parquet: row {row}: query_id {query_id!r} and model {model!r} were already row {seen[cell]}"
            )
        rows.append(cell[0])
        columns.append(cell[1])
    return np.array(rows, np.intp), np.array(columns, np.intp)


def _number(
    name: str,
    outcomes: dict[str, list[Any]],
    cells: tuple[NDArray[np.intp], NDArray[np.intp]],
    shape: tuple[int, int],
) -> Matrix:
    if name not in outcomes:
        return np.full(shape, np.nan)
    low, high = {"propensity": (0.0, 1.0), "confidence": (-np.inf, np.inf)}.get(name, (0.0, np.inf))
    return _matrix_of(name, outcomes[name], cells, shape, (low, high), required=False)


def _matrix_of(
    name: str,
    values: list[Any],
    cells: tuple[NDArray[np.intp], NDArray[np.intp]],
    shape: tuple[int, int],
    bounds: tuple[float, float],
    *,
    required: bool,
) -> Matrix:
    """One column laid out as (n, m). Raises DataError for a null where the field is required, and for a NaN or a number
    out of bounds anywhere. A confidence may be NaN or minus infinity, where the model gave none.
    """
    try:
        numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"outcomes.parquet: field {name}: {error}") from error
    if name == "score":
        numbers = np.where(np.abs(numbers - 0.5) <= 0.5 + OVERSHOOT, np.clip(numbers, 0.0, 1.0), numbers)
    absent = np.array([value is None for value in values])
    bad = ~((numbers >= bounds[0]) & (numbers <= bounds[1]))
    if bounds[1] == np.inf:
        bad |= np.isinf(numbers)
    if name == "propensity":
        bad |= numbers == 0.0
    if name == "confidence":
        bad &= False
    if not required:
        bad &= ~absent
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        end = ")" if bounds[1] == np.inf else "]"
        raise DataError(
            f"outcomes.parquet: row {row}: field {name}: {values[row]!r} is not in "
            f"[{bounds[0]:g}, {bounds[1]:g}{end}" + (" or is zero" if name == "propensity" else "")
        )
    matrix = np.full(shape, np.nan)
    matrix[cells] = numbers
    return matrix
