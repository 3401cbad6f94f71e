"""`headgate probe` as a user runs it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from gateway.commands.learn import add_to
from gateway.learn.probes import plan_of
from routers.outcomes import DataError
from routers.probing import FIRST
from tests.gateway.learn.folders import write_folder

app = typer.Typer()
add_to(app)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """168 training queries; 60 of them, and every other row, lack the outcome of `middle`."""
    folder = write_folder(tmp_path / "data")
    table = pq.read_table(folder / "outcomes.parquet")
    rows = [
        row
        for row in table.to_pylist()
        if row["model"] != "middle" or (int(row["query_id"][1:]) % 2 and int(row["query_id"][1:]) < 100)
    ]
    pq.write_table(type(table).from_pylist(rows), folder / "outcomes.parquet")
    return folder


def test_a_new_model_is_asked_its_first_queries(folder: Path, tmp_path: Path) -> None:
    """It gets as many as needed to judge it, no more, and on queries that others answered."""
    out = tmp_path / "plan.csv"
    arguments = ["probe", "--data", str(folder), "--models", "small,large,new", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["models"]["new"] == {"asked": 0, "mean": None, "error": None, "buy": FIRST}
    assert told["outcomes"] == FIRST and told["leader"] == "large"
    bought = list(csv.DictReader(out.open()))
    assert {row["model"] for row in bought} == {"new"} and len({row["query_id"] for row in bought}) == FIRST
    assert all(int(row["query_id"][1:]) % 10 < 7 for row in bought), "a test query"


def test_a_contender_is_asked_further(folder: Path) -> None:
    """Once every model has outcomes, further ones are bought of those that may be best, and none that is known."""
    plan = plan_of(folder, cells=40)
    assert 0 < len(plan.cells) <= 40
    assert {model for _, model in plan.cells} == {"middle"}
    assert len(set(plan.cells)) == len(plan.cells)
    known = {(row["query_id"], row["model"]) for row in pq.read_table(folder / "outcomes.parquet").to_pylist()}
    assert not known & set(plan.cells)


def test_queries_without_any_outcome_may_be_bought(folder: Path) -> None:
    """An empty table is no error here, although no router can be trained on it."""
    rows = [row for row in pq.read_table(folder / "outcomes.parquet").to_pylist() if int(row["query_id"][1:]) < 3]
    pq.write_table(pq.read_table(folder / "outcomes.parquet").from_pylist(rows), folder / "outcomes.parquet")
    plan = plan_of(folder, cells=1000)
    assert [sum(one == model for _, one in plan.cells) for model in plan.models] == [
        FIRST - asked for asked in plan.asked
    ]


def test_the_report_is_readable_text(folder: Path) -> None:
    """The output without --json has a line per model and one on the next step."""
    result = CliRunner().invoke(app, ["probe", "--data", str(folder), "--models", "small,large"])
    assert result.exit_code == 0 and "best so far: large" in result.output and "0 outcomes to buy" in result.output


@pytest.mark.parametrize("models", [["large"], ["large", "large"], ["x", "y"]])
def test_nothing_to_choose_between_is_refused(folder: Path, models: list[str]) -> None:
    """These are a single model, one named twice, and models without outcomes."""
    with pytest.raises(DataError, match="models"):
        plan_of(folder, models)
