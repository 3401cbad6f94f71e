"""Settings that the control process changes while workers run: keys, router versions, the operators' overlay.

They are one file, which is always replaced whole. Workers look at its modification time several times a second and
apply a change between two requests. A file that can't be read changes nothing: the last good settings stay in force.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from gateway.config.overlay import Overlay
from gateway.config.types import Config
from gateway.errors import ConfigError
from gateway.journal.record import KeyRecord

FILE = "settings.json"
LOCK = "settings.lock"


class Spoilt(ConfigError, ValueError):
    """The settings file is damaged."""

    def __init__(self, path: Path, why: Exception) -> None:
        super().__init__([
            f"server.run_dir: {path} is spoilt ({why}). Restore it, or remove it: keys come back from the database, "
            f"but promoted routers and changes made at run time do not"
        ])  # fmt: skip


class CanarySetting(msgspec.Struct, frozen=True):
    """A candidate that decides a share of a route's requests."""

    artifact: str
    share: float


class FloorSetting(msgspec.Struct, frozen=True):
    """The threshold that a route's quality floor is certified for."""

    accept_at: float
    router: str
    """Label of the router that chose while it was measured."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """One version of everything that can change without a restart."""

    version: int = 0
    keys: tuple[KeyRecord, ...] = ()
    routers: dict[str, str] = {}
    """By route, the artefact that serves it now."""
    canaries: dict[str, CanarySetting] = {}
    """By route, the candidate that decides a share of its requests."""
    floors: dict[str, FloorSetting] = {}
    """By route, its certified threshold."""
    overlay: Overlay = Overlay()
    """The operators' changes, which override the configuration file."""


def read_settings(run_dir: str | Path) -> Settings:
    """The settings in the file; empty settings where there is no file. Raises Spoilt."""
    try:
        return msgspec.json.decode((Path(run_dir) / FILE).read_bytes(), type=Settings)
    except FileNotFoundError:
        return Settings()
    except msgspec.MsgspecError as error:
        raise Spoilt(Path(run_dir) / FILE, error) from None


def write_settings(run_dir: str | Path, settings: Settings) -> None:
    """Replace the file atomically, so that a reader sees the old settings or the new ones."""
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{FILE}.{os.getpid()}.new"
    with draft.open("wb") as file:
        file.write(msgspec.json.encode(settings))
        file.flush()
        os.fsync(file.fileno())  # without it, a power loss may leave an empty file
    draft.chmod(0o600)
    os.replace(draft, folder / FILE)


def stamp(run_dir: str | Path) -> int:
    """Modification time of the settings file in nanoseconds; 0 where there is no file."""
    try:
        return (Path(run_dir) / FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class Current:
    """The settings in force in this process."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = run_dir
        self.base: Config | None = None
        """The configuration that the settings' overlay is laid over; None before it is known."""
        self._stamp = stamp(run_dir)
        self.settings = self.in_force = read_settings(run_dir)
        """`settings` are the last that were read; `in_force` are those that requests are answered by, which differ
        where the last ones were refused.
        """
        self.applied = self.settings.version
        """The version that this process answers by."""

    def refresh(self) -> bool:
        """Read the file if it has changed. True where its content differs, apart from the version. Raises Spoilt."""
        seen = stamp(self.run_dir)
        if seen == self._stamp:
            return False
        self._stamp = seen
        fresh = read_settings(self.run_dir)
        changed = msgspec.structs.replace(fresh, version=0) != msgspec.structs.replace(self.settings, version=0)
        if not changed and self.applied == self.settings.version:
            self.applied = fresh.version
        self.settings = fresh
        return changed


def change_settings(run_dir: str | Path, change: Callable[[Settings], Settings]) -> bool:
    """Write `change(settings)` under the file's lock; True where that differs from the settings before.

    `change` must not call this function: it would wait for its own lock forever. Raises Spoilt.
    """
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        settings = read_settings(folder)
        changed = change(settings)
        if changed == settings:
            return False
        write_settings(folder, msgspec.structs.replace(changed, version=settings.version + 1))
        return True
    finally:
        os.close(lock)


def publish_keys(run_dir: str | Path, keys: Sequence[KeyRecord]) -> bool:
    """Write the database's keys, which workers apply within a second. True where they differ from those before."""
    return change_settings(run_dir, lambda settings: msgspec.structs.replace(settings, keys=tuple(keys)))
