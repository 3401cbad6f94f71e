"""Writes chunks as the Responses API's typed events, numbered in sequence."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from gateway.errors import HeadgateError
from gateway.wire.body import Raw, encode_json
from gateway.wire.call_ids import carrier, seal
from gateway.wire.chunk import BAD_JSON, Choice, Chunk, Delta, Logprobs, Search, TokenLogprob, ToolDelta
from gateway.wire.citations import response_annotations
from gateway.wire.errors import error_code
from gateway.wire.responses import (
    Item,
    Items,
    call_item,
    finish_response,
    message_item,
    new_id,
    placed,
    reasoning_item,
    response_object,
    sealed_item,
)
from gateway.wire.seen import Seen
from gateway.wire.sse import frame
from gateway.wire.tools import text_of
from gateway.wire.web_search import search_item

_DELTAS = {
    "output_text": "response.output_text.delta",
    "refusal": "response.refusal.delta",
    "reasoning_text": "response.reasoning_text.delta",
}
_ANNOTATION_ADDED = "response.output_text.annotation.added"
_EMPTY: dict[str, Item] = {"function_call": {"arguments": ""}, "custom_tool_call": {"input": ""}}
_REPLAYED = frozenset({"message", "reasoning", *_EMPTY})
"""Types of items that are replayed with their parts; all others are replayed as complete items."""
_FIELDS = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text"}


class _TierOnly(msgspec.Struct):
    service_tier: str | None = None


_decode_tier = msgspec.json.Decoder(_TierOnly).decode


class ResponsesWriter:
    """Keeps one item of text or thoughts open at a time; calls all stay open until the end."""

    __slots__ = (
        "_annotations", "_before", "_call_extras", "_calls", "_early_annotations", "_logprobs", "_open", "_output",
        "_parts", "_request", "_response", "_sequence", "_started", "_text_extra",
    )  # fmt: skip

    def __init__(self, model: str, request: Raw) -> None:
        created_s = int(time.time())
        self._request = request
        self._response = response_object(
            request, response_id=new_id("resp_"), model=model, created_s=created_s
        )
        self._sequence = 0
        self._started = False
        self._output: Items = []
        self._open: tuple[int, str] | None = None
        """Output index and part type of the open item of text or thoughts."""
        self._parts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        """Log-probabilities of the open text's tokens, where the upstream reports them."""
        self._annotations: Items = []
        """Annotations of the open text."""
        self._early_annotations: Items = []
        """Annotations that came before the text that they belong to."""
        self._before = 0
        """Characters of the texts before the open one: chat's citations count from the start of the answer."""
        self._text_extra: dict[str, Any] | None = None
        """The `extra_content` of the text, which the client must return with it."""
        self._call_extras: dict[str, Any] = {}
        """The `extra_content` of calls, by id, that came after the id had been sent."""
        self._calls: dict[int, tuple[int, list[str]]] = {}
        """Output index and argument pieces of each call, by its index in the stream."""

    def write(self, chunk: Chunk) -> bytes:
        out = b"" if self._started else self._start()
        for choice in chunk.choices:
            if choice.index == 0:
                out += self._write_choice(choice)
        return out

    def _start(self) -> bytes:
        self._started = True
        created = self._event("response.created", response=self._response)
        return created + self._event("response.in_progress", response=self._response)

    def _write_choice(self, choice: Choice) -> bytes:
        delta = choice.delta or Delta(content=choice.text)
        out = b""
        if delta.thought:
            out += self._grow("reasoning_text", delta.thought)
        if delta.content:
            out += self._grow("output_text", delta.content, choice.logprobs)
        if delta.annotations:
            self._early_annotations += response_annotations(delta.annotations, self._before)
        if self._early_annotations and self._open is not None and self._open[1] == "output_text":
            out += self._cite()
        if delta.refusal:
            out += self._grow("refusal", delta.refusal)
        if isinstance(delta, Search):
            out += self._search(delta)
        self._text_extra = delta.extra_content or self._text_extra
        for tool in delta.tool_calls or ():
            out += self._write_tool(tool)
        return out

    def _cite(self) -> bytes:
        out = b""
        assert self._open is not None
        for one in self._early_annotations:
            place = {**self._place(self._open[0]), "content_index": 0, "annotation_index": len(self._annotations)}
            out += self._event(_ANNOTATION_ADDED, **place, annotation=one)
            self._annotations.append(one)
        self._early_annotations = []
        return out

    def _grow(self, part: str, text: str, logprobs: Logprobs | None = None) -> bytes:
        out = b""
        if self._open is None or self._open[1] != part:
            out = self._close() + self._begin(part)
        assert self._open is not None
        self._parts.append(text)
        tokens = (logprobs.content or []) if logprobs is not None else []
        self._logprobs += tokens
        extra: dict[str, Any] = {"logprobs": tokens} if part == "output_text" else {}
        index = self._open[0]
        return out + self._event(_DELTAS[part], **self._place(index), content_index=0, delta=text, **extra)

    def _begin(self, part: str) -> bytes:
        item = reasoning_item("") if part == "reasoning_text" else message_item("", "", "in_progress")
        item |= {"content": [], "status": "in_progress"}
        index = len(self._output)
        self._open, self._parts, self._logprobs, self._annotations = (index, part), [], [], []
        out = self._add(placed(item, self._response["id"], index))
        empty = _part(part, "")
        return out + self._event(
            "response.content_part.added", **self._place(index), content_index=0, part=empty
        )

    def _add(self, item: Item) -> bytes:
        self._output.append(item)
        index = len(self._output) - 1
        return self._event("response.output_item.added", output_index=index, item=item)

    def _place(self, index: int) -> dict[str, Any]:
        return {"item_id": self._output[index]["id"], "output_index": index}

    def _close(self, status: str = "completed") -> bytes:
        if self._open is None:
            return b""
        (index, part), self._open = self._open, None
        text = "".join(self._parts)
        place = self._place(index)
        extra: dict[str, Any] = {"logprobs": self._logprobs} if part == "output_text" else {}
        done = {_FIELDS[part]: text, **extra}
        out = self._event(_DELTAS[part].replace(".delta", ".done"), **place, content_index=0, **done)
        whole = _part(part, text) | extra
        if part == "output_text":
            self._before += len(text)
        if self._annotations:
            whole["annotations"] = self._annotations
        out += self._event("response.content_part.done", **place, content_index=0, part=whole)
        return out + self._done(index, content=[whole], status=status)

    def _done(self, index: int, **fields: Any) -> bytes:
        item = self._output[index] = self._output[index] | fields
        return self._event("response.output_item.done", output_index=index, item=item)

    def _write_tool(self, tool: ToolDelta) -> bytes:
        out = b""
        if tool.index not in self._calls:
            name = tool.function.name if tool.function else None
            call_id = seal(tool.id or new_id("call_"), tool.extra_content)
            call = call_item(call_id, name or "", "", self._request, "in_progress")
            out = self._close() + self._add(placed(call, self._response["id"], len(self._output)))
            self._calls[tool.index] = (len(self._output) - 1, [])
        elif tool.extra_content:
            self._call_extras[self._output[self._calls[tool.index][0]]["call_id"]] = tool.extra_content
        index, parts = self._calls[tool.index]
        if tool.function and tool.function.arguments:
            parts.append(tool.function.arguments)
            delta = tool.function.arguments
            if self._output[index]["type"] == "custom_tool_call":
                return out  # the text is inside the model's JSON, so it is known only once that is complete
            out += self._event("response.function_call_arguments.delta", **self._place(index), delta=delta)
        return out

    def _search(self, search: Search) -> bytes:
        index = len(self._output)
        item = placed(search_item(search.query, search.found), self._response["id"], index)
        out = self._close() + self._add({**item, "status": "in_progress"})
        for kind in ("in_progress", "searching", *(("completed",) if search.found else ())):
            out += self._event(f"response.web_search_call.{kind}", **self._place(index))
        return out + self._done(index, status=item["status"])

    def _close_calls(self, status: str) -> bytes:
        out = b""
        for index, parts in self._calls.values():
            arguments = "".join(parts)
            if self._output[index]["type"] == "custom_tool_call":
                text = text_of(arguments)
                out += self._custom_input(index, text) + self._done(index, input=text, status=status)
                continue
            name = self._output[index]["name"]
            out += self._event(
                "response.function_call_arguments.done", **self._place(index), name=name, arguments=arguments
            )
            out += self._done(index, arguments=arguments, status=status)
        return out

    def _custom_input(self, index: int, text: str) -> bytes:
        place = self._place(index)
        out = self._event("response.custom_tool_call_input.delta", **place, delta=text)
        return out + self._event("response.custom_tool_call_input.done", **place, input=text)

    def usage(self, seen: Seen) -> bytes:
        return b""

    def tail(self, seen: Seen) -> bytes:
        out = b"" if self._started else self._start()
        status = "incomplete" if seen.finish_reason in ("length", "content_filter") else "completed"
        if not self._calls and all(item["type"] != "message" for item in self._output):
            out += self._close() + self._begin("output_text")  # an answer has a message, even if it is empty
        out += self._close(status) + self._close_calls(status)
        self._calls = {}
        if sealed_thought := carrier(self._text_extra, self._call_extras):
            index = len(self._output)
            out += self._add(placed(sealed_item(sealed_thought), self._response["id"], index)) + self._done(index)
        response = self.whole(seen)
        return out + self._event(f"response.{response['status']}", response=response)

    def whole(self, seen: Seen) -> dict[str, Any]:
        """The response in the last event; may be called after `tail`."""
        tier = _tier(seen.usage_payload)
        return finish_response(self._response, self._output, seen.finish_reason, seen.usage, tier)

    def error(self, exc: HeadgateError) -> bytes:
        """The event `response.failed`, whose code must be one of the API's own."""
        out = b"" if self._started else self._start()
        code = "rate_limit_exceeded" if error_code(exc) == "rate_limit_exceeded" else "server_error"
        error = {"code": code, "message": exc.message}
        failed = {**self._response, "status": "failed", "error": error, "output": self._output}
        return out + self._event("response.failed", response=failed)

    @property
    def id(self) -> str:
        """Id of the response."""
        return str(self._response["id"])

    def resume(self, response: bytes, sequence: int) -> None:
        """Continue after events that were passed on. `response`: the last one that they held, or empty. `sequence`: the
        last event's number.
        """
        if response:
            self._response = {**msgspec.json.decode(response), "id": self.id}
            self._sequence, self._started = sequence + 1, True

    def _replay_item(self, index: int, item: Item) -> bytes:
        if item["type"] not in _REPLAYED:
            return self._add(item) + self._event("response.output_item.done", output_index=index, item=item)
        parts = item.get("content") or []
        out = self._add(item | _EMPTY.get(item["type"], {"content": []}) | {"status": "in_progress"})
        for number, part in enumerate(parts):
            out += self._replay_part(index, number, part)
        if item["type"] == "function_call":
            place, arguments = self._place(index), item["arguments"]
            out += self._event("response.function_call_arguments.delta", **place, delta=arguments)
            done = {"name": item["name"], "arguments": arguments}
            out += self._event("response.function_call_arguments.done", **place, **done)
        elif item["type"] == "custom_tool_call":
            out += self._custom_input(index, item["input"])
        return out + self._event("response.output_item.done", output_index=index, item=item)

    def _replay_part(self, index: int, number: int, part: dict[str, Any]) -> bytes:
        kind = part["type"]
        place = {**self._place(index), "content_index": number}
        extra: dict[str, Any] = {"logprobs": part.get("logprobs", [])} if kind == "output_text" else {}
        text = part[_FIELDS[kind]]
        out = self._event("response.content_part.added", **place, part=_part(kind, ""))
        out += self._event(_DELTAS[kind], **place, delta=text, **extra)
        for at, one in enumerate(part.get("annotations") or ()):
            out += self._event(_ANNOTATION_ADDED, **place, annotation_index=at, annotation=one)
        out += self._event(
            _DELTAS[kind].replace(".delta", ".done"), **place, **{_FIELDS[kind]: text}, **extra
        )
        return out + self._event("response.content_part.done", **place, part=part)

    def _event(self, kind: str, **fields: Any) -> bytes:
        payload = encode_json({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return frame(payload, kind)


def _tier(chunk: bytes) -> str | None:
    """The service tier of a chat's chunk; None where there is none, or it can't be read, which is no reason to fail."""
    try:
        return _decode_tier(chunk).service_tier
    except BAD_JSON:
        return None


def _part(kind: str, text: str) -> dict[str, Any]:
    if kind == "output_text":
        return {"type": kind, "text": text, "annotations": [], "logprobs": []}
    return {"type": kind, _FIELDS[kind]: text}


def replay_response(response: dict[str, Any]) -> bytes:
    """A stored response as a stream, with its own ids."""
    writer = ResponsesWriter("", {})
    writer._response = response | {"status": "in_progress", "output": [], "usage": None}
    events = [writer._start()]
    for index, item in enumerate(response["output"]):
        events.append(writer._replay_item(index, item))
    return b"".join([*events, writer._event(f"response.{response['status']}", response=response)])
