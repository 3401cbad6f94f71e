"""Shares promoted routers, canaries and certified floors among replicas.

Each replica's control process merges its own settings file with the copy in the database, entry by entry, against the
version that both last agreed on (a three-way merge). Artefacts are named by their checksums and are copied before any
setting names them. Keys and the operators' overlay are in the database anyway and are not handled here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from gateway.config.settings import Settings, change_settings, read_settings
from gateway.journal.store import Store
from gateway.journal.tables import artifacts, settings

log = logging.getLogger("headgate.replica_sync")

NAME = "learnt"
BASE = "learnt.json"
_OWN = frozenset({"version", "keys", "overlay"})
"""Fields of the settings that reach every replica in other ways."""
_MARK = "artifact:"
_SUFFIX = ".safetensors"
Document = dict[str, dict[str, Any]]
"""Settings by field, then by route."""


class Overtaken(Exception):
    """Another replica has changed the shared settings at the same time."""


class Base(msgspec.Struct):
    """The shared settings that this replica and the database last agreed on."""

    version: int = 0
    document: Document = {}


class ReplicaSync:
    """Shares the settings of one replica. Not thread-safe."""

    def __init__(self, store: Store, run_dir: str | Path) -> None:
        self._store = store
        self._run_dir = Path(run_dir)
        self._sums: dict[tuple[str, int], str] = {}
        self._base = self._read_base()

    def step(self) -> bool:
        """Merge once. True where this replica's settings have changed. Raises Overtaken, and what the database and the
        disk raise.
        """
        version, remote = self._latest()
        base = self._base
        local = self._document(read_settings(self._run_dir))
        if base is None:  # a replica that has never merged before takes over what the others serve
            base = Base(0, local if version else {})
        merged = _merged(local, base.document, remote)
        if merged != remote:
            self._send(merged)
            version = self._save(merged, version)
        changed = merged != local and self._apply(base.document, remote)
        if (version, merged) != (base.version, base.document) or self._base is None:
            self._base = Base(version, merged)
            self._write_base()
        return changed

    def _latest(self) -> tuple[int, Document]:
        query = sa.select(settings.c.version, settings.c.value).where(settings.c.name == NAME)
        with self._store.engine.connect() as connection:
            row = connection.execute(query.order_by(settings.c.version.desc()).limit(1)).first()
        return (row[0], msgspec.json.decode(row[1])) if row else (0, {})

    def _save(self, document: Document, version: int) -> int:
        """Store the next version. Raises Overtaken where another replica has just stored it."""
        text = msgspec.json.encode(document).decode()
        row = {"name": NAME, "version": version + 1, "time_s": time.time(), "actor": "gateway", "value": text}
        try:
            with self._store.engine.begin() as connection:
                connection.execute(sa.insert(settings), row)
        except sa.exc.IntegrityError:
            raise Overtaken from None
        return version + 1

    def _apply(self, base: Document, remote: Document) -> bool:
        """Apply the others' changes to this replica's settings, after copying their artefacts."""

        def change(current: Settings) -> Settings:
            merged = _merged(self._document(current), base, remote)
            shared = msgspec.convert(self._placed(merged), Settings)
            return msgspec.structs.replace(current, **{name: getattr(shared, name) for name in _shared_fields()})

        self._fetch(_merged(self._document(read_settings(self._run_dir)), base, remote))
        changed = change_settings(self._run_dir, change)
        if changed:
            log.info("took over promoted routers, canaries or floors of another replica")
        return changed

    # Documents are the shared fields of the settings, with artefacts named by their checksums instead of paths.

    def _document(self, current: Settings) -> Document:
        fields = msgspec.to_builtins(current)
        return {name: self._marked(fields[name]) for name in _shared_fields() if fields[name]}

    def _marked(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._marked(item) for key, item in value.items()}
        if isinstance(value, str) and value.endswith(_SUFFIX) and "/" in value:
            return _MARK + self._checksum(Path(value))
        return value

    def _placed(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._placed(item) for key, item in value.items()}
        if isinstance(value, str) and value.startswith(_MARK):
            return str(self._place(value.removeprefix(_MARK)).resolve())
        return value

    def _place(self, checksum: str) -> Path:
        known = next((Path(path) for (path, _), one in self._sums.items() if one == checksum), None)
        return known if known is not None and known.exists() else self._run_dir / "artifacts" / f"{checksum}{_SUFFIX}"

    def _checksum(self, path: Path) -> str:
        key = (str(path), path.stat().st_mtime_ns)
        if key not in self._sums:
            self._sums[key] = sha256(path.read_bytes()).hexdigest()
        return self._sums[key]

    def _send(self, document: Document) -> None:
        for checksum in _checksums(document):
            path = self._place(checksum)
            query = sa.select(artifacts.c.checksum).where(artifacts.c.checksum == checksum)
            with self._store.engine.begin() as connection:
                if connection.execute(query).first() is None:
                    row = {"checksum": checksum, "time_s": time.time(), "bytes": path.read_bytes()}
                    connection.execute(sa.insert(artifacts), row)

    def _fetch(self, document: Document) -> None:
        for checksum in _checksums(document):
            path = self._place(checksum)
            if path.exists():
                continue
            query = sa.select(artifacts.c.bytes).where(artifacts.c.checksum == checksum)
            with self._store.engine.connect() as connection:
                content = connection.execute(query).scalar_one_or_none()
            if content is None or sha256(content).hexdigest() != checksum:
                raise ValueError(f"artefact {checksum[:16]} is not whole in the database")
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".new")
            draft.write_bytes(content)
            draft.replace(path)

    def _read_base(self) -> Base | None:
        try:
            return msgspec.json.decode((self._run_dir / BASE).read_bytes(), type=Base)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _write_base(self) -> None:
        draft = self._run_dir / f"{BASE}.new"
        draft.write_bytes(msgspec.json.encode(self._base))
        draft.replace(self._run_dir / BASE)


def _shared_fields() -> list[str]:
    return [name for name in Settings.__struct_fields__ if name not in _OWN]


def _merged(local: Document, base: Document, remote: Document) -> Document:
    """Each entry as it is locally where that differs from the base, and otherwise as it is remotely."""
    merged: Document = {}
    for field in {*local, *base, *remote}:
        mine, was, theirs = (document.get(field, {}) for document in (local, base, remote))
        entries = {
            key: value
            for key in sorted({*mine, *theirs})
            if (value := _entry(key, mine, was, theirs)) is not None
        }
        if entries:
            merged[field] = entries
    return merged


def _entry(key: str, mine: Mapping[str, Any], was: Mapping[str, Any], theirs: Mapping[str, Any]) -> Any:
    return theirs.get(key) if mine.get(key) == was.get(key) else mine.get(key)


def _checksums(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {checksum for item in value.values() for checksum in _checksums(item)}
    if isinstance(value, str) and value.startswith(_MARK):
        return {value.removeprefix(_MARK)}
    return set()
