"""Puts the files that a request names by id into the request, before anything is decided: then every model can take
them, and holds, predictions and cache keys are those of the request as it is sent.

Files are read from the database in a thread, and only those of the request's tenant. Stored conversations keep the ids,
and neither logs nor decisions contain a file's content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from gateway.call import Call
from gateway.errors import CallerError, NotFound
from gateway.services import Services
from gateway.wire.body import Raw
from gateway.wire.file_parts import Content, Prompt, content_of, find, put, too_large
from gateway.wire.request import describe
from gateway.wire.responses import Turn

if TYPE_CHECKING:
    from gateway.batch.files import Files

MOST_FILES = 100
"""Most different files that one request may name."""


async def with_files(services: Services, raw: Raw, surface: str, tenant: str) -> Raw:
    """The request with the files that it names; the same object if it names none that is stored here.

    Raises CallerError for a malformed file part, NotFound for a file that this tenant doesn't have, TooLarge if the
    request would exceed the largest body, and HeadgateError 503 while the database is away.
    """
    prompt = find(raw, surface)
    if prompt is None:
        return raw
    limit = services.config.server.max_body_bytes
    room = limit - sum(len(memoryview(value)) for value in raw.values())

    def read(files: Files) -> Raw:
        return put(raw, surface, prompt, _contents(files, prompt, surface, tenant, room, limit), limit)

    return await services.batches.of_files(read)


async def call_with_files(services: Services, call: Call, tenant: str) -> Call:
    """The call with the files that it names, described anew. Its stored turn keeps the ids. Raises as `with_files`."""
    raw = await with_files(services, call.raw, call.surface, tenant)
    if raw is call.raw:
        return call
    described = describe(raw, call.surface, max_messages=services.config.server.max_messages)
    turn = call.turn or (Turn(call.raw) if call.surface == "responses" else None)
    return msgspec.structs.replace(call, raw=raw, body=b"", described=described, turn=turn)


def _contents(
    files: Files, prompt: Prompt, surface: str, tenant: str, room: int, limit: int
) -> Mapping[str, Content]:
    """The content of each file, by id. `room`: bytes of files that the body has room for, checked before any is read;
    `limit`: bytes of the largest body.
    """
    params = {place.id: place.param for place in reversed(prompt.places)}
    if len(params) > MOST_FILES:
        raise CallerError(f"The request names {len(params)} files; at most {MOST_FILES} are allowed.",
                          param="file_id", code="array_above_max_length")  # fmt: skip
    files_by_id = files.named(list(params), tenant)
    for id, param in params.items():
        if id not in files_by_id:
            message = (
                f"No such file: '{id}'. It may have been deleted, have expired, or belong to another key: upload it "
                "with this key (POST /v1/files), and use the id in the answer."
            )
            raise NotFound(message, param=param, code="file_not_found")
        if not files_by_id[id].bytes:
            raise CallerError(f"The file '{id}' is empty.", param=param, code="invalid_value")
    if sum(files_by_id[place.id].bytes for place in prompt.places) > room:
        raise too_large(limit)
    return {id: content_of(file.name, b"".join(files.read(id)), surface) for id, file in files_by_id.items()}
