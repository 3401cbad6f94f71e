"""One worker process: its own socket on the shared port, its own event loop, nothing shared but files and databases.

Run as `python -m gateway.worker --index 0 [--config FILE]` by the supervisor; SIGTERM drains it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
import uvloop

from gateway.app import build, close, reload
from gateway.asgi import App
from gateway.budgets import restore
from gateway.config import Config, Server
from gateway.config_load import load
from gateway.errors import ConfigError, HeadgateError
from gateway.front import Front
from gateway.logs import secrets_of, set_up
from gateway.metrics import watch_loop

log = logging.getLogger("headgate.worker")

SETTINGS_EVERY_S = 0.5
METRICS_EVERY_S = 1.0
BACKLOG = 2048
UNREAD_S = 120.0
"""A client that takes nothing of what waits for it for this long has left, whatever its connection says."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.worker")
    parser.add_argument("--config", default=None)
    parser.add_argument("--index", type=int, default=0)
    chosen = parser.parse_args()
    config = load(chosen.config, os.environ)
    set_up(config.telemetry.log_level, config.telemetry.log_format, secrets_of(config))
    try:
        uvloop.run(work(config, chosen.index))
    except ConfigError as fault:
        raise SystemExit(str(fault)) from None


async def work(config: Config, index: int) -> None:
    """Serve until SIGTERM; in-flight requests and streams are finished first."""
    app = build(config, index)
    server = _Server(server_config(app, config.server))
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, drain, app, server)
    await asyncio.to_thread(restore_spending, app)
    chores = [
        asyncio.create_task(follow_settings(app)),
        asyncio.create_task(watch_loop(app.services.metrics)),
        asyncio.create_task(publish_metrics(app)),
        *(asyncio.create_task(chore()) for chore in app.services.chores),
    ]
    # What was made at start lives as long as the process: the collector need never look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    try:
        await server.serve(sockets=[listen(config.server)])
    finally:
        for chore in chores:
            chore.cancel()
        await close(app)


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn raises them again at its end, before we have closed anything."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def drain(app: App, server: uvicorn.Server) -> None:
    """Accept nothing new, finish what is under way; a second signal doesn't wait for it."""
    server.force_exit = app.draining
    app.draining = server.should_exit = True


def restore_spending(app: App) -> None:
    """Budgets go on where they were. A database that is away costs a warning, not the start."""
    try:
        restore(app.services)
    except (OSError, HeadgateError) as error:
        log.warning("budgets start at nothing, the journal can't be read: %s", error)


def server_config(app: App, server: Server) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Front,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(server.drain_timeout_s)),
    )


def listen(server: Server) -> socket.socket:
    """A listening socket of our own on the shared port: the kernel spreads connections over the workers'."""
    family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # the sockets it accepts inherit it
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNREAD_S * 1e3))
    sock.bind((server.host, server.port))
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


async def follow_settings(app: App) -> None:
    """Apply new keys and router versions within a second, without dropping a stream."""
    services = app.services
    while True:
        await asyncio.sleep(SETTINGS_EVERY_S)
        try:
            if services.current.refresh():
                reload(services)
                log.info("settings version %d in force", services.current.settings.version)
        except (ValueError, OSError, ConfigError) as error:
            log.error("new settings refused, the old ones stay: %s", error)


async def publish_metrics(app: App) -> None:
    """Leave a snapshot where the other workers and the control process find it."""
    path = Path(app.services.config.server.run_dir) / f"worker-{app.services.index}.metrics"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        while True:
            draft = path.with_suffix(".new")
            draft.write_bytes(app.services.metrics.snapshot())
            draft.replace(path)
            await asyncio.sleep(METRICS_EVERY_S)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
