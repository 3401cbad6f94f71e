"""Keys and settings reach this machine's workers, and what one replica learnt reaches the others: within a second.

Looking is cheap and done often, in a thread of its own: one statement says whether anything was changed in the
database, a file's time whether anything was changed here. So nothing else the control process does, however long it
takes, keeps a revoked key alive. What no audit line tells of (a hand in the database) is found a little later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from gateway.admin.services import AdminServices
from gateway.journal.durable import OutageLog
from gateway.journal.tables import audit, settings
from gateway.replica_sync import Overtaken, ReplicaSync
from gateway.settings import stamp

log = logging.getLogger("headgate.propagation")

LOOK_EVERY_S = 0.2
WHOLE_EVERY_S = 5.0
RECENT_S = 600.0
"""Further than replicas' clocks are apart; older lines are not counted, for the audit log is long."""
CHANGES = sa.select(
    sa.select(sa.func.count()).select_from(settings).scalar_subquery(),
    sa.select(sa.func.count()).select_from(audit).where(audit.c.time_s >= sa.bindparam("since_s")).scalar_subquery(),
    sa.select(sa.func.max(audit.c.time_s)).scalar_subquery(),
)
"""Every change of a key or a setting leaves an audit line or a version of the setting."""


class Propagation:
    """One replica's part; for one thread."""

    def __init__(self, services: AdminServices, now: Callable[[], float] = time.monotonic) -> None:
        self._services = services
        self._now = now
        store = services.store
        self._replicas = ReplicaSync(store, services.run_dir) if store.engine.dialect.name == "postgresql" else None
        self._seen: object = None
        self._whole_at = 0.0

    def step(self) -> bool:
        """True: there was something to look through. Raises what the database and the disk raise."""
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
        """Until `ended`. What fails is tried again."""
        complaint = OutageLog(log, "settings")
        while True:
            try:
                self.step()
                complaint.works()
            except (sa.exc.SQLAlchemyError, OSError, ValueError) as fault:
                complaint.fails(fault)
            except Exception:  # a fault of ours must not end it, unseen
                log.exception("settings wait")
            if ended.wait(LOOK_EVERY_S):
                return

    def _look(self) -> object:
        with self._services.store.engine.connect() as connection:
            found = connection.execute(CHANGES, {"since_s": time.time() - RECENT_S}).one()
            return tuple(found), stamp(self._services.run_dir)
