"""One measurement: a load on one target, and what it cost the target's whole process tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.targets import Target, cpu_ns, tree

TRAIL_S = 0.6
"""After the load, so that what is done behind it (a journal) is counted too."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a target."""

    model: str
    connections: int = 16
    stream: bool = False
    seed: int | None = None
    """See tests/bench/upstream.py."""
    body_bytes: int = 0
    most: int = 0
    """Over after so many requests; 0: time decides."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What came of it."""

    requests: int
    rps: float
    cpu_us: float
    """Per request, the whole tree's, user and system."""
    p50_ms: float
    p99_ms: float
    delay_p50_us: float
    delay_p99_us: float


def measure(target: Target | None, url: str, ask: Ask, seconds: float) -> Cost:
    """`target` None: the upstream itself, whose own cost isn't counted. RuntimeError where an answer was not a 200."""
    before = cpu_ns(target.pid) if target is not None else {}
    done = load(url, target, ask, seconds)
    spent_ns = 0
    if target is not None:
        time.sleep(TRAIL_S)
        spent_ns = sum(ns - before.get(pid, 0) for pid, ns in cpu_ns(target.pid).items())
    return Cost(
        done["requests"], done["requests"] / done["seconds"], spent_ns / 1e3 / done["requests"], done["p50_ms"],
        done["p99_ms"], done["delay_p50_us"] or 0.0, done["delay_p99_us"] or 0.0,
    )  # fmt: skip


def load(url: str, target: Target | None, ask: Ask, seconds: float) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "tests.bench.load", url, "--key", target.key if target else "none", "--model", ask.model,
        "--connections", str(ask.connections), "--seconds", str(seconds), "--requests", str(ask.most),
        "--body-bytes", str(ask.body_bytes),
    ]  # fmt: skip
    command += ["--stream"] if ask.stream else []
    command += ["--seed", str(ask.seed)] if ask.seed is not None else []
    for header in target.headers if target else ():
        command += ["--header", header]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{url} {ask}: the load broke off: {run.stderr[-500:]}")
    done = json.loads(run.stdout)
    if done["failures"]:
        raise RuntimeError(f"{url} {ask}: {done['failures']} requests failed: {done['failure']}")
    return dict(done)


def rss_mb(pid: int) -> float:
    """Resident memory of the whole tree."""
    total = 0
    for one in tree(pid):
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1])
        except OSError:
            continue  # it has just ended
    return total * PAGE_BYTES / 1e6
