"""Writers of the client's stream: OpenAI's chat and completions here, the others in their own files."""

from __future__ import annotations

import time
import uuid
from typing import Any, Protocol

import msgspec

from gateway.errors import HeadgateError
from gateway.wire.body import Raw, encode_json
from gateway.wire.chunk import Choice, Chunk, Delta
from gateway.wire.errors import render_error
from gateway.wire.seen import Seen
from gateway.wire.sse import frame
from gateway.wire.usage import Usage

DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    def write(self, chunk: Chunk) -> bytes:
        """The events for a chunk, which may go to the client now; never a terminal event."""
        ...

    def usage(self, seen: Seen) -> bytes:
        """The separate usage event, in dialects that have one; else b""."""
        ...

    def tail(self, seen: Seen) -> bytes:
        """The terminal events of a complete answer."""
        ...

    def error(self, exc: HeadgateError) -> bytes:
        """The event that ends an incomplete answer."""
        ...


class ChatWriter:
    """Writes chat.completion.chunk events."""

    kind = "chat.completion.chunk"
    prefix = "chatcmpl-"

    def __init__(self, model: str, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._id = ""
        self._model = model
        self._created = int(time.time())
        self._annotations: list[dict[str, Any]] = []

    def write(self, chunk: Chunk) -> bytes:
        self._id = self._id or chunk.id or self.prefix + uuid.uuid4().hex
        choices = [written for choice in chunk.choices if (written := self._choice(choice)) is not None]
        return frame(self._chunk(choices, None)) if choices else b""

    def _choice(self, choice: Choice) -> dict[str, Any] | None:
        source = choice.delta or Delta()
        delta = _delta(source)
        if source.annotations:
            self._annotations += source.annotations
        if choice.finish_reason and self._annotations:  # at the end, as OpenAI's client can't merge lists
            delta["annotations"] = self._annotations
        if not delta and not choice.finish_reason:
            return None
        logprobs = choice.logprobs
        return {
            "index": choice.index,
            "delta": delta,
            "logprobs": None if logprobs is None else {"content": logprobs.content, "refusal": None},
            "finish_reason": choice.finish_reason,
        }

    def _chunk(self, choices: list[Any], usage: Usage | None) -> bytes:
        chunk = {
            "id": self._id,
            "object": self.kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        if self._include_usage:
            chunk["usage"] = usage.to_openai() if usage else None
        return encode_json(chunk)

    def usage(self, seen: Seen) -> bytes:
        self._id = self._id or seen.id
        return frame(self._chunk([], seen.usage))

    def tail(self, seen: Seen) -> bytes:
        if self._include_usage and seen.usage.known:
            return self.usage(seen) + DONE
        return DONE

    def error(self, exc: HeadgateError) -> bytes:
        return frame(render_error(exc, "chat"))


class CompletionsWriter(ChatWriter):
    """Writes text_completion events."""

    kind = "text_completion"
    prefix = "cmpl-"

    def _choice(self, choice: Choice) -> dict[str, Any] | None:
        text = choice.text or (choice.delta.content if choice.delta else None) or ""
        if not text and not choice.finish_reason:
            return None
        finish = choice.finish_reason
        return {
            "index": choice.index,
            "text": text,
            "logprobs": None,
            "finish_reason": "stop" if finish in ("tool_calls", "function_call") else finish,
        }


def _delta(delta: Delta) -> dict[str, Any]:
    written: dict[str, Any] = {
        name: value
        for name in ("role", "content", "refusal", "reasoning_content")
        if (value := getattr(delta, name)) is not None
    }
    if "role" in written:
        written.setdefault("content", "")
    if delta.tool_calls:
        written["tool_calls"] = [_tool(tool) for tool in delta.tool_calls]
    return written


def _tool(tool: Any) -> dict[str, Any]:
    function = {} if tool.function is None else msgspec.to_builtins(tool.function)
    function = {name: value for name, value in function.items() if value is not None}
    if tool.id is None:
        return {"index": tool.index, "function": function}
    return {"index": tool.index, "id": tool.id, "type": "function", "function": function}


def writer_of(dialect: str, model: str, request: Raw, include_usage: bool) -> Writer:
    from gateway.wire.messages_writer import MessagesWriter
    from gateway.wire.responses_writer import ResponsesWriter

    if dialect == "chat":
        return ChatWriter(model, include_usage)
    if dialect == "completions":
        return CompletionsWriter(model, include_usage)
    if dialect == "messages":
        return MessagesWriter(model)
    if dialect == "responses":
        return ResponsesWriter(model, request)
    raise ValueError(f"no surface streams {dialect}")
