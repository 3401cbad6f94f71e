"""What the control process works with, and what it hands to the workers: keys and settings, within a second.

The database is where keys and settings live; `settings.json` in the run folder is this machine's copy, which workers
follow.
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

from gateway.config import Config
from gateway.journal.ship import ShipState
from gateway.journal.spool import spool_dir
from gateway.journal.store import Store
from gateway.overlay import Overlay, Trial, overlaid, read_secrets
from gateway.settings import Settings, change_settings, read_settings, stamp

if TYPE_CHECKING:
    from gateway.admin.sessions import LoginGuard
    from gateway.tls import KeptTls

log = logging.getLogger("headgate.admin")

CONFIRM_WITHIN_S = 2.0
KINDS = {"provider": "providers", "model": "models", "route": "routes", "tenant": "tenants"}
"""Settings are named `kind:name`; these are laid over the configuration."""


BESIDE = ("trial", "routes", "foretold")
"""Parts of a value that are no key of the configuration's table."""


def overlay_of(values: Mapping[str, Any]) -> Overlay:
    """Of all settings in force, those that are laid over the configuration."""
    laid: dict[str, dict[str, Any]] = {field: {} for field in KINDS.values()}
    trials: dict[str, Trial] = {}
    members: dict[str, list[str]] = {}
    for name, value in sorted(values.items()):
        kind, _, rest = name.partition(":")
        if kind not in KINDS or value is None:
            continue
        table = {key: one for key, one in value.items() if key not in BESIDE}
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
    """What the admin API and the dashboard are answered from. One per control process."""

    config: Config
    """As the file says; `current` is what is in force."""
    store: Store
    shipping: ShipState
    opened: bool = False
    """The database has been reached and its schema checked."""
    closing: bool = False
    """The process ends: streams to dashboards end too."""
    counting: bool = False
    """Decisions of before the sums are being added up."""
    alarms: int = 0
    """Raised now, over all routes."""
    login_guard: LoginGuard = field(default_factory=new_login_guard)
    tls: KeptTls | None = None
    kept: dict[str, tuple[float, Any]] = field(default_factory=dict)
    """Answers that may be a little old: by question, when (monotonic) and what."""
    busy: dict[str, threading.Lock] = field(default_factory=dict)
    """Held while the answer to a question is found, so that it is found once."""
    _current: tuple[int, Config] | None = None

    @property
    def run_dir(self) -> Path:
        return Path(self.config.server.run_dir)

    @property
    def spool_dir(self) -> Path:
        return spool_dir(self.run_dir)

    @property
    def current(self) -> Config:
        """What workers go by: the file and what was changed since. The file alone where the rest is unsound."""
        seen = stamp(self.run_dir)
        if self._current is None or self._current[0] != seen:
            self._current = (seen, self._read())
        return self._current[1]

    def _read(self) -> Config:
        found, _ = overlaid(self.config, self.settings().overlay, read_secrets(self.run_dir))
        return found or self.config

    def settings(self) -> Settings:
        """This machine's copy."""
        try:
            return read_settings(self.run_dir)
        except ValueError:
            return Settings()

    def publish(self) -> bool:
        """Hands the database's keys and settings to the workers; True: they had others."""
        keys, overlay = tuple(self.store.keys()), overlay_of(self.store.latest_settings())
        return change_settings(
            self.run_dir, lambda settings: msgspec.structs.replace(settings, keys=keys, overlay=overlay)
        )

    def publish_or_wait(self) -> None:
        """Of what is stored already: where the disk takes no file just now, it is handed out as soon as it does."""
        try:
            self.publish()
        except OSError as fault:
            log.warning("workers don't have it yet: %s", fault)

    def confirm(self) -> tuple[int, int]:
        """How many workers run, and how many say within two seconds that they work by the settings of now."""
        from gateway.admin.worker_sockets import settings_version, socket_paths

        wanted, sockets = self.settings().version, socket_paths(self.run_dir)
        deadline, waiting = time.monotonic() + CONFIRM_WITHIN_S, list(sockets)
        while waiting and time.monotonic() < deadline:
            waiting = [path for path in waiting if (settings_version(path) or 0) < wanted]
            if waiting:
                time.sleep(0.02)
        return len(sockets), len(sockets) - len(waiting)

    def snapshots(self) -> list[tuple[str, bytes]]:
        """What each worker last said of itself, by its name."""
        found = []
        for path in sorted(self.run_dir.glob("worker-*.metrics")):
            try:
                found.append((path.stem, path.read_bytes()))
            except FileNotFoundError:
                continue  # it ended meanwhile
        return found
