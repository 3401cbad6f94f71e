"""The topology of deploy/ as plain processes: nginx, two replicas of two workers, Redis, PostgreSQL, an upstream."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from gateway.journal.schema import migrate
from tests.gateway.redis_server import RedisServer
from tests.ports import free_port
from tests.postgres_server import PostgresServer, binaries, running_postgres

DEPLOY = Path(__file__).parents[2] / "deploy"
CLIENT = httpx.Client(timeout=30, limits=httpx.Limits(max_keepalive_connections=0))
OUTPUT_TOKENS = 50
ANSWER_NANOUSD = OUTPUT_TOKENS * 4000
BUDGET_ANSWERS = 20
RPM = 30
SECRETS = {
    name: f"{prefix}{secrets.token_hex(12)}"
    for name, prefix in {
        "MASTER": "master-", "PROVIDER": "plain", "HEADER": "team", "BUDGETED": "hg-", "LIMITED": "hg-", "FREE": "hg-",
    }.items()
}  # fmt: skip
PROMPT, ANSWER = "the-prompt-nobody-may-log", "the-answer-nobody-may-log"
SCRIPTS = """{
 "paid": [{"text": "ANSWER", "output_tokens": 50, "delay_s": 0.02}],
 "cached": [{"text": "1st"}, {"text": "2nd"}, {"text": "3rd"}, {"text": "4th"}],
 "slow": [{"text": "slow", "delay_s": 0.5}],
 "busy": [{"status": 429, "retry_after_s": 300}],
 "leaky": [{"status": 401, "error": "Incorrect API key provided: CREDENTIAL"}],
 "long": [{"text": "one two three four five six", "gap_s": 0.3}]
}""".replace("ANSWER", ANSWER).replace("CREDENTIAL", SECRETS["PROVIDER"])
CONFIG = """
[server]
port = {port}
admin_port = {admin_port}
workers = 2
run_dir = "{folder}/run"
drain_timeout_s = 10
[storage]
url = "{database}"
redis_url = "{redis}"
redis_timeout_s = 5.0
[telemetry]
log_level = "debug"
[auth]
master_key = "${{MASTER}}"
keys = [
  {{ name = "budgeted", key = "${{BUDGETED}}", budget_usd = {budget}, budget_period = "total" }},
  {{ name = "limited", key = "${{LIMITED}}", rpm = {rpm} }},
  {{ name = "free", key = "${{FREE}}" }},
]
[[providers]]
name = "up"
kind = "openai"
base_url = "{upstream}"
api_key = "${{PROVIDER}}"
headers = {{ "x-team" = "${{HEADER}}" }}
[[providers]]
name = "spare"
kind = "openai"
base_url = "{upstream}"
api_key = "${{PROVIDER}}"
{models}
[[models]]
name = "two"
provider = "up"
upstream_name = "busy"
[[models]]
name = "two"
provider = "spare"
upstream_name = "echo"
[[routes]]
name = "auto"
models = ["cached", "slow"]
router = "weighted"
weights = {{ cached = 1.0 }}
cache = "exact"
[[routes]]
name = "bought"
models = ["paid"]
router = "cheapest"
retries = 0
max_attempts = 1
[[routes]]
name = "once"
models = ["slow"]
cache = "exact"
router = "cheapest"
[[routes]]
name = "learning"
models = ["echo", "paid"]
router = "cheapest"
"""


@dataclass(slots=True)
class Replica:
    """A `headgate serve` process."""

    process: subprocess.Popen[bytes]
    url: str
    admin_url: str
    config: Path
    log: Path


@dataclass(slots=True)
class Cluster:
    """All running processes."""

    url: str
    """nginx's port."""
    replicas: list[Replica]
    upstream: str
    database: str
    folder: Path

    def bought(self, model: str) -> int:
        """Requests for this model that reached the upstream."""
        return int(CLIENT.get(f"{self.upstream.removesuffix('/v1')}/_seen").json()["by_model"].get(model, 0))

    def logs(self) -> str:
        """The output of all processes."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("**/*.log")))


def auth(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {SECRETS[name]}"}


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}


def missing() -> str:
    """Why there can be no cluster on this machine, or an empty text."""
    for program in ("redis-server", "nginx"):
        if not shutil.which(program):
            return f"{program} is not installed"
    return "" if binaries() else "PostgreSQL is not installed"


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Starts all processes, and stops them at the end."""
    programs = binaries()
    assert programs is not None
    with ExitStack() as stack:
        postgres = stack.enter_context(running_postgres(programs))
        (folder / "redis").mkdir()
        redis = RedisServer(folder / "redis")
        redis.start()
        stack.callback(redis.stop)
        upstream = f"http://127.0.0.1:{_start_upstream(stack, folder)}/v1"
        database = _database(postgres)
        replicas = [_start_replica(stack, folder / name, database, redis.url, upstream) for name in ("one", "two")]
        for replica in replicas:
            wait_for(f"{replica.url}/readyz", replica.process)
            wait_for(f"{replica.admin_url}/readyz", replica.process)
        url = _start_nginx(stack, folder / "nginx", replicas)
        yield Cluster(url, replicas, upstream, database, folder)


START_S = 240.0
"""Two gateways, two databases and nginx start at once, perhaps on a machine with many other processes."""


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the URL answers 200."""
    ends_s = time.monotonic() + START_S
    while time.monotonic() < ends_s:
        assert process.poll() is None, "a process has ended"
        try:
            if CLIENT.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise TimeoutError(url)


def _database(postgres: PostgresServer) -> str:
    database = postgres.new_database().replace("headgate@", f"headgate:{_DB_PASSWORD}@")
    migrate(database)
    return database


_DB_PASSWORD = SECRETS.setdefault("DATABASE", secrets.token_hex(12))


def _start(
    stack: ExitStack, log: Path, command: list[str], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command, stdout=log.open("ab"), stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
    )
    stack.callback(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(120)


def _start_upstream(stack: ExitStack, folder: Path) -> int:
    port = free_port()
    command = [sys.executable, "-m", "gateway.providers.scripted", "--port", str(port), "--scripts", SCRIPTS]
    _start(stack, folder / "upstream" / "out.txt", command)
    return port


def _start_replica(stack: ExitStack, folder: Path, database: str, redis: str, upstream: str) -> Replica:
    folder.mkdir()
    port, admin_port = free_port(), free_port()
    models = "".join(
        f'[[models]]\nname = "{name}"\nprovider = "up"\noutput_usd_per_mtok = 4.0\n'
        f"max_output_tokens = {OUTPUT_TOKENS}\n"
        for name in ("paid", "cached", "slow", "leaky", "long", "echo")
    )
    config = folder / "headgate.toml"
    config.write_text(
        CONFIG.format(
            port=port, admin_port=admin_port, folder=folder, database=database, redis=redis, upstream=upstream,
            models=models, budget=BUDGET_ANSWERS * ANSWER_NANOUSD / 1e9, rpm=RPM,
        )
    )  # fmt: skip
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
    process = _start(stack, folder / "gateway.log", command, SECRETS)
    url = "http://127.0.0.1"
    return Replica(process, f"{url}:{port}", f"{url}:{admin_port}", config, folder / "gateway.log")


def _start_nginx(stack: ExitStack, folder: Path, replicas: list[Replica]) -> str:
    (folder / "run").mkdir(parents=True)
    port = free_port()
    config = (DEPLOY / "nginx.conf").read_text().replace("listen 80 ", f"listen 127.0.0.1:{port} ")
    for number, replica in enumerate(replicas, 1):
        config = config.replace(f"gateway-{number}:8080", replica.url.removeprefix("http://"))
    config = config.replace("http {", "http {\n" + "".join(
        f"    {name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    ))  # fmt: skip
    (folder / "nginx.conf").write_text(config)
    process = _start(
        stack, folder / "nginx.log", ["nginx", "-p", str(folder), "-c", "nginx.conf", "-g", "daemon off;"]
    )
    wait_for(f"http://127.0.0.1:{port}/healthz", process)
    return f"http://127.0.0.1:{port}"
