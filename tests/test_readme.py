"""The README is executed: what it shows must work unchanged. `test_documents` checks the commands that it names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway.config.load import parse
from tests.live import served
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def blocks(language: str) -> list[str]:
    found = [text for kind, text in BLOCKS if kind == language]
    assert found, language
    return found


async def test_the_python_blocks_run_against_the_embedded_defaults(tmp_path: Path) -> None:
    """Each Python block, unchanged but for the port, talks to `headgate serve` with its shipped models."""
    port = free_port()
    config = tmp_path / "headgate.toml"
    config.write_text(embedded_as_toml(port, tmp_path))
    async with served(config):
        for block in blocks("python"):
            code = block.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
            assert done.returncode == 0, done.stderr
            first = done.stdout.splitlines()[0]
            assert json.loads(first) == json.loads(re.findall(r"# (\{.*\})", block)[0])


def embedded_as_toml(port: int, folder: Path) -> str:
    """The embedded configuration as a file, on another port and in another folder."""
    from gateway.config.load import embedded

    config = embedded()
    lines = ["[server]", f"port = {port}", f"admin_port = {free_port()}", f'run_dir = "{folder}/run"',
             "[storage]", f'url = "sqlite:///{folder}/headgate.db"']
    for name, entries in (("providers", config.providers), ("models", config.models), ("routes", config.routes)):
        for entry in entries:
            lines.append(f"[[{name}]]")
            lines += [f"{key} = {json.dumps(value)}" for key in entry.__struct_fields__
                      if (value := getattr(entry, key)) not in (None, {}, [], "")]
    return "\n".join(lines)


@pytest.mark.parametrize("block", blocks("toml"))
def test_the_configuration_blocks_load(block: str) -> None:
    """Each TOML block is a whole configuration without a problem."""
    _, problems = parse(tomllib.loads(block), {"ACME_KEY": "sk-x"})
    assert problems == []


def test_the_readme_stays_short() -> None:
    """It has at most 150 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
