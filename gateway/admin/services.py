"""What the admin API and the dashboard work with, and the publishing of keys and settings to the workers.

Keys and settings are stored in the database; `settings.json` in the run folder is this machine's copy of them, which
the workers poll.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.config.overlay import Overlay, Trial, overlaid, read_secrets
from gateway.config.settings import Settings, change_settings, read_settings, stamp
from gateway.config.types import Config
from gateway.journal.ship import ShipState
from gateway.journal.spool import spool_dir
from gateway.journal.store import Store

if TYPE_CHECKING:
    from gateway.admin.sessions import LoginGuard
    from gateway.serve.tls import KeptTls

log = logging.getLogger("headgate.admin")

CONFIRM_WITHIN_S = 2.0
KINDS = {"provider": "providers", "model": "models", "route": "routes", "tenant": "tenants"}
"""Settings are named `kind:name`. Settings of these kinds override a table of the configuration, named by the value."""

OUTSIDE_TABLE = ("trial", "routes", "foretold")
"""Fields of a setting that are not keys of the configuration's table."""


def overlay_of(values: Mapping[str, Any]) -> Overlay:
    """The overlay on the configuration that the settings in force make up. `values`: setting values by name."""
    laid: dict[str, dict[str, Any]] = {field: {} for field in KINDS.values()}
    trials: dict[str, Trial] = {}
    members: dict[str, list[str]] = {}
    for name, value in sorted(values.items()):
        kind, _, rest = name.partition(":")
        if kind not in KINDS or value is None:
            continue
        table = {key: one for key, one in value.items() if key not in OUTSIDE_TABLE}
        if table:
            laid[KINDS[kind]][rest] = table
        if value.get("routes") is not None:
            members[rest] = value["routes"]
        trial = value.get("trial")
        if trial and trial["kind"] == "canary":
            trials[rest] = Trial(trial["knobs"], trial["share"])
    return Overlay(**laid, trials=trials, members=members)


def new_login_guard() -> LoginGuard:
    from gateway.admin.sessions import LoginGuard

    return LoginGuard()


@dataclass(slots=True)
class AdminServices:
    """What the admin API and the dashboard work with. One per control process."""

    config: Config
    """The configuration file as it was read; `current` also has the changes that were made since."""
    store: Store
    shipping: ShipState
    opened: bool = False
    """Whether the database has been reached and its schema checked."""
    closing: bool = False
    """Whether the process is shutting down, so that event streams to dashboards end."""
    counting: bool = False
    """Whether decisions from before the rollups existed are being added to them."""
    alarms: int = 0
    """Number of alarms raised now, over all routes."""
    login_guard: LoginGuard = field(default_factory=new_login_guard)
    tls: KeptTls | None = None
    results: dict[str, tuple[float, Any]] = field(default_factory=dict)
    """Cached results by key: when each was computed (monotonic seconds) and its value."""
    locks: dict[str, threading.Lock] = field(default_factory=dict)
    """Locks by key: each is held while the result for that key is computed, so that it is computed once."""
    _current: tuple[int, Config] | None = None

    @property
    def run_dir(self) -> Path:
        return Path(self.config.server.run_dir)

    @property
    def spool_dir(self) -> Path:
        return spool_dir(self.run_dir)

    @property
    def current(self) -> Config:
        """The configuration in force: the file with the stored changes, or the file alone where they don't fit it."""
        seen = stamp(self.run_dir)
        if self._current is None or self._current[0] != seen:
            self._current = (seen, self._read())
        return self._current[1]

    def _read(self) -> Config:
        found, _ = overlaid(self.config, self.settings().overlay, read_secrets(self.run_dir))
        return found or self.config

    def settings(self) -> Settings:
        """This machine's copy of the settings; empty where it can't be read."""
        try:
            return read_settings(self.run_dir)
        except ValueError:
            return Settings()

    def publish(self) -> bool:
        """Write the database's keys and settings to this machine's copy. True where the copy changed."""
        keys, overlay = tuple(self.store.keys()), overlay_of(self.store.latest_settings())
        return change_settings(
            self.run_dir, lambda settings: msgspec.structs.replace(settings, keys=keys, overlay=overlay)
        )

    def publish_or_wait(self) -> None:
        """Publish a change that is stored already. Where the disk refuses the file, it is published later."""
        try:
            self.publish()
        except OSError as fault:
            log.warning("a change is stored, and will reach the workers once the run folder can be written: %s", fault)

    def confirm(self) -> tuple[int, int]:
        """How many workers run, and how many of them report within two seconds that they use the present settings."""
        from gateway.admin.worker_sockets import settings_version, socket_paths

        wanted, sockets = self.settings().version, socket_paths(self.run_dir)
        deadline, waiting = time.monotonic() + CONFIRM_WITHIN_S, list(sockets)
        while waiting and time.monotonic() < deadline:
            waiting = [path for path in waiting if (settings_version(path) or 0) < wanted]
            if waiting:
                time.sleep(0.02)
        return len(sockets), len(sockets) - len(waiting)

    def snapshots(self) -> list[tuple[str, bytes]]:
        """Each worker's name and its latest metrics snapshot."""
        found = []
        for path in sorted(self.run_dir.glob("worker-*.metrics")):
            try:
                found.append((path.stem, path.read_bytes()))
            except FileNotFoundError:
                continue  # the worker has exited meanwhile
        return found
