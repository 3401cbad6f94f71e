"""One worker process. It has its own socket on the shared port and its own event loop; workers share only files and
databases.

The supervisor, which holds the socket, runs it as `python -m gateway.serve.worker --index 0 [--fd 3] [--config FILE]`.
After SIGTERM it drains for at most the drain timeout; after SIGUSR1, when its successor already serves, for at most
the request timeout.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import uvicorn

from gateway.app import build, close, reload, retire
from gateway.asgi import App
from gateway.config.types import Config, Server
from gateway.errors import ConfigError, HeadgateError
from gateway.http_protocol import HttpProtocol
from gateway.metrics import watch_loop
from gateway.money.budgets import restore
from gateway.serve.child import run_child
from gateway.serve.control_socket import ControlSocket
from gateway.serve.listen import listen, watch_files
from gateway.serve.processes import RETIRE, orphaned
from gateway.serve.server import DRAIN_EVERY_S, HttpServer
from gateway.serve.tls import KeptTls, tls_options
from gateway.serve.worker_counters import publish, snapshot_of
from gateway.services import Services

log = logging.getLogger("headgate.worker")

SETTINGS_EVERY_S = 0.2
METRICS_EVERY_S = 1.0
BATCHES_EVERY_S = 1.0
LINGER_S = 5.0
"""While draining, an idle connection is kept this long for one more request, whose answer closes it."""
COLLECT_AFTER = (20_000, 5, 5)
"""Thresholds of the garbage collector. A request leaves no cycle, a closed connection some 30 objects. The older
generations are collected often: they hold little, and garbage that waits there would look like a leak for an hour."""
ENDS_WITHIN_S = 2.0
"""Longest wait for background tasks after they were cancelled."""


async def work(config: Config, sockets: list[socket.socket], chosen: Namespace) -> None:
    """Serve until SIGTERM or until the parent process has ended; requests and streams in flight are finished first.
    `chosen`: the command line.
    """
    app = build(config, chosen.index)
    server = HttpServer(server_config(app, config.server), LINGER_S)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, drain, app, server, config.server.drain_timeout_s)
    patience_s = max(config.server.drain_timeout_s, config.server.request_timeout_s)
    loop.add_signal_handler(RETIRE, drain, app, server, patience_s)
    await asyncio.to_thread(restore_spending, app)
    follower = Follower(app)
    control_socket = ControlSocket(app, follower.look)
    await control_socket.open()
    batches = asyncio.create_task(watch_batches(app.services))
    server.on_drain = lambda: stop_batches(app, server, batches)
    chores = [
        asyncio.create_task(follower.run()),
        asyncio.create_task(watch_loop(app.services.metrics)),
        asyncio.create_task(publish_metrics(app)),
        asyncio.create_task(watch_files()),
        asyncio.create_task(KeptTls(config, server).watch()),
        asyncio.create_task(end_with(chosen.parent, app, server)),
        *(asyncio.create_task(chore()) for chore in app.services.chores),
    ]
    # Objects made at start live as long as the process, so the collector need never look at them again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    server.ready_fd = chosen.ready_fd
    try:
        await server.serve(sockets=sockets or [listen(config.server.host, config.server.port, is_first=False)])
    finally:
        if not batches.cancelling():
            stop_batches(app, server, batches)
        await asyncio.gather(finish_batches(server, batches), finish_background(app, server))
        for chore in chores:
            chore.cancel()
        await asyncio.wait(chores, timeout=ENDS_WITHIN_S)
        await control_socket.close()
        await close(app)


def drain(app: App, server: HttpServer, patience_s: float) -> None:
    """Accept nothing new and finish requests in flight; a second signal of the same or a shorter patience ends at once.
    """
    server.force_exit = app.draining and patience_s <= server.patience_s
    app.draining = True
    server.drain(patience_s)


def stop_batches(app: App, server: HttpServer, batches: asyncio.Task[None]) -> None:
    """Start no further line of a batch job; lines in flight have as long to finish as requests have."""
    app.services.batches.drain_s = server.patience_s
    batches.cancel()


async def finish_batches(server: HttpServer, batches: asyncio.Task[None]) -> None:
    """Wait for batch lines in flight: the worker that takes the job over would pay for them again."""
    deadline_s = time.monotonic() + server.patience_s + ENDS_WITHIN_S
    while not (batches.done() or server.force_exit) and time.monotonic() < deadline_s:
        await asyncio.wait({batches}, timeout=DRAIN_EVERY_S)


async def finish_background(app: App, server: HttpServer) -> None:
    """Give background responses as long to finish as requests have."""
    await app.background.close(0.0 if server.force_exit else server.patience_s)


async def end_with(parent: int, app: App, server: HttpServer) -> None:
    await orphaned(parent)
    drain(app, server, app.services.config.server.drain_timeout_s)


def restore_spending(app: App) -> None:
    """Load from the journal what each budget has spent. A database that is away doesn't stop the start; callers with a
    budget are then refused until it answers.
    """
    try:
        restore(app.services)
    except (OSError, HeadgateError) as error:
        log.warning("past spending can't be read from the journal yet; callers with a budget wait for it: %s", error)


def server_config(app: App, server: Server) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        **tls_options(server),
    )


class Follower:
    """Applies new keys, settings and router versions within a second, without dropping a stream."""

    def __init__(self, app: App) -> None:
        self._services = app.services
        self._retiring: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SETTINGS_EVERY_S)
            self.look()

    def look(self) -> None:
        """Apply the settings now if they have changed; settings that can't be applied are logged and refused."""
        current = self._services.current
        try:
            if current.refresh():
                for provider in reload(self._services):
                    task = asyncio.create_task(retire(provider))
                    self._retiring.add(task)
                    task.add_done_callback(self._retiring.discard)
                log.info("settings version %d in force", current.settings.version)
                current.applied = current.settings.version
        except (ValueError, OSError, ConfigError) as error:
            log.error("new settings refused, the old ones stay: %s", error)
        except Exception:  # a bug must not silently end this task
            log.exception("new settings refused, the old ones stay")


async def watch_batches(services: Services) -> None:
    """Run batch jobs from the first one on; until then their modules are not imported."""
    store = services.batches
    while not store.marker.exists():
        with suppress(TimeoutError):
            async with asyncio.timeout(BATCHES_EVERY_S):
                await store.asked.wait()
        store.asked.clear()
    from gateway.batch.owner import keep_batches

    await keep_batches(services)


async def publish_metrics(app: App) -> None:
    """Write a snapshot each second for the other workers and the control process, and a last one when cancelled."""
    path = snapshot_of(Path(app.services.config.server.run_dir), app.services.index)
    path.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        try:
            publish(path, app.services.metrics.snapshot())
        except OSError as fault:  # the spool raises the alarm of a full disk
            log.debug("metrics not published: %s", fault)

    try:
        while True:
            write()
            await asyncio.sleep(METRICS_EVERY_S)
    finally:
        write()


if __name__ == "__main__":
    run_child("gateway.serve.worker", work)
