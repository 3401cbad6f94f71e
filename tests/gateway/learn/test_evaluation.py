from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from matplotlib import rc_context
from typer.testing import CliRunner

from gateway.commands.learn import add_to
from gateway.learn.evaluation import evaluated
from routers.estimators.base import folds
from routers.outcomes import DataError
from routers.registry import load_router
from tests.cascade.worlds import logged, write
from tests.gateway.learn.folders import write_folder

app = typer.Typer()
add_to(app)
RUN = CliRunner()
FIGURES = {
    "aiq", "aiq_repo", "max_quality", "quality_at_10", "quality_at_50",
    "cost_saved_100", "cost_saved_99", "cost_saved_95",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


def report_of(*arguments: str) -> dict[str, Any]:
    fewer = ["--resamples", "20"] if arguments[0] == "evaluate" else []
    result = RUN.invoke(app, [*arguments, *fewer, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_the_report_has_every_figure(folder: Path) -> None:
    """Every policy has every figure with its interval, and the operating point has its own two."""
    report = report_of("evaluate", "--data", str(folder), "--router", "linear")
    assert report["n_queries"] == 72
    assert report["models"] == ["large", "middle", "small"]
    for policy in ("router", "task_mean", "zero_router", "best_single", "oracle"):
        assert report[policy].keys() >= FIGURES
        assert all(cell.keys() == {"value", "low", "high"} for cell in report[policy].values())
    assert report["operating_point"].keys() >= {"quality_difference", "cost_ratio"}


def test_a_router_that_reads_the_query_beats_the_zero_router(folder: Path) -> None:
    """Where texts tell hard from easy questions, AIQ rises and money is saved."""
    report, _, _ = evaluated("default", folder, resamples=20)
    assert report["router"]["aiq"]["value"] > report["zero_router"]["aiq"]["value"] + 0.02
    assert report["router"]["cost_saved_95"]["value"] > 0.2
    assert report["operating_point"]["cost_ratio"]["value"] < 0.95


def test_an_artefact_scores_as_its_router_by_name(folder: Path, tmp_path: Path) -> None:
    """It was trained on the same training rows."""
    out = tmp_path / "linear.safetensors"
    found = report_of("train", "--data", str(folder), "--router", "linear", "--out", str(out))
    assert found["n_train"] == 148  # of 168 queries twenty are also in the test split
    assert found["metrics"]["brier"] < found["metrics"]["brier_of_means"]
    assert load_router(out).name == "linear"
    by_file = report_of("evaluate", "--data", str(folder), "--router", str(out))
    by_name = report_of("evaluate", "--data", str(folder), "--router", "linear")
    assert by_file["router"]["aiq"]["value"] == pytest.approx(by_name["router"]["aiq"]["value"], abs=1e-6)


def rewritten(folder: Path, target: Path, **columns: Callable[[int, Any], Any]) -> Path:
    """The folder with some columns of its tables replaced by a function of row and value."""
    target.mkdir()
    for name in ("queries", "outcomes"):
        table = pq.read_table(folder / f"{name}.parquet").to_pydict()
        for column in columns.keys() & table.keys():
            table[column] = [columns[column](row, value) for row, value in enumerate(table[column])]
        pq.write_table(pa.table(table), target / f"{name}.parquet")
    return target


def test_queries_of_the_test_split_are_not_trained_on(folder: Path, tmp_path: Path) -> None:
    """A training query that equals a test query up to case and spaces is left out and reported; if most queries recur,
    all are kept, and that is reported.
    """
    test = [one for one in pq.read_table(folder / "queries.parquet").to_pylist() if one["split"] == "test"]

    def leak(row: int, text: str) -> str:
        if row < 5:
            return f"  {test[row]['text'].upper()}"
        return text if row % 10 > 6 else f"{text} {row}"

    leaking = rewritten(folder, tmp_path / "leaking", text=leak)
    report = report_of("evaluate", "--data", str(leaking), "--router", "knn")
    assert report["left_out"] == {"models": [], "queries": 0, "repeated": 5, "recurring": 0}
    assert report["n_train"] == 163
    table = RUN.invoke(app, ["evaluate", "--data", str(leaking), "--router", "knn", "--resamples", "5"]).output
    assert "left out: 5 training queries that are test queries too" in table
    same = rewritten(folder, tmp_path / "same", text=lambda row, _: test[row % 2]["text"])
    report = report_of("evaluate", "--data", str(same), "--router", "knn")
    assert report["n_train"] == 168 == report["left_out"]["recurring"]


def test_equal_queries_share_a_fold() -> None:
    """No row is predicted from its duplicate, unless there is hardly any other row."""
    fold = folds([*"abcdefgh" * 3, *range(30)], 4, 0)
    assert (fold[:8] == fold[8:16]).all() and (fold[:8] == fold[16:24]).all() and len(set(fold.tolist())) == 4
    assert len(set(folds(["same"] * 20, 4, 0).tolist())) == 4


def test_left_out_data_is_reported(folder: Path, tmp_path: Path) -> None:
    """This is a model that rarely has a cost, and queries with a gap."""
    gaps = {0, 5, *range(1, 600, 3)}
    holes = rewritten(folder, tmp_path / "holes", cost_usd=lambda row, usd: None if row in gaps else usd)
    report = report_of("evaluate", "--data", str(holes), "--router", "knn")
    assert report["models"] == ["large", "small"]
    assert report["left_out"]["models"] == ["middle"] and report["left_out"]["queries"] == 2


@pytest.mark.parametrize("score", [1.0, 0.0])
def test_undefined_figures_are_null(folder: Path, tmp_path: Path, score: float) -> None:
    """If all answers are right or wrong, or free, the value is null, and so is its interval."""
    flat = rewritten(folder, tmp_path / "flat", score=lambda *_: score, cost_usd=lambda *_: 0.0)
    output = RUN.invoke(app, ["evaluate", "--data", str(flat), "--router", "knn", "--resamples", "5", "--json"]).output
    report = json.loads(output, parse_constant=pytest.fail)
    assert report["calibration"]["auroc"] is None
    assert report["operating_point"]["cost_ratio"] == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_figures_do_not_depend_on_the_unit_of_cost(folder: Path, tmp_path: Path, factor: float) -> None:
    """Models a thousand times cheaper or more expensive are routed in the same way."""
    other = rewritten(folder, tmp_path / "other", cost_usd=lambda _, usd: usd * factor)
    (mine, theirs) = (report_of("evaluate", "--data", str(one), "--router", "linear") for one in (folder, other))
    for name in ("router", "task_mean", "oracle"):
        assert theirs[name]["aiq"]["value"] == pytest.approx(mine[name]["aiq"]["value"], abs=2e-3)
    ratios = [one["operating_point"]["cost_ratio"]["value"] for one in (mine, theirs)]
    assert ratios[1] == pytest.approx(ratios[0], abs=0.02)


def test_costs_may_be_given(folder: Path, tmp_path: Path) -> None:
    """They may be, for example, millions of active parameters if the data has no prices; models without one are left
    out.
    """
    bare = write_folder(tmp_path / "bare", priced=False)
    stated = report_of("evaluate", "--data", str(bare), "--router", "domain", "--costs", "small=8,middle=14,large=70")
    assert stated["cost"] == "as stated per call" and stated["best_single"]["cost_saved_99"]["value"] == 0.0
    point = stated["operating_point"]
    assert 8.0 <= point["mean_cost"]["low"] < point["mean_cost"]["value"] < 70.0
    assert point["cost_ratio"]["value"] == pytest.approx(point["mean_cost"]["value"] / 70.0)
    assert stated["best_single_model"] == "large"
    two = report_of("evaluate", "--data", str(bare), "--router", "domain", "--costs", "small=8,large=70")
    assert two["models"] == ["large", "small"] and two["left_out"]["models"] == ["middle"]


def test_another_folder_may_train(folder: Path, tmp_path: Path) -> None:
    """With --train-data all rows of --data are tested."""
    other = write_folder(tmp_path / "other", n=200, seed=3)
    report = report_of("evaluate", "--data", str(folder), "--train-data", str(other), "--router", "linear")
    assert (report["n_queries"], report["n_train"]) == (240, 132)


def test_one_pair_of_models_may_stand_for_another(folder: Path, tmp_path: Path) -> None:
    """With --trained-on the strong model has the scores of the stronger stand-in, and prices of its own."""
    two = tmp_path / "two"
    two.mkdir()
    table = pq.read_table(folder / "outcomes.parquet")
    others = [f"{name}-too" for name in table["model"].to_pylist()]
    flat = pa.table({**{name: table[name] for name in table.column_names}, "model": others})
    level = pa.array([0.6 if name == "large-too" else 0.4 for name in others])
    flat = flat.set_column(flat.column_names.index("score"), "score", level)
    pq.write_table(pa.concat_tables([table, flat]), two / "outcomes.parquet")
    (two / "queries.parquet").write_bytes((folder / "queries.parquet").read_bytes())
    pair = ["--router", "linear", "--models", "small,large"]
    own = report_of("evaluate", "--data", str(folder), *pair)
    blind = report_of("evaluate", "--data", str(two), *pair, "--trained-on", "small-too,large-too")
    assert blind["models"] == ["small", "large"] and blind["n_train"] == own["n_train"]
    assert blind["best_single"]["aiq"] == own["best_single"]["aiq"]
    assert blind["router"]["apgr"]["value"] < own["router"]["apgr"]["value"] - 0.1
    for wrong in ("large-too", "small,large", "small-too,nobody"):
        refused = RUN.invoke(app, ["evaluate", "--data", str(two), *pair, "--trained-on", wrong])
        assert refused.exit_code == 2 and len(refused.output.strip().splitlines()) == 1


def test_two_models_without_prices_get_apgr(tmp_path: Path) -> None:
    """Without costs the calls to the strong model are counted."""
    pair = write_folder(tmp_path / "pair", models=("small", "large"), priced=False)
    report = report_of("evaluate", "--data", str(pair), "--router", "linear")
    assert report["cost"].startswith("share of calls")
    assert report["router"]["apgr"]["value"] > 0.6
    assert report["oracle"]["apgr"]["value"] > report["router"]["apgr"]["value"] + 0.1
    assert {"cpt50", "cpt80"} <= report["router"].keys()


def test_models_tasks_and_rows_can_be_selected(folder: Path) -> None:
    """These are a part of the pool, of the tasks and of the training rows."""
    report, _, _ = evaluated("linear", folder, models=["small", "large"], tasks=["hard"], limit=30, resamples=20)
    assert report["models"] == ["small", "large"]
    assert report["n_train"] == 30
    assert report["n_queries"] < 72


def test_the_report_has_a_table_and_a_plot(folder: Path, tmp_path: Path) -> None:
    """The output without --json has lines of figures, and --plot writes a picture."""
    picture = tmp_path / "frontier.png"
    result = RUN.invoke(
        app, ["evaluate", "--data", str(folder), "--router", "task-mean", "--resamples", "20", "--plot", str(picture)]
    )
    assert result.exit_code == 0
    assert "aiq" in result.output and "operating point" in result.output
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("what", [("--router", "linear", "--beside", "knn"), ("--cascade", "routing")])
def test_the_plot_shows_what_the_table_shows(tmp_path: Path, what: tuple[str, ...]) -> None:
    """Every policy has its name, cascades and other routers included; so have the models and the axes."""
    log = logged(160)
    write(replace(log, data=replace(log.data, splits=np.where(np.arange(160) < 80, "train", "test"))), tmp_path)
    picture = tmp_path / "frontier.svg"
    with rc_context({"svg.fonttype": "none"}):
        report = report_of("evaluate", "--data", str(tmp_path), *what, "--plot", str(picture))
    drawn = picture.read_text()
    named = {name.replace("_", " ") for name in report if isinstance(report[name], dict) and "aiq" in report[name]}
    words = {*named - {"best single"}, *report["models"], "dollars per 1,000 queries", "80 test queries"}
    assert {word for word in words if " minus " not in word and word not in drawn} == set()
    assert "cascade" in drawn if "--cascade" in what else "knn" in drawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--costs", "small=x"], "small=x' is not NAME=COST"),
        (["--costs", "tiny=1"], "no model 'tiny'"),
        (["--costs", "small=-1"], "must be finite and at least 0"),
        (["--router", "nonesuch/router"], "no such file"),
        (["--router", "weighted"], "'weighted' does not learn; those that do: default, task-mean"),
        (["--router", "knn", "--beside", "linear,weighted"], "'weighted' does not learn"),
        (["--router", "linear", "--models", "small,ghost"], "no model 'ghost'"),
        (["--router", "linear", "--tasks", "ghost"], "no row of ghost"),
        (["--router", "linear", "--models", "small"], "1 model"),
    ],
)
def test_invalid_arguments_are_one_line(folder: Path, arguments: list[str], message: str) -> None:
    """It is on standard error, with exit status 2."""
    result = RUN.invoke(app, ["evaluate", "--data", str(folder), *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_data_without_a_test_split_is_refused(tmp_path: Path) -> None:
    """There is nothing to report on, which is an error."""
    import pyarrow.parquet as pq

    folder = write_folder(tmp_path / "d")
    queries = pq.read_table(folder / "queries.parquet").drop_columns(["split"])
    pq.write_table(queries, folder / "queries.parquet")
    with pytest.raises(DataError, match="field split"):
        evaluated("linear", folder)


def test_other_routers_are_compared(folder: Path) -> None:
    """Each has its figures on the same rows and the paired difference, in a column of the table; a router that doesn't
    learn is refused.
    """
    words = ["evaluate", "--data", str(folder), "--router", "linear", "--beside", "linear,factor"]
    report = report_of(*words)
    assert report["linear"] == report["router"]
    assert report["router_minus_linear"]["aiq"]["value"] == 0.0
    assert report["factor"].keys() >= FIGURES
    shown = RUN.invoke(app, [*words, "--resamples", "20"])
    assert "factor" in shown.output.splitlines()[1]
    refused = RUN.invoke(app, ["evaluate", "--data", str(folder), "--beside", "rules"])
    assert refused.exit_code == 2
    assert "does not learn" in refused.output


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_progress_is_shown_on_a_terminal_only(folder: Path, tmp_path: Path, command: str) -> None:
    """There is a bar on standard error, and the output has no trace of it."""
    screen, terminal = pty.openpty()
    words = ("--out", str(tmp_path / "r.safetensors")) if command == "train" else ("--resamples", "5")
    done = subprocess.Popen(
        [sys.executable, "-m", "gateway", command, "--data", str(folder), "--router", "linear", *words, "--json"],
        stdout=subprocess.PIPE, stderr=terminal, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    with suppress(OSError):  # EIO: the other end is closed
        while part := os.read(screen, 4096):
            seen += part
    os.close(screen)
    assert json.loads(done.communicate()[0]) and done.returncode == 0
    assert {"train": b"training", "evaluate": b"evaluating"}[command] in seen


def test_training_reports_its_result_and_the_next_step(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "linear.safetensors"
    told = RUN.invoke(app, ["train", "--data", str(folder), "--router", "linear", "--out", str(out)]).output
    assert f"{out}: from 148 queries, for large, middle, small" in told and "brier of means" in told
    assert f"headgate promote ROUTE {out}" in told


def test_a_log_with_one_answer_per_query_names_the_right_command(tmp_path: Path) -> None:
    """In an export of the journal no query was answered by all models, so another command values it."""
    import pyarrow.parquet as pq

    path = write_folder(tmp_path / "log")
    answers = pq.read_table(path / "outcomes.parquet").to_pylist()
    one = [row for at, row in enumerate(answers) if at % 3 == at // 3 % 3]
    pq.write_table(pa.Table.from_pylist(one), path / "outcomes.parquet")
    result = RUN.invoke(app, ["evaluate", "--data", str(path), "--router", "linear"])
    assert result.exit_code == 2 and "headgate whatif --data" in result.output
