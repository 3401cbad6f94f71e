"""`headgate whatif`, `headgate learn` and `headgate limits` as an operator runs them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from gateway.commands.loop import add_to
from gateway.config.overlay import Overlay
from gateway.config.settings import change_settings
from gateway.journal.record import FeedbackRecord
from gateway.journal.store import open_store
from gateway.journal.write import write_records
from gateway.promote import Versions
from routers.registry import load_router
from routers.simple import Weighted
from tests.gateway.learn.world import PRICE, Town


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A route whose journal has 400 scored decisions of a uniform draw."""
    lines = [f'[server]\nrun_dir = "{tmp_path}/run"\n[storage]\nurl = "sqlite:///{tmp_path}/j.db"\n'
             '[[providers]]\nname = "up"\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n']
    lines += [f'[[models]]\nname = "{name}"\nprovider = "up"\ninput_usd_per_mtok = {usd}\n'
              f'output_usd_per_mtok = {4 * usd}\n' for name, usd in PRICE.items()]
    lines.append(f'[[routes]]\nname = "auto"\nmodels = {json.dumps(list(PRICE))}\nrouter = "linear"\nexplore = 0.2\n')
    path = tmp_path / "headgate.toml"
    path.write_text("".join(lines))
    rows = Town(1).decisions(Weighted(), 400)
    said = [FeedbackRecord(id=f"fb{record.id}", time_s=record.time_s, decision_id=record.id, tenant="t", score=score)
            for record, score in rows]
    store = open_store(f"sqlite:///{tmp_path}/j.db")
    with store.engine.begin() as connection:
        write_records(connection, [*(record for record, _ in rows), *said])
    store.close()
    return path


def run_command(config: Path, *words: str) -> tuple[int, str]:
    app = typer.Typer()
    add_to(app)
    done = CliRunner().invoke(app, [*words, "--config", str(config)])
    return done.exit_code, done.output or str(done.exception)


def test_whatif_answers_for_a_knob(config: Path) -> None:
    """Each figure has an interval, and the JSON says how much the log supports."""
    code, output = run_command(config, "whatif", "--cost-weight", "0.9", "--json")
    assert code == 0, output
    answer = json.loads(output)
    assert answer["rounds"] == 400 and answer["effective_rounds"] > 50
    for name in ("quality", "cost_usd", "latency_s"):
        assert answer[name]["then"]["low"] < answer[name]["then"]["value"] < answer[name]["then"]["high"]
    assert answer["shares"]["then"]["small"] > 0.5


def test_whatif_starts_from_the_knobs_in_force(config: Path, tmp_path: Path) -> None:
    """A knob changed on the dashboard counts, and not the file's; providers' secrets aren't needed."""
    config.write_text(config.read_text().replace('kind = "openai"', 'kind = "openai"\napi_key = "${NOT_SET_HERE}"'))
    _, output = run_command(config, "whatif", "--cost-weight", "0.95", "--json")
    wanted = json.loads(output)["shares"]["then"]
    _, output = run_command(config, "whatif", "--json")
    assert json.loads(output)["shares"]["then"] != wanted
    overlay = Overlay(routes={"auto": {"cost_weight": 0.95}})
    change_settings(tmp_path / "run", lambda held: msgspec.structs.replace(held, overlay=overlay))
    code, output = run_command(config, "whatif", "--json")
    assert code == 0, output
    assert json.loads(output)["shares"]["then"] == wanted


def test_whatif_shows_a_table(config: Path) -> None:
    """The output without --json is a table."""
    code, output = run_command(config, "whatif", "--models", "small,middle")
    assert code == 0 and "would be" in output and "large 33% -> 0%" in output.replace("\n", " ")


def test_learn_takes_one_step(config: Path) -> None:
    """From the journal alone a candidate is trained, passes the gate and becomes the shadow."""
    code, output = run_command(config, "learn", "--once", "--json")
    assert code == 0, output
    assert json.loads(output)["action"] == "shadow", output


@pytest.mark.parametrize(("words", "kind"), [((), "knn"), (("--router", "linear"), "linear")])
def test_learn_trains_the_routes_own_router(config: Path, tmp_path: Path, words: tuple[str, ...], kind: str) -> None:
    """Without an option it is the route's `learn_router`, as in the gateway's own loop."""
    config.write_text(config.read_text() + 'learn_router = "knn"\n')
    code, output = run_command(config, "learn", "--once", "--json", *words)
    assert code == 0, output
    store = open_store(f"sqlite:///{tmp_path}/j.db")
    (version,) = Versions(store, str(tmp_path / "run")).list("auto")
    store.close()
    assert load_router(Path(version.artifact)).name == kind


def test_limits_are_reported_per_model(config: Path) -> None:
    """Every answer in the journal took 100 tokens, so each model's best limit is the next one above."""
    code, output = run_command(config, "limits", "--json")
    assert code == 0, output
    models = {one["model"]: one for one in json.loads(output)}
    assert set(models) == set(PRICE)
    assert all(one["best"] == 128 and one["cut"] == 0 for one in models.values())
    code, output = run_command(config, "limits")
    assert code == 0 and "best limit" in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("whatif", "--route", "nowhere"), "no route is called 'nowhere'"),
        (("whatif", "--models", "unknown"), "has none of these models"),
        (("whatif", "--accept-at", "0.5", "--cost-weight", "0.2"), "can't be combined"),
        (("limits", "--route", "nowhere"), "no route is called 'nowhere'"),
        (("learn", "--route", "nowhere", "--once"), "no route is called 'nowhere'"),
        (("learn", "--router", "knnn", "--once"), "router 'knnn' does not learn"),
    ],
)
def test_an_impossible_question_is_refused(config: Path, words: tuple[str, ...], said: str) -> None:
    """The error is a clear sentence, and the exit status isn't zero."""
    code, output = run_command(config, *words)
    assert code != 0 and said in output
