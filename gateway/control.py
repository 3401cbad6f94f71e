"""The control process: serves the admin API, ships the journal, forgets what is old, hands keys to workers.

Workers answer without it and without the database: whatever is away is tried again, and the spools wait. Only
a database whose schema is behind this release ends it, with the command to run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import threading
import time

import sqlalchemy as sa
import uvicorn
import uvloop
from msgspec.structs import replace

from gateway.admin.app import make_admin
from gateway.admin.services import AdminServices
from gateway.admin.upkeep import keep_up
from gateway.batch.jobs import Jobs
from gateway.batch.origin import SERVED
from gateway.batch.retention import delete_expired_batches
from gateway.batch.store import MARKER
from gateway.cluster import Cluster
from gateway.config import Config
from gateway.config_load import load
from gateway.errors import ConfigError
from gateway.http_protocol import PlainHttpProtocol
from gateway.journal.durable import OutageLog, database_said
from gateway.journal.schema import check_schema, migrate, open_engine
from gateway.journal.ship import Shipper
from gateway.journal.spool import spool_dir
from gateway.journal.store import Store
from gateway.learn.chore import LearningChore
from gateway.learn.promises import Promises
from gateway.listen import admin_host, taken_over, watch_files
from gateway.logs import secrets_of, set_up
from gateway.processes import orphaned
from gateway.propagation import Propagation
from gateway.server import HttpServer
from gateway.tls import KeptTls, tls_options

log = logging.getLogger("headgate.control")

COLLECT_AFTER = (50_000, 20, 20)
"""Objects of one batch of records leave no cycle; looking for some is a tenth of what storing them costs."""
CHORES_EVERY_S = 0.5
FORGET_EVERY_S = 3600.0
FORGET_ROWS = 5000
"""In one turn; after a shorter `keep_days` millions may be old, and the other chores and writers go on meanwhile."""
PROMISES_EVERY_S = 15.0
REOPEN_AFTER_S = 1.0
LINGER_S = 0.25
"""At the end a connection that was just made has so long for its request; the next control takes those in the queue."""


async def serve_control(
    config: Config, stop: asyncio.Event, sockets: list[socket.socket] | None = None
) -> None:
    """Until `stop`; what was spooled by then is shipped. Raises ConfigError for a schema behind us."""
    engine = open_engine(config.storage.url)
    shipper = Shipper(spool_dir(config.server.run_dir), engine)
    services = AdminServices(config, Store(engine, keep_days=config.storage.keep_days), shipper.state)
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
    """Opens the database, then ships and does the chores beside until `ended`; in a thread of its own."""
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
    gc.freeze()  # what was made at start lives as long as the process
    gc.set_threshold(*COLLECT_AFTER)
    try:
        shipper.run(ended)
    finally:
        for chore in chores:
            chore.join()


def _open(services: AdminServices) -> bool:
    """True: the database is there and its schema is ours. Raises ConfigError where the schema is behind."""
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
    """Unix time, but not more than has passed since `begun` (when monotonic was 0): a clock ahead makes nothing old."""
    return min(time.time(), begun + time.monotonic())


def _do_chores(services: AdminServices, ended: threading.Event) -> None:
    """Batches are begun, budgets righted, floors watched; old rows go. What fails is tried again."""
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
                forget_at = time.monotonic() + FORGET_EVERY_S
                if services.store.forget_old(not_ahead(begun), FORGET_ROWS) >= FORGET_ROWS:
                    forget_at = time.monotonic()
                delete_expired_batches(services.store.engine, not_ahead(begun), services.store.keep_days)
            complaint.works()
        except (sa.exc.SQLAlchemyError, OSError, ValueError) as fault:
            complaint.fails(fault)
        except Exception:  # a fault of ours in one chore must not end them all, unseen
            log.exception("a chore failed; it is tried again")
        if ended.wait(CHORES_EVERY_S):
            learning.close()
            cluster.close()
            return


def mark_batches(services: AdminServices) -> None:
    """Workers look for batch jobs while this machine's run folder says that one is unfinished, whoever made it."""
    if Jobs(services.store.engine).unfinished(*SERVED):
        (services.run_dir / MARKER).touch()


async def run(config: Config, sockets: list[socket.socket], parent: int = 0) -> None:
    """Until SIGTERM or SIGINT, or until the process `parent` is gone."""
    stop = asyncio.Event()
    orphan = asyncio.create_task(orphaned(parent))
    orphan.add_done_callback(lambda _: stop.set())
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await serve_control(config, stop, sockets)


def main() -> None:
    """`python -m gateway.control [--config FILE] [--workers COUNT] [--fd LISTENING_SOCKET] [--parent PROCESS]`."""
    parser = argparse.ArgumentParser(prog="python -m gateway.control")
    parser.add_argument("--config", default=None)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--fd", type=int, action="append", default=[])
    parser.add_argument("--parent", type=int, default=0)
    chosen = parser.parse_args()
    try:
        config = load(chosen.config, os.environ)
        if chosen.workers is not None:  # the command line's number won over the file's
            config = replace(config, server=replace(config.server, workers=chosen.workers))
        set_up(config.telemetry.log_level, config.telemetry.log_format, secrets_of(config))
        uvloop.run(run(config, taken_over(chosen.fd), chosen.parent))
    except ConfigError as fault:
        raise SystemExit(str(fault)) from None


if __name__ == "__main__":
    main()
