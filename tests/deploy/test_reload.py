"""Rolling reload as an operator does it: SIGHUP under load, to real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.faults.test_kill import workers_of
from tests.live import free_port, served

CHAT = {"model": "small", "messages": [{"role": "user", "content": "hello there"}]}
SLOW = {**CHAT, "model": "slow", "stream": True}


def write_config(folder: Path, *, answer: str = "an answer", port: int = 0, admin_port: int = 0, **server: object) -> Path:
    """Two workers over a scripted upstream of their own; `answer` is what changes. The folder's own ports."""
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
slow = [{{ text = "one two three four five six", gap_s = 0.4 }}]
[[models]]
name = "small"
provider = "script"
upstream_name = "{answer}"
[[models]]
name = "slow"
provider = "script"
""")
    return path


@asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[int, int, int]]:
    """Its supervisor's pid, its port and its admin port."""
    port, admin_port = free_port(), free_port()
    config = write_config(folder, answer="small", port=port, admin_port=admin_port)
    async with served(config) as process:
        yield process.pid, port, admin_port


class Load:
    """Clients that keep their connections and count what fails."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.failures: list[str] = []
        self.answers: list[str] = []
        self.stop = False

    async def client(self) -> None:
        async with httpx.AsyncClient(timeout=30) as client:
            while not self.stop:
                try:
                    answer = await client.post(self.url, json=CHAT)
                    if answer.status_code != 200:
                        self.failures.append(f"{answer.status_code} {answer.text}")
                    else:
                        self.answers.append(answer.json()["choices"][0]["message"]["content"])
                except httpx.HTTPError as fault:
                    self.failures.append(repr(fault))

    async def until(self, text: str) -> None:
        """Some answer says this."""
        async with asyncio.timeout(60):
            while text not in self.answers:
                await asyncio.sleep(0.01)


async def stream(port: int) -> str:
    async with httpx.AsyncClient(timeout=60) as client:
        async with client.stream("POST", f"http://127.0.0.1:{port}/v1/chat/completions", json=SLOW) as answer:
            return "".join([chunk async for chunk in answer.aiter_text()])


async def counted(port: int) -> float:
    """Requests that the gateway says it has answered."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("headgate_requests_total{"))


async def test_a_reload_under_load_fails_no_request_and_cuts_no_stream(tmp_path: Path) -> None:
    """SIGHUP: new workers, the new configuration, every request answered, streams whole, counters never less."""
    async with gateway(tmp_path) as (pid, port, admin_port):
        load = Load(port)
        clients = [asyncio.create_task(load.client()) for _ in range(8)]
        await load.until("small")
        before, streaming = workers_of(pid), asyncio.create_task(stream(port))
        await asyncio.sleep(0.3)  # the stream is under way in a worker that is about to go
        write_config(tmp_path, answer="large", port=port, admin_port=admin_port)
        os.kill(pid, signal.SIGHUP)
        await load.until("large")
        text = await streaming
        async with asyncio.timeout(60):
            while set(workers_of(pid)) & set(before):
                await asyncio.sleep(0.02)
        load.stop = True
        await asyncio.gather(*clients)
        assert load.failures == []
        assert "six" in text and text.endswith("data: [DONE]\n\n")
        assert len(workers_of(pid)) == 2
        async with asyncio.timeout(10):
            while await counted(admin_port) < len(load.answers):
                await asyncio.sleep(0.05)
        assert await counted(admin_port) == len(load.answers) + 1
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{admin_port}/healthz")).status_code == 200


async def test_a_faulty_file_changes_nothing(tmp_path: Path) -> None:
    """After SIGHUP with a broken file the same workers serve on, and the next good file is taken."""
    async with gateway(tmp_path) as (pid, port, admin_port):
        load = Load(port)
        before = workers_of(pid)
        good = (tmp_path / "headgate.toml").read_text()
        (tmp_path / "headgate.toml").write_text(good.replace("workers = 2", "workers = 0"))
        os.kill(pid, signal.SIGHUP)
        client = asyncio.create_task(load.client())
        await load.until("small")
        assert workers_of(pid) == before
        write_config(tmp_path, answer="large", port=port, admin_port=admin_port, workers=3)
        os.kill(pid, signal.SIGHUP)
        await load.until("large")
        async with asyncio.timeout(60):
            while len(set(workers_of(pid)) - set(before)) < 3:
                await asyncio.sleep(0.02)
        load.stop = True
        await client
        assert load.failures == []


async def test_systemd_is_told(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """READY after the first worker serves, RELOADING and READY around a reload, STOPPING at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(60), gateway(tmp_path) as (pid, _, _):
            assert await loop.sock_recv(notified, 99) == b"READY=1"
            os.kill(pid, signal.SIGHUP)
            assert (await loop.sock_recv(notified, 99)).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert await loop.sock_recv(notified, 99) == b"READY=1"
        assert await loop.sock_recv(notified, 99) == b"STOPPING=1"
