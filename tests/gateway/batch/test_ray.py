"""The same job on Ray Data's actors has the results of the embedded engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.providers.scripted import ScriptedServer
from tests.gateway.batch.made import read
from tests.gateway.batch.test_kill import configuration, write_prompts
from tests.ray_command import json_of

pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install 'headgate[ray]'")


async def run(folder: Path, *words: str) -> dict[str, Any]:
    return await json_of(
        "batch", "run", str(folder / "prompts.jsonl"), "--config", str(folder / "headgate.toml"),
        "--out", str(folder / "out.jsonl"), "--budget", "1", *words,
    )  # fmt: skip


def answers(folder: Path) -> dict[str, str]:
    lines = read(folder / "out.jsonl")
    assert len(lines) == len({line["custom_id"] for line in lines})
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}


@pytest.mark.timeout(1200)
@pytest.mark.xdist_group("ray")
async def test_two_actors_give_what_the_embedded_engine_gives(tmp_path: Path) -> None:
    """The answers, the cost and the number of calls are the same."""
    found = {}
    async with ScriptedServer({"small": [{"delay_s": 0.005}]}) as upstream:
        for engine in ("embedded", "ray"):
            folder = tmp_path / engine
            folder.mkdir()
            configuration(folder, upstream.url)
            write_prompts(folder, 80)
            before = upstream.seen.requests
            done = await run(folder, "--engine", engine, "--workers", "2")
            found[engine] = (answers(folder), done["spent_usd"], done["done"], upstream.seen.requests - before)
    assert found["ray"] == found["embedded"]
    assert found["ray"][2:] == (80, 79)
