"""Options that several commands share, and functions that open the configuration and its journal."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from gateway.config.load import file_of, load
from gateway.config.types import Config
from gateway.errors import CallerError, ConfigError

if TYPE_CHECKING:
    from gateway.journal.store import Store

ConfigPath = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="Configuration (TOML); default: ./headgate.toml if there is one, else the built-in one."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
CostWeight = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="How much cost counts in routing: 0 quality alone, 1 cost alone.")
]
MinQuality = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Only models predicted to be this good.")]
MaxCostUsd = Annotated[float | None, typer.Option(min=0.0, help="Most dollars that one request may cost.")]
MaxLatencyS = Annotated[float | None, typer.Option(min=0.0, help="Most seconds that an answer may take.")]
DataFolder = Annotated[Path, typer.Option(help="Folder with queries.parquet and outcomes.parquet.")]
Tasks = Annotated[str, typer.Option(help="Only these tasks, comma-separated; default: all.")]
RouterSource = Annotated[
    str,
    typer.Option(help="A router's name, a version (see `versions`) or a file; default: the route's present router."),
]
SinceHours = Annotated[float, typer.Option(min=0.0, help="Only this many past hours; 0: everything.")]


def listed(names: str) -> list[str]:
    """The names in a comma-separated list."""
    return [name.strip() for name in names.split(",") if name.strip()]


DATABASE = ("storage.url",)
"""Secrets that commands on the journal need."""
SHARED = (*DATABASE, "storage.redis_url")
"""Secrets that commands on the journal and the routes need."""


def read_config(path: Path | None, secrets: Collection[str] | None = None) -> Config:
    """Load a command's configuration. `secrets`: the keys that must be set; None: all of them. Raises ConfigError."""
    return load(file_of(path), os.environ, secrets)


def open_journal(config: Config) -> Store:
    """Open the journal's database. Raises ConfigError if the folder of its file does not exist."""
    from gateway.journal.schema import missing_folder
    from gateway.journal.store import open_store

    if fault := missing_folder(config.storage.url):
        raise ConfigError([fault])
    return open_store(config.storage.url)


def ship(config: Config, store: Store) -> None:
    """Ship the records in the workers' spools to the database, unless a control process is doing so already."""
    from gateway.journal.ship import Shipper
    from gateway.journal.spool import spool_dir

    shipper = Shipper(spool_dir(config.server.run_dir), store.engine)
    shipper.try_pass()
    shipper.close()


def writable(path: Path) -> None:
    """Check, before any work is done, that a file can be written here. Raises CallerError."""
    if path.is_dir() or not path.name:
        raise CallerError(f"{path} is a folder; name a file")
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise CallerError(f"{path} can't be written: {error.strerror}") from None


def drawable(path: Path) -> None:
    """Check, before any work is done, that an image of this file type can be written here. Raises CallerError."""
    writable(path)
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise CallerError(f"{path}: unknown image type; the file name must end in one of {', '.join(sorted(kinds))}")


def print_json(value: object) -> None:
    """Print a value as one line of JSON on standard output."""
    typer.echo(msgspec.json.encode(value).decode())
