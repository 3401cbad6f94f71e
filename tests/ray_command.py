"""Commands that start Ray, as processes of their own."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

SLOW = "timed out during startup"


async def json_of(*words: str) -> dict[str, Any]:
    """The command's output with --json. The test is skipped if Ray itself couldn't start in any of its attempts: its
    helper process has 15 seconds for its imports, which isn't enough on a machine with dozens of busy processes.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *words, "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    if process.returncode and SLOW in " ".join(err.decode().split()):
        pytest.skip("Ray could not start in time")
    assert process.returncode == 0, err.decode()[-2000:]
    assert out.count(b"\n") == 1, f"more than one document: {out.decode()}"
    found: dict[str, Any] = json.loads(out)
    return found
