"""What is measured: processes under test, how each is started, and the CPU time of its whole tree."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from routers.artifact import Card
from routers.estimators.base import Training
from routers.estimators.linear import Linear
from routers.features import shipped_featurizer
from routers.plugin import Learned, PluginRouter
from routers.projection import Projection
from routers.registry import save_router
from tests.ports import free_port

POOL = {"nano": (0.05, 0.4), "mini": (0.25, 2.0), "mid": (1.25, 10.0), "large": (5.0, 25.0)}
"""Models of the learned route, with their prices in dollars per million tokens."""
READY_S = 120.0


@dataclass(slots=True)
class Target:
    """A gateway that is up."""

    name: str
    url: str
    key: str
    process: subprocess.Popen[bytes]
    headers: tuple[str, ...] = ()
    """Sent with every request, each as `name: value`."""

    @property
    def pid(self) -> int:
        return self.process.pid


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table."""

    target: str
    name: str
    model: str
    stream: bool = False
    cpu_us: list[float] = field(default_factory=list)
    """Per request, or per chunk of a stream; one for each round."""
    p50_ms: list[float] = field(default_factory=list)
    """At one connection."""


@contextmanager
def started(
    name: str, command: list[str], url: str, key: str, model: str, log: Path, headers: tuple[str, ...] = (), **env: str
) -> Iterator[Target]:
    """The process, once it has answered a request; ended on the way out. RuntimeError with its log's end."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **env})
    try:
        wait_ready(process, url, key, model, log, headers)
        yield Target(name, url, key, process, headers)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_ready(
    process: subprocess.Popen[bytes], url: str, key: str, model: str, log: Path, headers: tuple[str, ...] = ()
) -> None:
    deadline, answer = time.monotonic() + READY_S, ""
    while time.monotonic() < deadline and process.poll() is None:
        try:
            answer = ask(url, key, model, headers)
        except OSError as error:
            answer = str(error)
        if answer.startswith("200"):
            return
        time.sleep(0.1)
    raise RuntimeError(f"{url} did not come up ({answer}):\n{log.read_text(errors='replace')[-2000:]}")


def ask(url: str, key: str, model: str, more: tuple[str, ...] = ()) -> str:
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]})
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    headers |= dict(line.split(": ", 1) for line in more)
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        return f"{answer.status} {answer.read()[:300]!r}"
    finally:
        connection.close()


@contextmanager
def upstream() -> Iterator[str]:
    """Base URL of the upstream that all share, without /v1."""
    command = [sys.executable, "-m", "tests.bench.upstream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def upstream_connects(url: str) -> int:
    """How many connections the upstream has ever been asked for, this one included."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    connection.request("GET", "/connects")
    return int(connection.getresponse().read())


@contextmanager
def headgate(folder: Path, upstream_url: str, more: str = "") -> Iterator[Target]:
    """Headgate with everything on: route `auto` learns over four models, caches, and journals.

    `more`: further tables of the configuration.
    """
    key, port = f"hg-{secrets.token_hex(16)}", free_port()
    artifact = folder / "linear.safetensors"
    fit_router(artifact)
    config = folder / "headgate.toml"
    config.write_text(settings(folder, artifact, upstream_url, port, key) + more)
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
    url = f"http://127.0.0.1:{port}"
    with started("headgate", command, url, key, "auto", folder / "headgate.log") as target:
        yield target


def settings(folder: Path, artifact: Path, upstream_url: str, port: int, key: str) -> str:
    """What the bench asks Headgate to do, as its users write it."""
    models = "".join(
        f'[[models]]\nname = "{name}"\nprovider = "up"\n'
        f"input_usd_per_mtok = {price[0]}\noutput_usd_per_mtok = {price[1]}\ncontext_tokens = 2000000\n\n"
        for name, price in POOL.items()
    )
    return f"""
[server]
port = {port}
admin_port = {free_port()}
run_dir = "{folder}/run"

[storage]
url = "sqlite:///{folder}/journal.db"

[[providers]]
name = "up"
kind = "openai"
base_url = "{upstream_url}/v1"
api_key = "sk-bench"

{models}
[[routes]]
name = "auto"
models = {json.dumps(list(POOL))}
router = "{artifact}"
explore = 0.02
cache = "exact"
rpm = 100000000
tpm = 2000000000

[[routes]]
name = "routed"
models = {json.dumps(list(POOL))}
router = "{artifact}"
explore = 0.02
cache = "none"
rpm = 100000000
tpm = 2000000000

[[auth.keys]]
name = "bench"
key = "{key}"
tenant = "shop"
rpm = 100000000
tpm = 2000000000
budget_usd = 1000000

[[auth.tenants]]
name = "shop"
budget_usd = 5000000
"""


def fit_router(path: Path) -> None:
    """A linear router over the shipped features. Its scores are random: what serving costs doesn't depend on them."""
    featurizer, rng = shipped_featurizer(), np.random.default_rng(7)
    words = ["order", "atlas", "birds", "parcel", "refund", "late", "gift", "author", "index", "map", "sum", "proof"]
    vectors = np.stack([featurizer.describe(" ".join(rng.choice(words, 9))).vector for _ in range(400)])
    models = tuple(POOL)
    projection = Projection(128).fit(vectors.astype(np.float64))
    x = projection.apply(vectors).astype(np.float64)
    scores = (rng.random((len(x), len(models))) < np.linspace(0.55, 0.85, len(models))).astype(float)
    quality = Linear().fit(Training(x, scores, ["letters"] * len(x), models, 7))
    router = PluginRouter("linear", "1", featurizer.version, Learned(models, projection, quality))
    save_router(path, router, Card("linear", "1", featurizer.version, models))


@contextmanager
def reference(folder: Path, upstream_url: str) -> Iterator[Target]:
    """See tests/bench/reference.py."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.reference", upstream_url, str(port)]
    with started("reference", command, f"http://127.0.0.1:{port}", "none", "m", folder / "reference.log") as target:
        yield target


# ---- CPU time


def cpu_ns(pid: int) -> dict[int, int]:
    """Nanoseconds on a CPU, user and system, of each process of the tree: the sum over its threads."""
    return {one: _process_ns(one) for one in tree(pid)}


def tree(pid: int) -> list[int]:
    """A process and its descendants."""
    parents = _parents()
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _process_ns(pid: int) -> int:
    total = 0
    for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(stat.read_text().split()[0])
        except OSError:
            continue  # the thread has just ended
    return total


def _parents() -> Mapping[int, int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(after_name[1])
    return parents
