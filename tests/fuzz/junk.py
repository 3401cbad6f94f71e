"""Bad input: valid bodies that were damaged in structure or bytes, and broken streams."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

Json = Any

TURNS: Json = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": [{"type": "text", "text": "what is it?"}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "2"},
    {"role": "user", "content": "go on"},
]  # fmt: skip
TOOL: Json = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
GOOD: dict[str, Json] = {
    "chat": {
        "model": "echo", "messages": TURNS, "tools": [TOOL], "temperature": 0.5, "max_tokens": 16, "stream": False,
        "stream_options": {"include_usage": True}, "n": 1, "stop": ["x"], "tool_choice": "auto",
        "response_format": {"type": "json_object"}, "logprobs": True, "headgate": {"cost_weight": 0.5},
    },
    "completions": {"model": "echo", "prompt": ["say it"], "max_tokens": 16, "stream": False, "echo": False, "n": 1},
    "embeddings": {"model": "echo", "input": ["one", "two"], "encoding_format": "float", "dimensions": 8},
    "responses": {
        "model": "echo", "instructions": "be brief", "stream": False, "max_output_tokens": 32, "store": False,
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "what?"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "3"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {}}], "text": {"format": {"type": "text"}},
    },
    "messages": {
        "model": "echo", "max_tokens": 16, "stream": False, "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": "image", "source": {
                "type": "base64", "media_type": "image/png", "data": "AAAA"}}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "4"}]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
        "stop_sequences": ["x"], "metadata": {"user_id": "u"}, "thinking": {"type": "disabled"},
    },
}  # fmt: skip
ANSWERS: dict[str, Json] = {
    "chat": {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "logprobs": {"content": [{"token": "a", "logprob": -0.1}]},
                     "message": {"role": "assistant", "content": "it is", "tool_calls": [
                         {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                  "prompt_tokens_details": {"cached_tokens": 1}},
    },
    "messages": {
        "id": "x", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
        "content": [{"type": "text", "text": "it is"}, {"type": "tool_use", "id": "t", "name": "f", "input": {}}],
        "usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 1},
    },
}  # fmt: skip
EVENTS: dict[str, list[Json]] = {
    "chat": [
        {"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "it"}}]},
        {"id": "x", "choices": [{"index": 0, "delta": {"tool_calls": [
            {"index": 0, "id": "c", "function": {"name": "f", "arguments": "{"}}]}}]},
        {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None},
        {"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
        "[DONE]",
    ],
    "messages": [
        {"type": "message_start", "message": {"id": "x", "model": "m", "usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "it"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ],
}  # fmt: skip
ODD: list[Json] = [
    None, True, False, 0, -1, 1, 1.5, 1e308, -1e308, 2**63, 2**64, 10**400, -(2**70), "", "x", "\x00", "é\ud83d\ude00",
    "a" * 5000, "\\ud800", [], {}, [[]], [{}], {"": {}}, [None], ["x"], {"type": "text"}, {"type": None}, "null",
    "echo", "no-such-model", "../..", "${HOME}", "data:image/png;base64,AA", "http://127.0.0.1/x", [1, 2, 3],
    {"role": "user"}, {"$ref": "#"}, "\r\nx: y", "stop", 0.0, -0.0, 1e-320,
]  # fmt: skip
BYTES = (b"\x00", b"\xff", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\\u", b"NaN", b"1e999", b"\r\n",
         b"\xed\xa0\x80")  # fmt: skip
DEEP = (b"[" * 3000 + b"]" * 3000, b'{"a":' * 2000 + b"1" + b"}" * 2000, b"[" * 200_000)


def places(value: Json, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value except the root's."""
    found: list[tuple[Any, ...]] = []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        found.append((*at, key))
        found += places(one, (*at, key))
    return found


def spoiled(value: Json, draw: random.Random) -> Json:
    """A copy with one to three changes: another value, an additional one, a missing one, or a misspelt key."""
    spoilt = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        found = places(spoilt)
        if not found:
            break
        *way, last = draw.choice(found)
        owner = spoilt
        for key in way:
            owner = owner[key]
        _spoil(owner, last, draw)
    return spoilt


def _spoil(owner: Json, key: Any, draw: random.Random) -> None:
    how = draw.randrange(6)
    if how == 0:
        del owner[key]
    elif how == 1 and isinstance(owner, list):
        owner.insert(key, odd(draw))
    elif how == 2 and isinstance(owner, dict):
        owner[draw.choice(("x", "", "type", "role", "content", "id", "index"))] = owner.pop(key)
    elif how == 3 and isinstance(owner, list):
        owner.extend(copy.deepcopy(owner[:3] * draw.choice((1, 3))))
    else:
        owner[key] = odd(draw)


def odd(draw: random.Random) -> Json:
    return copy.deepcopy(draw.choice(ODD))


def garbled(body: bytes, draw: random.Random) -> bytes:
    """Bytes are inserted, removed, doubled or changed."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(body) + 1)
        end = min(len(body), at + draw.choice((1, 1, 3, 20)))
        how = draw.randrange(5)
        if how == 0:
            body = body[:at] + draw.choice(BYTES) + body[at:]
        elif how == 1:
            body = body[:at] + body[end:]
        elif how == 2:
            body = body[:at] + draw.randbytes(end - at) + body[end:]
        elif how == 3:
            body = body[:end] + body[at:]
        else:
            body = body[:at]
    return body


def bad_json(value: Json, draw: random.Random) -> bytes:
    """A damaged body made from a valid one."""
    how = draw.random()
    if how < 0.02:
        return draw.choice(DEEP)
    if how < 0.05:
        return json.dumps(draw.choice(ODD)).encode()
    body = json.dumps(spoiled(value, draw) if how < 0.8 else value).encode()
    return garbled(body, draw) if how > 0.7 else body


def bad_stream(dialect: str, draw: random.Random) -> list[bytes]:
    """Damaged events of an upstream, cut into pieces anywhere."""
    events = [event for event in EVENTS[dialect] if draw.random() > 0.08]
    if draw.random() < 0.2:
        draw.shuffle(events)
    wire = b"".join(_event(event, dialect, draw) for event in events)
    if draw.random() < 0.3:
        wire = garbled(wire, draw)
    pieces = []
    while wire:
        size = draw.choice((1, 7, 60, 400))
        pieces.append(wire[:size])
        wire = wire[size:]
    return pieces


def _event(event: Json, dialect: str, draw: random.Random) -> bytes:
    if draw.random() < 0.4 and not isinstance(event, str):
        event = spoiled(event, draw)
    data = event if isinstance(event, str) else json.dumps(event)
    kind = f"event: {event['type']}\n" if dialect == "messages" and isinstance(event, dict) and "type" in event else ""
    end = draw.choice(("\n\n", "\r\n\r\n"))
    return f"{kind}data: {data}{end}".encode(errors="replace")
