"""The run folder of a running gateway: its lock, and the copy of the configuration file that child processes read.

Children are started with the copy, so that later changes of the file don't reach them before a reload. Somebody may
delete the folder while it is in use; it can then be created anew.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from gateway.errors import ConfigError

LOCK = "serve.lock"


class RunFolder:
    """A run folder that this process has locked. Without a configuration file there are no copies."""

    def __init__(self, path: Path, config_file: str | None) -> None:
        """Create the folder if need be, lock it and copy the configuration file. Raises OSError, and ConfigError where
        another gateway has the lock.
        """
        self.path = path
        path.mkdir(0o700, parents=True, exist_ok=True)  # cached answers, files of prompts
        self._mode = path.stat().st_mode & 0o7777
        self._lock = _locked(path)
        self._config_file = config_file
        self._in_force = path / "config.toml"
        self._on_trial = path / "config.trial.toml"
        self.config_copy = self._in_force
        """The copy that children are started with."""
        self._content = self._copy_to(self._in_force)
        """The bytes of the configuration file in force."""
        self._tried = b""

    @property
    def is_whole(self) -> bool:
        """Whether the folder is still the locked one, and has its copy of the configuration file."""
        try:
            ours = os.path.samestat(os.fstat(self._lock), (self.path / LOCK).stat())
            return ours and (not self._config_file or self._in_force.exists())
        except OSError:
            return False

    def lay_anew(self) -> None:
        """Create the folder, its lock and its copy of the configuration. Raises OSError where that fails, and
        ConfigError where another gateway has taken the folder.
        """
        self.path.mkdir(0o700, parents=True, exist_ok=True)
        self.path.chmod(self._mode)  # a worker may have created it, with another mode
        old_lock, self._lock = self._lock, _locked(self.path)
        os.close(old_lock)
        if self._config_file:
            _write_private(self._in_force, self._content)

    def begin_trial(self) -> None:
        """Start children with the configuration file as it is now. Raises OSError where it can't be copied."""
        self._tried = self._copy_to(self._on_trial)
        self.config_copy = self._on_trial

    def end_trial(self, *, accepted: bool) -> None:
        """Start children with the configuration in force again; with `accepted`, that is the one on trial."""
        self.config_copy = self._in_force
        if accepted and self._config_file:
            self._content = self._tried
            with suppress(OSError):  # the folder was deleted meanwhile, and will be created anew with this content
                self._on_trial.replace(self._in_force)

    def discard_trial(self) -> None:
        """Delete the copy on trial, once no child is started with it any more."""
        self._on_trial.unlink(missing_ok=True)

    def _copy_to(self, copy: Path) -> bytes:
        """Copy the configuration file, and return its bytes."""
        if not self._config_file:
            return b""
        content = Path(self._config_file).read_bytes()
        _write_private(copy, content)
        return content


def _locked(folder: Path) -> int:
    """Lock the folder for as long as this process lives, and return the lock's file descriptor. Raises ConfigError
    where another gateway has the lock.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        problem = f"server.run_dir: another gateway runs in {folder}: each needs a folder of its own"
        raise ConfigError([problem]) from None
    return lock


def _write_private(path: Path, text: bytes) -> None:
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_bytes(text)
    draft.replace(path)
