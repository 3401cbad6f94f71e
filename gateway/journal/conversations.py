"""Conversations: ordered items in the database, so that any worker that gets the next request has all of them.

Items are not written through a spool, because the next turn would not notice that one is missing. A conversation that
was not used for `keep_days` is deleted with its items. Every method blocks: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from gateway.errors import CallerError, NotFound
from gateway.journal.record import new_id
from gateway.journal.tables import conversation_items, conversations
from gateway.journal.upsert import clean

_AT_ONCE = 100
_c, _i = conversations.c, conversation_items.c


class Conversation(msgspec.Struct):
    """The description of one conversation, without its items."""

    id: str
    tenant: str
    created_s: float
    time_s: float
    """Unix time of the last use."""
    metadata: dict[str, str]
    places: int = 0
    """Place of the next item."""
    items: int = 0
    bytes: int = 0
    """Bytes of its items."""
    deleted: bool = False

    def as_object(self) -> dict[str, Any]:
        """As OpenAI's API describes a conversation."""
        named = {"id": self.id, "object": "conversation"}
        return {**named, "created_at": int(self.created_s), "metadata": self.metadata}


class Item(msgspec.Struct):
    """One item as the client sent it, and its id."""

    id: str
    item: msgspec.Raw
    place: int = 0


class Limits(msgspec.Struct, frozen=True):
    """The limits of one conversation."""

    items: int
    bytes: int


class Conversations:
    """The conversations of one database. A tenant can't see another's."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def add(self, conversation: Conversation, items: Sequence[Item]) -> None:
        """Store a new conversation with its first items."""
        row = msgspec.structs.asdict(conversation) | {"metadata": _json(conversation.metadata)}
        row |= {"places": len(items), "items": len(items), "bytes": sum(map(_size, items))}
        with self.engine.begin() as connection:
            connection.execute(sa.insert(conversations), row)
            _insert(connection, conversation.id, 0, items)

    def find(self, id: str, tenant: str) -> Conversation:
        """The tenant's conversation of this id. Raises NotFound."""
        with self.engine.connect() as connection:
            return _find(connection, id, tenant)

    def describe(self, id: str, tenant: str, metadata: dict[str, str], now_s: float) -> Conversation:
        """Replace the metadata. Raises NotFound."""
        with self.engine.begin() as connection:
            return _change(connection, id, tenant, metadata=_json(metadata), time_s=now_s)

    def delete(self, id: str, tenant: str) -> None:
        """Delete the conversation; its items are kept for the responses that were made in it. Raises NotFound."""
        with self.engine.begin() as connection:
            _change(connection, id, tenant, deleted=True)

    def append(
        self, id: str, tenant: str, items: Sequence[Item], now_s: float, limits: Limits | None = None
    ) -> list[Item]:
        """Append all items or none, and return them with their final ids and places. Concurrent calls don't interleave.
        Raises NotFound, and CallerError beyond the limits.
        """
        size = sum(map(_size, items))
        with self.engine.begin() as connection:
            changed = _change(
                connection, id, tenant, time_s=now_s, places=_c.places + len(items), items=_c["items"] + len(items),
                bytes=_c.bytes + size,
            )  # fmt: skip
            if limits is not None and (changed.items > limits.items or changed.bytes > limits.bytes):
                raise CallerError(
                    f"The conversation would have more than {limits.items} items or {limits.bytes} bytes. Begin a new "
                    "one, or delete items that it no longer needs.", param="items", code="conversation_full",
                )  # fmt: skip
            return _insert(connection, changed.id, changed.places - len(items), items)

    def items(self, id: str, *, up_to: int | None = None) -> list[Item]:
        """The items in order, also of a deleted conversation; with `up_to`, those before that place."""
        query = sa.select(_i.id, _i.item, _i.place).where(_i.conversation == clean(id)).order_by(_i.place)
        if up_to is not None:
            query = query.where(_i.place < up_to)
        return self._items(query)

    def page(self, id: str, tenant: str, *, after: str, limit: int, oldest_first: bool) -> list[Item]:
        """One page of items. `after`: the id of the last item of the page before. Raises NotFound, and CallerError
        where there is no such item.
        """
        self.find(id, tenant)
        query = sa.select(_i.id, _i.item, _i.place).where(_i.conversation == clean(id)).limit(limit)
        if after:
            edge = self._items(query.where(_i.id == clean(after)))
            if not edge:
                raise CallerError("after names no item of this conversation", param="after")
            query = query.where(_i.place > edge[0].place if oldest_first else _i.place < edge[0].place)
        return self._items(query.order_by(_i.place if oldest_first else _i.place.desc()))

    def item(self, id: str, tenant: str, item_id: str) -> Item:
        """One item. Raises NotFound."""
        self.find(id, tenant)
        found = self._items(
            sa.select(_i.id, _i.item, _i.place).where(_i.conversation == clean(id), _i.id == clean(item_id))
        )
        if not found:
            raise _no_item(id, item_id)
        return found[0]

    def remove(self, id: str, tenant: str, item_id: str, now_s: float) -> Conversation:
        """Delete one item for good, and return the conversation without it. Raises NotFound."""
        item = self.item(id, tenant, item_id)
        with self.engine.begin() as connection:
            changed = _change(connection, id, tenant, time_s=now_s, items=_c["items"] - 1, bytes=_c.bytes - _size(item))
            delete = sa.delete(conversation_items).where(_i.conversation == changed.id, _i.place == item.place)
            if not connection.execute(delete).rowcount:
                raise _no_item(id, item_id)
            return changed

    def forget(self, old_s: float) -> int:
        """Delete conversations that were last used before the Unix time `old_s`, a few per transaction; returns their
        number. One that is used meanwhile stays.
        """
        gone = 0
        old = sa.select(_c.id).where(_c.time_s < old_s).limit(_AT_ONCE)
        delete = sa.delete(conversations).where(_c.id.in_(old), _c.time_s < old_s).returning(_c.id)
        while True:
            with self.engine.begin() as connection:
                ids = list(connection.execute(delete).scalars())
                connection.execute(sa.delete(conversation_items).where(_i.conversation.in_(ids)))
            gone += len(ids)
            if len(ids) < _AT_ONCE:
                return gone

    def _items(self, query: sa.Select[Any]) -> list[Item]:
        with self.engine.connect() as connection:
            return [Item(id, msgspec.Raw(item.encode()), place) for id, item, place in connection.execute(query)]


def _find(connection: sa.Connection, id: str, tenant: str) -> Conversation:
    return _only(connection.execute(sa.select(conversations).where(*_whose(id, tenant))), id)


def _change(connection: sa.Connection, id: str, tenant: str, **values: Any) -> Conversation:
    """Change the conversation and return it. Concurrent changes wait until this transaction ends."""
    changed = sa.update(conversations).where(*_whose(id, tenant)).values(**values)
    return _only(connection.execute(changed.returning(*conversations.c)), id)


def _whose(id: str, tenant: str) -> tuple[sa.ColumnElement[bool], ...]:
    return _c.id == clean(id), _c.tenant == clean(tenant), sa.not_(_c.deleted)


def _only(found: sa.CursorResult[Any], id: str) -> Conversation:
    row = found.mappings().first()
    if row is None:
        raise NotFound(f"Conversation with id '{id}' not found.")
    return Conversation(**{**row, "metadata": msgspec.json.decode(row["metadata"])})


def _no_item(id: str, item_id: str) -> NotFound:
    return NotFound(f"Item with id '{item_id}' not found in conversation '{id}'.")


def _insert(connection: sa.Connection, id: str, place: int, items: Sequence[Item]) -> list[Item]:
    """Insert the items and return them with their ids, which are changed where they exist already."""
    if not items:
        return []
    known = sa.select(_i.id).where(_i.conversation == id, _i.id.in_([one.id for one in items]))
    taken = set(connection.execute(known).scalars())
    kept = []
    for index, one in enumerate(items):
        fresh = new_id(one.id) if one.id in taken else one.id
        taken.add(fresh)
        kept.append(Item(fresh, one.item, place + index))
    rows = [{"conversation": id, "place": one.place, "id": one.id, "item": _text(one)} for one in kept]
    connection.execute(sa.insert(conversation_items), rows)
    return kept


def _text(item: Item) -> str:
    return bytes(item.item).decode()


def _size(item: Item) -> int:
    return len(bytes(item.item))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
