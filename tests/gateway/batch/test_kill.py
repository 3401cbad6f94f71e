"""A job that is killed at any moment, as a real process with a real upstream, ends with every answer paid for once."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import socket as socketlib
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.providers.scripted import ScriptedServer
from tests.gateway.batch.made import chat, read
from tests.until import until

pytestmark = pytest.mark.usefixtures("commands_end")
MOST_RUNS = 60
started: list[asyncio.subprocess.Process] = []


def configuration(folder: Path, url: str) -> Path:
    path = folder / "headgate.toml"
    path.write_text(f"""
[server]
run_dir = "{folder}/run"
drain_timeout_s = 5.0
[storage]
url = "sqlite:///{folder}/journal.db"
[telemetry]
log_level = "error"
[[providers]]
name = "up"
kind = "openai"
base_url = "{url}"
[[models]]
name = "small"
provider = "up"
input_usd_per_mtok = 1.0
output_usd_per_mtok = 4.0
max_output_tokens = 64
[[routes]]
name = "auto"
models = ["small"]
router = "cheapest"
cache = "exact"
""")
    return path


def write_prompts(folder: Path, count: int) -> Path:
    """OpenAI's batch lines, the last one a copy of the first."""
    path = folder / "prompts.jsonl"
    texts = [f"say number {n}" for n in range(count - 1)] + ["say number 0"]
    lines = [
        {"custom_id": f"c-{n}", "method": "POST", "url": "/v1/chat/completions", "body": json.loads(chat("auto", text))}
        for n, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


async def start(folder: Path, prompts: Path, *words: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "batch", "run", str(prompts), "--config", str(folder / "headgate.toml"),
        "--out", str(folder / "out.jsonl"), "--json", "--concurrency", "8", *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    started.append(process)
    return process


async def killed_until_done(
    folder: Path, prompts: Path, server: ScriptedServer, kills: int, seed: int
) -> dict[str, Any]:
    """Kill runs at random moments until `kills` have hit one; then let the job end."""
    draw = random.Random(seed)
    hit = 0
    for _ in range(MOST_RUNS):
        before = server.seen.requests
        run = await start(folder, prompts, "--budget", "1")
        after = draw.randrange(0, 12)
        while hit < kills and run.returncode is None:
            if server.seen.requests - before >= after:
                await asyncio.sleep(draw.random() * 0.03)
                break
            await asyncio.sleep(0.001)
        if hit < kills and run.returncode is None:
            run.send_signal(signal.SIGKILL)
            hit += 1
        out, err = await run.communicate()
        if run.returncode == 0:
            assert hit == kills, f"the job was over after {hit} kills"
            return json.loads(out)
        assert run.returncode == -signal.SIGKILL, err.decode()
    raise AssertionError("never over")


def check(folder: Path, count: int, told: dict[str, Any], server: ScriptedServer) -> None:
    """Checks that every line is answered once, and that the job, the journal and the upstream agree on the cost."""
    output, errors = read(folder / "out.jsonl"), read(folder / "out.errors.jsonl")
    assert errors == []
    assert sorted(line["custom_id"] for line in output) == sorted(f"c-{n}" for n in range(count))
    for line in output:
        number = int(line["custom_id"][2:]) % (count - 1)
        assert line["response"]["body"]["choices"][0]["message"]["content"] == f"say number {number}"
    with sqlite3.connect(folder / "journal.db") as journal:
        (paid,) = journal.execute("SELECT SUM(cost_nanousd) FROM decisions").fetchone()
        (items,) = journal.execute("SELECT SUM(cost_nanousd) FROM job_items").fetchone()
        answered = journal.execute("SELECT COUNT(*) FROM job_items WHERE state = 'done'").fetchone()[0]
        decided = journal.execute("SELECT COUNT(*) FROM decisions").fetchone()[0]
    assert answered == decided == count - 1
    assert paid == items == round(told["spent_usd"] * 1e9)
    assert server.seen.requests - server.seen.repeated == count - 1, "an answer was billed twice"
    assert told["spent_usd"] + told["at_risk_usd"] <= 1.0


async def survive(tmp_path: Path, count: int, kills: int, seed: int) -> dict[str, Any]:
    """The job's report after this many kills; all of it is checked."""
    async with ScriptedServer({"small": [{"delay_s": 0.02}]}) as server:
        configuration(tmp_path, server.url)
        prompts = write_prompts(tmp_path, count)
        told = await killed_until_done(tmp_path, prompts, server, kills, seed)
        check(tmp_path, count, told, server)
        return told


async def test_a_killed_job_leaves_no_server(tmp_path: Path) -> None:
    """The managed upstream that it started ends, too; otherwise it would keep its models in memory."""
    path = configuration(tmp_path, "http://127.0.0.1:9/v1")
    answer = '{ small = [{ text = "slow", delay_s = 60.0 }] }'
    managed = f'kind = "scripted"\noptions = {{ scripts = {answer} }}'
    path.write_text(re.sub(r'kind = "openai"\nbase_url = "[^"]*"', managed, path.read_text()))
    run = await start(tmp_path, write_prompts(tmp_path, 3), "--budget", "1")
    await until(lambda: any((tmp_path / "run").glob("up*.sock")))
    (socket,) = (tmp_path / "run").glob("up*.sock")
    await until(lambda: _listens(socket))
    run.kill()
    await run.communicate()
    await until(lambda: not _listens(socket))
    assert not _listens(socket)


def _listens(path: Path) -> bool:
    with socketlib.socket(socketlib.AF_UNIX) as one:
        return one.connect_ex(str(path)) == 0


async def test_a_killed_job_pays_and_answers_once(tmp_path: Path) -> None:
    """After two kills at random moments the answers, the journal and the upstream's own count agree."""
    told = await survive(tmp_path, 50, 2, seed=1)
    assert (told["state"], told["done"], told["failed"]) == ("completed", 50, 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_twenty_kills(tmp_path: Path, seed: int) -> None:
    """The same with twenty kills."""
    told = await survive(tmp_path, 400, 20, seed)
    assert (told["state"], told["done"], told["failed"]) == ("completed", 400, 0)
