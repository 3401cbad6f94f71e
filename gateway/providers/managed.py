"""Providers that run as child processes: the command that starts one, the socket it listens on, whether it is ready.

The supervisor starts them; nothing is started here. Both kinds, `local` and `scripted`, speak the OpenAI dialect on a
unix socket in `server.run_dir`, so for the request path they are providers like any other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gateway.config.types import ProviderConfig, Server
from gateway.errors import ConfigError, UpstreamError
from gateway.upstream import Endpoint, Pool
from gateway.upstream.endpoint import unix_url

MAX_SOCKET_PATH_BYTES = 107
"""The kernel's limit on the length of a unix socket's path."""
_MODULES = {"local": "local_models", "scripted": "gateway.providers.scripted"}
RETRY_AFTER_S = 3.0
"""Longer than a cascade waits for one model while another could answer."""
_PROBE = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"


@dataclass(frozen=True, slots=True)
class Managed:
    """One child process, which `command` starts and which listens on `socket`."""

    provider: str
    command: list[str]
    socket: Path
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables in addition to the supervisor's."""


def managed(config: ProviderConfig, server: Server) -> Managed | None:
    """The child process of this provider; None where its base URL names a server that isn't ours."""
    if config.kind not in _MODULES or config.base_url:
        return None
    socket = socket_path(config, server)
    command = [sys.executable, "-m", _MODULES[config.kind], "--uds", str(socket)]
    if config.kind == "scripted":
        command += ["--scripts", json.dumps(config.options.get("scripts", {}))]
    else:
        command += ["--options", json.dumps(config.options)]
    return Managed(config.name, command, socket)


def socket_path(config: ProviderConfig, server: Server) -> Path:
    """The socket of this provider, a different one for different options: at a reload the new server starts while the
    one that it replaces still runs. Raises ConfigError for a name or path that can't be used.
    """
    options = hashlib.sha256(json.dumps(config.options, sort_keys=True).encode()).hexdigest()[:8]
    path = Path(server.run_dir).resolve() / f"{config.name}.{options}.sock"
    if not config.name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigError([f"providers.{config.name}: a managed provider's name may hold only letters, digits, - _ ."])
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError([f"server.run_dir: {path} is too long for the path of a unix socket"])
    return path


def managed_base_url(config: ProviderConfig, server: Server) -> str:
    return unix_url(socket_path(config, server), "/v1")


class ManagedPool(Pool):
    """Connections to a child process. Where nothing listens, the error says that it is loading, since the supervisor
    starts it, or restarts it.
    """

    def connect_error(self, error: Exception) -> UpstreamError:
        if not isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return super().connect_error(error)
        name = Path(self.endpoint.uds).stem.rpartition(".")[0]
        message = f"the local server {name} is still loading; try again in a few seconds"
        return UpstreamError("loading", message, status=503, retry_after_s=RETRY_AFTER_S)


async def is_ready(socket: Path, *, timeout_s: float = 1.0) -> bool:
    """Whether the child answers GET /healthz with 200."""
    return await _health(socket, timeout_s) is not None


async def lost_models(socket: Path) -> list[str]:
    """Names of models that a ready child could not load."""
    try:
        health = msgspec.json.decode(await _health(socket, 10.0) or b"{}")
    except msgspec.DecodeError:
        return []
    return sorted(health.get("lost", ())) if isinstance(health, dict) else []


async def _health(socket: Path, timeout_s: float) -> bytes | None:
    pool = Pool(Endpoint.parse(unix_url(socket)), max_connections=1, connect_timeout_s=timeout_s)
    try:
        response = await pool.send(_PROBE, b"", timeout_s=timeout_s)
        body = await response.read(64 * 1024, timeout_s=timeout_s)
    except UpstreamError:
        return None
    else:
        return body if response.status == 200 else None
    finally:
        await pool.aclose()


async def wait_ready(socket: Path, *, timeout_s: float, every_s: float = 0.05) -> bool:
    """Poll every `every_s` seconds until the child is ready; False once `timeout_s` has passed."""
    deadline = time.monotonic() + timeout_s
    while not await is_ready(socket):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(every_s)
    return True
