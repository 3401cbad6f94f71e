"""Stored responses: retrieve, cancel, delete, list or count the input. A response is created in gateway/asgi.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from gateway.api.files import page_limit, page_of, place_of, query_value
from gateway.asgi import Answer, Request
from gateway.call import read_model, read_raw
from gateway.errors import CallerError, UnknownModel
from gateway.file_inputs import with_files
from gateway.reply import EVENTS, JSON
from gateway.stored.event_streams import with_keepalives
from gateway.wire.replay import replay
from gateway.wire.request import estimate_tokens


async def get_response(request: Request, id: str) -> Answer:
    """Show a stored response; with `stream=true` as a stream.

    A response made in the background is streamed as it is written, from the event after `starting_after` where that is
    given. Any other is replayed as a stream whose events are numbered anew, so it can't start in the middle.
    """
    tenant, responses = request.caller().tenant, request.services.responses
    record, after = await responses.find(id, tenant), query_value(request, "starting_after")
    is_stream, place = query_value(request, "stream") == "true", _place_after(after)
    if is_stream and b'"background":true' in record.output and await responses.is_streamed(id, tenant):
        return 200, [*EVENTS], _until_disconnect(request, with_keepalives(responses.events_from(id, tenant, place)))
    if after:
        raise CallerError("Only the stream of a response made with background=true and stream=true can be resumed. "
                          "Retrieve this one whole.", param="starting_after")  # fmt: skip
    if is_stream:
        if not _has_output(record.output):
            raise CallerError("Only a completed or incomplete response can be streamed. Retrieve it whole.",
                              param="stream")  # fmt: skip
        return 200, [*EVENTS], replay(record.output, "responses")
    return 200, [JSON], record.output


def _place_after(number: str) -> int:
    if number and not (number.isascii() and number.isdigit() and len(number) < 10):
        raise CallerError("starting_after is an event's sequence number", param="starting_after")
    return int(number) + 1 if number else 0


async def _until_disconnect(request: Request, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces, until there are no more or the client disconnects."""
    disconnect = asyncio.ensure_future(request.receive())
    try:
        while True:
            next_piece = asyncio.ensure_future(anext(pieces, None))
            await asyncio.wait({disconnect, next_piece}, return_when=asyncio.FIRST_COMPLETED)
            if not next_piece.done():
                next_piece.cancel()
                await asyncio.wait({next_piece})
                return
            if (piece := next_piece.result()) is None:
                return
            yield piece
    finally:
        disconnect.cancel()


async def delete_response(request: Request, id: str) -> Answer:
    """Delete a stored response."""
    await request.services.responses.delete(id, request.caller().tenant)
    return 200, [JSON], msgspec.json.encode({"id": id, "object": "response", "deleted": True})


async def list_input_items(request: Request, id: str) -> Answer:
    """List the input items of a response, newest first unless `order=asc`.

    Items that came without an id get one, as the API promises.
    """
    stored = await request.services.responses.input_of(id, request.caller().tenant)
    items = [shown(f"item_{id}_{index}", item) for index, item in enumerate(stored)]
    if query_value(request, "order") != "asc":
        items.reverse()
    limit, place = page_limit(request, 20, 100), place_of(request, "after", [item["id"] for item in items])
    return 200, [JSON], msgspec.json.encode(page_of(items[place + 1 : place + limit + 2], limit))


def shown(id: str, item: dict[str, Any]) -> dict[str, Any]:
    """An item as the API lists it, with its default fields; a message whose content is a string gets it as a part."""
    listed = {"id": id, "type": "message", "status": "completed", **item}
    if listed["type"] == "message" and isinstance(listed.get("content"), str):
        is_answer = listed.get("role") == "assistant"
        part = {"type": "output_text", "annotations": []} if is_answer else {"type": "input_text"}
        listed["content"] = [{**part, "text": listed["content"]}]
    return listed


async def count_input_tokens(request: Request, _: str) -> Answer:
    """Estimate the input tokens of a response, including earlier turns. No provider is asked."""
    caller, services = request.caller(), request.services
    raw = (await services.responses.continued(read_raw(request.body, request.arrival.headers), caller.tenant)).raw
    model = read_model(raw)
    if model and not caller.may_use(model):
        raise UnknownModel(f"The model '{model}' does not exist or this key may not use it.", param="model")
    if model:
        services.book.find(model)
    raw = await with_files(services, raw, "responses", caller.tenant)
    count = estimate_tokens(raw, "responses", max_messages=services.config.server.max_messages)
    return 200, [JSON], msgspec.json.encode({"object": "response.input_tokens", "input_tokens": count})


async def cancel_response(request: Request, id: str) -> Answer:
    """Cancel a response in the background. A response that has already ended is returned unchanged."""
    record = await request.services.responses.cancel(id, request.caller().tenant)
    return 200, [JSON], record.output


def _has_output(response: bytes) -> bool:
    return msgspec.json.decode(response)["status"] in ("completed", "incomplete")
