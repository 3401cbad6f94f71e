"""/v1/conversations: what their items may be, and how a response takes its place among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gateway.config import Server
from gateway.errors import CallerError
from gateway.journal.reader import Reader
from gateway.wire.body import Raw, encode_json, is_set, read, to_raw
from gateway.wire.request import estimate_tokens
from gateway.wire.responses import new_id

if TYPE_CHECKING:
    from gateway.journal.conversations import Conversation, Conversations, Item, Limits

AT_ONCE = 20
"""Items that one request may add."""
MOST_PAIRS, MOST_KEY, MOST_VALUE = 16, 64, 512
"""Of metadata."""
MARK = "#"
_PREFIXES = {
    "message": "msg_", "reasoning": "rs_", "function_call": "fc_", "function_call_output": "fco_",
    "custom_tool_call": "ctc_", "custom_tool_call_output": "ctco_",
}  # fmt: skip
T = TypeVar("T")


class ConversationService:
    """One per worker."""

    def __init__(self, journal: Reader, server: Server, clock: Callable[[], float]) -> None:
        self._journal, self._server, self._clock = journal, server, clock

    async def ask(self, question: Callable[[Conversations], T]) -> T:
        """Raises HeadgateError 503 where the database is away."""
        from gateway.journal.conversations import Conversations

        return await self._journal.ask(lambda: question(Conversations(self._journal.store.engine)))

    async def create(self, tenant: str, metadata: dict[str, str], items: Sequence[msgspec.Raw]) -> Conversation:
        from gateway.journal.conversations import Conversation

        now_s = self._clock()
        made = Conversation(new_id("conv_"), tenant, now_s, now_s, metadata)
        await self.ask(lambda kept: kept.add(made, [_named(item) for item in items]))
        return made

    async def append(self, id: str, tenant: str, items: Sequence[msgspec.Raw]) -> list[Item]:
        """What a client adds. Raises NotFound, and CallerError where the conversation is full."""
        named, now_s = [_named(item) for item in items], self._clock()
        return await self.ask(lambda kept: kept.append(id, tenant, named, now_s, self._limits))

    async def told(self, id: str, tenant: str, turn: Sequence[msgspec.Raw]) -> None:
        """A response's turn, which is kept however long it is: the next one may be refused. Raises NotFound."""
        named, now_s = [_named(item) for item in turn], self._clock()
        await self.ask(lambda kept: kept.append(id, tenant, named, now_s))

    async def before(self, id: str, tenant: str) -> tuple[str, list[Item]]:
        """Its items, and a name for the conversation as it is now. Raises NotFound."""

        def look(kept: Conversations) -> tuple[str, list[Item]]:
            found = kept.find(id, tenant)
            return f"{found.id}{MARK}{found.places}", kept.items(id, up_to=found.places)

        return await self.ask(look)

    async def as_it_was(self, name: str) -> list[msgspec.Raw]:
        """The items of a conversation that `before` named, less those deleted since. Raises CallerError without any."""
        id, _, place = name.partition(MARK)
        items = await self.ask(lambda kept: kept.items(id, up_to=int(place)))
        if not items and place != "0":
            said = f"What was said before in the conversation '{id}' is no longer stored."
            raise CallerError(said, code="conversation_broken")
        return [one.item for one in items]

    @property
    def _limits(self) -> Limits:
        from gateway.journal.conversations import Limits

        return Limits(self._server.max_messages, self._server.max_body_bytes)

    def items_of(self, raw: Raw) -> list[msgspec.Raw]:
        """A request's `items`, each such as a response's input may have. Raises CallerError."""
        items = read(raw, "items", list[dict[str, Any]], [])
        if len(items) > AT_ONCE:
            raise CallerError(f"'items' has {len(items)} entries; at most {AT_ONCE} are allowed.", param="items",
                              code="array_above_max_length")  # fmt: skip
        for index, item in enumerate(items):
            _check(item, f"items[{index}]")
        if items:
            asked = to_raw({"model": "", "input": items})
            estimate_tokens(asked, "responses", max_messages=self._server.max_messages)
        return [msgspec.Raw(encode_json(item)) for item in items]


def conversation_of(raw: Raw) -> str:
    """The id of the conversation that a response is to belong to; empty: to none. Raises CallerError."""
    if not is_set(raw, "conversation"):
        return ""
    told: Any = read(raw, "conversation", str | dict[str, Any], "")  # type: ignore[arg-type]
    id = told.get("id") if isinstance(told, dict) else told
    if not isinstance(id, str) or not id:
        raise CallerError("'conversation' is a conversation's id, or an object with its 'id'.", param="conversation",
                          code="invalid_type")  # fmt: skip
    if is_set(raw, "previous_response_id"):
        said = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'."
        raise CallerError(said, param="conversation", code="mutually_exclusive_parameters")
    return id


def metadata_of(raw: Raw) -> dict[str, str]:
    """Raises CallerError beyond what OpenAI's API takes."""
    told = read(raw, "metadata", dict[str, str], {})
    if len(told) > MOST_PAIRS:
        raise CallerError(f"'metadata' has {len(told)} pairs; at most {MOST_PAIRS} are allowed.", param="metadata",
                          code="object_above_max_properties")  # fmt: skip
    for key, value in told.items():
        if len(key) > MOST_KEY or len(value) > MOST_VALUE:
            said = f"Keys of 'metadata' have at most {MOST_KEY} characters, values {MOST_VALUE}."
            raise CallerError(said, param="metadata", code="string_above_max_length")
    return told


def _check(item: dict[str, Any], param: str) -> None:
    kind = item.get("type", "message")
    if not isinstance(kind, str):
        raise CallerError(f"'{param}.type' is a string.", param=param, code="invalid_type")
    if kind == "message" and ("content" not in item or not isinstance(item.get("role"), str)):
        raise CallerError(f"'{param}': a message has a role and content.", param=param,
                          code="missing_required_parameter")  # fmt: skip


class _Told(msgspec.Struct):
    type: Any = "message"
    id: Any = None


_decode_told = msgspec.json.Decoder(_Told).decode


def _named(item: msgspec.Raw) -> Item:
    """By its own id where it has one."""
    from gateway.journal.conversations import Item

    told = _decode_told(item)
    own = told.id if isinstance(told.id, str) and told.id else new_id(_PREFIXES.get(told.type, "item_"))
    return Item(own, item)
