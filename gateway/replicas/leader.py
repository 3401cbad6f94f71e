"""Elects one control process of all replicas for the work that needs doing once: retention, watching quality floors,
restoring budgets.

With PostgreSQL the lead is an advisory lock of a connection. It ends with the connection, so another replica follows a
dead one at once, without clocks that have to agree. With SQLite it is a lock on a file. The leader's work must be
harmless when done twice, because a leader that has lost its connection may not notice for a moment.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

log = logging.getLogger("headgate.leader")

LOCK_ID = 0x6865616467617465
FILE = "leader.lock"


class Leadership:
    """The claim of one process to the lead."""

    def __init__(self, engine: sa.Engine, run_dir: str | Path) -> None:
        self._engine = engine
        self._path = Path(run_dir) / FILE
        self._connection: sa.Connection | None = None
        self._file: int | None = None

    def is_mine(self) -> bool:
        """Take the lead if no process has it, and return whether this one has it now. Never raises."""
        had = self._connection is not None or self._file is not None
        try:
            has = self._ask_database() if self._engine.dialect.name == "postgresql" else self._ask_file()
        except (sa.exc.SQLAlchemyError, OSError):
            self.give_up()
            has = False
        if has != had:
            log.info("this replica %s", "leads" if has else "no longer leads")
        return has

    def give_up(self) -> None:
        """Give up the lead, so that another process can take it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sa.exc.SQLAlchemyError):
                connection.invalidate()  # closes it on the server as well, which releases the lock
                connection.close()
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _ask_database(self) -> bool:
        if self._connection is not None:
            self._connection.execute(sa.select(1))
            return True
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            if connection.execute(sa.select(sa.func.pg_try_advisory_lock(LOCK_ID))).scalar():
                self._connection = connection
                return True
        finally:
            if self._connection is None:
                connection.close()
        return False

    def _ask_file(self) -> bool:
        if self._file is not None:
            return True
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True
