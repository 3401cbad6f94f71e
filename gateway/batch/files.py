"""Uploaded files and the files of batch jobs, stored in the database in pieces; only a file's own tenant sees it.

The input and the results of a message batch (Anthropic's API) belong to the batch, whose id stands in the tenant's
place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from gateway.errors import NotFound
from gateway.journal.record import new_id
from gateway.journal.tables import file_chunks, files
from gateway.journal.upsert import clean, put_row
from gateway.wire.file_parts import LONGEST_ID, ids_in, named_type

CHUNK_BYTES = 1024 * 1024
AT_ONCE = 500
"""Most ids in one query."""


class File(msgspec.Struct):
    """The description of one file, without its content."""

    id: str
    tenant: str
    purpose: str
    name: str
    bytes: int
    created_s: float
    expires_s: float | None = None

    @property
    def mime_type(self) -> str:
        """The media type that the file's name suggests."""
        return named_type(self.name)

    def as_object(self) -> dict[str, Any]:
        """As OpenAI's API describes a file."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created_s),
            "expires_at": None if self.expires_s is None else int(self.expires_s),
            "filename": self.name,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }

    def as_metadata(self) -> dict[str, Any]:
        """As Anthropic's API describes a file."""
        return {
            "id": self.id,
            "type": "file",
            "filename": self.name,
            "mime_type": self.mime_type,
            "size_bytes": self.bytes,
            "created_at": _rfc3339(self.created_s),
            "expires_at": None if self.expires_s is None else _rfc3339(self.expires_s),
            "downloadable": True,
        }


class Files:
    """The files of one database. Every method blocks: call it off the event loop."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def add(
        self,
        tenant: str,
        purpose: str,
        name: str,
        data: Iterable[bytes],
        now_s: float,
        *,
        id: str = "",
        expires_s: float | None = None,
    ) -> File:
        """Write the whole file or nothing. With the `id` of an existing file, that file is replaced."""
        file = File(id or new_id("file"), clean(tenant), clean(purpose), clean(name), 0, now_s, expires_s)
        with self.engine.begin() as connection:
            connection.execute(sa.delete(file_chunks).where(file_chunks.c.file == file.id))
            for place, piece in enumerate(_pieces(data)):
                connection.execute(sa.insert(file_chunks), {"file": file.id, "place": place, "data": piece})
                file.bytes += len(piece)
            put_row(connection, files, msgspec.to_builtins(file))
        return file

    def find(self, id: str, tenant: str) -> File:
        """The tenant's file of this id. Raises NotFound."""
        query = sa.select(files).where(files.c.id == clean(id), files.c.tenant == clean(tenant))
        with self.engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFound(f"No such File object: {id}", param="id")
        return File(**row)

    def named(self, ids: Sequence[str], tenant: str) -> dict[str, File]:
        """The tenant's files of these ids, by id; ids without a file are left out."""
        found: dict[str, File] = {}
        with self.engine.connect() as connection:
            for place in range(0, len(ids), AT_ONCE):
                some = [clean(id) for id in ids[place : place + AT_ONCE]]
                query = sa.select(files).where(files.c.id.in_(some), files.c.tenant == clean(tenant))
                found |= {row["id"]: File(**row) for row in connection.execute(query).mappings()}
        return found

    def page(
        self, tenant: str, *, purpose: str = "", after: str = "", limit: int = 10_000, oldest_first: bool = False
    ) -> list[File]:
        """One page of the tenant's files, newest first unless `oldest_first`. `after`: the id of the last file of the
        page before. Raises NotFound where there is no file of that id.
        """
        place = sa.tuple_(files.c.created_s, files.c.id)
        query = sa.select(files).where(files.c.tenant == clean(tenant)).limit(limit)
        if purpose:
            query = query.where(files.c.purpose == clean(purpose))
        if after:
            last = self.find(after, tenant)
            edge = sa.tuple_(last.created_s, last.id)
            query = query.where(place > edge if oldest_first else place < edge)
        order = (files.c.created_s, files.c.id)
        query = query.order_by(*(order if oldest_first else [column.desc() for column in order]))
        with self.engine.connect() as connection:
            return [File(**row) for row in connection.execute(query).mappings()]

    def read(self, id: str) -> Iterator[bytes]:
        """The file's content, piece by piece."""
        place = 0
        while piece := self.piece(id, place):
            yield piece
            place += 1

    def piece(self, id: str, place: int) -> bytes:
        """The piece number `place` of the content, of at most CHUNK_BYTES; empty after the last one."""
        query = sa.select(file_chunks.c.data).where(file_chunks.c.file == id, file_chunks.c.place == place)
        with self.engine.connect() as connection:
            return connection.execute(query).scalar_one_or_none() or b""

    def delete(self, id: str, tenant: str) -> None:
        """Delete the tenant's file of this id. Raises NotFound."""
        self.find(id, tenant)
        with self.engine.begin() as connection:
            connection.execute(sa.delete(files).where(files.c.id == id))
            connection.execute(sa.delete(file_chunks).where(file_chunks.c.file == id))


def named_in(path: Path) -> list[str]:
    """Ids of the uploaded files that a job's lines name, sorted. The input is searched piece by piece, not parsed."""
    found: set[str] = set()
    before = b""
    with path.open("rb") as lines:
        while piece := lines.read(CHUNK_BYTES):
            text = before + piece
            found |= ids_in(text)
            before = text[-LONGEST_ID:]
    return sorted(found)


def _rfc3339(time_s: float) -> str:
    return datetime.fromtimestamp(int(time_s), UTC).isoformat().replace("+00:00", "Z")


def _pieces(data: Iterable[bytes]) -> Iterator[bytes]:
    """The data in pieces of CHUNK_BYTES; the last one may be shorter."""
    held = bytearray()
    for part in data:
        held += part
        while len(held) >= CHUNK_BYTES:
            yield bytes(held[:CHUNK_BYTES])
            del held[:CHUNK_BYTES]
    if held:
        yield bytes(held)
