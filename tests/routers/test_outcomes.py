from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routers.outcomes import DataError, laid_out, read_outcomes

Columns = dict[str, list[Any]]
QUERIES: Columns = {"query_id": ["q0", "q1"], "text": ["a", "b"], "task": ["t", "u"], "split": ["train", "test"]}
OUTCOMES: Columns = {
    "query_id": ["q0", "q0", "q1"],
    "model": ["m", "n", "n"],
    "score": [1.0, 0.0, 0.5],
    "cost_usd": [0.1, 0.2, None],
    "propensity": [0.5, 1.0, None],
}


def written(folder: Path, queries: Columns, outcomes: Columns) -> Path:
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    pq.write_table(pa.table(outcomes), folder / "outcomes.parquet")
    return folder


def test_scores_and_costs_are_laid_out_by_query_and_model(tmp_path: Path) -> None:
    """What wasn't observed is NaN."""
    data = read_outcomes(written(tmp_path, QUERIES, OUTCOMES))
    assert data.models == ("m", "n")
    assert np.array_equal(data.scores, [[1.0, 0.0], [np.nan, 0.5]], equal_nan=True)
    assert np.array_equal(data.cost_usd, [[0.1, 0.2], [np.nan, np.nan]], equal_nan=True)
    assert np.isnan(data.latency_s).all()


def test_the_answers_own_cost_is_preferred(tmp_path: Path) -> None:
    """Where the price of a self-check is included in the cost, routing pays the answer's cost alone."""
    outcomes = OUTCOMES | {"answer_cost_usd": [0.05, 0.15, 0.25]}
    data = laid_out(QUERIES, outcomes)
    assert data.cost_usd[0].tolist() == [0.05, 0.15]
    assert data.checked_cost_usd[0].tolist() == [0.1, 0.2]


def test_selected_rows_and_columns_have_every_field() -> None:
    """A part of the data has the form of the whole."""
    data = laid_out(QUERIES, OUTCOMES)
    part = data.rows(np.array([False, True])).columns(["n"])
    assert (part.query_ids, part.models, part.scores.tolist(), part.splits.tolist()) == (
        ("q1",), ("n",), [[0.5]], ["test"],
    )  # fmt: skip
    assert part.checksum() != data.checksum()
    with pytest.raises(DataError, match="no model 'x'"):
        data.columns(["x"])


@pytest.mark.parametrize(
    ("table", "field", "value", "message"),
    [
        ("q", "query_id", ["q0", "q0"], r"queries.*row 1.*query_id.*already row 0"),
        ("q", "query_id", ["q0", "q9"], r"outcomes.*row 2.*query_id: 'q1' is not in"),
        ("q", "text", ["a", None], r"queries.*row 1.*text"),
        ("q", "split", ["train", "valid"], r"queries.*row 1.*split: 'valid'"),
        ("o", "query_id", ["q0", "q0", "q0"], r"row 2.*already row 1"),
        ("o", "query_id", ["q0", "q0", None], r"row 2.*query_id: None"),
        ("q", "query_id", ["q0", ""], r"queries.*row 1: field query_id: '' names none"),
        ("o", "model", ["m", None, "m"], r"outcomes.*row 1: field model: None names none"),
        ("o", "model", ["m", "m", "m"], r"row 1.*already row 0|two or more"),
        ("o", "score", [1.0, None, 0.5], r"row 1.*score: None"),
        ("o", "score", [1.0, float("nan"), 0.5], r"row 1.*score: nan"),
        ("o", "score", [1.0, 1.5, 0.5], r"row 1.*score: 1\.5 is not in \[0, 1\]"),
        ("o", "score", ["x", 1.5, 0.5], r"field score"),
        ("o", "cost_usd", [-0.1, 0.0, 0.0], r"row 0.*cost_usd: -0\.1"),
        ("o", "cost_usd", [0.1, float("nan"), 0.0], r"row 1.*cost_usd: nan"),
        ("o", "propensity", [0.5, 0.0, 0.5], r"row 1.*propensity.*is zero"),
        ("o", "propensity", [0.5, 1.1, 0.5], r"row 1.*propensity: 1\.1"),
    ],
)
def test_a_defect_is_named_by_row_and_field(table: str, field: str, value: list[Any], message: str) -> None:
    """The error says where to look."""
    queries, outcomes = copy.deepcopy(QUERIES), copy.deepcopy(OUTCOMES)
    (queries if table == "q" else outcomes)[field] = value
    with pytest.raises(DataError, match=message):
        laid_out(queries, outcomes)


def test_a_query_without_outcome_is_named() -> None:
    """Missing labels are counted, and the first one is named."""
    queries = {name: [*values, values[0]] for name, values in QUERIES.items()} | {"query_id": ["q0", "q1", "q2"]}
    with pytest.raises(DataError, match=r"row 2: query_id 'q2' has no outcome \(1 such"):
        laid_out(queries, OUTCOMES)


def test_one_model_is_refused() -> None:
    """With one model there is nothing to route."""
    with pytest.raises(DataError, match="two or more"):
        laid_out(QUERIES, {"query_id": ["q0", "q1"], "model": ["m", "m"], "score": [1.0, 0.0]})


def test_a_small_overshoot_is_clipped() -> None:
    """Text metrics may exceed [0, 1] by rounding."""
    assert laid_out(QUERIES, OUTCOMES | {"score": [1.01, -0.03, 0.5]}).scores[0].tolist() == [1.0, 0.0]


def test_sub_tasks_are_kept() -> None:
    """A sub-task, where there is one, makes a task of its own."""
    assert laid_out(QUERIES | {"subtask": ["x", None]}, OUTCOMES).tasks == ("t/x", "u")


@pytest.mark.parametrize("field", ["query_id", "model", "score"])
def test_a_missing_field_is_named(field: str) -> None:
    """The error names a missing required field."""
    with pytest.raises(DataError, match=f"no field {field}"):
        laid_out(QUERIES, {name: v for name, v in OUTCOMES.items() if name != field})


def test_empty_data_is_refused(tmp_path: Path) -> None:
    """The error says whether there are no rows, no file, or a file of another kind."""
    with pytest.raises(DataError, match="no rows"):
        laid_out({"query_id": [], "text": []}, OUTCOMES)
    with pytest.raises(DataError, match=r"queries\.parquet: no such file"):
        read_outcomes(tmp_path)
    (tmp_path / "queries.parquet").write_text("x")
    with pytest.raises(DataError, match="not a parquet file"):
        read_outcomes(tmp_path)


def test_sources_are_read_and_selected_with_their_rows() -> None:
    """Most data has no sources."""
    data = laid_out(QUERIES | {"src": ["book", None]}, OUTCOMES)
    assert data.sources == ("book", "")
    assert data.rows(np.array([False, True])).columns(["n"]).sources == ("",)
    assert laid_out(QUERIES, OUTCOMES).rows(np.array([0])).sources == ()
