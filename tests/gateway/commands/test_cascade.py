"""The cascade's commands on a small folder of outcomes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cascade.artifact import load_cascade
from cascade.routing import RoutedCascade
from gateway.commands.cascade import add_to
from gateway.errors import CallerError
from gateway.journal.schema import migrate
from tests.cascade.worlds import logged, write

app = typer.Typer()
add_to(app)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outcomes")
    log = logged(240)
    splits = np.where(np.arange(240) < 80, "train", "test")
    write(replace(log, data=replace(log.data, splits=splits)), path)
    return path


def run(*arguments: object) -> dict[str, Any]:
    found = CliRunner().invoke(
        app, ["cascade", *map(str, arguments), "--router", "linear", "--json"], catch_exceptions=False
    )
    assert found.exit_code in (0, 1), found.output
    return json.loads(found.stdout)


def test_evaluate_reports_means_over_splits(folder: Path) -> None:
    """One JSON object with quality and cost against the best single model."""
    report = run("evaluate", "--data", folder, "--splits", 1, "--depth", 1)
    assert report["n_queries"] == 240 and report["matching"]["cost_ratio"]["mean"] > 0


def test_train_writes_an_artefact_that_loads(folder: Path, tmp_path: Path) -> None:
    """The trained file is a cascade over the folder's models, from its training rows."""
    found = run("train", "--data", folder, "--out", tmp_path / "c.safetensors", "--depth", 1)
    assert found["n_train"] == 80
    cascade = load_cascade(tmp_path / "c.safetensors")
    assert isinstance(cascade, RoutedCascade) and cascade.posterior.space.models == tuple(found["models"])


@pytest.mark.parametrize(("plan", "tells"), [("frugal", "accept_at"), ("verify", "escalate")])
def test_other_cascades_are_trained_by_name(folder: Path, tmp_path: Path, plan: str, tells: str) -> None:
    """A chain with learned thresholds or verified drafts: a file, and what each share of quality costs."""
    found = run("train", "--data", folder, "--plan", plan, "--out", tmp_path / "c.safetensors")
    assert found["plan"] == plan and found["points"] and all(point[tells] for point in found["points"])
    assert load_cascade(tmp_path / "c.safetensors").best_single == found["best_single_quality"]


def test_certify_gives_or_refuses_a_certificate(folder: Path) -> None:
    """A modest floor is certified on these rows; an extreme one is refused with a reason."""
    given = run("certify", "--data", folder, "--floor", 0.7, "--depth", 1)
    assert given["certified"] and given["rows"] == 240 and given["issued"]
    refused = run("certify", "--data", folder, "--floor", 1.0, "--confidence", 0.9999, "--depth", 1)
    assert not refused["certified"] and refused["reason"]


def test_guarantee_counts_breaches(folder: Path) -> None:
    """The report has the share of splits in which each floor was broken."""
    report = run("guarantee", "--data", folder, "--floors", "0.8", "--splits", 10, "--depth", 1)
    assert 0.0 <= report["0.80"]["broken"] <= 1.0


@pytest.mark.parametrize("more", [["--floor", "0"], ["--tasks", "nothing"]])
def test_invalid_arguments_end_with_one_message(folder: Path, more: list[str]) -> None:
    """These are a floor outside its range and an unknown task."""
    with pytest.raises(CallerError):
        CliRunner().invoke(
            app, ["cascade", "certify", "--data", str(folder), "--router", "linear", *more], catch_exceptions=False
        )


def test_a_table_is_printed_without_json(folder: Path) -> None:
    """Without --json the report is text."""
    found = CliRunner().invoke(
        app, ["cascade", "evaluate", "--data", str(folder), "--splits", "1", "--router", "linear"]
    )
    assert "cost_ratio" in found.stdout and "{" not in found.stdout


def test_floors_show_the_state_of_every_certificate(tmp_path: Path) -> None:
    """Before anything was measured it is "collecting", with the reason."""
    file = tmp_path / "headgate.toml"
    file.write_text(f"""
[storage]
url = "sqlite:///{tmp_path}/journal.db"
[server]
run_dir = "{tmp_path}/run"
[[providers]]
name = "up"
kind = "openai"
base_url = "http://127.0.0.1:1/v1"
[[models]]
name = "small"
provider = "up"
[[models]]
name = "large"
provider = "up"
[[routes]]
name = "auto"
models = ["small", "large"]
cascade = "certified"
min_quality = 0.97
""")
    words = ["cascade", "floors", "--config", str(file), "--step"]
    assert "None" not in CliRunner().invoke(app, words, catch_exceptions=False).output
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)["auto"]
    assert told["state"] == "collecting" and told["reference"] == "large" and "50" in told["why"]


def test_without_floors_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty screen would not show whether anything was examined."""
    monkeypatch.chdir(tmp_path)
    migrate("sqlite:///headgate.db")
    Path("headgate.toml").touch()
    found = CliRunner().invoke(app, ["cascade", "floors"], catch_exceptions=False)
    assert found.exit_code == 0 and "no route has a certified floor" in found.output
    assert CliRunner().invoke(app, ["cascade", "floors", "--json"], catch_exceptions=False).output == "{}\n"
