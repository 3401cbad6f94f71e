"""What several commands take and open: options said once, the configuration they are about, and its journal."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gateway.config import Config
from gateway.config_load import file_of, load
from gateway.errors import CallerError, ConfigError

if TYPE_CHECKING:
    from gateway.journal.store import Store

ConfigPath = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; without one: headgate.toml here, else the defaults.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Share = Annotated[float | None, typer.Option(min=0.0, max=1.0)]
NonNegative = Annotated[float | None, typer.Option(min=0.0)]


def listed(names: str) -> list[str]:
    """Names that commas separate."""
    return [name.strip() for name in names.split(",") if name.strip()]


DATABASE = ("storage.url",)
SHARED = (*DATABASE, "storage.redis_url")


def read_config(path: Path | None, secrets: Collection[str] | None = None) -> Config:
    """The configuration that a command is about. `secrets`: those that it uses; None: all. Raises ConfigError."""
    return load(file_of(path), os.environ, secrets)


def open_journal(config: Config) -> Store:
    """The configuration's store. Raises ConfigError where its file has no folder."""
    from gateway.journal.schema import missing_folder
    from gateway.journal.store import open_store

    if fault := missing_folder(config.storage.url):
        raise ConfigError([fault])
    return open_store(config.storage.url, keep_days=config.storage.keep_days)


def ship(config: Config, store: Store) -> None:
    """What lies in spools comes into the database first, unless a control process does it already."""
    from gateway.journal.ship import Shipper
    from gateway.journal.spool import spool_dir

    shipper = Shipper(spool_dir(config.server.run_dir), store.engine)
    shipper.try_pass()
    shipper.close()


def writable(path: Path) -> None:
    """Refuses a place that no file can be written to, before work is spent on it. Raises CallerError."""
    if path.is_dir() or not path.name:
        raise CallerError(f"{path} is a folder: name a file")
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise CallerError(f"{path}: can't be written: {error.strerror}") from None


def drawable(path: Path) -> None:
    """As `writable`, also of a kind of picture that nobody can draw."""
    writable(path)
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise CallerError(f"{path}: its ending names no kind of picture; known are {', '.join(sorted(kinds))}")


def print_json(value: object) -> None:
    """One line on standard output."""
    typer.echo(msgspec.json.encode(value).decode())
