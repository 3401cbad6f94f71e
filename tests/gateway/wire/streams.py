"""Upstream streams written by hand after the SDKs' types, and parsers of the gateway's streams with those types."""

from __future__ import annotations

import json
from typing import Any

from anthropic.types import RawMessageStreamEvent
from openai.types import Completion
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

Json = dict[str, Any]

USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 12,
    "total_tokens": 32,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0},
}


def data(value: Json) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def chunk(delta: Json | None = None, finish: str | None = None, index: int = 0, **extra: Any) -> bytes:
    choices = (
        [] if delta is None else [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]
    )
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1694268190, "model": "up-1"}
    return data({**head, "choices": choices, "usage": None, **extra})


DONE = b"data: [DONE]\n\n"
ROLE = chunk({"role": "assistant", "content": ""})
CHAT = (
    ROLE
    + chunk({"content": "Grüß "})
    + chunk({"content": 'Gott, "usage":null \\ 🙂'})
    + chunk({}, "stop")
    + chunk(None, usage=USAGE)
    + DONE
)
CHAT_TEXT = 'Grüß Gott, "usage":null \\ 🙂'


def _call(index: int, arguments: str, call_id: str | None = None, name: str | None = None) -> Json:
    function: Json = {"arguments": arguments}
    call: Json = {"index": index, "function": function}
    if call_id:
        call |= {"id": call_id, "type": "function"}
        function["name"] = name
    return {"tool_calls": [call]}


TOOLS = (
    ROLE
    + chunk(_call(0, "", "call_a", "weather"))
    + chunk(_call(0, '{"city":'))
    + chunk(_call(1, "", "call_b", "time"))
    + chunk(_call(0, '"Bern"}'))
    + chunk(_call(1, '{"zone":"CET"}'))
    + chunk({}, "tool_calls")
    + chunk(None, usage=USAGE)
    + DONE
)


def event(kind: str, **fields: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + data({"type": kind, **fields})


MESSAGE_START = event(
    "message_start",
    message={
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-1",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 25,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 10,
            "output_tokens": 1,
        },
    },
)
MESSAGES = (
    MESSAGE_START
    + event(
        "content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}
    )
    + event("content_block_delta", index=0, delta={"type": "thinking_delta", "thinking": "Hm."})
    + event("content_block_delta", index=0, delta={"type": "signature_delta", "signature": "sig=="})
    + event("content_block_stop", index=0)
    + event("content_block_start", index=1, content_block={"type": "text", "text": ""})
    + event("ping")
    + event("content_block_delta", index=1, delta={"type": "text_delta", "text": "Hello "})
    + event("content_block_delta", index=1, delta={"type": "text_delta", "text": "wörld"})
    + event("content_block_stop", index=1)
    + event(
        "content_block_start",
        index=2,
        content_block={"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
    )
    + event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": '{"ci'})
    + event("content_block_delta", index=2, delta={"type": "input_json_delta", "partial_json": 'ty":"Bern"}'})
    + event("content_block_stop", index=2)
    + event(
        "content_block_start",
        index=3,
        content_block={"type": "tool_use", "id": "toolu_2", "name": "time", "input": {}},
    )
    + event("content_block_delta", index=3, delta={"type": "input_json_delta", "partial_json": ""})
    + event("content_block_stop", index=3)
    + event(
        "message_delta",
        delta={"stop_reason": "tool_use", "stop_sequence": None},
        usage={"output_tokens": 42},
    )
    + event("message_stop")
)

COMPLETIONS = (
    data(
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": "up-1",
            "choices": [{"index": 0, "text": "Once", "logprobs": None, "finish_reason": None}],
        }
    )
    + data(
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": "up-1",
            "choices": [{"index": 0, "text": " more", "logprobs": None, "finish_reason": "length"}],
        }
    )
    + data(
        {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": "up-1",
            "choices": [],
            "usage": USAGE,
        }
    )
    + DONE
)

UPSTREAMS = {"chat": [CHAT, TOOLS], "messages": [MESSAGES], "completions": [COMPLETIONS]}


def payloads(stream: bytes) -> list[Json]:
    """The JSON events of a whole stream that the gateway wrote, without [DONE]."""
    found = []
    for block in stream.decode().split("\n\n"):
        for line in block.split("\n"):
            if line.startswith("data: ") and line != "data: [DONE]":
                found.append(json.loads(line[6:]))
    return found


def parsed(stream: bytes, surface: str) -> list[Any]:
    """The stream's events as the official SDK's types; raises where a field is missing or of a wrong type."""
    kinds: Json = {
        "chat": ChatCompletionChunk,
        "completions": Completion,
        "messages": RawMessageStreamEvent,
        "responses": ResponseStreamEvent,
    }
    adapter = TypeAdapter(kinds[surface])
    if (
        surface == "completions"
    ):  # the SDK's type wants a finish reason, which chunks before the last don't have
        return payloads(stream)
    return [adapter.validate_python(payload) for payload in payloads(stream) if payload.get("type") != "ping"]
