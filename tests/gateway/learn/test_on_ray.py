"""Training and evaluation on Ray give the very figures of the embedded engine."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.learn.folders import write_folder

pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install 'headgate[ray]'")


async def asked(*words: str) -> dict[str, Any]:
    """What a command of its own process prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *words, "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()[-2000:]
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", ["train", "evaluate"])
async def test_an_engine_changes_no_figure(command: str, tmp_path: Path) -> None:
    """Folds as tasks while training, resamples too while evaluating: every number is the same."""
    folder = write_folder(tmp_path)
    words = [command, "--data", str(folder), "--router", "linear"]
    words += ["--out", str(tmp_path / "router.safetensors")] if command == "train" else ["--resamples", "120"]
    found = [await asked(*words, "--engine", engine) for engine in ("embedded", "ray")]
    assert found[0] == found[1]
