"""Tiny engines and one real server, shared by this folder's tests."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

_WITHOUT_TORCH = {"test_tasks.py", "test_manifest.py", "test_import.py"}

if find_spec("torch") and find_spec("transformers"):
    import torch

    torch.set_num_threads(1)
else:  # the base install has neither, so tests that need them are not collected
    here = Path(__file__).parent
    collect_ignore = [path.name for path in here.glob("test_*.py") if path.name not in _WITHOUT_TORCH]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Unix socket of a server with the shipped models, started as a supervisor starts it."""
    with serving(tmp_path_factory.mktemp("serve") / "models.sock", {"kv_tokens": 8192}) as socket:
        yield socket


@contextmanager
def serving(socket: Path, options: dict[str, int]) -> Iterator[str]:
    """A server with these options, stopped at the end of the block."""
    command = [sys.executable, "-m", "local_models", "--uds", str(socket), "--options", json.dumps(options)]
    process = subprocess.Popen(command)
    try:
        wait_until_healthy(socket, process)
        yield str(socket)
    finally:
        process.terminate()
        # uvicorn drains connections, and then ends by the signal that was sent
        assert process.wait(120) in (0, -signal.SIGTERM)


def wait_until_healthy(socket: Path, process: "subprocess.Popen[bytes]") -> None:
    """Return once the server answers; fail if it ends or takes too long."""
    deadline_s = time.monotonic() + 120
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://local") as client:
        while process.poll() is None and time.monotonic() < deadline_s:
            try:
                if client.get("/healthz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
    raise AssertionError("the server did not start")


@pytest.fixture
async def http(server: str) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the server."""
    transport = httpx.AsyncHTTPTransport(uds=server)
    async with httpx.AsyncClient(transport=transport, base_url="http://local", timeout=60) as client:
        yield client


@pytest.fixture
async def client(server: str) -> AsyncIterator[Any]:
    """OpenAI's own client of the server."""
    from openai import AsyncOpenAI

    http_client: Any = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=server), timeout=60)
    async with AsyncOpenAI(
        base_url="http://local/v1", api_key="none", max_retries=0, http_client=http_client
    ) as client:
        yield client
    await asyncio.sleep(0)
