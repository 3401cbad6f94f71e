"""Conversations of the Responses API (/v1/conversations): checks their items, and adds responses to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gateway.config.types import Server
from gateway.errors import CallerError
from gateway.journal.reader import Reader
from gateway.wire.body import Raw, encode_json, is_set, read, to_raw
from gateway.wire.request import estimate_tokens
from gateway.wire.responses import new_id

if TYPE_CHECKING:
    from gateway.journal.conversations import Conversation, Conversations, Item, Limits

AT_ONCE = 20
"""Most items that one request may add."""
MOST_PAIRS, MOST_KEY, MOST_VALUE = 16, 64, 512
"""Limits of metadata: pairs, and characters of a key and of a value."""
MARK = "#"
"""Separates the conversation's id from the number of its places in the name of a snapshot."""
_PREFIXES = {
    "message": "msg_", "reasoning": "rs_", "function_call": "fc_", "function_call_output": "fco_",
    "custom_tool_call": "ctc_", "custom_tool_call_output": "ctco_",
}  # fmt: skip
T = TypeVar("T")


class ConversationService:
    """Stores and reads conversations. There is one per worker."""

    def __init__(self, journal: Reader, server: Server, clock: Callable[[], float]) -> None:
        self._journal, self._server, self._clock = journal, server, clock

    async def ask(self, question: Callable[[Conversations], T]) -> T:
        """Ask the stored conversations. Raises HeadgateError 503 while the database is away."""
        from gateway.journal.conversations import Conversations

        return await self._journal.ask(lambda: question(Conversations(self._journal.store.engine)))

    async def create(self, tenant: str, metadata: dict[str, str], items: Sequence[msgspec.Raw]) -> Conversation:
        from gateway.journal.conversations import Conversation

        now_s = self._clock()
        made = Conversation(new_id("conv_"), tenant, now_s, now_s, metadata)
        await self.ask(lambda stored: stored.add(made, [_named(item) for item in items]))
        return made

    async def append(self, id: str, tenant: str, items: Sequence[msgspec.Raw]) -> list[Item]:
        """Add a client's items. Raises NotFound, and CallerError if the conversation is full."""
        named, now_s = [_named(item) for item in items], self._clock()
        return await self.ask(lambda stored: stored.append(id, tenant, named, now_s, self._limits))

    async def append_turn(self, id: str, tenant: str, turn: Sequence[msgspec.Raw]) -> None:
        """Add a response's turn, however long: a full conversation refuses only what comes after. Raises NotFound."""
        named, now_s = [_named(item) for item in turn], self._clock()
        await self.ask(lambda stored: stored.append(id, tenant, named, now_s))

    async def snapshot(self, id: str, tenant: str) -> tuple[str, list[Item]]:
        """The name of a snapshot of the conversation as it is now, and its items. Raises NotFound."""

        def look(stored: Conversations) -> tuple[str, list[Item]]:
            conversation = stored.find(id, tenant)
            return f"{conversation.id}{MARK}{conversation.places}", stored.items(id, up_to=conversation.places)

        return await self.ask(look)

    async def items_at(self, name: str) -> list[msgspec.Raw]:
        """The items of a snapshot, less those deleted since. Raises CallerError if all of them are."""
        id, _, place = name.partition(MARK)
        items = await self.ask(lambda stored: stored.items(id, up_to=int(place)))
        if not items and place != "0":
            message = f"The earlier items of the conversation '{id}' are no longer stored."
            raise CallerError(message, code="conversation_broken")
        return [one.item for one in items]

    @property
    def _limits(self) -> Limits:
        from gateway.journal.conversations import Limits

        return Limits(self._server.max_messages, self._server.max_body_bytes)

    def items_of(self, raw: Raw) -> list[msgspec.Raw]:
        """A request's `items`. Raises CallerError unless each may be part of a response's input."""
        items = read(raw, "items", list[dict[str, Any]], [])
        if len(items) > AT_ONCE:
            raise CallerError(f"'items' has {len(items)} entries; at most {AT_ONCE} are allowed.", param="items",
                              code="array_above_max_length")  # fmt: skip
        for index, item in enumerate(items):
            _check(item, f"items[{index}]")
        if items:
            request = to_raw({"model": "", "input": items})
            estimate_tokens(request, "responses", max_messages=self._server.max_messages)
        return [msgspec.Raw(encode_json(item)) for item in items]


def conversation_of(raw: Raw) -> str:
    """The id of the conversation that a response is to belong to; empty for none. Raises CallerError."""
    if not is_set(raw, "conversation"):
        return ""
    value: Any = read(raw, "conversation", str | dict[str, Any], "")  # type: ignore[arg-type]
    id = value.get("id") if isinstance(value, dict) else value
    if not isinstance(id, str) or not id:
        raise CallerError("'conversation' must be a conversation's id, or an object with its 'id'.",
                          param="conversation", code="invalid_type")  # fmt: skip
    if is_set(raw, "previous_response_id"):
        message = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'."
        raise CallerError(message, param="conversation", code="mutually_exclusive_parameters")
    return id


def metadata_of(raw: Raw) -> dict[str, str]:
    """A request's `metadata`. Raises CallerError beyond the limits of OpenAI's API."""
    metadata = read(raw, "metadata", dict[str, str], {})
    if len(metadata) > MOST_PAIRS:
        raise CallerError(f"'metadata' has {len(metadata)} pairs; at most {MOST_PAIRS} are allowed.", param="metadata",
                          code="object_above_max_properties")  # fmt: skip
    for key, value in metadata.items():
        if len(key) > MOST_KEY or len(value) > MOST_VALUE:
            message = f"Keys of 'metadata' may have at most {MOST_KEY} characters, values {MOST_VALUE}."
            raise CallerError(message, param="metadata", code="string_above_max_length")
    return metadata


def _check(item: dict[str, Any], param: str) -> None:
    kind = item.get("type", "message")
    if not isinstance(kind, str):
        raise CallerError(f"'{param}.type' must be a string.", param=param, code="invalid_type")
    if kind == "message" and ("content" not in item or not isinstance(item.get("role"), str)):
        raise CallerError(f"'{param}': a message needs a role and content.", param=param,
                          code="missing_required_parameter")  # fmt: skip


class _ItemHead(msgspec.Struct):
    """The fields of an item that its name depends on."""

    type: Any = "message"
    id: Any = None


_decode_head = msgspec.json.Decoder(_ItemHead).decode


def _named(item: msgspec.Raw) -> Item:
    """The item under its own id, or a new one if it has none."""
    from gateway.journal.conversations import Item

    head = _decode_head(item)
    id = head.id if isinstance(head.id, str) and head.id else new_id(_PREFIXES.get(head.type, "item_"))
    return Item(id, item)
