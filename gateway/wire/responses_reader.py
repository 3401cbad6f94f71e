"""The reader of the Responses API's streams: it turns each event into a chunk in chat's form."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from gateway.wire.chunk import Choice, Chunk, Delta, Function, Logprobs, TokenLogprob, ToolDelta
from gateway.wire.seen import Seen
from gateway.wire.usage import Usage

CALLS = frozenset({"function_call", "custom_tool_call"})
"""Types of items that ask the client to run a tool."""
_QUIET = frozenset({"message", "reasoning"})
"""Types of items that have no content yet when they begin."""
_TEXTS = {
    "response.output_text.delta": "content",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "reasoning_content",
    "response.reasoning_summary_text.delta": "reasoning_content",
}
_ARGUMENTS = frozenset({"response.function_call_arguments.delta", "response.custom_tool_call_input.delta"})
_ENDS = frozenset({"response.completed", "response.incomplete"})
_FAULTS = frozenset({"response.failed", "response.cancelled", "error"})


class _Item(msgspec.Struct):
    type: str = ""
    call_id: str | None = None
    name: str | None = None
    action: Any = None
    status: Any = None
    container_id: Any = None
    environment: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    sequence_number: int = 0
    output_index: int = 0
    delta: Any = None
    item: _Item | None = None
    logprobs: list[TokenLogprob] | None = None
    response: msgspec.Raw = msgspec.Raw()
    """Empty where the event has none."""
    error: Any = None
    message: str | None = None
    code: Any = None


class _Incomplete(msgspec.Struct):
    reason: str = ""


class _Response(msgspec.Struct):
    id: str = ""
    model: str = ""
    error: Any = None
    incomplete_details: _Incomplete | None = None
    usage: dict[str, Any] | None = None
    service_tier: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_response = msgspec.json.Decoder(_Response).decode


def finish_of(reason: str | None, has_calls: bool) -> str:
    """Chat's finish reason of a response. `reason`: why it is incomplete; None where it is complete."""
    if reason is not None:
        return {"max_output_tokens": "length"}.get(reason, reason or "length")
    return "tool_calls" if has_calls else "stop"


class _SearchItem(Protocol):
    type: str
    action: Any


def is_search(item: _SearchItem) -> bool:
    """Whether an item is a billed web search; opening a page or searching in it is not billed. Items of older versions
    have no action, and count as searches.
    """
    if item.type != "web_search_call":
        return False
    return not isinstance(item.action, dict) or item.action.get("type", "search") == "search"


class ResponsesReader:
    """Reads the Responses API's events, the last of which holds the whole response."""

    __slots__ = ("done", "has_response", "response", "sequence", "withheld")

    def __init__(self) -> None:
        self.done = False
        self.withheld = False
        self.response = b""
        """The last response that an event held."""
        self.has_response = False
        """Whether the event just read holds a response."""
        self.sequence = -1
        """Sequence number of the last event; -1 before the first."""

    def read(self, payload: bytes, seen: Seen) -> Chunk | None:
        event = _decode_event(payload)
        self.sequence, self.has_response = event.sequence_number, bool(bytes(event.response))
        if event.type in _FAULTS or (event.error is not None and not event.type):
            return Chunk(error=_fault(event))
        if self.has_response:
            chunk: Chunk | None = self._whole(event.type, event.response, seen)
        else:
            chunk = _chunk(event, seen)
        if chunk is not None:
            seen.take(chunk)
        return chunk

    def _whole(self, kind: str, raw: msgspec.Raw, seen: Seen) -> Chunk:
        self.response = bytes(raw)
        response = _decode_response(raw)
        choice = Choice(delta=Delta())
        if kind in _ENDS:
            self.done = self.withheld = True
            seen.usage = Usage.from_responses(response.usage, seen.usage.web_searches)
            seen.tier = response.service_tier if isinstance(response.service_tier, str) else ""
            details = response.incomplete_details
            reason = details.reason if details else None if kind == "response.completed" else ""
            choice.finish_reason = finish_of(reason, bool(seen.tools))
        return Chunk([choice], id=response.id, model=response.model)


def _chunk(event: _Event, seen: Seen) -> Chunk | None:
    delta = None
    if (field := _TEXTS.get(event.type)) is not None:
        delta = Delta()
        setattr(delta, field, str(event.delta))
    elif event.type in _ARGUMENTS:
        delta = Delta(tool_calls=[ToolDelta(event.output_index, None, Function(None, str(event.delta)))])
    elif event.type == "response.output_item.added" and event.item is not None:
        item = event.item
        seen.ran.item(event.output_index, item)
        if item.type in CALLS:
            delta = Delta(tool_calls=[ToolDelta(event.output_index, item.call_id, Function(item.name, ""))])
        elif item.type not in _QUIET:
            seen.started = True  # the upstream runs a hosted tool
    elif event.type == "response.output_item.done" and event.item is not None:
        seen.ran.item(event.output_index, event.item)
        if is_search(event.item):
            seen.usage = replace(seen.usage, web_searches=seen.usage.web_searches + 1)  # billed even if no end comes
    if delta is None:
        return None
    logprobs = Logprobs(event.logprobs) if event.logprobs else None
    return Chunk([Choice(delta=delta, logprobs=logprobs)])


def _fault(event: _Event) -> Any:
    if event.type in ("error", ""):
        return event.error or {"message": event.message or "the upstream sent an error event", "code": event.code}
    error = _decode_response(event.response).error if bytes(event.response) else None
    return error or {"message": f"the upstream's response is {event.type.removeprefix('response.')}, without a reason"}
