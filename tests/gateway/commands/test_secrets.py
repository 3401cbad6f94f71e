"""Commands that only read the journal need no secrets for serving; commands that serve do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("HG_")}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "headgate.toml").write_text(CONFIG.format(database="HG_DATABASE"))
    monkeypatch.chdir(tmp_path)


def headgate(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words], env={**ENVIRONMENT, **environment}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "words",
    ["migrate", "versions", "keys list", "keys create app --rpm 5", "export --out found", "batch status",
     "cascade floors"],
)  # fmt: skip
def test_a_command_on_the_database_needs_only_its_secret(words: str) -> None:
    """Without it the error names that secret alone."""
    done = headgate(*words.split(), HG_DATABASE="journal")
    assert done.returncode == 0, done.stderr
    refused = headgate(*words.split())
    assert refused.returncode == 2 and "HG_DATABASE" in refused.stderr
    assert not any(name in refused.stderr for name in ("HG_MASTER", "HG_ACME", "HG_REDIS", "HG_EMBED", "HG_KEY"))


def test_an_unknown_decision_is_looked_for_without_secrets() -> None:
    """`explain` gets as far as the journal."""
    assert headgate("explain", "dec_1", HG_DATABASE="journal").stderr == "no decision has the id 'dec_1'\n"


@pytest.mark.parametrize("words", ["whatif --cost-weight 0.5", "limits", "replay dec_1"])
def test_a_command_that_reads_counters_needs_redis_too(words: str) -> None:
    """It needs no other secret; one that is set is still validated."""
    refused = headgate(*words.split(), HG_DATABASE="journal").stderr
    assert "storage.redis_url" in refused and "HG_REDIS" in refused and "HG_MASTER" not in refused
    wrong = headgate(*words.split(), HG_DATABASE="journal", HG_REDIS="memcached://x").stderr
    assert "storage.redis_url: must start with" in wrong


@pytest.mark.parametrize("words", ["serve", "check-config", "batch run prompts.jsonl"])
def test_serving_needs_every_secret(words: str) -> None:
    """All missing ones are named at once."""
    refused = headgate(*words.split(), HG_DATABASE="journal")
    assert refused.returncode == 2
    for name in ("HG_MASTER", "HG_ACME", "HG_TEAM", "HG_REDIS", "HG_EMBED", "HG_KEY"):
        assert name in refused.stderr, refused.stderr
