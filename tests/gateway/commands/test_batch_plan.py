"""`headgate batch plan` as a command: tables, JSON, a plot, and exit status 2 for what can't be planned."""

from __future__ import annotations

import ctypes
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from matplotlib import rc_context
from typer.testing import CliRunner

from gateway.batch.types import Plan
from gateway.commands.batch import _clean_stdout, add_to
from gateway.commands.batch_options import dollars, seconds
from tests.gateway.batch.planned import LARGE, MODELS, SMALL

RUN = CliRunner()
app = typer.Typer()
add_to(app)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration and forty questions."""
    models = "".join(
        f'[[models]]\nname = "{model["name"]}"\nprovider = "up"\n'
        + "".join(f"{key} = {value}\n" for key, value in model.items() if key != "name")
        for model in MODELS
    )
    (tmp_path / "headgate.toml").write_text(
        f'[server]\nrun_dir = "{tmp_path}/run"\n[storage]\nurl = "sqlite:///{tmp_path}/journal.db"\n'
        '[[providers]]\nname = "up"\nkind = "openai"\nbase_url = "http://127.0.0.1:9/v1"\nrpm = 60\n'
        f'{models}[[routes]]\nname = "auto"\nmodels = ["{SMALL}", "{LARGE}"]\ncache = "exact"\n'
    )
    questions = [f"Why is {number} a number?" for number in range(39)] + ["Why is 3 a number?"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in questions))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(*arguments: str, status: int = 0) -> Any:
    """Run the command; its JSON output."""
    result = RUN.invoke(app, ["batch", "plan", *arguments, "--json"])
    assert result.exit_code == status, result.output
    return json.loads(result.stdout)


def test_a_plan_is_shown_before_anything_is_spent(home: Path) -> None:
    """It has cost and quality with intervals, the models, what other budgets buy, and the plan's folder."""
    result = RUN.invoke(app, ["batch", "plan", "in.jsonl", "--budget", "$0.02", "--deadline", "1h"])
    assert result.exit_code == 0, result.output
    words = ("39 prompts", "1 that repeat", "expected cost", "expected quality", "What budgets buy", "chosen", SMALL)
    assert [word for word in (*words, "headgate batch run --plan in.plan") if word not in result.output] == []
    assert Plan.load(home / "in.plan").budget_usd == 0.02


def test_a_plan_has_a_json_form_and_a_plot(home: Path) -> None:
    """The JSON is one object with everything except the prompts; the plot is made if requested."""
    found = planned("in.jsonl", "--budget", "0.02", "--out", "there", "--plot", "plot.png")
    assert found["ok"] and found["prompts"] == 39
    assert found["duplicates"] == {"exact": 1, "semantic": 0}
    assert sum(share["prompts"] for share in found["shares"]) == 39
    chosen = found["chosen"]
    assert chosen["quality"]["low"] <= chosen["quality"]["value"] <= chosen["quality"]["high"]
    assert chosen["cost_usd"]["value"] <= 0.02
    assert len(found["frontier"]) > 3
    assert found["deadline_s"] is None
    assert 0 <= found["gap_share"] < 0.05
    assert (home / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert Plan.load(home / "there").source == "in.jsonl"


def test_a_large_budget_does_not_flatten_the_plot(home: Path) -> None:
    """It is written in the legend, and the frontier keeps its width."""
    for budget, beyond in (("1000", True), ("0.01", False)):
        with rc_context({"svg.fonttype": "none"}):
            planned("in.jsonl", "--budget", budget, "--out", f"plan{budget}", "--plot", "plot.svg")
        assert ("beyond the right edge" in (home / "plot.svg").read_text()) == beyond


def test_bad_lines_are_listed_by_number(home: Path) -> None:
    """They end the command, on a screen and as JSON; with --skip-bad the rest is planned."""
    with (home / "in.jsonl").open("a") as file:
        file.write('{broken\n{"prompt": "x", "model": "nope"}\n')
    result = RUN.invoke(app, ["batch", "plan", "in.jsonl", "--budget", "1"])
    assert result.exit_code == 2
    assert "line 41" in result.output and "line 42" in result.output and "nope" in result.output
    assert [(one["line"], one["code"]) for one in planned("in.jsonl", "--budget", "1", status=2)["problems"]] == [
        (41, "invalid_json"), (42, "model_not_found"),
    ]  # fmt: skip
    assert planned("in.jsonl", "--budget", "1", "--skip-bad")["prompts"] == 39


def test_an_impossible_plan_names_what_would_do(home: Path) -> None:
    """An impossible budget or deadline ends the command with status 2."""
    found = planned("in.jsonl", "--budget", "0.000001", status=2)
    assert 0 < found["least_budget_usd"] < 0.02 and not found["ok"]
    found = planned("in.jsonl", "--budget", "1", "--deadline", "20s", status=2)
    assert found["least_deadline_s"] == pytest.approx(39, rel=0.03)
    assert found["least_budget_usd"] is None


def test_the_command_of_the_package_says_what_is_impossible_in_one_line(home: Path) -> None:
    """The command exits with status 2, without a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "batch", "plan", "in.jsonl", "--budget", "0.000001"],
        capture_output=True, text=True, check=False, env={"PATH": "", "PYTHONPATH": str(ROOT)}, cwd=home,
    )  # fmt: skip
    assert done.returncode == 2
    assert "possible with a budget" in done.stderr and "Traceback" not in done.stderr


def test_problems_are_written_to_standard_error(home: Path) -> None:
    """An unreadable input has one line for the file, and not one for each of its lines."""
    (home / "packed.jsonl").write_bytes(gzip.compress((home / "in.jsonl").read_bytes()))
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "batch", "plan", "packed.jsonl"],
        capture_output=True, text=True, check=False, env={"PATH": "", "PYTHONPATH": str(ROOT)}, cwd=home,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "packed.jsonl: compressed by gzip; give it as plain UTF-8 text\n"


def test_output_of_libraries_is_not_in_the_json(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard output is one JSON object."""
    with _clean_stdout(True):
        ctypes.CDLL(None).puts(b"chatter")
    print("{}", flush=True)
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("{}\n", "chatter\n")


def test_options_for_floors_samples_and_models_are_in_the_plan(home: Path) -> None:
    found = planned("in.jsonl", "--samples", "2,3", "--min-quality", "0.3", "--dedupe", "none", "--concurrency", "4")
    assert [arm["samples"] for arm in found["arms"]] == [1, 1, 2, 2, 3, 3]
    assert found["prompts"] == 40
    assert found["budget_usd"] is None
    assert {"name", "per_s"} <= found["capacities"][-1].keys() and found["capacities"][-1]["name"] == "calls at once"


@pytest.mark.parametrize(
    "words",
    [["--samples", "1"], ["--samples", "x"], ["--dedupe", "maybe"], ["--deadline", "soon"], ["--deadline", "-3h"],
     ["--budget", "lots"], ["--budget", "-1"], ["--min-quality", "2"], ["--route", "nowhere"], ["--pilot", "5"]],
)  # fmt: skip
def test_invalid_options_are_refused(home: Path, words: list[str]) -> None:
    """The exit status is 2, and nothing is planned."""
    result = RUN.invoke(app, ["batch", "plan", "in.jsonl", *words])
    assert result.exit_code != 0
    assert not (home / "in.plan" / "plan.json").exists()


def test_a_pilot_asks_before_it_spends(home: Path) -> None:
    """Answering no to the confirmation ends the command."""
    result = RUN.invoke(app, ["batch", "plan", "in.jsonl", "--budget", "1", "--pilot", "3"], input="n\n")
    assert result.exit_code == 1
    assert "may spend up to $0.02" in result.output


def test_a_failed_pilot_changes_nothing(home: Path) -> None:
    """Its failures cost nothing here, and are counted."""
    found = planned("in.jsonl", "--budget", "1", "--pilot", "2", "--yes")
    pilot = found["pilot"]
    assert pilot["calls"] == pilot["failures"] >= 2
    assert pilot["calls"] + pilot["skipped"] == 4
    assert found["budget_usd"] == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("12h", 43_200), ("90m", 5_400), ("1h30m", 5_400), ("2d", 172_800), ("45", 45), ("1.5h", 5_400)],
)
def test_lengths_of_time(text: str, expected: float) -> None:
    """Lengths of time are read as people write them."""
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "h", "3 years", "0", "-1h", "1h30", "inf", "nan"])
def test_what_is_no_length_of_time(text: str) -> None:
    """A wrong length of time is refused, with an example of a right one."""
    with pytest.raises(typer.BadParameter):
        seconds(text)


@pytest.mark.parametrize(("text", "expected"), [("300", 300), ("$1,200.50", 1_200.5), ("0", 0)])
def test_amounts_of_money(text: str, expected: float) -> None:
    """Amounts are read with or without the dollar sign."""
    assert dollars(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "nan", "inf", "ten"])
def test_what_is_no_amount_of_money(text: str) -> None:
    """Wrong amounts are refused."""
    with pytest.raises(typer.BadParameter):
        dollars(text)
