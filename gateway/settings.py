"""What the control plane decides while workers run: keys, router versions. One file, replaced whole.

Workers look at its modification time twice a second; a change is applied between two requests. A file that
can't be read changes nothing: the last good settings stay.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from gateway.config import Config
from gateway.errors import ConfigError
from gateway.journal.record import KeyRecord
from gateway.overlay import Overlay

FILE = "settings.json"
LOCK = "settings.lock"


class Spoilt(ConfigError, ValueError):
    """The file can't be read."""

    def __init__(self, path: Path, why: Exception) -> None:
        super().__init__([
            f"server.run_dir: {path} is spoilt ({why}). Restore it, or remove it: keys come back from the database, "
            f"promoted routers and what was changed at run time do not"
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
    """A version of everything that can change without a restart."""

    version: int = 0
    keys: tuple[KeyRecord, ...] = ()
    routers: dict[str, str] = {}
    """Route to the artefact that serves it now."""
    canaries: dict[str, CanarySetting] = {}
    """Route to the candidate before a share of its traffic."""
    floors: dict[str, FloorSetting] = {}
    """Route to what is certified of it now."""
    overlay: Overlay = Overlay()
    """What operators changed, laid over the configuration file."""


def read_settings(run_dir: str | Path) -> Settings:
    """The current settings; the empty ones where none were ever written. Raises Spoilt."""
    try:
        return msgspec.json.decode((Path(run_dir) / FILE).read_bytes(), type=Settings)
    except FileNotFoundError:
        return Settings()
    except msgspec.MsgspecError as error:
        raise Spoilt(Path(run_dir) / FILE, error) from None


def write_settings(run_dir: str | Path, settings: Settings) -> None:
    """Replace the file in one step, so that a reader sees the old one or the new one."""
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{FILE}.{os.getpid()}.new"
    with draft.open("wb") as file:
        file.write(msgspec.json.encode(settings))
        file.flush()
        os.fsync(file.fileno())  # else a power loss may leave an empty one
    draft.chmod(0o600)
    os.replace(draft, folder / FILE)


def stamp(run_dir: str | Path) -> int:
    """Changes whenever the settings do; 0 where there are none."""
    try:
        return (Path(run_dir) / FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class Current:
    """The settings in force in this process."""

    def __init__(self, run_dir: str | Path) -> None:
        self.run_dir = run_dir
        self.base: Config | None = None
        """The configuration that the settings' overlay is laid over; None: nobody has said."""
        self._stamp = stamp(run_dir)
        self.settings = self.in_force = read_settings(run_dir)
        """`in_force`: those that requests go by; the others may have been refused."""
        self.applied = self.settings.version
        """The version that this process works by."""

    def refresh(self) -> bool:
        """True: the file has changed since we looked, and says something else. Raises Spoilt."""
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
    """Put `change(settings)` into force; True: it says something new. Other processes wait their turn.

    `change` must not itself change settings.
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
    """Put the database's keys into force: workers know them within a second. True: they had others."""
    return change_settings(run_dir, lambda settings: msgspec.structs.replace(settings, keys=tuple(keys)))
