"""Commands that only read the journal need no secrets for serving; commands that serve do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import Ended, headgate

CONFIG = """
[server]
host = "0.0.0.0"
run_dir = "run"
[storage]
url = "sqlite:///${{{database}}}.db"
redis_url = "${{HG_REDIS}}"
[auth]
master_key = "${{HG_MASTER}}"
[[auth.keys]]
name = "a"
key = "${{HG_KEY}}"
[[auth.keys]]
name = "b"
key = "${{HG_KEY}}"
budget_usd = 1.0
[embedding]
kind = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "e"
dims = 3
api_key = "${{HG_EMBED}}"
[[providers]]
name = "up"
kind = "openai"
base_url = "http://127.0.0.1:9/v1"
api_key = "${{HG_ACME}}"
headers = {{ x-team = "${{HG_TEAM}}" }}
[[models]]
name = "small"
provider = "up"
[[routes]]
name = "auto"
models = ["small"]
"""
Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command beside its configuration, with these secrets only."""
    (tmp_path / "headgate.toml").write_text(CONFIG.format(database="HG_DATABASE"))
    monkeypatch.chdir(tmp_path)

    def run(*words: str, **secrets: str) -> Ended:
        with monkeypatch.context() as patched:
            for name, value in secrets.items():
                patched.setenv(name, value)
            return headgate(*words)

    return run


@pytest.mark.parametrize(
    "words",
    ["migrate", "versions", "keys list", "keys create app --rpm 5", "export --out found", "batch status",
     "cascade floors"],
)  # fmt: skip
def test_a_command_on_the_database_needs_only_its_secret(run: Run, words: str) -> None:
    """Without it the error names that secret alone."""
    done = run(*words.split(), HG_DATABASE="journal")
    assert done.code == 0, done.err
    refused = run(*words.split())
    assert refused.code == 2 and "HG_DATABASE" in refused.err
    assert not any(name in refused.err for name in ("HG_MASTER", "HG_ACME", "HG_REDIS", "HG_EMBED", "HG_KEY"))


def test_an_unknown_decision_is_looked_for_without_secrets(run: Run) -> None:
    """`explain` gets as far as the journal."""
    assert run("explain", "dec_1", HG_DATABASE="journal").err == "no decision has the id 'dec_1'\n"


@pytest.mark.parametrize("words", ["whatif --cost-weight 0.5", "limits", "replay dec_1"])
def test_a_command_that_reads_counters_needs_redis_too(run: Run, words: str) -> None:
    """It needs no other secret; one that is set is still validated."""
    refused = run(*words.split(), HG_DATABASE="journal").err
    assert "storage.redis_url" in refused and "HG_REDIS" in refused and "HG_MASTER" not in refused
    wrong = run(*words.split(), HG_DATABASE="journal", HG_REDIS="memcached://x").err
    assert "storage.redis_url: must start with" in wrong


@pytest.mark.parametrize("words", ["serve", "check-config", "batch run prompts.jsonl"])
def test_serving_needs_every_secret(run: Run, words: str) -> None:
    """All missing ones are named at once."""
    refused = run(*words.split(), HG_DATABASE="journal")
    assert refused.code == 2
    for name in ("HG_MASTER", "HG_ACME", "HG_TEAM", "HG_REDIS", "HG_EMBED", "HG_KEY"):
        assert name in refused.err, refused.err
