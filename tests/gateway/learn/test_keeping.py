"""`headgate keep` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from gateway.commands.learn import add_to
from tests.gateway.learn.folders import COSTS, write_folder

app = typer.Typer()
add_to(app)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", n=400)


def keep(folder: Path, *words: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["keep", "--data", str(folder), "--json", *words])
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_a_single_model_is_the_best_one(folder: Path) -> None:
    """Its worth is that of the test rows, and its distance from all models has an interval."""
    one, *_ = keep(folder)
    assert one["models"] == ["large"] and 0.7 < one["quality"] < 1.0
    assert COSTS["large"] < one["spent"]["cost_usd"] < 2 * COSTS["large"]
    assert abs(one["against_all"]) <= one["half_width"]


def test_a_cost_limit_selects_a_second_model(folder: Path) -> None:
    """Within half of the best model's cost two models together beat any that fits alone, and the limit is kept."""
    most = 0.75e-3
    one, two = keep(folder, "--mean-cost-usd", str(most), "--most", "2")
    assert one["models"] != ["large"] and "large" in two["models"]
    assert two["expected"] > one["expected"] + 0.05 and two["spent"]["cost_usd"] < 1.15 * most


def test_of_equally_good_models_the_cheapest_is_kept(folder: Path) -> None:
    """All models are always right."""
    table = pq.read_table(folder / "outcomes.parquet")
    rows = [row | {"score": 1.0} for row in table.to_pylist()]
    pq.write_table(type(table).from_pylist(rows), folder / "outcomes.parquet")
    assert [one["models"] for one in keep(folder)] == [["small"]]


def test_the_memory_limit_is_kept(folder: Path) -> None:
    """A model that doesn't fit beside another isn't selected with it."""
    sizes = ("--sizes", "small=1,middle=2,large=4", "--memory-gb", "4.5")
    assert all(set(one["models"]) in ({"large"}, {"small", "middle"}) for one in keep(folder, *sizes))


def test_a_missing_outcome_is_left_out(folder: Path) -> None:
    """The figures are of the complete rows; if most are incomplete, there is only the estimate."""
    table = pq.read_table(folder / "outcomes.parquet")
    rows = [r for r in table.to_pylist() if r["model"] != "large" or int(r["query_id"][1:]) % 10 != 8]
    pq.write_table(type(table).from_pylist(rows), folder / "outcomes.parquet")
    assert 0.7 < keep(folder)[0]["quality"] < 1.0
    rows = [r for r in rows if r["model"] != "large" or int(r["query_id"][1:]) % 10 < 7]
    pq.write_table(type(table).from_pylist(rows), folder / "outcomes.parquet")
    assert keep(folder)[0]["quality"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory-gb", "4"], "--sizes NAME=GB"),
        (["--memory-gb", "4", "--sizes", "small=1"], "nothing is said of middle, large"),
        (["--sizes", "small"], "'small' is not NAME=GB"),
        (["--mean-cost-usd", "1e-9"], "no subset"),
        (["--mean-cost-usd", "-1"], "not positive"),
        (["--mean-latency-s", "1"], "latency_s is not known"),
        (["--router", "nobody"], "nobody"),
    ],
)
def test_invalid_limits_are_refused(folder: Path, words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["keep", "--data", str(folder), *words])
    assert result.exit_code == 2 and said in result.stderr


def test_the_report_is_readable_text(folder: Path) -> None:
    result = CliRunner().invoke(app, ["keep", "--data", str(folder), "--most", "2"])
    assert result.exit_code == 0 and result.output.startswith("1: quality 0.") and "against all loaded" in result.output
