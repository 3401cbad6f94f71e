"""Translates requests of completions and messages into chat's, with what other translations into chat share."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any

from gateway.errors import CallerError
from gateway.wire.body import Raw, encode_json, is_set, read, to_raw
from gateway.wire.call_ids import call_of, restore, unseal

Json = dict[str, Any]
_KEPT = ("model", "stream", "temperature", "top_p", "user", "seed", "headgate")
_KEPT_COMPLETIONS = (
    "n", "stop", "max_tokens", "frequency_penalty", "presence_penalty", "logit_bias", "stream_options",
)  # fmt: skip
_OPAQUE = re.compile(r"[a-zA-Z0-9_-]{1,64}")
HOSTED = "the gateway's setting `hosted_tools` can leave such tools out"
_TRANSLATED = ("text", "tool_use", "thinking", "redacted_thinking")
"""Types of an assistant's blocks that can be translated or left out."""


def refuse(param: str, why: str) -> CallerError:
    return CallerError(f"'{param}': {why}", param=param, code="unsupported_parameter")


def kept(raw: Raw, *names: str) -> Raw:
    return {name: raw[name] for name in (*_KEPT, *names) if name in raw}


def opaque(user: str) -> str:
    """A user's name in a form that every API accepts: others are hashed, since OpenAI and others limit its length and
    characters, and Anthropic wants no e-mail address.
    """
    return user if _OPAQUE.fullmatch(user) else sha256(user.encode()).hexdigest()


def refuse_set(raw: Raw, names: tuple[str, ...], why: str) -> None:
    """Raises CallerError for a field that is present and neither null nor neutral (0, false or empty)."""
    for name in names:
        if is_set(raw, name) and bytes(raw[name]).strip() not in (
            b"0",
            b"0.0",
            b"false",
            b"[]",
            b"{}",
            b'""',
        ):
            raise refuse(name, why)


def with_tools(tools: list[Json], choice: Json) -> Json:
    """The fields of chat for tools and their choice. Without tools both are left out, as chat refuses them then, unless
    the choice forces a tool.
    """
    if tools:
        return {"tools": tools, **choice}
    return {} if choice.get("tool_choice", "auto") in ("auto", "none") else choice


def allowed(tools: list[Json], choice: Json) -> tuple[list[Json], str]:
    """The tools that a `tool_choice` of type `allowed_tools` allows, and its mode; the model isn't sent the others.
    Raises CallerError.
    """
    allowance = choice.get("allowed_tools", choice)  # chat has an object of that name, the Responses API doesn't
    mode, named = (allowance.get("mode"), allowance.get("tools")) if isinstance(allowance, dict) else (None, None)
    if mode not in ("auto", "required") or not isinstance(named, list):
        message = "'tool_choice' of type 'allowed_tools' has 'mode' ('auto' or 'required') and 'tools'."
        raise CallerError(message, param="tool_choice", code="invalid_value")
    identities = [_identity(tool) for tool in named]
    left = [tool for tool in tools if _identity(tool) in identities]
    if not left or any(one not in map(_identity, left) for one in identities):
        message = "'tool_choice' allows a tool that isn't among 'tools'."
        raise CallerError(message, param="tool_choice", code="invalid_value")
    return left, mode


def _identity(tool: Any) -> Any:
    """Type and name of a tool in chat or in the Responses API."""
    if not isinstance(tool, dict):
        return None
    function = tool.get("function")
    return tool.get("type"), function.get("name") if isinstance(function, dict) else tool.get("name")


# completions


def completions_to_chat(raw: Raw) -> Raw:
    """Translate a completions request; its text prompt becomes a user message. Raises CallerError."""
    refuse_set(raw, ("suffix", "echo", "logprobs"), "this model has no text completion API.")
    if read(raw, "best_of", int, 1) > 1:
        raise refuse("best_of", "this model has no text completion API.")
    prompt: Any = read(raw, "prompt", str | list[Any], "")  # type: ignore[arg-type]
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise refuse("prompt", "this model takes one prompt of text, not tokens or several prompts.")
        prompt = prompt[0]
    messages = [{"role": "user", "content": prompt}]
    return kept(raw, *_KEPT_COMPLETIONS) | to_raw({"messages": messages})


# messages


def messages_to_chat(raw: Raw) -> Raw:
    refuse_set(raw, ("container", "mcp_servers"), "this model's API has no equivalent.")
    for edit in read(raw, "context_management", Json, {}).get("edits") or ():
        if not str(edit.get("type")).startswith("clear_thinking"):  # thinking is left out anyway
            raise refuse("context_management", f"this model's API has no edit {edit.get('type')!r}.")
    if read(raw, "inference_geo", str, "global") != "global":
        raise refuse("inference_geo", "this model's API can't be restricted to a region.")
    if read(raw, "max_tokens", int, 1) == 0:
        raise refuse("max_tokens", "this model's API can't read a prompt without answering it.")
    messages: list[Json] = []
    if is_set(raw, "system"):
        system: Any = read(raw, "system", str | list[Json], "")  # type: ignore[arg-type]
        messages.append({"role": "system", "content": _joined(system, "system")})
    for message in read(raw, "messages", list[Json], []):
        messages += _from_anthropic(message)
    fields: Json = {"messages": messages}
    if is_set(raw, "max_tokens"):
        fields["max_completion_tokens"] = raw["max_tokens"]
    if read(raw, "stop_sequences", list[str], []):
        fields["stop"] = raw["stop_sequences"]
    tools = [_tool_from_anthropic(tool) for tool in read(raw, "tools", list[Json], [])]
    choice = _choice_from_anthropic(read(raw, "tool_choice", Json, {})) if is_set(raw, "tool_choice") else {}
    fields |= with_tools(tools, choice)
    fields |= _effort_and_format(raw)
    user = read(raw, "metadata", Json, {}).get("user_id")
    if isinstance(user, str):
        fields["user"] = opaque(user)
    return kept(raw) | to_raw(fields)


def _joined(content: Any, param: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise CallerError(
            f"'{param}' must be a string or an array of blocks.", param=param, code="invalid_type"
        )
    return "\n\n".join(str(block.get("text", "")) for block in content)


def _from_anthropic(message: Json) -> list[Json]:
    content, role = message.get("content"), message.get("role")
    if role == "system":
        return [{"role": "system", "content": _joined(content, "messages")}]
    if role not in ("user", "assistant"):
        raise CallerError(f"Unknown role {role!r}.", param="messages", code="invalid_value")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        raise CallerError(
            "'content' must be a string or an array of blocks.", param="messages", code="invalid_type"
        )
    return _assistant_turn(content) if role == "assistant" else _user_turn(content)


def _assistant_turn(blocks: list[Json]) -> list[Json]:
    """An assistant's turn. Thinking is left out, since only its own provider can read its signature; `extra_content`
    that an upstream's chat sent is restored.
    """
    for block in blocks:
        if block.get("type") not in _TRANSLATED:
            raise refuse("messages", f"this model doesn't accept a block of type {block.get('type')!r}.")
    texts = [str(block.get("text", "")) for block in blocks if block.get("type") == "text"]
    turn: Json = {"role": "assistant", "content": "".join(texts) or None}
    calls = [_call_from_anthropic(block) for block in blocks if block.get("type") == "tool_use"]
    if calls:
        turn["tool_calls"] = calls
    elif turn["content"] is None:
        turn["content"] = ""
    for block in blocks:
        if block.get("type") == "redacted_thinking":
            restore(turn, block.get("data"))
    return [turn]


def _call_from_anthropic(block: Json) -> Json:
    arguments = encode_json(block.get("input") or {}).decode()
    return call_of(str(block.get("id", "")), str(block.get("name", "")), arguments)


def _user_turn(blocks: list[Json]) -> list[Json]:
    """A user's turn. Tool results become messages of their own before it, and their parts that aren't text go into the
    user's message. An error is marked by the text `Error:`, as chat has no field for it.
    """
    results: list[Json] = []
    parts: list[Json] = []
    for block in blocks:
        if block.get("type") != "tool_result":
            parts += _parts_from_anthropic(block)
            continue
        result_parts = _parts_of(block.get("content"))
        parts += [part for part in result_parts if part["type"] != "text"]
        tool_id, _ = unseal(str(block.get("tool_use_id", "")))
        text = "\n".join(part["text"] for part in result_parts if part["type"] == "text")
        text = f"Error: {text}" if block.get("is_error") else text
        results.append({"role": "tool", "tool_call_id": tool_id, "content": text})
    if not parts:
        return results
    only_text = all(part["type"] == "text" for part in parts) and len(parts) == 1
    return [*results, {"role": "user", "content": parts[0]["text"] if only_text else parts}]


def _parts_from_anthropic(block: Json) -> list[Json]:
    kind, source = block.get("type"), block.get("source") or {}
    if kind == "text":
        return [_text(block.get("text", ""))]
    if kind == "search_result":
        _refuse_citing(block)
        return [*_texts(block.get("title"), block.get("source")), *_parts_of(block.get("content"))]
    source_type = source.get("type") if isinstance(source, dict) else None
    if kind == "image" and source_type == "url":
        return [{"type": "image_url", "image_url": {"url": source["url"]}}]
    if kind == "image" and source_type == "base64":
        return [{"type": "image_url", "image_url": {"url": _data_url(source)}}]
    if kind == "document" and source_type in ("text", "base64", "content"):
        return _document(block, source)
    source_note = f" with a source of type {source_type!r}" if source_type else ""
    raise refuse("messages", f"this model doesn't accept a block of type {kind!r}{source_note}.")


def _parts_of(content: Any) -> list[Json]:
    if isinstance(content, str):
        return _texts(content)
    return [part for block in content or () for part in _parts_from_anthropic(block)]


def _refuse_citing(block: Json) -> None:
    if (block.get("citations") or {}).get("enabled"):
        raise refuse("messages", "this model can't cite a document.")


def _document(block: Json, source: Json) -> list[Json]:
    """A document as chat's parts, preceded by its title and context."""
    _refuse_citing(block)
    title, context = block.get("title"), block.get("context")
    if source["type"] != "base64":
        return [*_texts(title, context), *_parts_of(source.get("data") or source.get("content"))]
    file = {"filename": title or "document.pdf", "file_data": _data_url(source)}
    return [*_texts(context), {"type": "file", "file": file}]


def _texts(*values: Any) -> list[Json]:
    return [_text(one) for one in values if one]


def _text(value: Any) -> Json:
    return {"type": "text", "text": str(value)}


def _data_url(source: Json) -> str:
    return f"data:{source.get('media_type')};base64,{source.get('data')}"


def _tool_from_anthropic(tool: Json) -> Json:
    if tool.get("type") not in (None, "custom"):
        raise refuse("tools", f"this model has no server tool {tool.get('type')!r}; {HOSTED}.")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {}}
    if "description" in tool:
        function["description"] = tool["description"]
    if "strict" in tool:
        function["strict"] = tool["strict"] and _is_strict(function["parameters"])
    return {"type": "function", "function": function}


def _choice_from_anthropic(choice: Json) -> Json:
    kind = choice.get("type")
    named = {"auto": "auto", "any": "required", "none": "none"}.get(str(kind))
    if kind == "tool":
        fields: Json = {"tool_choice": {"type": "function", "function": {"name": choice.get("name")}}}
    elif named:
        fields = {"tool_choice": named}
    else:
        raise refuse("tool_choice", f"unknown type {kind!r}.")
    if choice.get("disable_parallel_tool_use"):
        fields["parallel_tool_calls"] = False
    return fields


def _effort_and_format(raw: Raw) -> Json:
    fields: Json = {}
    thinking = read(raw, "thinking", Json, {})
    if thinking.get("type") == "enabled" and isinstance(thinking.get("budget_tokens"), int):
        budget = thinking["budget_tokens"]
        fields["reasoning_effort"] = "low" if budget <= 2048 else "medium" if budget <= 8192 else "high"
    config = read(raw, "output_config", Json, {})
    if config.get("effort") and thinking.get("type") != "disabled":
        fields["reasoning_effort"] = config["effort"]
    answer_format = config.get("format")
    if isinstance(answer_format, dict):
        schema = answer_format.get("schema") or {}
        named = {"name": "answer", "schema": schema, "strict": _is_strict(schema)}
        fields["response_format"] = {"type": "json_schema", "json_schema": named}
    return fields


def _is_strict(schema: Any) -> bool:
    """Whether every object in the schema requires all its properties and allows no others, as OpenAI demands of a
    strict schema; Anthropic's API allows optional properties.
    """
    if isinstance(schema, list):
        return all(_is_strict(one) for one in schema)
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict):
        required = set(schema.get("required") or ())
        if not properties.keys() <= required or schema.get("additionalProperties") is not False:
            return False
    return all(_is_strict(one) for one in schema.values())
