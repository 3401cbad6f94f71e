"""Brings keys and settings to this machine's workers, and what one replica has learnt to the others, within a second.

It looks for changes often, in a thread of its own, so that no other work of the control process, however long it takes,
keeps a revoked key valid. That is cheap: one statement tells whether the database was changed, and a file's
modification time whether this machine's settings were. A change of the database without an audit line (by hand) is
found within `WHOLE_EVERY_S` seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from gateway.admin.services import AdminServices
from gateway.config.settings import stamp
from gateway.journal.durable import OutageLog
from gateway.journal.tables import audit, settings
from gateway.replicas.replica_sync import Overtaken, ReplicaSync

log = logging.getLogger("headgate.propagation")

LOOK_EVERY_S = 0.2
WHOLE_EVERY_S = 5.0
RECENT_S = 600.0
"""Audit lines older than this are not counted, since the log is long; replicas' clocks differ by less."""
CHANGES = sa.select(
    sa.select(sa.func.count()).select_from(settings).scalar_subquery(),
    sa.select(sa.func.count()).select_from(audit).where(audit.c.time_s >= sa.bindparam("since_s")).scalar_subquery(),
    sa.select(sa.func.max(audit.c.time_s)).scalar_subquery(),
)
"""Its result differs after every change of a key or setting, because each leaves an audit line or a new version."""


class Propagation:
    """Propagates the changes of one replica. Not thread-safe."""

    def __init__(self, services: AdminServices, now: Callable[[], float] = time.monotonic) -> None:
        self._services = services
        self._now = now
        store = services.store
        self._replicas = ReplicaSync(store, services.run_dir) if store.engine.dialect.name == "postgresql" else None
        self._seen: object = None
        self._whole_at = 0.0

    def step(self) -> bool:
        """Look for changes once, and propagate them. True where there was something to do. Raises what the database and
        the disk raise.
        """
        seen = self._look()
        if seen == self._seen and self._now() < self._whole_at:
            return False
        self._services.publish()
        if self._replicas is not None:
            try:
                self._replicas.step()
            except Overtaken:
                log.info("another replica changed settings at the same time; looking again")
                return True
        self._seen, self._whole_at = seen, self._now() + WHOLE_EVERY_S
        return True

    def run(self, ended: threading.Event) -> None:
        """Look for changes until `ended` is set. A step that fails is tried again."""
        outages = OutageLog(log, "settings")
        while True:
            try:
                self.step()
                outages.works()
            except (sa.exc.SQLAlchemyError, OSError, ValueError) as fault:
                outages.fails(fault)
            except Exception:  # a bug must not silently end this thread
                log.exception("settings wait")
            if ended.wait(LOOK_EVERY_S):
                return

    def _look(self) -> object:
        with self._services.store.engine.connect() as connection:
            found = connection.execute(CHANGES, {"since_s": time.time() - RECENT_S}).one()
            return tuple(found), stamp(self._services.run_dir)
