"""What the control process works with, and what it hands to the workers: keys, within a second.

The database is where keys live; `settings.json` in the run folder is this machine's copy, which workers
follow.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gateway.config import Config
from gateway.journal.ship import ShipState
from gateway.journal.spool import spool_dir
from gateway.journal.store import Store
from gateway.settings import read_settings, write_settings


@dataclass(slots=True)
class Desk:
    """The admin API's means."""

    config: Config
    store: Store
    shipping: ShipState
    opened: bool = False
    """The database has been reached and its schema checked."""

    @property
    def run_dir(self) -> Path:
        return Path(self.config.server.run_dir)

    @property
    def spool_dir(self) -> Path:
        return spool_dir(self.run_dir)

    def publish_keys(self) -> bool:
        """Hands the database's keys to the workers; True: they had others."""
        keys = tuple(self.store.keys())
        with settings_locked(self.run_dir):
            settings = read_settings(self.run_dir)
            if settings.keys == keys:
                return False
            fresh = msgspec.structs.replace(settings, version=settings.version + 1, keys=keys)
            write_settings(self.run_dir, fresh)
        return True

    def snapshots(self) -> list[tuple[str, bytes]]:
        """What each worker last said of itself, by its name."""
        found = []
        for path in sorted(self.run_dir.glob("worker-*.metrics")):
            try:
                found.append((path.stem, path.read_bytes()))
            except FileNotFoundError:
                continue  # it ended meanwhile
        return found


@contextmanager
def settings_locked(run_dir: Path) -> Iterator[None]:
    """For a change of the settings that reads them first; other processes wait."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = os.open(run_dir / "settings.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
