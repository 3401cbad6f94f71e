"""Requests of completions and messages as chat requests, and what all that becomes chat shares."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any

from gateway.errors import CallerError
from gateway.wire.body import Raw, encode_json, is_set, read, to_raw
from gateway.wire.call_ids import call_of, give_back, opened

Json = dict[str, Any]
_PASSED = ("model", "stream", "temperature", "top_p", "user", "seed", "headgate")
_PASSED_COMPLETIONS = (
    "n", "stop", "max_tokens", "frequency_penalty", "presence_penalty", "logit_bias", "stream_options",
)  # fmt: skip
_OPAQUE = re.compile(r"[a-zA-Z0-9_-]{1,64}")
HOSTED = "the gateway's setting `hosted_tools` can leave such tools out"
_SPOKEN = ("text", "tool_use", "thinking", "redacted_thinking")
"""Blocks of an assistant's turn that another API has a word for, or can do without."""


def refuse(param: str, why: str) -> CallerError:
    return CallerError(f"'{param}': {why}", param=param, code="unsupported_parameter")


def passed(raw: Raw, *names: str) -> Raw:
    return {name: raw[name] for name in (*_PASSED, *names) if name in raw}


def opaque(user: str) -> str:
    """A user's name as every API takes it: OpenAI and others limit its length and signs, Anthropic wants no address."""
    return user if _OPAQUE.fullmatch(user) else sha256(user.encode()).hexdigest()


def refuse_set(raw: Raw, names: tuple[str, ...], why: str) -> None:
    """Refuse fields that are there and neither null nor their neutral value."""
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
    """Chat refuses an empty list of tools, and a choice among none, even one that says nothing."""
    if tools:
        return {"tools": tools, **choice}
    return {} if choice.get("tool_choice", "auto") in ("auto", "none") else choice


def allowed(tools: list[Json], choice: Json) -> tuple[list[Json], str]:
    """Of these tools those that a choice `allowed_tools` leaves, and its mode; a model isn't shown the others."""
    given = choice.get("allowed_tools", choice)  # chat has them there
    mode, named = (given.get("mode"), given.get("tools")) if isinstance(given, dict) else (None, None)
    if mode not in ("auto", "required") or not isinstance(named, list):
        why = "'tool_choice' of type 'allowed_tools' has 'mode' ('auto' or 'required') and 'tools'."
        raise CallerError(why, param="tool_choice", code="invalid_value")
    wanted = [_identity(tool) for tool in named]
    left = [tool for tool in tools if _identity(tool) in wanted]
    if not left or any(one not in map(_identity, left) for one in wanted):
        why = "'tool_choice' allows a tool that isn't among 'tools'."
        raise CallerError(why, param="tool_choice", code="invalid_value")
    return left, mode


def _identity(tool: Any) -> Any:
    """Type and name, wherever the API has it."""
    if not isinstance(tool, dict):
        return None
    function = tool.get("function")
    return tool.get("type"), function.get("name") if isinstance(function, dict) else tool.get("name")


# completions


def completions_to_chat(raw: Raw) -> Raw:
    """One text prompt becomes one user message."""
    refuse_set(raw, ("suffix", "echo", "logprobs"), "this model has no text completion API.")
    if read(raw, "best_of", int, 1) > 1:
        raise refuse("best_of", "this model has no text completion API.")
    prompt: Any = read(raw, "prompt", str | list[Any], "")  # type: ignore[arg-type]
    if isinstance(prompt, list):
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            raise refuse("prompt", "this model takes one prompt of text, not tokens or several prompts.")
        prompt = prompt[0]
    messages = [{"role": "user", "content": prompt}]
    return passed(raw, *_PASSED_COMPLETIONS) | to_raw({"messages": messages})


# messages


def messages_to_chat(raw: Raw) -> Raw:
    refuse_set(raw, ("container", "mcp_servers"), "this model's API has no equivalent.")
    for edit in read(raw, "context_management", Json, {}).get("edits") or ():
        if not str(edit.get("type")).startswith("clear_thinking"):  # another API's model is shown none anyway
            raise refuse("context_management", f"this model's API has no edit {edit.get('type')!r}.")
    if read(raw, "inference_geo", str, "global") != "global":
        raise refuse("inference_geo", "this model's API can't be bound to a region.")
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
    return passed(raw) | to_raw(fields)


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
    """Thinking is left out: only who thought it can read its signature. What chat gave with it goes back."""
    for block in blocks:
        if block.get("type") not in _SPOKEN:
            raise refuse("messages", f"this model can't be given a block of type {block.get('type')!r}.")
    texts = [str(block.get("text", "")) for block in blocks if block.get("type") == "text"]
    turn: Json = {"role": "assistant", "content": "".join(texts) or None}
    calls = [_call_from_anthropic(block) for block in blocks if block.get("type") == "tool_use"]
    if calls:
        turn["tool_calls"] = calls
    elif turn["content"] is None:
        turn["content"] = ""
    for block in blocks:
        if block.get("type") == "redacted_thinking":
            give_back(turn, block.get("data"))
    return [turn]


def _call_from_anthropic(block: Json) -> Json:
    arguments = encode_json(block.get("input") or {}).decode()
    return call_of(str(block.get("id", "")), str(block.get("name", "")), arguments)


def _user_turn(blocks: list[Json]) -> list[Json]:
    """Tool results become messages of their own, before what the user says; what isn't text in them goes with the user.
    That one is an error is said in words, as chat has no mark for it.
    """
    results: list[Json] = []
    parts: list[Json] = []
    for block in blocks:
        if block.get("type") != "tool_result":
            parts += _parts_from_anthropic(block)
            continue
        given = _parts_of(block.get("content"))
        parts += [part for part in given if part["type"] != "text"]
        tool_id, _ = opened(str(block.get("tool_use_id", "")))
        said = "\n".join(part["text"] for part in given if part["type"] == "text")
        said = f"Error: {said}" if block.get("is_error") else said
        results.append({"role": "tool", "tool_call_id": tool_id, "content": said})
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
    held = source.get("type") if isinstance(source, dict) else None
    if kind == "image" and held == "url":
        return [{"type": "image_url", "image_url": {"url": source["url"]}}]
    if kind == "image" and held == "base64":
        return [{"type": "image_url", "image_url": {"url": _data_url(source)}}]
    if kind == "document" and held in ("text", "base64", "content"):
        return _document(block, source)
    whose = f" with a source of type {held!r}" if held else ""
    raise refuse("messages", f"this model can't be given a block of type {kind!r}{whose}.")


def _parts_of(content: Any) -> list[Json]:
    if isinstance(content, str):
        return _texts(content)
    return [part for block in content or () for part in _parts_from_anthropic(block)]


def _refuse_citing(block: Json) -> None:
    if (block.get("citations") or {}).get("enabled"):
        raise refuse("messages", "this model can't cite a document.")


def _document(block: Json, source: Json) -> list[Json]:
    """What it is called and what is said of it come before it."""
    _refuse_citing(block)
    title, context = block.get("title"), block.get("context")
    if source["type"] != "base64":
        return [*_texts(title, context), *_parts_of(source.get("data") or source.get("content"))]
    file = {"filename": title or "document.pdf", "file_data": _data_url(source)}
    return [*_texts(context), {"type": "file", "file": file}]


def _texts(*said: Any) -> list[Json]:
    return [_text(one) for one in said if one]


def _text(said: Any) -> Json:
    return {"type": "text", "text": str(said)}


def _data_url(source: Json) -> str:
    return f"data:{source.get('media_type')};base64,{source.get('data')}"


def _tool_from_anthropic(tool: Json) -> Json:
    if tool.get("type") not in (None, "custom"):
        raise refuse("tools", f"this model has no server tool {tool.get('type')!r}; {HOSTED}.")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {}}
    if "description" in tool:
        function["description"] = tool["description"]
    if "strict" in tool:
        function["strict"] = tool["strict"] and _is_closed(function["parameters"])
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
    wanted = config.get("format")
    if isinstance(wanted, dict):
        schema = wanted.get("schema") or {}
        named = {"name": "answer", "schema": schema, "strict": _is_closed(schema)}
        fields["response_format"] = {"type": "json_schema", "json_schema": named}
    return fields


def _is_closed(schema: Any) -> bool:
    """Every object has each of its properties and no others, as OpenAI demands of a strict schema; Anthropic lets a
    property be absent.
    """
    if isinstance(schema, list):
        return all(_is_closed(one) for one in schema)
    if not isinstance(schema, dict):
        return True
    properties = schema.get("properties")
    if isinstance(properties, dict):
        required = set(schema.get("required") or ())
        if not properties.keys() <= required or schema.get("additionalProperties") is not False:
            return False
    return all(_is_closed(one) for one in schema.values())
