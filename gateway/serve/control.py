"""The control process: serves the admin API, ships the journal, deletes old records and passes settings to workers.

Workers answer without it and without the database: the spools keep the records, and whatever fails is tried again. Only
a database whose schema is older than this release ends it, with a message that names the command to run.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import threading
import time
from argparse import Namespace

import sqlalchemy as sa
import uvicorn

from gateway.admin.app import make_admin
from gateway.admin.services import AdminServices
from gateway.admin.upkeep import keep_up
from gateway.batch.jobs import Jobs
from gateway.batch.origin import SERVED
from gateway.batch.retention import delete_expired_batches
from gateway.batch.store import MARKER
from gateway.config.types import Config
from gateway.http_protocol import PlainHttpProtocol
from gateway.journal.durable import OutageLog, database_said
from gateway.journal.retention import forget_old
from gateway.journal.schema import check_schema, migrate, open_engine
from gateway.journal.ship import Shipper
from gateway.journal.spool import spool_dir
from gateway.journal.store import Store
from gateway.learn.chore import LearningChore
from gateway.learn.promises import Promises
from gateway.replicas.cluster import Cluster
from gateway.replicas.propagation import Propagation
from gateway.serve.child import run_child
from gateway.serve.listen import admin_host, watch_files
from gateway.serve.processes import orphaned
from gateway.serve.server import HttpServer
from gateway.serve.tls import KeptTls, tls_options

log = logging.getLogger("headgate.control")

COLLECT_AFTER = (50_000, 20, 20)
"""Thresholds of the garbage collector. A batch of records leaves no cycles, and looking for them at the default
thresholds takes a tenth of the time of storing the batch.
"""
CHORES_EVERY_S = 0.5
FORGET_EVERY_S = 3600.0
FORGET_AGAIN_S = 15.0
"""Seconds after which a deletion that failed is tried again."""
FORGET_ROWS = 5000
"""Most rows to delete at a time. Millions may be old after `keep_days` was shortened, and the other chores and writers
must not wait for all of them.
"""
PROMISES_EVERY_S = 15.0
REOPEN_AFTER_S = 1.0
LINGER_S = 0.25
"""Seconds that a just opened connection has for its request at shutdown. The next control process takes over those
that still wait to be accepted.
"""


async def serve_control(
    config: Config, stop: asyncio.Event, sockets: list[socket.socket] | None = None
) -> None:
    """Run until `stop`, then ship what was spooled by then. Raises ConfigError if the schema is too old."""
    engine = open_engine(config.storage.url)
    shipper = Shipper(spool_dir(config.server.run_dir), engine)
    services = AdminServices(config, Store(engine), shipper.state)
    server = HttpServer(
        uvicorn.Config(
            make_admin(services), admin_host(config.server), config.server.admin_port, http=PlainHttpProtocol,
            ws="none",
            log_config=None, access_log=False, **tls_options(config.server),
        ),
        LINGER_S,
    )
    services.tls = KeptTls(config, server)
    ended = threading.Event()
    chores = asyncio.create_task(asyncio.to_thread(keep_journal, services, shipper, ended))
    serving = asyncio.create_task(server.serve(sockets=sockets or None))
    stopping = asyncio.create_task(stop.wait())
    watching = [asyncio.create_task(watch_files()), asyncio.create_task(services.tls.watch(tells=True))]
    try:
        await asyncio.wait({chores, serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        for watch in watching:
            watch.cancel()
        ended.set()
        services.closing = True
        server.drain(config.server.drain_timeout_s)
        await asyncio.gather(serving, chores, return_exceptions=True)
        services.store.close()
    await chores
    await serving


def keep_journal(services: AdminServices, shipper: Shipper, ended: threading.Event) -> None:
    """Open the database, then ship the journal and do the chores, each in a thread, until `ended`. Blocks."""
    while not _open(services):
        if ended.wait(REOPEN_AFTER_S):
            return
    chores = [
        threading.Thread(target=_do_chores, args=(services, ended), name="journal-chores"),
        threading.Thread(target=keep_up, args=(services, ended), name="figures"),
        threading.Thread(target=Propagation(services).run, args=(ended,), name="settings"),
    ]
    for chore in chores:
        chore.start()
    gc.collect()
    gc.freeze()  # objects made at start live as long as the process
    gc.set_threshold(*COLLECT_AFTER)
    try:
        shipper.run(ended)
    finally:
        for chore in chores:
            chore.join()


def _open(services: AdminServices) -> bool:
    """True if the database answers and has this release's schema. Raises ConfigError if the schema is older."""
    url = services.config.storage.url
    try:
        if url.startswith("sqlite"):
            migrate(url)
        check_schema(services.store.engine)
    except sa.exc.SQLAlchemyError as fault:
        if not services.shipping.fault:
            log.warning("the database is away: %s", database_said(fault) or fault)
        services.shipping.fault = str(fault)
        return False
    services.opened, services.shipping.fault = True, ""
    return True


def not_ahead(begun: float) -> float:
    """Unix time in seconds, at most what it must be by the monotonic clock. So a system clock that is set ahead deletes
    nothing early. `begun`: Unix time at which the monotonic clock was 0.
    """
    return min(time.time(), begun + time.monotonic())


def _do_chores(services: AdminServices, ended: threading.Event) -> None:
    """Mark batch jobs, reconcile budgets, watch promised floors, learn and delete old rows, until `ended`. What fails
    is tried again.
    """
    forget_at = promise_at = time.monotonic()
    begun = time.time() - time.monotonic()
    promises: Promises | None = None
    cluster = Cluster(services.config, services.store)
    learning = LearningChore(lambda: services.current, services.store)
    complaint = OutageLog(log, "chores")
    while True:
        try:
            mark_batches(services)
            cluster.step()
            if cluster.leads and time.monotonic() >= promise_at:
                promise_at = time.monotonic() + PROMISES_EVERY_S
                if promises is None or promises.config != services.current:
                    promises = Promises(services.current, services.store)
                promises.step(time.time())
            if cluster.leads:
                learning.look(time.monotonic())
            if cluster.leads and time.monotonic() >= forget_at:
                forget_at = time.monotonic() + FORGET_AGAIN_S
                engine, now_s, keep_days = services.store.engine, not_ahead(begun), services.config.storage.keep_days
                gone = forget_old(engine, now_s, keep_days, FORGET_ROWS)
                delete_expired_batches(engine, now_s, keep_days)
                forget_at = time.monotonic() + (FORGET_EVERY_S if gone < FORGET_ROWS else 0.0)
            complaint.works()
        except (sa.exc.SQLAlchemyError, OSError, ValueError) as fault:
            complaint.fails(fault)
        except Exception:  # a bug in one chore must not silently end them all
            log.exception("a chore failed; it is tried again")
        if ended.wait(CHORES_EVERY_S):
            learning.close()
            cluster.close()
            return


def mark_batches(services: AdminServices) -> None:
    """Create the marker file in the run folder by which workers look for batch jobs, if one is unfinished."""
    if Jobs(services.store.engine).unfinished(*SERVED):
        (services.run_dir / MARKER).touch()


async def run(config: Config, sockets: list[socket.socket], chosen: Namespace) -> None:
    """Run until SIGTERM or SIGINT, or until the parent process has ended. `chosen`: the command line."""
    stop = asyncio.Event()
    orphan = asyncio.create_task(orphaned(chosen.parent))
    orphan.add_done_callback(lambda _: stop.set())
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await serve_control(config, stop, sockets)


if __name__ == "__main__":
    run_child("gateway.serve.control", run)
