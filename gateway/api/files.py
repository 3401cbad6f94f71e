"""/v1/files: what a tenant uploads for its prompts and batches, and what those leave. No tenant sees another's.

In OpenAI's shapes or, for a client of Anthropic's, in Anthropic's: the files are the same.
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
from gateway.config import Server
from gateway.errors import CallerError, NotFound, TooLarge
from gateway.reply import JSON
from gateway.wire.multipart import Form

if TYPE_CHECKING:
    from gateway.batch.files import File

MOST_NAME = 512
MOST_PURPOSE = 64
IN_MEMORY_BYTES = 64 * 1024
"""Of each part of an upload; the rest waits on the disk until the database has it."""
FORM_BYTES = 64 * 1024
"""What a form may have beside its file."""
PIECE_BYTES = 1024 * 1024
MOST_IDS = 100
"""Files that one of Anthropic's lists may be asked for by their ids."""
PAGE, UNNAMED = "page_", "unnamed"
ANTHROPIC_PURPOSE = "user_data"
"""Of files that come without a purpose, which Anthropic's API doesn't have."""


@dataclass(frozen=True, slots=True)
class _Lasting:
    """How a form says for how long a file is kept."""

    name: str
    least_s: int
    most_s: int

    def seconds(self, text: bytes) -> float:
        """Raises CallerError."""
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not self.least_s <= seconds <= self.most_s:
            raise CallerError(f"{self.name} is a number from {self.least_s} to {self.most_s}",
                              param=self.name.partition("[")[0])  # fmt: skip
        return seconds


_LASTING = _Lasting("expires_after[seconds]", 1, 2592000)
_ANTHROPIC_LASTING = _Lasting("expires_in_seconds", 3600, 7776000)


async def create_file(request: Request, _: str) -> Answer:
    """Upload a file. The whole upload is kept, or none of it."""
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
    file = parts.get("file")
    if file is None or not file.filename:
        raise CallerError("'file' is a required property", param="file", code="missing_required_parameter")
    if file.bytes > services.config.server.max_file_bytes:
        raise TooLarge(f"the file is over {services.config.server.max_file_bytes} bytes")
    now, name, data = services.clock(), file.filename, file.file
    lasting = _ANTHROPIC_LASTING if request.is_anthropic else _LASTING
    purpose, lasts = parts.get("purpose"), parts.get(lasting.name)
    if request.is_anthropic:
        what, name = ANTHROPIC_PURPOSE, name.replace("\\", "/").rpartition("/")[2] or UNNAMED
    elif purpose is None or not 0 < purpose.bytes <= MOST_PURPOSE:
        raise CallerError("'purpose' is a required property", param="purpose", code="missing_required_parameter")
    else:
        what = purpose.data.decode("utf-8", "replace")
    expires_s = now + lasting.seconds(lasts.data[:MOST_PURPOSE]) if lasts is not None else None
    data.seek(0)
    kept = await services.batches.of_files(
        lambda files: files.add(
            tenant, what, name[:MOST_NAME], iter(lambda: data.read(PIECE_BYTES), b""), now, expires_s=expires_s
        )
    )
    return _told(request, kept)


def _told(request: Request, file: File) -> Answer:
    shape = file.as_metadata() if request.is_anthropic else file.as_object()
    return 200, [JSON], msgspec.json.encode(shape)


async def list_files(request: Request, _: str) -> Answer:
    """List files, newest first, page by page."""
    tenant = request.caller().tenant
    if request.is_anthropic:
        return 200, [JSON], msgspec.json.encode(await _anthropic_page(request, tenant))
    limit = page_limit(request, 10_000, 10_000)
    purpose, after, order = (asked(request, name) for name in ("purpose", "after", "order"))
    found = await request.services.batches.of_files(
        lambda files: files.page(tenant, purpose=purpose, after=after, limit=limit + 1, oldest_first=order == "asc")
    )
    return 200, [JSON], msgspec.json.encode(page_of([file.as_object() for file in found], limit))


async def _anthropic_page(request: Request, tenant: str) -> dict[str, Any]:
    """Its clients ask for the next page by `page`, older ones by `after_id`, and go back by `before_id`."""
    batches, limit, ids = request.services.batches, page_limit(request, 20, 1000), request.query.get("ids[]", [])
    if ids:
        if len(set(ids)) > MOST_IDS:
            raise CallerError(f"ids: at most {MOST_IDS} are allowed", param="ids")
        named = await batches.of_files(lambda files: files.named(ids, tenant))
        return _page([named[id] for id in dict.fromkeys(ids) if id in named], more=False)
    if asked(request, "scope_id"):
        return _page([], more=False)  # no file here is of a session
    cursor = next((name for name in ("before_id", "page", "after_id") if asked(request, name)), "after_id")
    last, back = asked(request, cursor).removeprefix(PAGE if cursor == "page" else ""), cursor == "before_id"
    try:
        found = await batches.of_files(
            lambda files: files.page(tenant, after=last, limit=limit + 1, oldest_first=back)
        )
    except NotFound:
        raise CallerError(f"{cursor} must name a file in this list", param=cursor) from None
    shown = found[:limit]
    return _page(shown[::-1] if back else shown, more=len(found) > limit, back=back)


def _page(files: list[File], *, more: bool, back: bool = False) -> dict[str, Any]:
    """`more`: in the direction of the reading, which goes `back` to newer ones or on to older ones."""
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
    return _told(request, await request.services.batches.of_files(lambda files: files.find(id, tenant)))


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
