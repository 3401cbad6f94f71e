"""Many streams for minutes, with all that goes wrong among them: `python -m tests.bench.local_load [--minutes 10]`.

A real server of a shipped model in a process of its own, 64 clients that ask one after the other: some leave in the
middle, some set a deadline, some ask for what can never fit or send nonsense. After a tenth of the time the server is
killed; its keeper starts it again, as a supervisor does, and what was under way ends at once at its client, which
asks again.

Printed as JSON, and the exit code is 1 unless: nobody waited longer than `--patience` for an end, every answer ended
in one of the ways it may, no audit found a fault, no block is in use at the end, and resident memory does not grow:
in the second half of the last server's life the slope's 95 % interval reaches down to zero, or its upper end is
below 1 MB a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from routers.intervals import Z95

MODEL = "tiny-small"
OPTIONS = {"kv_tokens": 4096, "draft_tokens": 2, "most_waiting": 48}
WORDS = ("book", "a", "table", "for", "four", "on", "friday", "at", "nine", "please", "what", "is", "12", "plus", "345")
MOST_SLOPE_MB = 1.0
LULL_S = 6.0
"""In every minute nobody asks for so long: the engine falls idle and audits its blocks."""


@dataclass
class Life:
    """One server process: when it began, and its resident megabytes over time."""

    process: subprocess.Popen[bytes]
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


@dataclass
class Run:
    """What has happened so far."""

    socket: Path
    until_s: float
    patience_s: float
    lives: list[Life] = field(default_factory=list)
    endings: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    longest_after_kill_s: float = 0.0
    killed_s: float | None = None
    output_tokens: int = 0


def start(socket: Path) -> Life:
    folder = json.dumps({MODEL: MODEL})
    command = [sys.executable, "-m", "local_models", "--uds", str(socket), "--parent", str(os.getpid())]
    command += ["--options", json.dumps({**OPTIONS, "models": json.loads(folder)})]
    return Life(subprocess.Popen(command))


def client_of(run: Run) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(run.socket), limits=httpx.Limits(max_connections=80))
    return httpx.AsyncClient(transport=transport, base_url="http://local", timeout=run.patience_s)


async def keep(run: Run) -> None:
    """Start the server whenever none runs, and note its memory twice a second."""
    began_s = time.monotonic()
    while True:
        life = run.lives[-1] if run.lives else None
        if life is None or life.process.poll() is not None:
            run.socket.unlink(missing_ok=True)
            run.lives.append(start(run.socket))
        elif run.socket.exists():
            life.seconds.append(time.monotonic() - began_s)
            pages = int(Path(f"/proc/{life.process.pid}/statm").read_text().split()[1])
            if pages:  # none: it has just been killed
                life.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            else:
                life.seconds.pop()
        await asyncio.sleep(0.5)


async def ask_until_over(run: Run, client: httpx.AsyncClient, seed: int) -> None:
    """One client: one request after the other, whatever becomes of them."""
    rng = random.Random(seed)
    while time.monotonic() < run.until_s:
        began_s = time.monotonic()
        if began_s % 60 < LULL_S:
            await asyncio.sleep(LULL_S - began_s % 60)
            continue
        try:
            ending = await asyncio.wait_for(ask(run, client, rng), run.patience_s)
        except TimeoutError:
            ending = "HUNG"
        except httpx.TimeoutException:
            ending = "HUNG"
        except httpx.ConnectError:
            ending = "nobody there"
            await asyncio.sleep(0.5)
        except httpx.TransportError:
            ending = "connection lost"
        spent_s = time.monotonic() - began_s
        run.longest_s = max(run.longest_s, spent_s)
        if run.killed_s is not None and began_s < run.killed_s < began_s + spent_s:
            run.longest_after_kill_s = max(run.longest_after_kill_s, began_s + spent_s - run.killed_s)
        run.endings[ending] += 1


def body_of(rng: random.Random) -> tuple[dict[str, Any], str]:
    """A request and what is to come of it: an answer, or a refusal."""
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 30)))
    body: dict[str, Any] = {
        "model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": rng.randint(1, 120),
        "temperature": rng.choice([0, 1]), "seed": rng.randrange(99), "ignore_eos": rng.random() < 0.5,
        "stream": rng.random() < 0.8, "n": rng.choice([1, 1, 1, 2]),
    }  # fmt: skip
    kind = rng.random()
    if kind < 0.04:
        return {**body, "max_tokens": 100_000}, "refuse"
    if kind < 0.06:
        return {**body, "structured_outputs": {"regex": "("}}, "refuse"
    if kind < 0.08:
        return {**body, "messages": "nonsense"}, "refuse"
    if kind < 0.18:
        return {**body, "deadline_s": rng.random()}, "answer"
    return body, "answer"


async def ask(run: Run, client: httpx.AsyncClient, rng: random.Random) -> str:
    """How one request ended; words in capitals are faults."""
    body, expected = body_of(rng)
    leaves_after = rng.randint(1, 20) if rng.random() < 0.2 else None
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code == 429:
            await answer.aread()
            await asyncio.sleep(0.1)
            return "full, told to wait"
        if answer.status_code != 200:
            await answer.aread()
            right = expected == "refuse" and answer.status_code == 400
            return "refused" if right else f"STATUS {answer.status_code}"
        if expected == "refuse":
            return "NOT REFUSED"
        if not body["stream"]:
            choices = json.loads(await answer.aread())["choices"]
            return "whole answer" if all(choice["finish_reason"] for choice in choices) else "NO END"
        return await _read(run, answer, body["n"], leaves_after)


async def _read(run: Run, answer: httpx.Response, choices: int, leaves_after: int | None) -> str:
    ended, done, lines = 0, False, 0
    async for line in answer.aiter_lines():
        if not line:
            continue
        if done:
            return "WORDS AFTER THE END"
        lines += 1
        run.output_tokens += 1
        if line == "data: [DONE]":
            done = True
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            return f"ERROR {chunk['error']['code']}"
        ended += sum(choice["finish_reason"] is not None for choice in chunk["choices"])
        if leaves_after is not None and lines >= leaves_after:
            return "left"
    return "streamed" if done and ended == choices else "NO END"


async def kill_once(run: Run, after_s: float) -> None:
    await asyncio.sleep(after_s)
    run.killed_s = time.monotonic()
    run.lives[-1].process.send_signal(signal.SIGKILL)


async def metrics_when_idle(run: Run, client: httpx.AsyncClient) -> dict[str, float]:
    """The server's own counts once nothing runs there any more."""
    for _ in range(600):
        page = (await client.get("/metrics")).text
        said = {name: float(value) for name, value in re.findall(r"^(local_\w+)\{[^}]*\} (\S+)$", page, re.M)}
        if not said["local_requests_running"] and not said["local_requests_waiting"]:
            return said
        await asyncio.sleep(0.1)
    raise AssertionError("the server never fell idle")


def slope(life: Life) -> dict[str, float]:
    """Megabytes a minute and half the width of its 95 % interval, the samples of ten seconds averaged."""
    whole = np.array(life.seconds), np.array(life.megabytes)
    if len(whole[0]) < 50:
        return {"minutes": 0.0, "last_mb": float(whole[1][-1]) if len(whole[1]) else 0.0, "slope": 0.0, "half": 0.0}
    later = whole[0] >= (whole[0][0] + whole[0][-1]) / 2
    seconds, megabytes = whole[0][later], whole[1][later]
    bins = ((seconds - seconds[0]) // 10).astype(int)
    x = np.array([seconds[bins == at].mean() for at in np.unique(bins)]) / 60
    y = np.array([megabytes[bins == at].mean() for at in np.unique(bins)])
    centred = x - x.mean()
    rate = float(centred @ y / (centred @ centred))
    rest = y - y.mean() - rate * centred
    error = float(np.sqrt(rest @ rest / max(1, len(x) - 2) / (centred @ centred)))
    return {
        "minutes": float(seconds[-1] - seconds[0]) / 60, "last_mb": float(megabytes[-1]), "slope": rate,
        "half": Z95 * error,
    }  # fmt: skip


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.local_load", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds after which a client counts as hung")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "m.sock", float("inf"), args.patience)
        keeper = asyncio.ensure_future(keep(run))
        async with client_of(run) as client:
            await _ready(client)
            run.until_s = time.monotonic() + 60 * args.minutes
            killer = asyncio.ensure_future(kill_once(run, 6 * args.minutes))
            await asyncio.gather(*(ask_until_over(run, client, seed) for seed in range(args.streams)))
            await killer
            await _ready(client)
            said = await metrics_when_idle(run, client)
        keeper.cancel()
        run.lives[-1].process.terminate()
        run.lives[-1].process.wait(60)
    report = _report(run, said)
    print(json.dumps(report, indent=1))
    sys.exit(0 if report["sound"] else 1)


async def _ready(client: httpx.AsyncClient) -> None:
    for _ in range(2400):
        try:
            if (await client.get("/healthz")).status_code == 200:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.05)
    raise AssertionError("the server did not start")


def _report(run: Run, said: dict[str, float]) -> dict[str, Any]:
    memory = slope(run.lives[-1])
    faults = {ending: count for ending, count in run.endings.items() if ending[:2].isupper()}
    steady = memory["slope"] - memory["half"] <= 0 or memory["slope"] + memory["half"] < MOST_SLOPE_MB
    tight = not said["local_kv_usage_ratio"] and not said["local_audits_failed_total"]
    return {
        "sound": bool(not faults and steady and tight and len(run.lives) == 2),
        "requests": sum(run.endings.values()),
        "endings": dict(run.endings.most_common()),
        "faults": faults,
        "longest_wait_s": round(run.longest_s, 2),
        "longest_wait_after_the_kill_s": round(run.longest_after_kill_s, 2),
        "lives": len(run.lives),
        "audits": said["local_audits_total"],
        "audits_failed": said["local_audits_failed_total"],
        "blocks_in_use_at_the_end": said["local_kv_usage_ratio"],
        "preemptions": said["local_preemptions_total"],
        "mb_per_minute": {name: round(value, 3) for name, value in memory.items()},
    }


if __name__ == "__main__":
    asyncio.run(main())
