"""Learned routers as files: one safetensors file whose metadata is JSON with a schema, the version of the
features it reads, its lineage and scores, and a checksum over all of it. No pickle, so a foreign file can
do no harm.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.features import ENCODED

SCHEMA = 1
_KEY = "headgate"

Arrays = Mapping[str, NDArray[Any]]


class ArtifactError(ValueError):
    """The file is corrupted, foreign, or of a schema or feature version that this build can't serve."""


@dataclass(frozen=True, slots=True)
class Card:
    """Metadata of an artefact, kept in its file."""

    kind: str
    """Name in the registry of routers."""
    version: str
    features_version: str
    models: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    parent: str = ""
    """Version it was retrained from."""
    data_checksum: str = ""
    trained_on: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Scores at training time."""
    schema: int = SCHEMA


def checksum(arrays: Arrays, card: Mapping[str, Any]) -> str:
    """sha256 over the card and every array's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}:{array.dtype}:{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_artifact(path: Path, card: Card, arrays: Arrays) -> None:
    """Write the artefact so that a reader never sees half of it. Raises OSError."""
    from safetensors.numpy import save

    stated = json.loads(json.dumps(asdict(card)))
    stated["checksum"] = checksum(arrays, stated)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_whole(path, save(whole, metadata={_KEY: json.dumps(stated, sort_keys=True)}))


def write_whole(path: Path, content: bytes) -> None:
    """Write to a temporary file beside `path` and rename it, so that a failure leaves what was there. The OSError names
    `path`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def load_artifact(path: Path, features_version: str | None = None) -> tuple[Card, dict[str, NDArray[Any]]]:
    """The card and the arrays of a file. Raises ArtifactError, which says what is wrong with it. `features_version`:
    the version that this build makes; None leaves it unchecked. An artefact whose features a configured encoder makes
    always passes.
    """
    stated, arrays = _read(path)
    claimed = stated.pop("checksum", "")
    if checksum(arrays, stated) != claimed:
        raise ArtifactError(f"{path}: checksum does not match; the file is corrupted")
    if stated.get("schema") != SCHEMA:
        raise ArtifactError(f"{path}: schema {stated.get('schema')!r}, this build reads {SCHEMA}")
    card = _card(path, stated)
    foreign = features_version is not None and card.features_version not in ("", features_version)
    if foreign and not card.features_version.startswith(ENCODED):
        raise ArtifactError(
            f"{path}: features_version {card.features_version!r}, this build makes {features_version!r}"
        )
    return card, arrays


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            stated = json.loads((file.metadata() or {}).get(_KEY, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: no such file") from error
    except (SafetensorError, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: not an artefact ({error})") from error
    if not isinstance(stated, dict):
        raise ArtifactError(f"{path}: no `{_KEY}` metadata; the file is foreign")
    return stated, arrays


def _card(path: Path, stated: dict[str, Any]) -> Card:
    try:
        return Card(**{**stated, "models": tuple(stated["models"]), "trained_on": tuple(stated["trained_on"])})
    except (KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: card field {error}") from error
