"""Assembles a stream's events into the body of the same answer without streaming."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.wire.body import encode_json
from gateway.wire.chunk import begins_new_call, join_parts

Json = dict[str, Any]


def assemble_chat(payloads: list[bytes]) -> bytes:
    """Assemble chat or completions chunks. Unknown fields are kept: strings are joined, of other values the last stays.
    """
    body: Json = {}
    choices: dict[int, Json] = {}
    for payload in payloads:
        if payload.strip() == b"[DONE]":
            continue
        chunk: Json = msgspec.json.decode(payload)
        for choice in chunk.pop("choices", None) or ():
            _extend_choice(choices.setdefault(choice.get("index", 0), {}), choice)
        body |= {name: value for name, value in chunk.items() if value is not None or name not in body}
    body.pop("obfuscation", None)
    body["object"] = "text_completion" if body.get("object") == "text_completion" else "chat.completion"
    body["choices"] = [_whole_choice(index, choices[index]) for index in sorted(choices)]
    return encode_json(body)


def _extend_choice(whole: Json, piece: Json) -> None:
    for name, value in piece.items():
        if name == "delta" and isinstance(value, dict):
            _extend(whole.setdefault("delta", {}), value)
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


def _extend(whole: Json, piece: Json) -> None:
    for name, value in piece.items():
        if name == "tool_calls" and isinstance(value, list):
            calls = whole["tool_calls"] = whole.get("tool_calls") or []
            for call in value:
                _extend_call(calls, call)
        elif name == "content" and isinstance(value, list):
            _extend(whole, join_parts(value))
        elif (
            isinstance(value, str) and isinstance(whole.get(name), str) and name not in ("role", "id", "type")
        ):
            whole[name] += value
        elif isinstance(value, dict) and isinstance(whole.get(name), dict):
            _extend(whole[name], value)
        elif isinstance(value, list) and isinstance(whole.get(name), list):
            whole[name] = [*whole[name], *value]
        elif value is not None or name not in whole:
            whole[name] = value


def _extend_call(calls: list[Json], piece: Json) -> None:
    """Add a piece of a tool call. As in `Seen`, a new id on a known index begins a new call."""
    index, call_id = piece.get("index", 0), piece.get("id")
    same_id = [one for one in calls if call_id and one.get("id") == call_id]
    call = same_id[0] if same_id else next((one for one in reversed(calls) if one["index"] == index), None)
    function = piece.get("function") or {}
    name, arguments = function.get("name"), arguments_json(function.get("arguments"))
    known_function = (call.get("function") or {}) if call else {}
    known_arguments = known_function.get("arguments") or ""
    if (
        call is None
        or (call_id and call.get("id") and call_id != call["id"])
        or begins_new_call(call_id, name, known_function.get("name"), known_arguments)
    ):
        calls.append({**piece, "index": index, "function": {**function, "arguments": arguments}})
        return
    call["function"] = {"name": known_function.get("name") or name, "arguments": known_arguments + arguments}
    if call_id:
        call["id"] = call_id
    if piece.get("extra_content"):
        call["extra_content"] = piece["extra_content"]


def arguments_json(arguments: Any) -> str:
    """A call's arguments as JSON text; some servers send them as an object."""
    value = arguments or ""
    return value if isinstance(value, str) else encode_json(value).decode()


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
    """Assemble Anthropic's events; blocks of unknown types are kept as they started."""
    message: Json = {}
    blocks: dict[int, Json] = {}
    input_pieces: dict[int, list[str]] = {}
    for payload in payloads:
        event: Json = msgspec.json.decode(payload)
        kind = event.get("type")
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            blocks[event["index"]] = event["content_block"]
        elif kind == "content_block_delta" and event.get("index") in blocks:
            _extend_block(blocks[event["index"]], event["delta"], input_pieces.setdefault(event["index"], []))
        elif kind == "message_delta":
            message |= event["delta"]
            usage = {name: value for name, value in (event.get("usage") or {}).items() if value is not None}
            message["usage"] = (message.get("usage") or {}) | usage
    for index, pieces in input_pieces.items():
        if text := "".join(pieces):
            blocks[index]["input"] = _json_or_empty(text)
    message["content"] = [blocks[index] for index in sorted(blocks)]
    return encode_json(message)


def _extend_block(block: Json, delta: Json, pieces: list[str]) -> None:
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
