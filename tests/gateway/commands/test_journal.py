"""The journal's commands refuse invalid values in one line, before anything is stored."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from msgspec.structs import replace
from typer.testing import CliRunner, Result

from gateway.commands.journal import add_to
from gateway.config.settings import read_settings
from gateway.errors import CallerError, ConfigError
from gateway.journal.store import open_store
from gateway.journal.write import write_records
from tests.command import headgate
from tests.gateway.journal.records import decision, feedback

CONFIG = """
[server]
run_dir = "run"
[storage]
url = "sqlite:///journal.db"
[[providers]]
name = "up"
kind = "scripted"
[[models]]
name = "small"
provider = "up"
[[routes]]
name = "auto"
models = ["small"]
"""
app = typer.Typer()
add_to(app)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "headgate.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.parametrize(
    "words", [("--budget-period", "fortnight"), ("--rpm", "0"), ("--tpm", "-5")],
)
def test_an_invalid_limit_or_period_is_refused(words: tuple[str, ...]) -> None:
    """The error has its name, and no worker gets the key."""
    found = run("keys", "create", "app", *words)
    assert found.exit_code == 2 and words[0] in found.output
    assert read_settings("run").keys == ()


@pytest.mark.parametrize(
    "words",
    [("--budget-usd", "nan"), ("--budget-usd", "-1"), ("--budget-usd", "1e300"), ("--model", "atuo"), ("--tenant", "")],
)
def test_an_invalid_budget_or_model_of_a_key_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(CallerError, match=words[0]):
        run("keys", "create", "app", *words)
    assert read_settings("run").keys == ()


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 201])
def test_a_key_without_a_readable_name_is_refused(name: str) -> None:
    """It couldn't be told apart from others, and no worker gets it."""
    with pytest.raises(CallerError, match=r"^NAME: "):
        run("keys", "create", name)
    assert read_settings("run").keys == ()


@pytest.mark.parametrize("words", [("--budget-usd", "1"), ("--rpm", "5"), ("--tpm", "5")])
def test_a_limit_that_workers_cannot_share_is_refused(words: tuple[str, ...]) -> None:
    """Without Redis each of two workers would grant all of it; it is refused when the key is made, or when two workers
    are to start.
    """
    assert run("keys", "create", "app", *words).exit_code == 0
    file = Path("headgate.toml")
    started = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--workers", "2"], capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert started.returncode == 2 and "--workers: more than one share their budgets" in started.stderr
    file.write_text(file.read_text().replace("[server]", "[server]\nworkers = 2"))
    with pytest.raises(CallerError, match=f"{words[0]}: more than one share their budgets"):
        run("keys", "create", "other", *words)
    assert run("keys", "create", "other").exit_code == 0


def test_a_second_key_of_a_name_is_refused_and_the_first_stays() -> None:
    """Names tell keys apart; the message says what to do."""
    assert run("keys", "create", "app", "--rpm", "5", "--budget-period", "week", "--model", "auto").exit_code == 0
    with pytest.raises(CallerError, match="'app' exists; revoke it first"):
        run("keys", "create", "app")
    (key,) = read_settings("run").keys
    assert (key.rpm, key.budget_period, key.models) == (5, "week", ("auto",))
    assert key.id in run("keys", "list").stdout


def test_listed_keys_fit_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, tenants and budgets are not cut."""
    monkeypatch.setenv("COLUMNS", "80")
    run("keys", "create", "checkout", "--tenant", "storefront", "--budget-usd", "1500")
    listed = run("keys", "list").output
    assert all(word in listed for word in ("checkout", "storefront", "all", "$1,500/month"))
    assert max(map(len, listed.splitlines())) <= 80


def test_a_rotated_key_keeps_its_id_and_shows_no_hash() -> None:
    """Only the secret is new. An invalid or too long grace period, and an unknown key, are refused."""
    assert run("keys", "create", "app").exit_code == 0
    (key,) = read_settings("run").keys
    told = run("keys", "rotate", key.id, "--grace", "90m")
    (turned,) = read_settings("run").keys
    assert told.exit_code == 0 and "earlier secrets stay valid until" in told.output
    assert turned.id == key.id and turned.earlier[0].key_hash == key.key_hash != turned.key_hash
    shown = run("keys", "list", "--json").stdout
    assert key.key_hash not in shown and turned.key_hash not in shown and "earlier_until_s" in shown
    for words in ("soon", "91d"):
        assert run("keys", "rotate", key.id, "--grace", words).exit_code == 2
    with pytest.raises(CallerError, match="no key has the id"):
        run("keys", "rotate", "key_none")
    assert read_settings("run").keys == (turned,)
    assert "stop working within two seconds" in run("keys", "rotate", key.id, "--grace", "0").output


def test_a_file_that_is_no_artefact_is_not_promoted() -> None:
    """It is refused by name, and the route keeps its version."""
    with pytest.raises(CallerError, match=r"not an artefact.*nothing was promoted"):
        run("promote", "auto", "headgate.toml")
    with pytest.raises(CallerError, match=r"^typo\.safetensors: no such file"):
        run("promote", "auto", "typo.safetensors")
    assert read_settings("run").routers == {}


def test_an_empty_export_says_why() -> None:
    """It is no error, but the message says which decisions are exported."""
    found = run("export", "--out", "outcomes")
    assert found.exit_code == 0 and "0 queries, 0 outcomes; only scored decisions are exported" in found.output


def test_an_export_of_an_unknown_route_is_refused() -> None:
    """A route that was removed from the configuration is exported as long as the journal has it."""
    store = open_store("sqlite:///journal.db")
    with store.engine.begin() as connection:
        write_records(connection, [replace(decision(1), route="gone"), feedback(1, 1.0)])
    with pytest.raises(CallerError, match="no route is called 'misspelt'"):
        run("export", "--route", "misspelt", "--out", "outcomes")
    assert "1 queries" in run("export", "--route", "gone", "--out", "outcomes").output


def test_a_journal_in_a_missing_folder_is_refused() -> None:
    """The file would be created, but not its folder."""
    path = Path("headgate.toml")
    path.write_text(path.read_text().replace("journal.db", "nowhere/journal.db"))
    with pytest.raises(ConfigError, match=r"storage\.url: nowhere is no folder"):
        run("keys", "list")


def test_an_export_of_one_model_warns_about_training() -> None:
    """Traffic that always went to one model teaches nothing about the others."""
    store = open_store("sqlite:///journal.db")
    with store.engine.begin() as connection:
        write_records(connection, [decision(1), feedback(1, 1.0)])
    found = run("export", "--out", "outcomes")
    assert "1 outcomes of small; training a router takes two models or more: set `explore`" in found.output


@pytest.mark.parametrize(
    "words",
    ["versions", "keys list", "explain dec_1", "migrate", "replay dec_1", "batch run prompts.jsonl --budget 1"],
)
@pytest.mark.parametrize(
    ("lies_there", "fault"),
    [(b"", "unable to open database file"), (b"no database" * 100, "file is not a database")],
)
def test_a_database_that_is_away_is_reported_in_one_line(words: str, lies_there: bytes, fault: str) -> None:
    """The message names the key in the configuration, and has neither the URL nor a traceback."""
    Path("journal.db").write_bytes(lies_there) if lies_there else Path("journal.db").mkdir()
    Path("prompts.jsonl").write_text('{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "hi"}]}}\n')
    done = headgate(*words.split())
    assert done.err == f"storage.url: the database can't be used: {fault}\n"
    assert done.code == 2


def test_a_migration_reports_what_it_did() -> None:
    """It lists the applied revisions, or says that there was nothing to do."""
    first, second = run("migrate"), run("migrate")
    assert first.output.startswith("applied 0001, ") and first.output.endswith("; the schema is up to date\n")
    assert second.output == "the schema is up to date\n"


def test_an_explained_decision_has_its_status(tmp_path: Path) -> None:
    """It has an error where there was one; brackets in names are not markup."""
    store = open_store(f"sqlite:///{tmp_path}/journal.db")
    far = {"why": "far", "similarity": 0.25}
    with store.engine.begin() as connection:
        write_records(connection, [
            decision(1, reason="a [/b]", cases_shown=1), decision(2, status=502, error="reset", cache_why=far),
            decision(3, cases_shown=0),
        ])  # fmt: skip
    store.close()
    assert "auto -> small (200)" in run("explain", "dec_1").output and "a [/b]" in run("explain", "dec_1").output
    assert "(502 reset)" in run("explain", "dec_2").output
    assert "semantic cache: no question before was near enough (similarity 0.250)" in run("explain", "dec_2").output
    assert "semantic cache" not in run("explain", "dec_1").output
    assert "1 solved case was shown" in run("explain", "dec_1").output
    assert "solved cases" not in run("explain", "dec_2").output
    assert "solved cases were found but withheld" in run("explain", "dec_3").output


def test_an_explained_decision_fits_a_narrow_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures continue on the next line, and none is cut."""
    store = open_store(f"sqlite:///{tmp_path}/journal.db")
    with store.engine.begin() as connection:
        write_records(connection, [decision(1)])
    store.close()
    assert "…" not in run("explain", "dec_1").output
    monkeypatch.setenv("COLUMNS", "40")
    narrow = run("explain", "dec_1").output
    assert "…" not in narrow and max(map(len, narrow.splitlines())) <= 40
