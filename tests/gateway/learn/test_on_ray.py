"""Training and evaluation on Ray give exactly the figures of the embedded engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.learn.folders import write_folder
from tests.ray_command import json_of

pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install 'headgate[ray]'")


@pytest.mark.timeout(1200)
@pytest.mark.xdist_group("ray")
@pytest.mark.parametrize("command", ["train", "evaluate"])
async def test_an_engine_changes_no_figure(command: str, tmp_path: Path) -> None:
    """On Ray folds are tasks in training, and resamples in evaluation."""
    folder = write_folder(tmp_path)
    words = [command, "--data", str(folder), "--router", "linear"]
    words += ["--out", str(tmp_path / "router.safetensors")] if command == "train" else ["--resamples", "120"]
    found = [await json_of(*words, "--engine", engine) for engine in ("embedded", "ray")]
    assert found[0] == found[1]
