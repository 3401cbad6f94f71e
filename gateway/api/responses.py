"""Stored responses: retrieve, list the input, delete; and input counted. Creating one is a surface like any other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from gateway.api.files import asked, page_limit, page_of, place_of
from gateway.asgi import Answer, Request
from gateway.call import read_model, read_raw
from gateway.errors import CallerError, UnknownModel
from gateway.event_streams import with_keepalives
from gateway.file_inputs import with_files
from gateway.reply import EVENTS, JSON
from gateway.wire.replay import replay
from gateway.wire.request import estimate_tokens


async def get_response(request: Request, id: str) -> Answer:
    """Show a stored response; with `stream=true` as a stream.

    One of the background comes as it is written, behind `starting_after` where that is named; another as the stream it
    could have come as, numbered anew, so nobody's place in it is known.
    """
    tenant, responses = request.caller().tenant, request.services.responses
    record, after = await responses.find(id, tenant), asked(request, "starting_after")
    is_stream, place = asked(request, "stream") == "true", _place_after(after)
    if is_stream and b'"background":true' in record.output and await responses.is_streamed(id, tenant):
        return 200, [*EVENTS], _while_there(request, with_keepalives(responses.told(id, tenant, place)))
    if after:
        raise CallerError("Only the stream of a response made with background=true and stream=true is taken up again. "
                          "Retrieve this one whole.", param="starting_after")  # fmt: skip
    if is_stream:
        if not _has_output(record.output):
            raise CallerError("Only a response that was made can be streamed. Retrieve it whole.", param="stream")
        return 200, [*EVENTS], replay(record.output, "responses")
    return 200, [JSON], record.output


def _place_after(number: str) -> int:
    if number and not (number.isascii() and number.isdigit() and len(number) < 10):
        raise CallerError("starting_after is an event's sequence number", param="starting_after")
    return int(number) + 1 if number else 0


async def _while_there(request: Request, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Until the client leaves."""
    leaving = asyncio.ensure_future(request.receive())
    try:
        while True:
            coming = asyncio.ensure_future(anext(pieces, None))
            await asyncio.wait({leaving, coming}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
                return
            if (piece := coming.result()) is None:
                return
            yield piece
    finally:
        leaving.cancel()


async def delete_response(request: Request, id: str) -> Answer:
    """Delete a stored response."""
    await request.services.responses.delete(id, request.caller().tenant)
    return 200, [JSON], msgspec.json.encode({"id": id, "object": "response", "deleted": True})


async def list_input_items(request: Request, id: str) -> Answer:
    """List what a response was asked, newest first unless `order=asc`.

    Every item has an id, as the API promises.
    """
    told = await request.services.responses.input_of(id, request.caller().tenant)
    items = [shown(f"item_{id}_{index}", item) for index, item in enumerate(told)]
    if asked(request, "order") != "asc":
        items.reverse()
    limit, place = page_limit(request, 20, 100), place_of(request, "after", [item["id"] for item in items])
    return 200, [JSON], msgspec.json.encode(page_of(items[place + 1 : place + limit + 2], limit))


def shown(id: str, item: dict[str, Any]) -> dict[str, Any]:
    """An item as the API lists it: a message's text is a part, however it was sent."""
    told = {"id": id, "type": "message", "status": "completed", **item}
    if told["type"] == "message" and isinstance(told.get("content"), str):
        said = told.get("role") == "assistant"
        part = {"type": "output_text", "annotations": []} if said else {"type": "input_text"}
        told["content"] = [{**part, "text": told["content"]}]
    return told


async def count_input_tokens(request: Request, _: str) -> Answer:
    """Estimate the input tokens of a response, turns before it included. No provider is asked."""
    caller, services = request.caller(), request.services
    raw = (await services.responses.continued(read_raw(request.body, request.arrival.headers), caller.tenant)).raw
    name = read_model(raw)
    if name and not caller.may_use(name):
        raise UnknownModel(f"The model '{name}' does not exist or this key may not use it.", param="model")
    if name:
        services.book.find(name)
    raw = await with_files(services, raw, "responses", caller.tenant)
    count = estimate_tokens(raw, "responses", max_messages=services.config.server.max_messages)
    return 200, [JSON], msgspec.json.encode({"object": "response.input_tokens", "input_tokens": count})


async def cancel_response(request: Request, id: str) -> Answer:
    """Cancel a response in the background. One that has ended is answered as it is."""
    record = await request.services.responses.cancel(id, request.caller().tenant)
    return 200, [JSON], record.output


def _has_output(response: bytes) -> bool:
    return msgspec.json.decode(response)["status"] in ("completed", "incomplete")
