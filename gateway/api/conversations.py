"""Conversations and their items. gateway/stored/responses.py adds the items of responses that are made in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway.api.files import page_limit, page_of, query_value
from gateway.api.responses import shown
from gateway.asgi import Answer, Request
from gateway.call import read_raw
from gateway.errors import CallerError
from gateway.reply import JSON
from gateway.stored.conversations import ConversationService, metadata_of
from gateway.wire.request import Raw

if TYPE_CHECKING:
    from gateway.journal.conversations import Item


async def create_conversation(request: Request, _: str) -> Answer:
    """Create a conversation, with at most twenty first items."""
    tenant = request.caller().tenant
    raw = _body(request)
    metadata, items = metadata_of(raw), await _items(request, tenant, raw)
    return _answer((await _conversations(request).create(tenant, metadata, items)).as_object())


async def get_conversation(request: Request, id: str) -> Answer:
    """Show a conversation."""
    tenant = request.caller().tenant
    return _answer((await _conversations(request).ask(lambda store: store.find(id, tenant))).as_object())


async def update_conversation(request: Request, id: str) -> Answer:
    """Replace the metadata of a conversation."""
    tenant, raw, now_s = request.caller().tenant, _body(request), request.services.clock()
    if "metadata" not in raw:
        raise CallerError("Missing required parameter: 'metadata'.", param="metadata",
                          code="missing_required_parameter")  # fmt: skip
    metadata = metadata_of(raw)
    return _answer(
        (await _conversations(request).ask(lambda store: store.describe(id, tenant, metadata, now_s))).as_object()
    )


async def delete_conversation(request: Request, id: str) -> Answer:
    """Delete a conversation. Responses that were made in it stay, with their earlier turns."""
    tenant = request.caller().tenant
    await _conversations(request).ask(lambda store: store.delete(id, tenant))
    return _answer({"id": id, "object": "conversation.deleted", "deleted": True})


async def list_items(request: Request, id: str) -> Answer:
    """List the items of a conversation, newest first unless `order=asc`."""
    tenant, limit, after = request.caller().tenant, page_limit(request, 20, 100), query_value(request, "after")
    oldest_first = query_value(request, "order") == "asc"
    found = await _conversations(request).ask(
        lambda store: store.page(id, tenant, after=after, limit=limit + 1, oldest_first=oldest_first)
    )
    return _answer(page_of([_shown(one) for one in found], limit))


async def create_items(request: Request, id: str) -> Answer:
    """Add at most twenty items to the end of a conversation."""
    tenant, raw = request.caller().tenant, _body(request)
    items = await _items(request, tenant, raw)
    if not items:
        raise CallerError("Missing required parameter: 'items'.", param="items", code="missing_required_parameter")
    added = await _conversations(request).append(id, tenant, items)
    return _answer(page_of([_shown(one) for one in added], len(added)))


async def get_item(request: Request, place: str) -> Answer:
    """Show one item of a conversation."""
    tenant, (id, item_id) = request.caller().tenant, _place(place)
    return _answer(_shown(await _conversations(request).ask(lambda store: store.item(id, tenant, item_id))))


async def delete_item(request: Request, place: str) -> Answer:
    """Delete one item of a conversation, and return the conversation."""
    tenant, now_s, (id, item_id) = request.caller().tenant, request.services.clock(), _place(place)
    conversation = await _conversations(request).ask(lambda store: store.remove(id, tenant, item_id, now_s))
    return _answer(conversation.as_object())


def _conversations(request: Request) -> ConversationService:
    return request.services.responses.conversations


def _body(request: Request) -> Raw:
    return read_raw(request.body or b"{}", request.arrival.headers)


async def _items(request: Request, tenant: str, raw: Raw) -> list[msgspec.Raw]:
    """The body's items, with every reference to a stored item replaced by that item."""
    items = _conversations(request).items_of(raw)
    recalled = await request.services.responses.recalled({"input": msgspec.Raw(msgspec.json.encode(items))}, tenant)
    return msgspec.json.decode(recalled["input"], type=list[msgspec.Raw])


def _place(place: str) -> tuple[str, str]:
    """The conversation's id and the item's id in `place`, which is `ID/ITEM_ID`."""
    id, _, item_id = place.partition("/")
    return id, item_id


def _shown(one: Item) -> dict[str, Any]:
    return shown(one.id, msgspec.json.decode(one.item)) | {"id": one.id}


def _answer(value: dict[str, Any]) -> Answer:
    return 200, [JSON], msgspec.json.encode(value)
