"""Replays a stored answer as a stream."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import UpstreamError
from gateway.wire.body import encode_json
from gateway.wire.chunk import BAD_JSON
from gateway.wire.responses_writer import replay_response
from gateway.wire.sse import frame
from gateway.wire.writers import DONE

Json = dict[str, Any]


def replay(body: bytes, surface: str, *, include_usage: bool = False) -> bytes:
    """The whole stream, including terminal events; text is in one piece.

    Ids, model and usage are the stored ones. Raises UpstreamError (bad_response) where the body isn't the surface's.
    """
    try:
        answer: Json = msgspec.json.decode(body)
        if surface == "messages":
            return _messages(answer)
        if surface == "responses":
            return replay_response(answer)
        return _chunks(answer, include_usage, surface)
    except (*BAD_JSON, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UpstreamError("bad_response", f"the stored answer can't be replayed: {error!r}") from None


def _chunks(answer: Json, include_usage: bool, surface: str) -> bytes:
    kind = "chat.completion.chunk" if surface == "chat" else "text_completion"
    head = {name: value for name, value in answer.items() if name not in ("choices", "usage")} | {
        "object": kind
    }
    nothing = {"usage": None} if include_usage else {}
    events = []
    for choice in answer["choices"]:
        pieces = _chat_pieces(choice) if surface == "chat" else _text_pieces(choice)
        events += [frame(encode_json({**head, "choices": [piece], **nothing})) for piece in pieces]
    if include_usage and answer.get("usage"):
        events.append(frame(encode_json({**head, "choices": [], "usage": answer["usage"]})))
    return b"".join(events) + DONE


def _chat_pieces(choice: Json) -> list[Json]:
    message = {name: value for name, value in choice["message"].items() if value is not None}
    calls = [{"index": index, **call} for index, call in enumerate(message.pop("tool_calls", None) or ())]
    if calls:
        message["tool_calls"] = calls
    delta = {"role": "assistant", "content": None} | message
    index, logprobs = choice["index"], choice.get("logprobs")
    first = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
    return [first, {"index": index, "delta": {}, "logprobs": None, "finish_reason": choice["finish_reason"]}]


def _text_pieces(choice: Json) -> list[Json]:
    return [
        {**choice, "finish_reason": None},
        {"index": choice["index"], "text": "", "logprobs": None, "finish_reason": choice["finish_reason"]},
    ]


def _messages(message: Json) -> bytes:
    usage = message.get("usage") or {}
    start = message | {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage | {"output_tokens": 0},
    }
    events = [_event("message_start", message=start)]
    for index, block in enumerate(message["content"]):
        empty, deltas = _start_and_deltas(block)
        events.append(_event("content_block_start", index=index, content_block=empty))
        events += [_event("content_block_delta", index=index, delta=delta) for delta in deltas]
        events.append(_event("content_block_stop", index=index))
    delta = {"stop_reason": message.get("stop_reason"), "stop_sequence": message.get("stop_sequence")}
    events.append(_event("message_delta", delta=delta, usage={"output_tokens": 0} | usage))
    return b"".join([*events, _event("message_stop")])


def _start_and_deltas(block: Json) -> tuple[Json, list[Json]]:
    """A block as it starts, and its deltas; a block of unknown type starts complete."""
    kind = block.get("type")
    if kind == "text":
        deltas: list[Json] = [{"type": "text_delta", "text": block["text"]}]
        deltas += [{"type": "citations_delta", "citation": one} for one in block.get("citations") or ()]
        return block | {"text": ""} | ({"citations": []} if block.get("citations") else {}), deltas
    if kind == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": block["thinking"]}]
        if block.get("signature"):
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        return block | {"thinking": "", "signature": ""}, deltas
    if kind == "tool_use":
        text = encode_json(block.get("input") or {}).decode()
        return block | {"input": {}}, [{"type": "input_json_delta", "partial_json": text}]
    return block, []


def _event(kind: str, **fields: Any) -> bytes:
    return frame(encode_json({"type": kind, **fields}), kind)
