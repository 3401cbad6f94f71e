"""Translates chat requests into Anthropic's.

`thinking`, `cache_control` and a file's `citations` are Anthropic's own fields, which OpenAI's clients can send as well
(in `extra_body`, a part or a tool); they are passed on unchanged.
"""

from __future__ import annotations

import re
from base64 import b64decode
from typing import Any

import msgspec

from gateway.errors import CallerError
from gateway.wire.body import Raw, encode_json, is_set, read, to_raw
from gateway.wire.call_ids import holds_sealed, is_carrier, unseal
from gateway.wire.chunk import BAD_JSON
from gateway.wire.citations import anthropics_own
from gateway.wire.to_chat import allowed, opaque, refuse, refuse_set
from gateway.wire.web_search import chat_search

Json = dict[str, Any]
_UNSIGNED = (b'"signature":""', b'"signature": ""')
DEFAULT_MAX_TOKENS = 4096
_IMPOSSIBLE = (
    "frequency_penalty", "presence_penalty", "logit_bias", "audio", "moderation",
)  # fmt: skip
_FOREIGN = re.compile(r"[^a-zA-Z0-9_-]")
"""Characters that Anthropic refuses in a call's id, and that other APIs use: `functions.now:0`."""
_EFFORTS = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}


def chat_to_messages(raw: Raw, max_tokens: int = DEFAULT_MAX_TOKENS, search: Json | None = None) -> Raw:
    """Translate a request. Raises CallerError for what can't be translated. `search`: Anthropic's tool for a web search
    that another surface than chat requested.
    """
    refuse_set(raw, _IMPOSSIBLE, "this model's API has no equivalent.")
    refuse_set(raw, ("functions", "function_call"), "is deprecated; send 'tools' and 'tool_choice'.")
    if read(raw, "n", int, 1) > 1:
        raise refuse("n", "this model gives one answer per request.")
    if "audio" in read(raw, "modalities", list[str], []):
        raise refuse("modalities", "this model gives no audio.")
    fields: Json = _conversation([*read(raw, "messages", list[Json], []), *_json_instruction(raw)])
    fields["max_tokens"] = _limit(raw, max_tokens)
    if is_set(raw, "stop"):
        stop: Any = read(raw, "stop", str | list[str], "")  # type: ignore[arg-type]
        fields["stop_sequences"] = sequences = [stop] if isinstance(stop, str) else stop
        if not all(map(str.strip, sequences)):
            raise refuse("stop", "this model can't stop at a text of only white space.")
    search = search or chat_search(raw)
    if search or is_set(raw, "tools"):
        tools = read(raw, "tools", list[Json], [])
        choice: Any = read(raw, "tool_choice", str | Json, "")  # type: ignore[arg-type]
        if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
            tools, choice = allowed(tools, choice)
        fields["tools"] = [*map(_tool, tools), *([search] if search else ())]
        fields |= _tool_choice(raw, choice)
    forced = fields.get("tool_choice", {}).get("type") in ("any", "tool")
    fields |= _output_config(raw, thinks=not forced)
    fields |= {name: raw[name] for name in ("thinking", "cache_control") if is_set(raw, name)}
    for name in ("safety_identifier", "user"):
        if is_set(raw, name):
            fields["metadata"] = {"user_id": opaque(read(raw, name, str, ""))}
            break
    passed = {name: raw[name] for name in ("model", "stream", "headgate") if name in raw}
    return passed | to_raw(fields)


def signed(messages: msgspec.Raw) -> msgspec.Raw:
    """Messages of Anthropic's API without what other APIs' models left in them and Anthropic refuses: unsigned
    thinking, signatures sealed into the calls' ids, and citations. The same object where there is none.
    """
    text = memoryview(messages).tobytes()
    has_unsigned = b'"signature":' in text and any(mark in text for mark in _UNSIGNED)
    if not has_unsigned and not holds_sealed(text):
        return messages
    turns: list[Any] = msgspec.json.decode(text)
    for turn in turns:
        if isinstance(turn, dict) and isinstance(turn.get("content"), list):
            turn["content"] = [_without_foreign(block) for block in turn["content"] if not _is_unsigned(block)]
    return msgspec.Raw(encode_json([turn for turn in turns if turn.get("content") != []]))


def _without_foreign(block: Any) -> Any:
    if not isinstance(block, dict):
        return block
    named = {name: block[name] for name in ("id", "tool_use_id") if isinstance(block.get(name), str)}
    plain = {**block, **{name: unseal(value)[0] for name, value in named.items()}}
    return {**plain, "citations": anthropics_own(block["citations"])} if block.get("citations") else plain


def _is_unsigned(block: Any) -> bool:
    if not isinstance(block, dict):
        return False
    is_ours = block.get("type") == "redacted_thinking" and is_carrier(block.get("data"))
    return is_ours or (block.get("type") == "thinking" and block.get("signature") == "")


def _json_instruction(raw: Raw) -> list[Json]:
    """An instruction to answer in JSON where the request wants JSON without a schema, as the API can't enforce that."""
    if read(raw, "response_format", Json, {}).get("type") != "json_object":
        return []
    return [{"role": "system", "content": "Answer with one JSON object and nothing else."}]


def _limit(raw: Raw, default: int) -> int:
    for name in ("max_completion_tokens", "max_tokens"):
        if limit := read(raw, name, int, 0):
            return limit
    return default


def _conversation(messages: list[Json]) -> Json:
    """The fields `messages` and `system`. Consecutive turns of one role are merged, as tool results must stay together.
    Without any turn the system text becomes the user's turn, since Anthropic requires one.
    """
    system: list[Json] = []
    turns: list[Json] = []
    for message in messages:
        role = message.get("role")
        if role in ("system", "developer"):
            system += [part for part in _blocks(message.get("content")) if part["type"] == "text"]
            continue
        role, blocks = _turn(str(role), message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not system:
        return {"messages": turns}
    system_field: Any = system
    if not any("cache_control" in part for part in system):
        system_field = "\n\n".join(part["text"] for part in system)
    if not turns:
        return {"messages": [{"role": "user", "content": system_field}]}
    return {"messages": turns, "system": system_field}


def _turn(role: str, message: Json) -> tuple[str, list[Json]]:
    content = message.get("content")
    if role == "user":
        return "user", _blocks(content)
    if role == "assistant":
        return "assistant", _assistant_blocks(message) + [_tool_use(call) for call in message.get("tool_calls") or ()]
    if role == "tool":
        result = content if isinstance(content, str) else _blocks(content)
        block = {"type": "tool_result", "tool_use_id": _id(message.get("tool_call_id")), "content": result}
        return "user", [block]
    raise CallerError(f"This model doesn't accept the role {role!r}.", param="messages", code="invalid_value")


def _assistant_blocks(message: Json) -> list[Json]:
    """The blocks of an assistant's message; a refusal becomes text."""
    for name in ("audio", "function_call"):
        if message.get(name):
            raise refuse("messages", f"this model doesn't accept an answer's {name!r}.")
    refusal = message.get("refusal")
    return _blocks(message.get("content")) + _blocks(refusal if isinstance(refusal, str) else None)


def _id(value: Any) -> Any:
    return _FOREIGN.sub("_", value) if isinstance(value, str) else value


def _blocks(content: Any) -> list[Json]:
    """Content as Anthropic's blocks, without texts of only white space, which Anthropic refuses, and without thinking
    of other models.
    """
    if content is None:
        return []
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise CallerError(
            "'content' must be a string or an array of parts.", param="messages", code="invalid_type"
        )
    blocks = [_block(part) | _cached(part) for part in content if part.get("type") != "thinking"]
    return [block for block in blocks if block["type"] != "text" or block["text"].strip()]


def _cached(part: Json) -> Json:
    return {"cache_control": part["cache_control"]} if part.get("cache_control") else {}


def _block(part: Json) -> Json:
    kind = part.get("type")
    if kind in ("text", "refusal"):
        return {"type": "text", "text": str(part.get("text", part.get("refusal", "")))}
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        return {"type": "image", "source": _source(str(url))}
    file = part.get("file")
    if kind == "file" and isinstance(file, dict) and (file.get("file_data") or file.get("file_url")):
        source = _source(str(file.get("file_data") or file["file_url"]))
        if source["type"] == "base64" and source["media_type"].startswith("text/"):
            text = b64decode(source["data"]).decode()
            source = {"type": "text", "media_type": "text/plain", "data": text}
        optional = {"title": file.get("filename"), "citations": part.get("citations")}
        return {"type": "document", "source": source, **{name: value for name, value in optional.items() if value}}
    raise refuse("messages", f"this model doesn't accept a part of type {kind!r}.")


def _source(url: str) -> Json:
    if url.startswith("data:"):
        head, _, data = url[5:].partition(",")
        media_type, *options = head.split(";")
        if "base64" not in options or not media_type:
            raise CallerError(
                "A data URL must be base64 and name its type.", param="messages", code="invalid_value"
            )
        return {"type": "base64", "media_type": media_type, "data": data}
    if url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    raise CallerError("An image or a file must be an http(s) or a data URL.", param="messages", code="invalid_value")


def _tool_use(call: Any) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise refuse("messages", "this model accepts only calls of functions.")
    try:
        tool_input = msgspec.json.decode(function.get("arguments") or "{}")
    except (*BAD_JSON, TypeError):
        tool_input = None
    if not isinstance(tool_input, dict):
        tool_input = {"_raw": function.get("arguments")}  # a model's own invalid arguments mustn't end the conversation
    return {"type": "tool_use", "id": _id(call.get("id")), "name": function.get("name"), "input": tool_input}


def _tool(tool: Json) -> Json:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise refuse("tools", f"this model has no tool of type {tool.get('type')!r}.")
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    written = {"name": function.get("name"), "input_schema": schema} | _cached(tool)
    for name in ("description", "strict"):
        if function.get(name) is not None:
            written[name] = function[name]
    return written


def _tool_choice(raw: Raw, requested: Any) -> Json:
    serial = is_set(raw, "parallel_tool_calls") and not read(raw, "parallel_tool_calls", bool, True)
    if isinstance(requested, dict):
        function = requested.get("function")
        if requested.get("type") != "function" or not isinstance(function, dict):
            raise refuse("tool_choice", f"unknown type {requested.get('type')!r}.")
        choice: Json = {"type": "tool", "name": function.get("name")}
    elif requested in ("", "auto", "required", "none"):
        choice = {"type": {"required": "any", "none": "none"}.get(requested, "auto")}
    else:
        raise CallerError(f"Unknown 'tool_choice' {requested!r}.", param="tool_choice", code="invalid_value")
    if serial and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    return {"tool_choice": choice} if requested or serial else {}


def _output_config(raw: Raw, *, thinks: bool) -> Json:
    """The fields for effort and answer format. `thinks`: False for a forced tool, which Anthropic allows only without
    thinking; the effort is set all the same.
    """
    fields: Json = {}
    config: Json = {}
    effort = read(raw, "reasoning_effort", str, "")
    if effort == "none":
        fields["thinking"] = {"type": "disabled"}
    elif effort:
        if effort not in _EFFORTS:
            raise CallerError(
                f"Unknown 'reasoning_effort' {effort!r}.", param="reasoning_effort", code="invalid_value"
            )
        config["effort"] = _EFFORTS[effort]
        if thinks:
            fields["thinking"] = {"type": "adaptive"}
    answer_format = read(raw, "response_format", Json, {})
    if answer_format.get("type") == "json_schema":
        schema = answer_format.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
            raise CallerError(
                "'response_format' lacks its schema.", param="response_format", code="invalid_value"
            )
        config["format"] = {"type": "json_schema", "schema": schema["schema"]}
    if config:
        fields["output_config"] = config
    return fields
