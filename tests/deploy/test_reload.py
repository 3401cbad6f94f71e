"""Rolling reloads as an operator does them: SIGHUP to real processes under load."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.serve.worker import METRICS_EVERY_S
from local_models import shipped_models
from tests.live import workers_of
from tests.ports import free_port
from tests.until import until

pytestmark = [pytest.mark.xdist_group("reload"), pytest.mark.timeout(600)]

PATIENCE_S = 180.0
CLIENT = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
CHAT = {"model": "small", "messages": [{"role": "user", "content": "hello there"}]}
SLOW = {**CHAT, "model": "slow", "stream": True}


def write_config(
    folder: Path, *, answer: str, port: int, admin_port: int, slow: str = "one two three four five six",
    **server: object,
) -> Path:  # fmt: skip
    """Two workers with a scripted upstream; only `answer` is changed by the tests."""
    path = folder / "headgate.toml"
    settings = {"port": port, "admin_port": admin_port, "run_dir": f"{folder}/run", "workers": 2, **server}
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    path.write_text(f"""
[server]
{lines}
[storage]
url = "sqlite:///{folder}/journal.db"
[[providers]]
name = "script"
kind = "scripted"
[providers.options.scripts]
small = [{{ text = "small" }}]
large = [{{ text = "large" }}]
slow = [{{ text = "{slow}", gap_s = 0.4 }}]
[[models]]
name = "small"
provider = "script"
upstream_name = "{answer}"
[[models]]
name = "slow"
provider = "script"
""")
    return path


def said_by_all(port: int) -> set[str]:
    """The answers on many new connections, which reach every worker."""
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    return {CLIENT.post(url, json=CHAT).json()["choices"][0]["message"]["content"] for _ in range(30)}


@dataclass(slots=True)
class Gateway:
    """A supervisor, and the messages that it sends to systemd."""

    pid: int
    port: int
    admin_port: int
    folder: Path
    notified: socket.socket

    def told(self) -> str:
        """The next message to systemd."""
        return self.notified.recv(99).decode()

    def forget(self) -> None:
        """Discard the messages that nobody has read."""
        while select.select([self.notified], [], [], 0)[0]:
            self.told()

    def reload(self) -> None:
        """Reload, and return once it is done or refused."""
        self.forget()
        os.kill(self.pid, signal.SIGHUP)
        while self.told() != "READY=1":
            pass

    def change(self, **settings: Any) -> None:
        write_config(self.folder, port=self.port, admin_port=self.admin_port, **settings)


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A running gateway under a service manager."""
    folder, port, admin_port = tmp_path_factory.mktemp("reload"), free_port(), free_port()
    config = write_config(folder, answer="small", port=port, admin_port=admin_port)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(folder / "notify"))
        notified.settimeout(300)
        environment = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify")}
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        one = Gateway(process.pid, port, admin_port, folder, notified)
        try:
            assert one.told() == "READY=1"
            yield one
        finally:
            one.forget()
            process.terminate()
            process.wait(240)
            assert one.told() == "STOPPING=1"


@pytest.fixture
def gateway(supervisor: Gateway) -> Gateway:
    """A gateway that answers "small" in both workers, whatever the previous test has left."""
    blocked = supervisor.folder / "run" / "config.trial.new"
    if blocked.is_dir():
        blocked.rmdir()
    supervisor.change(answer="small")
    file, in_force = supervisor.folder / "headgate.toml", supervisor.folder / "run" / "config.toml"
    while in_force.read_bytes() != file.read_bytes():
        supervisor.reload()
    while len(workers_of(supervisor.pid)) != 2 or said_by_all(supervisor.port) != {"small"}:
        time.sleep(0.05)
    supervisor.forget()
    return supervisor


@pytest.fixture
def accepted(gateway: Gateway) -> Gateway:
    """The same gateway, whose last reload was not refused. Each reload starts processes, so few tests ask for one."""
    while refused(gateway)[0] != "ok":
        gateway.reload()
    return gateway


class Load:
    """Clients that keep their connections open, and count failures."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.failures: list[str] = []
        self.answers: list[str] = []
        self.stop = False

    async def client(self) -> None:
        async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
            while not self.stop:
                try:
                    answer = await client.post(self.url, json=CHAT)
                    if answer.status_code != 200:
                        self.failures.append(f"{answer.status_code} {answer.text}")
                    else:
                        self.answers.append(answer.json()["choices"][0]["message"]["content"])
                except httpx.HTTPError as fault:
                    self.failures.append(repr(fault))
                await asyncio.sleep(0.03)

    async def until(self, text: str) -> None:
        """Wait until an answer has this text."""
        await until(lambda: text in self.answers, PATIENCE_S)


async def stream(port: int) -> str:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    async with httpx.AsyncClient(timeout=60) as client, client.stream("POST", url, json=SLOW) as answer:
        return "".join([chunk async for chunk in answer.aiter_text()])


def counted(port: int) -> float:
    """Number of requests that the gateway has counted; 0 while the control process starts again."""
    try:
        text = CLIENT.get(f"http://127.0.0.1:{port}/metrics").text
    except httpx.TransportError:
        return 0.0
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("headgate_requests_total{"))


async def test_a_reload_under_load_fails_no_request_and_cuts_no_stream(gateway: Gateway) -> None:
    """After SIGHUP there are new workers with the new configuration; every request is answered, streams are complete,
    and counters never fall.
    """
    await asyncio.sleep(2 * METRICS_EVERY_S)
    load, counted_before = Load(gateway.port), counted(gateway.admin_port)
    clients = [asyncio.create_task(load.client()) for _ in range(6)]
    await load.until("small")
    before, streaming = workers_of(gateway.pid), asyncio.create_task(stream(gateway.port))
    await asyncio.sleep(0.3)  # the stream is in progress in a worker that will be replaced
    gateway.change(answer="large")
    os.kill(gateway.pid, signal.SIGHUP)
    await load.until("large")
    text = await streaming
    await until(lambda: not set(workers_of(gateway.pid)) & set(before), PATIENCE_S)
    load.stop = True
    await asyncio.gather(*clients)
    assert load.failures == []
    assert "six" in text and text.endswith("data: [DONE]\n\n")
    assert len(workers_of(gateway.pid)) == 2
    # the control process starts again, and workers report their counters only now and then
    await until(lambda: counted(gateway.admin_port) == counted_before + len(load.answers) + 1, PATIENCE_S)
    told = await asyncio.to_thread(gateway.told)
    assert told.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert await asyncio.to_thread(gateway.told) == "READY=1"


async def test_a_reload_cannot_move_the_run_folder(accepted: Gateway) -> None:
    """Records in the old one would never be shipped, so it is refused, and both port and metric show it."""
    before = workers_of(accepted.pid)
    accepted.change(answer="large", run_dir=f"{accepted.folder}/elsewhere")
    os.kill(accepted.pid, signal.SIGHUP)
    await shown(accepted, ("refused", "degraded", "1.0"))
    assert workers_of(accepted.pid) == before and not (accepted.folder / "elsewhere").exists()


async def test_fewer_workers_leave_no_connection_unanswered(gateway: Gateway) -> None:
    """Connections in the queue of a worker that ends are answered by one that stays; streams in progress have as long
    as at any reload, whatever the drain timeout.
    """
    gateway.change(answer="small", drain_timeout_s=0.5)
    await reloaded(gateway)
    await until(lambda: len(workers_of(gateway.pid)) == 2, PATIENCE_S)
    before = workers_of(gateway.pid)
    streams = [asyncio.create_task(stream(gateway.port)) for _ in range(8)]
    await asyncio.sleep(0.5)
    for worker in before:
        os.kill(worker, signal.SIGSTOP)
    load = Load(gateway.port)
    clients = [asyncio.create_task(load.client()) for _ in range(16)]
    await asyncio.sleep(0.3)
    load.stop = True
    gateway.change(answer="small", drain_timeout_s=0.5, workers=1)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await reloaded(gateway)
            await asyncio.gather(*clients)
    finally:
        for worker in before:
            os.kill(worker, signal.SIGCONT)
    assert load.failures == [] and load.answers == ["small"] * 16
    assert [text for text in await asyncio.gather(*streams) if not text.endswith("data: [DONE]\n\n")] == []
    await until(lambda: len(workers_of(gateway.pid)) == 1, PATIENCE_S)
    gateway.change(answer="large")
    await reloaded(gateway)
    assert len(workers_of(gateway.pid)) >= 2 and ask_all(gateway.port) == {200} and sockets_at(gateway.port) == 2


async def test_a_faulty_file_changes_nothing(gateway: Gateway) -> None:
    """After SIGHUP with a broken file the same workers continue, and one that dies is restarted with the old
    configuration.
    """
    load = Load(gateway.port)
    before = workers_of(gateway.pid)
    (gateway.folder / "headgate.toml").write_text("[server]\nworkers = 0\n")
    os.kill(gateway.pid, signal.SIGHUP)
    client = asyncio.create_task(load.client())
    await load.until("small")
    assert workers_of(gateway.pid) == before
    os.kill(before[0], signal.SIGKILL)
    await until(lambda: len(set(workers_of(gateway.pid)) - {before[0]}) >= 2, PATIENCE_S)
    load.stop = True
    await client


async def test_a_configuration_that_no_worker_starts_with_changes_nothing(gateway: Gateway) -> None:
    """A missing trained file is found by the first new worker: the old ones continue, one that dies is restarted with
    the old configuration, and the run folder holds what is in force.
    """
    in_force = gateway.folder / "run" / "config.toml"
    good, before = in_force.read_bytes(), set(workers_of(gateway.pid))
    gateway.change(answer="large")
    with (gateway.folder / "headgate.toml").open("a") as config:
        config.write('[[routes]]\nname = "auto"\nmodels = ["small", "slow"]\nrouter = "gone/router.safetensors"\n')
    os.kill(gateway.pid, signal.SIGHUP)
    assert (await asyncio.to_thread(gateway.told)).startswith("RELOADING=1")
    assert await asyncio.to_thread(gateway.told) == "READY=1"
    assert in_force.read_bytes() == good and set(workers_of(gateway.pid)) == before
    os.kill(before.pop(), signal.SIGKILL)
    await until(lambda: both_serve(gateway), PATIENCE_S)
    load = Load(gateway.port)
    client = asyncio.create_task(load.client())
    await load.until("small")
    load.stop = True
    await client
    assert not load.failures


async def test_a_configuration_that_only_some_workers_start_with_is_reverted(gateway: Gateway) -> None:
    """The first worker already has the new configuration when the second can't start with it. It is replaced by one
    with the old configuration, no request fails, and a worker that dies later is restarted with the old one.
    """
    in_force, on_trial = gateway.folder / "run" / "config.toml", gateway.folder / "run" / "config.trial.toml"
    good, before = in_force.read_bytes(), set(workers_of(gateway.pid))
    load = Load(gateway.port)
    client = asyncio.create_task(load.client())
    await load.until("small")
    gateway.change(answer="large")
    os.kill(gateway.pid, signal.SIGHUP)
    begun: set[int] = set()
    async with asyncio.timeout(PATIENCE_S):
        while len(begun) < 2:  # the first is ready, the second has begun and not read the file yet
            await asyncio.sleep(0.002)
            begun |= set(workers_of(gateway.pid)) - before
    on_trial.write_text("[server]\nworkers = 0\n")
    assert (await asyncio.to_thread(gateway.told)).startswith("RELOADING=1")
    assert await asyncio.to_thread(gateway.told) == "READY=1"
    assert in_force.read_bytes() == good and not on_trial.exists()
    # the worker that retires still has a client
    await until(lambda: not begun & set(workers_of(gateway.pid)), PATIENCE_S)
    after = set(workers_of(gateway.pid))
    assert len(after) == 2 and len(after & before) == 1, "the second stayed, the first is a third one by now"
    assert not load.failures
    load.answers.clear()
    assert await asyncio.to_thread(said_by_all, gateway.port) == {"small"}
    os.kill((after - before).pop(), signal.SIGKILL)
    await until(lambda: both_serve(gateway), PATIENCE_S)
    assert await asyncio.to_thread(said_by_all, gateway.port) == {"small"}
    load.stop = True
    await client
    assert set(load.answers) <= {"small"}


async def test_a_reload_on_a_full_disk_changes_nothing(gateway: Gateway) -> None:
    """The old configuration stays, and systemd is told that the reload has ended."""
    blocked = gateway.folder / "run" / "config.trial.new"
    blocked.mkdir()
    before = workers_of(gateway.pid)
    gateway.change(answer="large")
    os.kill(gateway.pid, signal.SIGHUP)
    assert (await asyncio.to_thread(gateway.told)).startswith("RELOADING=1")
    assert await asyncio.to_thread(gateway.told) == "READY=1"
    assert workers_of(gateway.pid) == before
    blocked.rmdir()


@pytest.mark.slow
async def test_nobody_waits_for_a_worker_that_cannot_start(gateway: Gateway) -> None:
    """A worker that dies repeatedly at its start leaves its connections to the other workers."""
    in_force = gateway.folder / "run" / "config.toml"
    assert ask_all(gateway.port) == {200}  # both workers are up again
    good, victim = in_force.read_bytes(), workers_of(gateway.pid)[0]
    in_force.write_text("[server]\nworkers = 0\n")
    os.kill(victim, signal.SIGKILL)
    await until(lambda: sockets_at(gateway.port) <= 1, PATIENCE_S)
    assert ask_all(gateway.port) == {200}
    in_force.write_bytes(good)
    await until(lambda: sockets_at(gateway.port) >= 2, PATIENCE_S)


def ask_all(port: int) -> set[int]:
    """The status codes of enough requests to reach every worker."""
    return {CLIENT.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT).status_code for _ in range(12)}


def both_serve(gateway: Gateway) -> bool:
    return (
        sockets_at(gateway.port) >= 2 and len(workers_of(gateway.pid)) >= 2 and ask_all(gateway.port) == {200}
    )


def sockets_at(port: int) -> int:
    """Number of listening sockets on this port."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1] == f"0100007F:{port:04X}" and line.split()[3] == "0A" for line in lines)


def servers_of(pid: int) -> dict[int, str]:
    """The model servers that a supervisor manages, with their commands."""
    found = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid=,args="], capture_output=True, text=True, check=True)
    told = (line.split(maxsplit=1) for line in found.stdout.splitlines() if " --uds " in line)
    return {int(number): command for number, command in told}


async def reloaded(gateway: Gateway) -> None:
    os.kill(gateway.pid, signal.SIGHUP)
    assert (await asyncio.to_thread(gateway.told)).startswith("RELOADING=1")
    assert await asyncio.to_thread(gateway.told) == "READY=1"


async def test_model_servers_follow_the_file(gateway: Gateway) -> None:
    """An unchanged one isn't restarted. A replacement is ready before it is asked, and the old server ends after its
    last stream.
    """
    await until(lambda: len(servers_of(gateway.pid)) <= 1, PATIENCE_S)
    before = servers_of(gateway.pid)
    gateway.change(answer="large")
    await reloaded(gateway)
    assert servers_of(gateway.pid) == before
    streaming = asyncio.create_task(stream(gateway.port))
    await asyncio.sleep(0.3)
    gateway.change(answer="small", slow="seven eight")
    load = Load(gateway.port)
    client = asyncio.create_task(load.client())
    await reloaded(gateway)
    text = await streaming
    assert "six" in text and text.endswith("data: [DONE]\n\n")
    async with asyncio.timeout(PATIENCE_S):
        while "eight" not in await stream(gateway.port):  # a worker that is told to retire may accept one more request
            pass
    await until(lambda: len(servers_of(gateway.pid)) <= 1, PATIENCE_S)
    load.stop = True
    await client
    assert load.failures == [] and not servers_of(gateway.pid).keys() & before.keys()
    assert len([*(gateway.folder / "run").glob("*.sock")]) == 1


async def test_a_model_server_that_cannot_start_changes_nothing(gateway: Gateway) -> None:
    """Its model is missing: the old configuration and the old servers continue."""
    await until(lambda: len(servers_of(gateway.pid)) <= 1, PATIENCE_S)
    before = servers_of(gateway.pid)
    gateway.change(answer="large")
    with (gateway.folder / "headgate.toml").open("a") as config:
        config.write('[[providers]]\nname = "home"\nkind = "local"\noptions = { models = { m = "/gone" } }\n')
    await reloaded(gateway)
    assert servers_of(gateway.pid) == before
    assert said_by_all(gateway.port) == {"small"}


def refused(gateway: Gateway) -> tuple[str, str, str]:
    """The state of the last reload, by the admin port and the metric. The control process starts again with each
    reload.
    """
    try:
        told = CLIENT.get(f"http://127.0.0.1:{gateway.admin_port}/readyz").json()
        figures = CLIENT.get(f"http://127.0.0.1:{gateway.admin_port}/metrics").text
    except httpx.TransportError:
        return "away", "", ""
    (figure,) = re.findall(r"^headgate_reload_refused (\S+)$", figures, re.MULTILINE)
    return told["reload"], told["status"], figure


async def test_a_damaged_model_is_refused_and_shown(accepted: Gateway) -> None:
    """Like an invalid file, it is shown by the admin port and the metric until a reload succeeds."""
    spoilt = accepted.folder / "spoilt"
    sound = shipped_models()["tiny-small"]
    shutil.copytree(sound, spoilt, dirs_exist_ok=True)
    weights = next(iter(spoilt.glob("*.safetensors")))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    await shown(accepted, ("ok", "ready", "0.0"))
    accepted.change(answer="large")
    file = accepted.folder / "headgate.toml"
    with file.open("a") as config:
        config.write(f'[[providers]]\nname = "home"\nkind = "local"\n'
                     f'options = {{ models = {{ good = "{sound}", bad = "{spoilt}" }} }}\n')  # fmt: skip
    await reloaded(accepted)
    assert said_by_all(accepted.port) == {"small"}
    await shown(accepted, ("refused", "degraded", "1.0"))
    weights.write_bytes(whole)
    await reloaded(accepted)
    assert said_by_all(accepted.port) == {"large"}
    await shown(accepted, ("ok", "ready", "0.0"))
    file.write_text("[server\n")
    os.kill(accepted.pid, signal.SIGHUP)
    await shown(accepted, ("refused", "degraded", "1.0"))


async def shown(gateway: Gateway, wanted: tuple[str, str, str]) -> None:
    await until(lambda: refused(gateway) == wanted, PATIENCE_S)
