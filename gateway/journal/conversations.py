"""Conversations: items in order, kept in the database, so that whichever worker is asked next knows all of them.

Nothing of them waits in a spool: a turn that is not there when the next one comes would be missed by nobody. One that
nobody has used for `keep_days` goes with its items. Synchronous: call it off the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from gateway.errors import CallerError, NotFound
from gateway.journal.tables import conversation_items, conversations
from gateway.journal.upsert import clean

_AT_ONCE = 100
_c, _i = conversations.c, conversation_items.c


class Conversation(msgspec.Struct):
    """One conversation's own description."""

    id: str
    tenant: str
    created_s: float
    time_s: float
    """Last used."""
    metadata: dict[str, str]
    places: int = 0
    """The next item's place."""
    items: int = 0
    bytes: int = 0
    """Of its items."""
    deleted: bool = False

    def as_object(self) -> dict[str, Any]:
        """As OpenAI's API describes a conversation."""
        named = {"id": self.id, "object": "conversation"}
        return {**named, "created_at": int(self.created_s), "metadata": self.metadata}


class Item(msgspec.Struct):
    """One item, as it was given, and under which id it is kept."""

    id: str
    item: msgspec.Raw
    place: int = 0


class Limits(msgspec.Struct, frozen=True):
    """What one conversation may come to hold."""

    items: int
    bytes: int


class Conversations:
    """Over one database. No tenant sees another's."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def add(self, conversation: Conversation, items: Sequence[Item]) -> None:
        """A new one with its first items."""
        row = msgspec.structs.asdict(conversation) | {"metadata": _json(conversation.metadata)}
        row |= {"places": len(items), "items": len(items), "bytes": sum(map(_size, items))}
        with self.engine.begin() as connection:
            connection.execute(sa.insert(conversations), row)
            _insert(connection, conversation.id, 0, items)

    def find(self, id: str, tenant: str) -> Conversation:
        """Raises NotFound."""
        with self.engine.connect() as connection:
            return _find(connection, id, tenant)

    def describe(self, id: str, tenant: str, metadata: dict[str, str], now_s: float) -> Conversation:
        """With other metadata. Raises NotFound."""
        with self.engine.begin() as connection:
            return _change(connection, id, tenant, metadata=_json(metadata), time_s=now_s)

    def delete(self, id: str, tenant: str) -> None:
        """Its items stay for the responses that were made in it. Raises NotFound."""
        with self.engine.begin() as connection:
            _change(connection, id, tenant, deleted=True)

    def append(
        self, id: str, tenant: str, items: Sequence[Item], now_s: float, limits: Limits | None = None
    ) -> list[Item]:
        """All of them behind what is there, or none; as they are kept. Of two at once neither lies within the other.
        Raises NotFound, and CallerError beyond the limits.
        """
        size = sum(map(_size, items))
        with self.engine.begin() as connection:
            told = _change(
                connection, id, tenant, time_s=now_s, places=_c.places + len(items), items=_c["items"] + len(items),
                bytes=_c.bytes + size,
            )  # fmt: skip
            if limits is not None and (told.items > limits.items or told.bytes > limits.bytes):
                raise CallerError(
                    f"The conversation would have more than {limits.items} items or {limits.bytes} bytes. Begin a new "
                    "one, or delete items that it no longer needs.", param="items", code="conversation_full",
                )  # fmt: skip
            return _insert(connection, told.id, told.places - len(items), items)

    def items(self, id: str, *, up_to: int | None = None) -> list[Item]:
        """All of them in order, of a deleted conversation too. `up_to`: those before that place."""
        query = sa.select(_i.id, _i.item, _i.place).where(_i.conversation == clean(id)).order_by(_i.place)
        if up_to is not None:
            query = query.where(_i.place < up_to)
        return self._items(query)

    def page(self, id: str, tenant: str, *, after: str, limit: int, oldest_first: bool) -> list[Item]:
        """`after`: the id of the last one of the page before. Raises NotFound, CallerError."""
        self.find(id, tenant)
        query = sa.select(_i.id, _i.item, _i.place).where(_i.conversation == clean(id)).limit(limit)
        if after:
            edge = self._items(query.where(_i.id == clean(after)))
            if not edge:
                raise CallerError("after names nothing in this list", param="after")
            query = query.where(_i.place > edge[0].place if oldest_first else _i.place < edge[0].place)
        return self._items(query.order_by(_i.place if oldest_first else _i.place.desc()))

    def item(self, id: str, tenant: str, item_id: str) -> Item:
        """Raises NotFound."""
        self.find(id, tenant)
        found = self._items(
            sa.select(_i.id, _i.item, _i.place).where(_i.conversation == clean(id), _i.id == clean(item_id))
        )
        if not found:
            raise _no_item(id, item_id)
        return found[0]

    def remove(self, id: str, tenant: str, item_id: str, now_s: float) -> Conversation:
        """Without that item, which is gone for good. Raises NotFound."""
        item = self.item(id, tenant, item_id)
        with self.engine.begin() as connection:
            told = _change(connection, id, tenant, time_s=now_s, items=_c["items"] - 1, bytes=_c.bytes - _size(item))
            gone = sa.delete(conversation_items).where(_i.conversation == told.id, _i.place == item.place)
            if not connection.execute(gone).rowcount:
                raise _no_item(id, item_id)
            return told

    def forget(self, old_s: float) -> int:
        """Deletes what was last used before then, some per transaction; how many."""
        gone = 0
        old = sa.select(_c.id).where(_c.time_s < old_s).limit(_AT_ONCE)
        while True:
            with self.engine.begin() as connection:
                ids = list(connection.execute(old).scalars())
                connection.execute(sa.delete(conversation_items).where(_i.conversation.in_(ids)))
                connection.execute(sa.delete(conversations).where(_c.id.in_(ids)))
            gone += len(ids)
            if len(ids) < _AT_ONCE:
                return gone

    def _items(self, query: sa.Select[Any]) -> list[Item]:
        with self.engine.connect() as connection:
            return [Item(id, msgspec.Raw(item.encode()), place) for id, item, place in connection.execute(query)]


def _find(connection: sa.Connection, id: str, tenant: str) -> Conversation:
    return _only(connection.execute(sa.select(conversations).where(*_whose(id, tenant))), id)


def _change(connection: sa.Connection, id: str, tenant: str, **values: Any) -> Conversation:
    """As it is then. Whoever changes it too waits until this transaction ends."""
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
    """As they are kept: an id that is there already is made another."""
    if not items:
        return []
    known = sa.select(_i.id).where(_i.conversation == id, _i.id.in_([one.id for one in items]))
    taken = set(connection.execute(known).scalars())
    kept = []
    for index, one in enumerate(items):
        fresh = f"{one.id}_{place + index}" if one.id in taken else one.id
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
