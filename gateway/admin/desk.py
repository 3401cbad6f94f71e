"""What the control process works with, and what it hands to the workers: keys, within a second.

The database is where keys live; `settings.json` in the run folder is this machine's copy, which workers
follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gateway.config import Config
from gateway.journal.ship import ShipState
from gateway.journal.spool import spool_dir
from gateway.journal.store import Store
from gateway.settings import publish_keys


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
        return publish_keys(self.run_dir, self.store.keys())

    def snapshots(self) -> list[tuple[str, bytes]]:
        """What each worker last said of itself, by its name."""
        found = []
        for path in sorted(self.run_dir.glob("worker-*.metrics")):
            try:
                found.append((path.stem, path.read_bytes()))
            except FileNotFoundError:
                continue  # it ended meanwhile
        return found
