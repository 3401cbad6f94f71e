"""A stream's payloads put together as the body that the same answer has without streaming."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.wire.body import encode_json
from gateway.wire.chunk import plain, tells_another

Json = dict[str, Any]


def assemble_chat(payloads: list[bytes]) -> bytes:
    """From chat or completions chunks. Unknown fields are kept: strings join, of the rest the last counts."""
    body: Json = {}
    choices: dict[int, Json] = {}
    for payload in payloads:
        if payload.strip() == b"[DONE]":
            continue
        chunk: Json = msgspec.json.decode(payload)
        for choice in chunk.pop("choices", None) or ():
            _grow_choice(choices.setdefault(choice.get("index", 0), {}), choice)
        body |= {name: value for name, value in chunk.items() if value is not None or name not in body}
    body.pop("obfuscation", None)
    body["object"] = "text_completion" if body.get("object") == "text_completion" else "chat.completion"
    body["choices"] = [_whole_choice(index, choices[index]) for index in sorted(choices)]
    return encode_json(body)


def _grow_choice(whole: Json, piece: Json) -> None:
    for name, value in piece.items():
        if name == "delta" and isinstance(value, dict):
            _grow(whole.setdefault("delta", {}), value)
        elif name == "logprobs" and isinstance(value, dict):
            logprobs = whole.get("logprobs") or {}
            whole["logprobs"] = logprobs
            for key, values in value.items():
                logprobs[key] = (
                    [*(logprobs.get(key) or []), *values] if values is not None else logprobs.get(key)
                )
        elif name == "text" and isinstance(value, str):
            whole["text"] = whole.get("text", "") + value
        elif value is not None or name not in whole:
            whole[name] = value


def _grow(whole: Json, piece: Json) -> None:
    for name, value in piece.items():
        if name == "tool_calls" and isinstance(value, list):
            calls = whole["tool_calls"] = whole.get("tool_calls") or []
            for call in value:
                _grow_call(calls, call)
        elif name == "content" and isinstance(value, list):
            _grow(whole, plain(value))
        elif (
            isinstance(value, str) and isinstance(whole.get(name), str) and name not in ("role", "id", "type")
        ):
            whole[name] += value
        elif isinstance(value, dict) and isinstance(whole.get(name), dict):
            _grow(whole[name], value)
        elif isinstance(value, list) and isinstance(whole.get(name), list):
            whole[name] = [*whole[name], *value]
        elif value is not None or name not in whole:
            whole[name] = value


def _grow_call(calls: list[Json], piece: Json) -> None:
    """As in `Seen`: a new id on a known index is a new call."""
    index, call_id = piece.get("index", 0), piece.get("id")
    named = [call for call in calls if call_id and call.get("id") == call_id]
    known = named[0] if named else next((call for call in reversed(calls) if call["index"] == index), None)
    function = piece.get("function") or {}
    name, arguments = function.get("name"), written(function.get("arguments"))
    target = (known.get("function") or {}) if known else {}
    if (
        known is None
        or (call_id and known.get("id") and call_id != known["id"])
        or tells_another(call_id, name, target.get("name"), target.get("arguments") or "")
    ):
        calls.append({**piece, "index": index, "function": {**function, "arguments": arguments}})
        return
    known["function"] = {"name": target.get("name") or name, "arguments": (target.get("arguments") or "") + arguments}
    if call_id:
        known["id"] = call_id
    if piece.get("extra_content"):
        known["extra_content"] = piece["extra_content"]


def written(arguments: Any) -> str:
    """A call's arguments as JSON text, as the API has them; some servers give the object."""
    given = arguments or ""
    return given if isinstance(given, str) else encode_json(given).decode()


def _whole_choice(index: int, choice: Json) -> Json:
    if "delta" not in choice:
        return {**choice, "index": index, "logprobs": choice.get("logprobs")}
    message: Json = {"role": "assistant", "content": None, "refusal": None} | choice.pop("delta")
    message["role"] = "assistant"
    if calls := message.get("tool_calls"):
        message["tool_calls"] = [_whole_call(call) for call in calls]
        message["content"] = message["content"] or None
    return {**choice, "index": index, "message": message, "logprobs": choice.get("logprobs")}


def _whole_call(call: Json) -> Json:
    function = call.get("function") or {}
    return {
        **{name: value for name, value in call.items() if name != "index"},
        "type": "function",
        "id": call.get("id") or "",
        "function": {"name": function.get("name") or "", "arguments": function.get("arguments") or ""},
    }


def assemble_messages(payloads: list[bytes]) -> bytes:
    """From Anthropic's events; blocks of kinds we don't know are kept as they started."""
    message: Json = {}
    blocks: dict[int, Json] = {}
    inputs: dict[int, list[str]] = {}
    for payload in payloads:
        event: Json = msgspec.json.decode(payload)
        kind = event.get("type")
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            blocks[event["index"]] = event["content_block"]
        elif kind == "content_block_delta" and event.get("index") in blocks:
            _grow_block(blocks[event["index"]], event["delta"], inputs.setdefault(event["index"], []))
        elif kind == "message_delta":
            message |= event["delta"]
            usage = {name: value for name, value in (event.get("usage") or {}).items() if value is not None}
            message["usage"] = (message.get("usage") or {}) | usage
    for index, pieces in inputs.items():
        if text := "".join(pieces):
            blocks[index]["input"] = _json_or_empty(text)
    message["content"] = [blocks[index] for index in sorted(blocks)]
    return encode_json(message)


def _grow_block(block: Json, delta: Json, pieces: list[str]) -> None:
    kind = delta.get("type")
    if kind == "input_json_delta":
        pieces.append(delta.get("partial_json") or "")
    elif kind == "citations_delta":
        block["citations"] = [*(block.get("citations") or []), delta.get("citation")]
    elif kind == "signature_delta":
        block["signature"] = delta.get("signature")
    else:
        for name in ("text", "thinking"):
            if isinstance(delta.get(name), str):
                block[name] = (block.get(name) or "") + delta[name]


def _json_or_empty(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
