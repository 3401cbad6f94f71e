"""Files that a request names by id, put into it before anything is decided: every model can take them then, and what is
held, predicted and kept from the cache is of the request as it will be asked.

Read from the database in its own threads. Only the tenant's own; what is stored of a conversation keeps the id, and
logs and decisions hold nothing of a file.
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
"""Different ones that one request may name."""


async def with_files(services: Services, raw: Raw, surface: str, tenant: str) -> Raw:
    """The request with the files that it names; the same object where it names none that is stored here.

    Raises CallerError for a part that names no file as the API has it, NotFound for a file that this tenant has not,
    TooLarge where the whole is more than a body may be, and HeadgateError 503 where the database is away.
    """
    prompt = find(raw, surface)
    if prompt is None:
        return raw
    most = services.config.server.max_body_bytes
    room = most - sum(len(memoryview(value)) for value in raw.values())

    def read(files: Files) -> Raw:
        return put(raw, surface, prompt, _contents(files, prompt, surface, tenant, room, most), most)

    return await services.batches.of_files(read)


async def call_with_files(services: Services, call: Call, tenant: str) -> Call:
    """The same for a call, described anew. What is stored of its turn keeps the ids."""
    raw = await with_files(services, call.raw, call.surface, tenant)
    if raw is call.raw:
        return call
    described = describe(raw, call.surface, max_messages=services.config.server.max_messages)
    turn = call.turn or (Turn(call.raw) if call.surface == "responses" else None)
    return msgspec.structs.replace(call, raw=raw, body=b"", described=described, turn=turn)


def _contents(
    files: Files, prompt: Prompt, surface: str, tenant: str, room: int, most: int
) -> Mapping[str, Content]:
    """`room`: bytes that may come in, found out before any is read."""
    params = {place.id: place.param for place in reversed(prompt.places)}
    if len(params) > MOST_FILES:
        raise CallerError(f"The request names {len(params)} files; at most {MOST_FILES} are allowed.",
                          param="file_id", code="array_above_max_length")  # fmt: skip
    found = files.named(list(params), tenant)
    for id, param in params.items():
        if id not in found:
            said = f"No such file: '{id}'. It may have been deleted, have expired, or belong to another key: upload it "
            raise NotFound(f"{said}with this key (POST /v1/files), and name the id that you are told.", param=param,
                           code="file_not_found")  # fmt: skip
        if not found[id].bytes:
            raise CallerError(f"The file '{id}' is empty.", param=param, code="invalid_value")
    if sum(found[place.id].bytes for place in prompt.places) > room:
        raise too_large(most)
    return {id: content_of(file.name, b"".join(files.read(id)), surface) for id, file in found.items()}
