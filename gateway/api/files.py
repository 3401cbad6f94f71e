"""/v1/files: what a tenant uploads for its batches, and what they leave. No tenant sees another's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import msgspec

from gateway.asgi import Answer, Request
from gateway.config import Server
from gateway.errors import CallerError, TooLarge
from gateway.reply import JSON
from gateway.wire.multipart import Form

MOST_NAME = 512
MOST_PURPOSE = 64
IN_MEMORY_BYTES = 64 * 1024
"""Of each part of an upload; the rest waits on the disk until the database has it."""
FORM_BYTES = 64 * 1024
"""What a form may have beside its file."""
PIECE_BYTES = 1024 * 1024


async def create_file(request: Request, _: str) -> Answer:
    """The whole upload is kept, or none of it."""
    caller, services = request.caller(), request.services
    server = services.config.server
    pieces = request.pieces(server.max_file_bytes + FORM_BYTES)
    with ExitStack() as stack:
        try:
            kind = request.arrival.headers.get(b"content-type", b"")
            form = Form(kind, lambda: stack.enter_context(_waiting(server)))
            async for piece in pieces:
                form.feed(piece)
        except CallerError:  # answered when the whole of it has come, as others are
            async for _unused in pieces:
                pass
            raise
        return await _keep(request, caller.tenant, form)


def _waiting(server: Server) -> IO[bytes]:
    Path(server.run_dir).mkdir(parents=True, exist_ok=True)
    return SpooledTemporaryFile(IN_MEMORY_BYTES, dir=server.run_dir)


async def _keep(request: Request, tenant: str, form: Form) -> Answer:
    services, parts = request.services, form.end()
    file, purpose, lasts = (parts.get(name) for name in ("file", "purpose", "expires_after[seconds]"))
    if file is None or not file.filename:
        raise CallerError("'file' is a required property", param="file", code="missing_required_parameter")
    if file.bytes > services.config.server.max_file_bytes:
        raise TooLarge(f"the file is over {services.config.server.max_file_bytes} bytes")
    if purpose is None or not 0 < purpose.bytes <= MOST_PURPOSE:
        raise CallerError("'purpose' is a required property", param="purpose", code="missing_required_parameter")
    now, what, name, data = services.clock(), purpose.data.decode("utf-8", "replace"), file.filename, file.file
    expires_s = now + _seconds(lasts.data[:MOST_PURPOSE]) if lasts is not None else None
    data.seek(0)
    kept = await services.batches.of_files(
        lambda files: files.add(
            tenant, what, name[:MOST_NAME], iter(lambda: data.read(PIECE_BYTES), b""), now, expires_s=expires_s
        )
    )
    return 200, [JSON], msgspec.json.encode(kept.as_object())


async def list_files(request: Request, _: str) -> Answer:
    tenant, limit = request.caller().tenant, page_limit(request, 10_000, 10_000)
    purpose, after, order = (asked(request, name) for name in ("purpose", "after", "order"))
    found = await request.services.batches.of_files(
        lambda files: files.page(tenant, purpose=purpose, after=after, limit=limit + 1, oldest_first=order == "asc")
    )
    return 200, [JSON], msgspec.json.encode(page_of([file.as_object() for file in found], limit))


async def get_file(request: Request, id: str) -> Answer:
    tenant = request.caller().tenant
    file = await request.services.batches.of_files(lambda files: files.find(id, tenant))
    return 200, [JSON], msgspec.json.encode(file.as_object())


async def get_content(request: Request, id: str) -> Answer:
    tenant = request.caller().tenant
    file = await request.services.batches.of_files(lambda files: files.find(id, tenant))
    size = (b"content-length", b"%d" % file.bytes)
    return 200, [(b"content-type", b"application/octet-stream"), size], _content(request, file.id)


async def _content(request: Request, id: str) -> AsyncIterator[bytes]:
    for place in count():
        piece = await request.services.batches.of_files(lambda files: files.piece(id, place))  # noqa: B023
        if not piece:
            return
        yield piece


async def delete_file(request: Request, id: str) -> Answer:
    tenant = request.caller().tenant
    await request.services.batches.of_files(lambda files: files.delete(id, tenant))
    return 200, [JSON], msgspec.json.encode({"id": id, "object": "file", "deleted": True})


def asked(request: Request, name: str) -> str:
    """A query parameter; empty where it is absent."""
    return request.query.get(name, [""])[0]


def page_limit(request: Request, default: int, most: int) -> int:
    text = asked(request, "limit")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise CallerError(f"limit is a number from 1 to {most}", param="limit")
    return int(text)


def place_of(request: Request, cursor: str, ids: list[str]) -> int:
    """Where the id that the query's `cursor` names stands; -1, before the first, where it names none."""
    id = asked(request, cursor)
    if id and id not in ids:
        raise CallerError(f"{cursor} must be the id of an object in this list", param=cursor)
    return ids.index(id) if id else -1


def page_of(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page of OpenAI's API; one more than `limit` says that there are more."""
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }


def _seconds(text: bytes) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 2592000:
        raise CallerError("expires_after[seconds] is a number from 1 to 2592000", param="expires_after")
    return seconds
