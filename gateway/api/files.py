"""/v1/files: a tenant's uploads for prompts and batches, and the results of its batches. No tenant sees another's.

Clients of OpenAI's API and of Anthropic's see the same files, each in its own API's form.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, TYPE_CHECKING, Any

import msgspec

from gateway.asgi import Answer, Request
from gateway.config.types import Server
from gateway.errors import CallerError, NotFound, TooLarge
from gateway.reply import JSON
from gateway.wire.multipart import Form

if TYPE_CHECKING:
    from gateway.batch.files import File

MAX_NAME_CHARS = 512
MAX_PURPOSE_BYTES = 64
IN_MEMORY_BYTES = 64 * 1024
"""Bytes of each part of an upload that are kept in memory; a larger part is on disk until the database has it."""
FORM_BYTES = 64 * 1024
"""Most bytes of a form in addition to its file."""
PIECE_BYTES = 1024 * 1024
MAX_IDS = 100
"""Most ids by which a client of Anthropic's API may list files."""
PAGE, UNNAMED = "page_", "unnamed"
ANTHROPIC_PURPOSE = "user_data"
"""Purpose of files from clients of Anthropic's API, which has no purposes."""


@dataclass(frozen=True, slots=True)
class _ExpiryField:
    """The form field that says for how many seconds a file is kept, and its bounds."""

    name: str
    min_s: int
    max_s: int

    def seconds(self, text: bytes) -> float:
        """Parse and check the field. Raises CallerError for what isn't a number within the bounds."""
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not self.min_s <= seconds <= self.max_s:
            raise CallerError(f"{self.name} must be a number from {self.min_s} to {self.max_s}",
                              param=self.name.partition("[")[0])  # fmt: skip
        return seconds


_EXPIRY_FIELD = _ExpiryField("expires_after[seconds]", 1, 2592000)
_ANTHROPIC_EXPIRY_FIELD = _ExpiryField("expires_in_seconds", 3600, 7776000)


async def create_file(request: Request, _: str) -> Answer:
    """Upload a file. Either the whole upload is stored, or none of it."""
    caller, services = request.caller(), request.services
    server = services.config.server
    pieces = request.pieces(server.max_file_bytes + FORM_BYTES)
    with ExitStack() as stack:
        try:
            kind = request.arrival.headers.get(b"content-type", b"")
            form = Form(kind, lambda: stack.enter_context(_open_part(server)))
            async for piece in pieces:
                form.feed(piece)
        except CallerError:  # like other errors, answered once the whole body has come
            async for _unused in pieces:
                pass
            raise
        return await _store(request, caller.tenant, form)


def _open_part(server: Server) -> IO[bytes]:
    Path(server.run_dir).mkdir(parents=True, exist_ok=True)
    return SpooledTemporaryFile(IN_MEMORY_BYTES, dir=server.run_dir)


async def _store(request: Request, tenant: str, form: Form) -> Answer:
    services, parts = request.services, form.end()
    file = parts.get("file")
    if file is None or not file.filename:
        raise CallerError("'file' is a required property", param="file", code="missing_required_parameter")
    if file.bytes > services.config.server.max_file_bytes:
        raise TooLarge(f"the file is over {services.config.server.max_file_bytes} bytes")
    now, name, data = services.clock(), file.filename, file.file
    expiry_field = _ANTHROPIC_EXPIRY_FIELD if request.is_anthropic else _EXPIRY_FIELD
    purpose, expiry = parts.get("purpose"), parts.get(expiry_field.name)
    if request.is_anthropic:
        purpose_name, name = ANTHROPIC_PURPOSE, name.replace("\\", "/").rpartition("/")[2] or UNNAMED
    elif purpose is None or not 0 < purpose.bytes <= MAX_PURPOSE_BYTES:
        raise CallerError("'purpose' is a required property", param="purpose", code="missing_required_parameter")
    else:
        purpose_name = purpose.data.decode("utf-8", "replace")
    expires_s = now + expiry_field.seconds(expiry.data[:MAX_PURPOSE_BYTES]) if expiry is not None else None
    name = name[:MAX_NAME_CHARS]
    data.seek(0)
    stored = await services.batches.of_files(
        lambda files: files.add(
            tenant, purpose_name, name, iter(lambda: data.read(PIECE_BYTES), b""), now, expires_s=expires_s
        )
    )
    return _answer(request, stored)


def _answer(request: Request, file: File) -> Answer:
    shape = file.as_metadata() if request.is_anthropic else file.as_object()
    return 200, [JSON], msgspec.json.encode(shape)


async def list_files(request: Request, _: str) -> Answer:
    """List files, newest first, page by page."""
    tenant = request.caller().tenant
    if request.is_anthropic:
        return 200, [JSON], msgspec.json.encode(await _anthropic_page(request, tenant))
    limit = page_limit(request, 10_000, 10_000)
    purpose, after, order = (query_value(request, name) for name in ("purpose", "after", "order"))
    found = await request.services.batches.of_files(
        lambda files: files.page(tenant, purpose=purpose, after=after, limit=limit + 1, oldest_first=order == "asc")
    )
    return 200, [JSON], msgspec.json.encode(page_of([file.as_object() for file in found], limit))


async def _anthropic_page(request: Request, tenant: str) -> dict[str, Any]:
    """Anthropic's clients request the next page by `page`, or by `after_id` if they are older, and the previous one by
    `before_id`.
    """
    batches, limit, ids = request.services.batches, page_limit(request, 20, 1000), request.query.get("ids[]", [])
    if ids:
        if len(set(ids)) > MAX_IDS:
            raise CallerError(f"ids: at most {MAX_IDS} are allowed", param="ids")
        named = await batches.of_files(lambda files: files.named(ids, tenant))
        return _page([named[id] for id in dict.fromkeys(ids) if id in named], more=False)
    if query_value(request, "scope_id"):
        return _page([], more=False)  # no file here belongs to a session
    cursor = next((name for name in ("before_id", "page", "after_id") if query_value(request, name)), "after_id")
    last, back = query_value(request, cursor).removeprefix(PAGE if cursor == "page" else ""), cursor == "before_id"
    try:
        found = await batches.of_files(
            lambda files: files.page(tenant, after=last, limit=limit + 1, oldest_first=back)
        )
    except NotFound:
        raise CallerError(f"{cursor} must name a file in this list", param=cursor) from None
    shown = found[:limit]
    return _page(shown[::-1] if back else shown, more=len(found) > limit, back=back)


def _page(files: list[File], *, more: bool, back: bool = False) -> dict[str, Any]:
    """One page of Anthropic's API, newest first. `more`: whether there are more files in the direction of the request,
    which is towards newer ones if `back`.
    """
    last = files[-1].id if files else None
    return {
        "data": [file.as_metadata() for file in files],
        "has_more": more,
        "first_id": files[0].id if files else None,
        "last_id": last,
        "next_page": f"{PAGE}{last}" if last and (more or back) else None,
    }


async def get_file(request: Request, id: str) -> Answer:
    """Describe a file."""
    tenant = request.caller().tenant
    return _answer(request, await request.services.batches.of_files(lambda files: files.find(id, tenant)))


async def get_content(request: Request, id: str) -> Answer:
    """Download a file."""
    tenant = request.caller().tenant
    file = await request.services.batches.of_files(lambda files: files.find(id, tenant))
    size = (b"content-length", b"%d" % file.bytes)
    return 200, [(b"content-type", b"application/octet-stream"), size], content_of(request, file.id)


async def content_of(request: Request, id: str) -> AsyncIterator[bytes]:
    for place in count():
        piece = await request.services.batches.of_files(lambda files: files.piece(id, place))  # noqa: B023
        if not piece:
            return
        yield piece


async def delete_file(request: Request, id: str) -> Answer:
    """Delete a file."""
    tenant = request.caller().tenant
    await request.services.batches.of_files(lambda files: files.delete(id, tenant))
    gone = {"id": id, "type": "file_deleted"} if request.is_anthropic else {"id": id, "object": "file", "deleted": True}
    return 200, [JSON], msgspec.json.encode(gone)


def query_value(request: Request, name: str) -> str:
    """The first value of a query parameter; empty where it is absent."""
    return request.query.get(name, [""])[0]


def page_limit(request: Request, default: int, maximum: int) -> int:
    """The query's `limit`. Raises CallerError for what isn't a number from 1 to `maximum`."""
    text = query_value(request, "limit")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= maximum):
        raise CallerError(f"limit must be a number from 1 to {maximum}", param="limit")
    return int(text)


def place_of(request: Request, cursor: str, ids: list[str]) -> int:
    """Index in `ids` of the id in the query parameter `cursor`; -1 where that is absent. Raises CallerError."""
    id = query_value(request, cursor)
    if id and id not in ids:
        raise CallerError(f"{cursor} must be the id of an object in this list", param=cursor)
    return ids.index(id) if id else -1


def page_of(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """One page of OpenAI's API. `found` holds one object more than `limit` where there are further pages."""
    data = found[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
