"""Readers of upstream streams: they turn each event into a chunk in OpenAI's form.

A reader knows which events of its dialect end the stream, which are errors, and which report usage.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from gateway.wire.chunk import Choice, Chunk, Delta, Function, Search, ToolDelta, read_chunk
from gateway.wire.citations import annotations_of
from gateway.wire.pause import PAUSED
from gateway.wire.responses_reader import ResponsesReader
from gateway.wire.seen import Seen
from gateway.wire.usage import Usage, speed_of
from gateway.wire.web_search import query_of

STOP_TO_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    PAUSED: "length",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


_PROMPT = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class Reader(Protocol):
    """`read` raises one of BAD_JSON for a payload that isn't in the dialect."""

    done: bool
    """Whether the event that ends the stream has come."""
    withheld: bool
    """Whether the payload just read is terminal: it goes to the client only once the answer is settled."""

    def read(self, payload: bytes, seen: Seen) -> Chunk | None: ...


class ChatReader:
    """Reads chat and completions: chunks, then a usage chunk without choices, then [DONE]."""

    __slots__ = ("done", "withheld")

    def __init__(self) -> None:
        self.done = False
        self.withheld = False

    def read(self, payload: bytes, seen: Seen) -> Chunk | None:
        if len(payload) < 16 and payload.strip() == b"[DONE]":
            self.done = self.withheld = True
            return None
        chunk = read_chunk(payload)
        self.withheld = chunk.usage is not None and not chunk.choices
        if chunk.usage is not None:
            seen.usage_payload = payload
        seen.take(chunk)
        return chunk


class _Part(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    container: Any = None
    """In the event that ends a message: the container that its code ran in."""
    signature: str | None = None
    partial_json: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")
    content: msgspec.Raw = msgspec.Raw(b"")
    """Result of a hosted tool: a list, or an error."""
    tool_use_id: str | None = None
    citation: Any = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    usage: dict[str, Any] | None = None
    container: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int | None = 0
    delta: _Part | None = None
    content_block: _Part | None = None
    message: _Message | None = None
    usage: dict[str, Any] | None = None
    error: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode


class MessagesReader:
    """Reads Anthropic's events. Usage comes in parts: input at the start, output (cumulative) at the end.

    `pauses`: a paused turn doesn't end the answer, since it will be continued.
    """

    __slots__ = (
        "_begins", "_citations", "_goes_on", "_initial_inputs", "_pauses", "_queries", "_query", "_tool_of_block",
        "_usage", "done", "paused", "withheld",
    )  # fmt: skip

    def __init__(self, pauses: bool = False) -> None:
        self.done = False
        self.withheld = False
        self.paused = False
        self._pauses, self._goes_on = pauses, False
        self._usage: dict[str, Any] = {}
        self._tool_of_block: dict[int, int] = {}
        self._initial_inputs: dict[int, str] = {}
        """The input that each tool's block began with, until a delta replaces it; some servers send no deltas."""
        self._begins = 0
        """Number of pieces of text before the block that was begun last."""
        self._citations: list[Any] = []
        """Citations of that block, which come before its text or after it."""
        self._query: list[str] | None = None
        """If that block is the call of a hosted tool, its input as far as it has come."""
        self._queries: dict[str | None, list[str]] = {}
        """The inputs of all calls of hosted tools, by id."""

    def resume(self) -> None:
        """Continue with the stream that holds the rest of a paused turn."""
        self.done = self.withheld = self.paused = False
        self._goes_on, self._usage = True, {}

    def read(self, payload: bytes, seen: Seen) -> Chunk | None:
        event = _decode_event(payload)
        if event.type == "message_stop":
            self.done = self.withheld = True
            return None
        chunk = self._chunk(event, seen)
        if chunk is not None:
            seen.take(chunk)
        return chunk

    def _chunk(self, event: _Event, seen: Seen) -> Chunk | None:
        index = event.index or 0
        if event.type == "content_block_delta" and event.delta is not None:
            return _chunk_of(self._delta(index, event.delta))
        if event.type == "content_block_start" and event.content_block is not None:
            return _chunk_of(self._block(index, event.content_block, seen))
        if event.type == "content_block_stop":
            return _chunk_of(self._block_end(index, seen))
        if event.type == "message_start" and event.message is not None:
            self._count(event.message.usage, seen, whole=False)
            message = event.message
            if message.container is not None:
                seen.ran.container()
            if self._goes_on:
                return None
            return Chunk([Choice(delta=Delta(role="assistant"))], id=message.id, model=message.model)
        if event.type == "message_delta":
            self._count(event.usage, seen)
            if event.delta is not None and event.delta.container is not None:
                seen.ran.container()
            if self._pauses and event.delta is not None and event.delta.stop_reason == PAUSED:
                self.paused = True
                return None
            return _end_chunk(event.delta)
        if event.type == "error":
            return Chunk(error=event.error or {"message": "the upstream sent an error event"})
        return None  # ping, and unknown events

    def _count(self, usage: dict[str, Any] | None, seen: Seen, *, whole: bool = True) -> None:
        """Take a report of usage. If its prompt counts are all zero, earlier ones stay: some servers end with zeros."""
        if usage:
            counts = {name: value for name, value in usage.items() if value is not None}
            seen.counted = whole and "output_tokens" in counts
            if not any(counts.get(name) for name in _PROMPT):
                known = self._usage
                counts = {name: n for name, n in counts.items() if name not in _PROMPT or name not in known}
            self._usage |= counts
            seen.usage, seen.tier = Usage.from_anthropic(self._usage), speed_of(self._usage)

    def _block_end(self, index: int, seen: Seen) -> Delta | None:
        if index in self._initial_inputs:
            return self._arguments(index, self._initial_inputs[index])
        if not self._citations:
            return None
        begins = sum(map(len, seen.texts[: self._begins]))
        ends = begins + sum(map(len, seen.texts[self._begins :]))
        citations, self._citations = self._citations, []
        return Delta(annotations=annotations_of(citations, begins, ends))

    def _block(self, index: int, block: _Part, seen: Seen) -> Delta | None:
        self._begins, self._citations, self._query = len(seen.texts), [], None
        seen.ran.block(block.id or index, block.type, block.name)
        if block.type == "tool_use":
            slot = self._tool_of_block[index] = len(self._tool_of_block)
            tool_input = bytes(block.input).decode()
            self._initial_inputs[index] = "{}" if tool_input == "null" else tool_input
            return Delta(tool_calls=[ToolDelta(slot, block.id, Function(block.name, ""))])
        if block.type == "text" and block.text:
            return Delta(content=block.text)
        if block.type == "thinking" and block.thinking:
            return Delta(reasoning_content=block.thinking)
        if block.type == "server_tool_use":
            tool_input = bytes(block.input).decode()
            self._query = self._queries[block.id] = [] if tool_input in ("{}", "null") else [tool_input]
        if block.type == "web_search_tool_result":
            return self._searched(block, seen)
        return None

    def _searched(self, block: _Part, seen: Seen) -> Search:
        succeeded = bytes(block.content).startswith(b"[")
        if succeeded:
            searches = seen.usage.web_searches + 1  # billed even if the stream breaks off before it reports the number
            seen.usage = msgspec.structs.replace(seen.usage, web_searches=searches)
        return Search(query=query_of("".join(self._queries.get(block.tool_use_id, ()))), found=succeeded)

    def _delta(self, index: int, part: _Part) -> Delta | None:
        if part.type == "text_delta":
            return Delta(content=part.text)
        if part.type == "input_json_delta" and index in self._tool_of_block:
            return self._arguments(index, part.partial_json)
        if part.type == "input_json_delta" and self._query is not None:
            self._query.append(part.partial_json or "")
        if part.type == "thinking_delta":
            return Delta(reasoning_content=part.thinking)
        if part.type == "signature_delta":
            return Delta(signature=part.signature)
        if part.type == "citations_delta":
            self._citations.append(part.citation)
        return None

    def _arguments(self, index: int, text: str | None) -> Delta:
        if text:
            self._initial_inputs.pop(index, None)
        return Delta(tool_calls=[ToolDelta(self._tool_of_block[index], None, Function(None, text))])


def _chunk_of(delta: Delta | None) -> Chunk | None:
    return None if delta is None else Chunk([Choice(delta=delta)])


def _end_chunk(delta: _Part | None) -> Chunk | None:
    if delta is None or delta.stop_reason is None:
        return None
    finish = STOP_TO_FINISH.get(delta.stop_reason, "stop")
    return Chunk([Choice(delta=Delta(), finish_reason=finish)], stop_sequence=delta.stop_sequence)


def reader_of(dialect: str) -> Reader:
    if dialect == "messages":
        return MessagesReader()
    if dialect in ("chat", "completions"):
        return ChatReader()
    if dialect == "responses":
        return ResponsesReader()
    raise ValueError(f"no provider streams {dialect}")
