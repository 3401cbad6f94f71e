"""A gateway for browser tests: real processes, two workers, three models with known quality, real traffic.

It has plain functions and no event loop, because the browser is driven synchronously.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np

from gateway.journal.store import open_store
from gateway.learn.dataset import log_of, training_data
from gateway.promote import Versions
from routers.artifact import Card
from routers.features import shipped_featurizer
from routers.fit import fit_learned
from routers.plugin import PluginRouter
from routers.registry import estimator_named, save_router
from routers.simple import Weighted
from tests.gateway.learn.world import PRICE, TRUTH, Town
from tests.ports import free_port
from tests.until import PATIENCE_S

MASTER_KEY = "hg-master-for-the-browser"
USERS = {"vera": "viewer", "otto": "operator", "ada": "admin"}
AUTH = {"authorization": f"Bearer {MASTER_KEY}"}
CLIENT = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), timeout=30)
"""Every request has a new connection, so that any worker may answer."""
PASSWORD = "a long enough password"
SLOW_S = 0.5
"""Seconds until the model `slow` answers."""
LOCAL = """
[[providers]]
name = "home"
kind = "local"
[[models]]
name = "tiny-small"
provider = "home"
[[models]]
name = "tiny-large"
provider = "home"
[[routes]]
name = "home"
models = ["tiny-small"]
router = "cheapest"
"""
Found = TypeVar("Found")
Staged = TypeVar("Staged", bound="Stage")


@dataclass
class Stage:
    """A gateway and its folder. `url` is the dashboard's, `api` the data plane's."""

    folder: Path
    storage: str = ""
    workers: int = 2
    router: str = "linear"
    local: bool = False
    """Includes this machine's own engine with its two tiny models, beside the scripted ones."""
    port: int = field(default_factory=free_port)
    admin_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def config(self) -> Path:
        return self.folder / "headgate.toml"

    def write_config(self) -> None:
        models = "".join(
            f'[[models]]\nname = "{name}"\nprovider = "script"\ninput_usd_per_mtok = {usd}\n'
            f"output_usd_per_mtok = {4 * usd}\n"
            for name, usd in PRICE.items()
        )
        scripts = "".join(f'{name} = [{{ text = "from {name}", output_tokens = 100 }}]\n' for name in PRICE)
        scripts += f'slow = [{{ text = "at last", output_tokens = 10, delay_s = {SLOW_S} }}]\n'
        names = ", ".join(f'"{name}"' for name in PRICE)
        self.config.write_text(
            f"""
[server]
port = {self.port}
admin_port = {self.admin_port}
workers = {self.workers}
run_dir = "{self.folder}/run"
drain_timeout_s = 2
[storage]
url = "{self.storage or f"sqlite:///{self.folder}/journal.db"}"
[telemetry]
log_level = "warning"
[[providers]]
name = "script"
kind = "scripted"
[providers.options.scripts]
{scripts}
{models}
[[routes]]
name = "auto"
models = [{names}]
router = "{self.router}"
cost_weight = 0.5
explore = 0.2
store_text = true
[[routes]]
name = "kept"
models = ["small"]
router = "cheapest"
cache = "exact"
store_text = true
[[models]]
name = "slow"
provider = "script"
[[routes]]
name = "late"
models = ["slow"]
router = "cheapest"
{LOCAL if self.local else ""}
[auth]
master_key = "{MASTER_KEY}"
"""
        )

    def start(self) -> None:
        """Start the processes; returns when they answer."""
        self.write_config()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(self.config)],
            stdout=subprocess.PIPE, env=os.environ,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert b"answers on" in line, line
        eventually(lambda: CLIENT.get(f"{self.url}/readyz").status_code == 200)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)

    # -- what operators and clients do without a browser

    def admin(self, method: str, path: str, **sent: Any) -> Any:
        """A request to the admin API with the master key."""
        answer = CLIENT.request(method, self.url + path, headers=AUTH, **sent)
        assert answer.is_success, answer.text
        return answer.json()

    def ask(self, text: str, model: str = "auto", **fields: Any) -> httpx.Response:
        """One request on a connection of its own, so that any worker may answer."""
        sent = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        answer = CLIENT.post(f"{self.api}/chat/completions", json=sent, headers=AUTH)
        assert answer.status_code == 200, answer.text
        return answer

    def answers(self, model: str) -> bool:
        """Whether any worker that is reached knows the model."""
        sent = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return CLIENT.post(f"{self.api}/chat/completions", json=sent, headers=AUTH).status_code == 200

    def answered_by(self, text: str, times: int) -> set[str]:
        """The models that answer on many connections."""
        with ThreadPoolExecutor(4) as pool:
            return {answer.headers["x-headgate-model"] for answer in pool.map(self.ask, [text] * times)}

    def send_traffic(self, count: int, *, scored: float = 0.75, seed: int = 5) -> None:
        """Send questions of the town, scored by its known quality."""
        town, draw = Town(seed), np.random.default_rng(seed)
        questions = [town.question() for _ in range(count)]
        luck = draw.random((count, 2))

        def one(i: int) -> None:
            kind, text = questions[i]
            answer = self.ask(text)
            if luck[i, 0] < scored:
                said = {
                    "decision_id": answer.headers["x-headgate-decision-id"], "source": "user",
                    "score": float(luck[i, 1] < TRUTH[kind][answer.headers["x-headgate-model"]]),
                }  # fmt: skip
                CLIENT.post(f"{self.api}/feedback", json=said, headers=AUTH).raise_for_status()

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(count)))

    def shipped(self, count: int) -> None:
        """Wait until the journal has this many decisions."""

        def there() -> bool:
            rows = self.admin("GET", "/admin/decisions", params={"limit": 1000})["data"]
            return len(rows) >= min(count, 1000)

        eventually(there)

    def add_users(self) -> None:
        for name, role in USERS.items():
            self.admin("POST", "/admin/users", json={"name": name, "role": role, "password": PASSWORD})

    def plan(self, questions: int, route: str = "auto", budget_usd: float | None = None) -> str:
        """The id of a batch job that is planned and not started."""
        town = Town(21)
        lines = "".join(json.dumps({"prompt": town.question()[1]}) + "\n" for _ in range(questions))
        wanted = {"name": "questions.jsonl", "prompts": lines, "route": route, "budget_usd": budget_usd}
        id: str = self.admin("POST", "/admin/plans", json=wanted)["id"]
        eventually(lambda: self.admin("GET", f"/admin/plans/{id}")["state"] == "ready")
        return id

    def add_version(self, artifact: Path) -> str:
        """Add an artefact as a candidate of the route `auto`; returns its version."""
        store = open_store(f"sqlite:///{self.folder}/journal.db")
        try:
            return Versions(store, self.folder / "run").add("auto", artifact, actor="trainer").version
        finally:
            store.close()


def artifact(folder: Path, name: str, *, spoilt: bool = False) -> Path:
    """A router trained on the town's questions; with `spoilt`, on inverted scores."""
    data, x = training_data(log_of(Town(3).decisions(Weighted(), 300)))
    if spoilt:
        data = replace(data, scores=1.0 - data.scores)
    learned = fit_learned(estimator_named("linear"), data, x, shipped_featurizer().layout)
    made = PluginRouter("linear", name, shipped_featurizer().version, learned)
    path = folder / f"{name}.safetensors"
    save_router(path, made, Card(made.name, name, made.features_version, data.models))
    return path


def eventually(found: Callable[[], Found], within_s: float = PATIENCE_S) -> Found:
    """The first true result of `found`; errors of a server that isn't up yet count as none."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if said := found():
                return said
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def running(stage: Staged) -> Iterator[Staged]:
    stage.start()
    try:
        yield stage
    finally:
        stage.stop()


def pages(decision: str, names: Sequence[str] = ()) -> list[str]:
    """Every page of the dashboard; `names` are those of batch jobs and plans."""
    return [
        "/login", "/", "/?window=week", "/routes", "/routes/auto", "/decisions", f"/decisions/{decision}", "/learning",
        "/certificates", "/cache", "/models", "/models/edit", "/models/edit?name=small", "/providers/edit",
        "/providers/edit?name=script", "/labels", "/feedback", "/batch", "/keys", "/tenants", "/users", "/audit",
        "/reference", *names,
    ]  # fmt: skip
