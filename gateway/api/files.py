"""/v1/files: what a tenant uploads for its batches, and what they leave. No tenant sees another's."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.api.multipart import read_multipart
from gateway.asgi import Answer, Request
from gateway.errors import CallerError
from gateway.reply import JSON

MOST_NAME = 512
MOST_PURPOSE = 64


async def create_file(request: Request, _: str) -> Answer:
    """The whole upload is kept, or none of it."""
    caller, services = request.caller(), request.services
    parts = read_multipart(request.arrival.headers.get(b"content-type", b""), request.body)
    file, purpose = parts.get("file"), parts.get("purpose")
    if file is None or not file.filename:
        raise CallerError("'file' is a required property", param="file", code="missing_required_parameter")
    if purpose is None or not purpose.data or len(purpose.data) > MOST_PURPOSE:
        raise CallerError("'purpose' is a required property", param="purpose", code="missing_required_parameter")
    now, what, name, data = services.clock(), purpose.data.decode("utf-8", "replace"), file.filename, file.data
    lasts = parts.get("expires_after[seconds]")
    expires_s = now + _seconds(lasts.data) if lasts is not None else None
    kept = await services.batches.of_files(
        lambda files: files.add(caller.tenant, what, name[:MOST_NAME], [data], now, expires_s=expires_s)
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
    content = await request.services.batches.of_files(lambda files: b"".join(files.read(files.find(id, tenant).id)))
    return 200, [(b"content-type", b"application/octet-stream")], content


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
        raise CallerError(f"{cursor} names nothing in this list", param=cursor)
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
