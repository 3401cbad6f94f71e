"""Writes chunks as Anthropic's event stream: content blocks that open, grow and close in order."""

from __future__ import annotations

import uuid
from typing import Any

from gateway.errors import HeadgateError
from gateway.wire.body import encode_json
from gateway.wire.call_ids import carrier, seal
from gateway.wire.chunk import Choice, Chunk, Delta, ToolDelta
from gateway.wire.citations import citations_of
from gateway.wire.errors import render_error
from gateway.wire.seen import Seen
from gateway.wire.sse import frame

FINISH_TO_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


def stop_reason(finish_reason: str, stop_sequence: str | None, calls: bool) -> str:
    """Anthropic's stop reason. `calls`: the answer calls tools, in which case OpenAI's finish reason may be `stop` too
    (for a forced tool), and other providers use names of their own.
    """
    if calls and finish_reason not in ("length", "content_filter"):
        return "tool_use"
    return "stop_sequence" if stop_sequence else FINISH_TO_STOP.get(finish_reason, "end_turn")


class MessagesWriter:
    """Keeps one block open at a time, as the API promises. Arguments of parallel calls may interleave, so calls after
    the first are written at the end.
    """

    __slots__ = (
        "_call_extras", "_citations", "_ids", "_index", "_model", "_open", "_parked", "_started", "_text_extra",
        "_tool",
    )  # fmt: skip

    def __init__(self, model: str) -> None:
        self._model = model
        self._started = False
        self._index = -1
        self._open = ""
        """Type of the open block."""
        self._citations: list[dict[str, Any]] = []
        """Citations that came before the text block that they belong to."""
        self._tool = -1
        """Index of the call in the open tool_use block."""
        self._ids: dict[int, str] = {}
        """Sent ids of the calls, by index."""
        self._text_extra: dict[str, Any] | None = None
        """The `extra_content` of the text, which the client must return with it."""
        self._call_extras: dict[str, Any] = {}
        """The `extra_content` of calls, by id, that came after the id had been sent."""
        self._parked: dict[int, list[ToolDelta]] = {}

    def write(self, chunk: Chunk) -> bytes:
        out = b"" if self._started else self._start(chunk.id)
        for choice in chunk.choices:
            if choice.index == 0:
                out += self._write_choice(choice)
        return out

    def _start(self, message_id: str | None) -> bytes:
        self._started = True
        message: dict[str, Any] = {
            "id": message_id or "msg_" + uuid.uuid4().hex,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        return _event("message_start", message=message)

    def _write_choice(self, choice: Choice) -> bytes:
        delta = choice.delta or Delta(content=choice.text)
        out = b""
        if delta.thought:
            out += self._grow(
                "thinking", {"thinking": "", "signature": ""}, "thinking_delta", "thinking", delta.thought
            )
        if delta.signature and self._open == "thinking":
            out += self._delta({"type": "signature_delta", "signature": delta.signature})
        text = delta.content or delta.refusal
        if text:
            out += self._grow("text", {"text": ""}, "text_delta", "text", text)
        if delta.annotations:
            self._citations += citations_of(delta.annotations)
        if self._citations and self._open == "text":
            out += b"".join([self._delta({"type": "citations_delta", "citation": one}) for one in self._citations])
            self._citations = []
        if delta.extra_content:
            self._text_extra = delta.extra_content
        for tool in delta.tool_calls or ():
            out += self._write_tool(tool)
        return out

    def _grow(self, kind: str, block: dict[str, Any], delta_type: str, field: str, value: str) -> bytes:
        out = b"" if self._open == kind else self._close() + self._begin(kind, {"type": kind, **block})
        return out + self._delta({"type": delta_type, field: value})

    def _write_tool(self, tool: ToolDelta) -> bytes:
        if self._open == "tool_use" and tool.index != self._tool:
            self._parked.setdefault(tool.index, []).append(tool)
            return b""
        if tool.index in self._parked:
            self._parked[tool.index].append(tool)
            return b""
        out = b""
        if self._open != "tool_use":
            self._tool = tool.index
            name = tool.function.name if tool.function else None
            call_id = seal(tool.id or "toolu_" + uuid.uuid4().hex, tool.extra_content)
            self._ids[tool.index] = call_id
            block = {"type": "tool_use", "id": call_id, "name": name or "", "input": {}}
            out = self._close() + self._begin("tool_use", block)
        elif tool.extra_content:
            self._call_extras[self._ids[tool.index]] = tool.extra_content
        if tool.function and tool.function.arguments:
            out += self._delta({"type": "input_json_delta", "partial_json": tool.function.arguments})
        return out

    def _unpark(self) -> bytes:
        out = b""
        while self._parked:
            index = min(self._parked)
            deltas = self._parked.pop(index)
            out += self._close()
            for delta in deltas:
                out += self._write_tool(delta)
        return out

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        self._index += 1
        self._open = kind
        return _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _close(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", index=self._index)

    def usage(self, seen: Seen) -> bytes:
        return b""

    def tail(self, seen: Seen) -> bytes:
        out = b"" if self._started else self._start(seen.id)
        out += self._unpark() + self._close()
        if thought := carrier(self._text_extra, self._call_extras):
            out += self._begin("redacted_thinking", {"type": "redacted_thinking", "data": thought}) + self._close()
        reason = stop_reason(seen.finish_reason, seen.stop_sequence, bool(seen.tools))
        reason = "refusal" if seen.refusals else reason
        delta = {"stop_reason": reason, "stop_sequence": seen.stop_sequence}
        out += _event("message_delta", delta=delta, usage=seen.usage.to_anthropic())
        return out + _event("message_stop")

    def error(self, exc: HeadgateError) -> bytes:
        return frame(render_error(exc, "messages"), "error")


def _event(kind: str, **fields: Any) -> bytes:
    return frame(encode_json({"type": kind, **fields}), kind)
