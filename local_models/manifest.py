"""Checksums of a model folder, so that a truncated or exchanged file is found before it answers anybody.

A folder without a manifest is taken as it is: folders made elsewhere have none.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"


class ManifestError(ValueError):
    """A model folder does not hold what its manifest says."""


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, about: dict[str, object]) -> None:
    """Record size and checksum of every file in `folder`, beside what `about` says of its making."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"schema": 1, **about, "files": files}, indent=1) + "\n")


def verify_manifest(folder: Path) -> bool:
    """Check `folder` against its manifest; False when it has none.

    Raises `ManifestError` naming the first file that is missing or differs.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return False
    try:
        files = json.loads(manifest.read_text())["files"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ManifestError(f"{manifest} is no manifest") from error
    for name, expected in files.items():
        _verify_file(folder / name, expected)
    return True


def _verify_file(path: Path, expected: dict[str, object]) -> None:
    if not path.is_file():
        raise ManifestError(f"{path} is missing")
    if path.stat().st_size != expected["bytes"]:
        raise ManifestError(f"{path} has {path.stat().st_size} bytes, its manifest says {expected['bytes']}")
    if sha256_of(path) != expected["sha256"]:
        raise ManifestError(f"{path} differs from its manifest")
