"""The official npm client, installed as usual, against the gateway."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conformance.house import house

HERE = Path(__file__).parent / "npm"
KINDS = ("openai", "azure", "anthropic")
CHECKS = ("chat", "stream", "tools", "responses", "embeddings", "models", "errors")
INSTALL_S, RUN_S = 300, 120


async def run(folder: Path, limit_s: float, *command: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, problems = await asyncio.wait_for(process.communicate(), limit_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{command[0]}: {out.decode()[-2000:]}{problems.decode()[-4000:]}"
    return out.decode()


@pytest.mark.timeout(INSTALL_S + RUN_S + 60)
@pytest.mark.skipif(not (shutil.which("npm") and shutil.which("node")), reason="neither npm nor node is here")
async def test_npm_client(tmp_path: Path) -> None:
    """Chat, streams, tools, responses, embeddings, models and errors work on every kind of provider."""
    folder = tmp_path / "npm"
    shutil.copytree(HERE, folder, ignore=shutil.ignore_patterns("node_modules"))
    quiet = ("--no-package-lock", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts",
             "--prefer-offline", "--fetch-retries=5")  # fmt: skip
    wanted = json.loads((folder / "package.json").read_text())["dependencies"]["openai"]
    await run(folder, INSTALL_S, "npm", "install", *quiet, f"openai@{wanted}")
    scripts = {"cut": [{"text": "one two three four", "fault": "cut", "after": 2, "gap_s": 0.03}]}
    async with house(tmp_path, scripts, kinds=KINDS) as home:
        told = await run(folder, RUN_S, "node", "smoke.mjs", GATEWAY_URL=home.url)
        await home.gateway.rest()
    done = [json.loads(line) for line in told.splitlines()]
    assert done == [{"kind": kind, "name": name} for kind in KINDS for name in CHECKS]
