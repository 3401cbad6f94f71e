"""Translates requests of the Responses API into chat's: items become turns, and tools of every kind functions."""

from __future__ import annotations

from typing import Any

from gateway.errors import CallerError
from gateway.wire.body import Raw, encode_json, is_set, read, to_raw
from gateway.wire.call_ids import call_of, restore, unseal
from gateway.wire.responses import input_items
from gateway.wire.to_chat import HOSTED, allowed, kept, refuse, refuse_set, with_tools
from gateway.wire.tools import ADDED, as_function, chat_name, offered, unfolded
from gateway.wire.web_search import NAME, is_search, response_search

Json = dict[str, Any]
_FORCED_SEARCH: Json = {"type": "function", "function": {"name": NAME}}
_KEPT_RESPONSES = ("service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
                     "prompt_cache_options")  # fmt: skip
_OWN_WORK = frozenset(
    {"reasoning", "web_search_call", "file_search_call", "code_interpreter_call", "mcp_list_tools", "mcp_call"}
)
"""Types of items that report how an answer was made; they are left out, since the answer itself follows."""
_FILES = ("file_data", "file_url", "file_id")


def responses_to_chat(raw: Raw, *, to_messages: bool = False) -> Raw:
    """Translate a request. Raises CallerError for what can't be translated. `to_messages`: the result will be
    translated into Anthropic's API, so features that it has and chat lacks are allowed: tool results with images and
    files, files by their URL, and web search, which `search_of` translates.
    """
    tools = offered(raw)
    reason = "isn't supported; send the whole conversation, or previous_response_id."
    refuse_set(raw, ("background", "prompt"), reason)
    if not (to_messages and any(map(is_search, tools))):
        refuse_set(raw, ("max_tool_calls",), reason)
    refuse_set(raw, ("moderation",), "isn't supported.")
    reason = "isn't supported by this model's API; leave out items that are no longer needed, or name a model whose "
    refuse_set(raw, ("context_management",), reason + "provider serves the Responses API.")
    messages: list[Json] = []
    if is_set(raw, "instructions"):
        messages.append({"role": "system", "content": read(raw, "instructions", str, "")})
    for item in input_items(raw):
        _add_item(messages, item)
    if not to_messages and any("file_url" in part.get("file", ()) for part in _parts(messages)):
        raise refuse("input", "this model accepts no file by its URL; send 'file_data'.")
    fields: Json = {"messages": messages if to_messages else _text_results(messages)}
    if is_set(raw, "max_output_tokens"):
        fields["max_completion_tokens"] = raw["max_output_tokens"]
    allowed_tools, choice = _allowed_tools(raw, tools)
    tools = [_tool_from_responses(tool) for tool in allowed_tools if not (to_messages and is_search(tool))]
    if is_set(raw, "parallel_tool_calls"):
        choice["parallel_tool_calls"] = raw["parallel_tool_calls"]
    fields |= with_tools(tools, choice)
    if effort := read(raw, "reasoning", Json, {}).get("effort"):
        fields["reasoning_effort"] = effort
    if is_set(raw, "text"):
        fields |= _text_config(read(raw, "text", Json, {}))
    if "message.output_text.logprobs" in read(raw, "include", list[str], []):
        fields["logprobs"] = True
        if is_set(raw, "top_logprobs"):
            fields["top_logprobs"] = raw["top_logprobs"]
    return kept(raw, *_KEPT_RESPONSES) | to_raw(fields)


def search_of(raw: Raw) -> Json | None:
    """Anthropic's tool for the web search that the request offers; None where the model may not search. Raises
    CallerError where a search is forced but not allowed.
    """
    tools, choice_field = _allowed_tools(raw, offered(raw))
    choice = choice_field.get("tool_choice")
    search = None if choice == "none" else response_search(raw, tools)
    if search is None and choice == _FORCED_SEARCH:
        raise refuse("tool_choice", "'max_tool_calls' allows no search.")
    return search


def _allowed_tools(raw: Raw, tools: list[Json]) -> tuple[list[Json], Json]:
    """The tools that the request's `tool_choice` allows, and the field `tool_choice` for chat, if it is set."""
    remaining = list(unfolded(tools))
    if not is_set(raw, "tool_choice"):
        return remaining, {}
    remaining, choice = _choice_from_responses(raw, remaining)
    return remaining, {"tool_choice": choice}


def _add_item(messages: list[Json], item: Json) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        _add_message(messages, _message_from_item(item))
    elif kind in ("function_call", "custom_tool_call"):
        arguments = item.get("arguments") or "{}"
        if kind == "custom_tool_call":
            arguments = encode_json({"input": item.get("input")}).decode()
        call = call_of(str(item.get("call_id") or ""), chat_name(item), arguments)
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        output = item.get("output")
        content = output if isinstance(output, str) else _parts_from_responses(output)
        call_id, _ = unseal(str(item.get("call_id") or ""))
        messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
    elif kind == "reasoning" and messages and messages[-1]["role"] == "assistant":
        restore(messages[-1], item.get("encrypted_content"))
    elif kind not in _OWN_WORK and kind != ADDED:
        raise refuse("input", f"this model doesn't accept an item of type {kind!r}.")


def _add_message(messages: list[Json], message: Json) -> None:
    """Append a message. A model's text after its calls is merged into the turn with the calls, since in chat their
    results must come next.
    """
    last = messages[-1] if messages else {}
    if message["role"] == "assistant" and "tool_calls" in last:
        last["content"] = (last["content"] or "") + message["content"]
    else:
        messages.append(message)


def _parts(messages: list[Json]) -> list[Json]:
    return [part for message in messages if isinstance(message["content"], list) for part in message["content"]]


def _text_results(messages: list[Json]) -> list[Json]:
    """Reduce tool results to text, as chat requires; their other parts become a user message after the results."""
    result: list[Json] = []
    other_parts: list[Json] = []
    for message in messages:
        content = message["content"]
        if message["role"] != "tool" and other_parts:
            result.append({"role": "user", "content": other_parts})
            other_parts = []
        elif message["role"] == "tool" and not isinstance(content, str):
            other_parts += [part for part in content if part["type"] != "text"]
            message = {**message, "content": "\n".join(part["text"] for part in content if part["type"] == "text")}
        result.append(message)
    return [*result, {"role": "user", "content": other_parts}] if other_parts else result


def _message_from_item(item: Json) -> Json:
    role, content = item.get("role"), item.get("content")
    if role not in ("user", "assistant", "system", "developer"):
        raise CallerError(f"Unknown role {role!r}.", param="input", code="invalid_value")
    if isinstance(content, str):
        return {"role": role, "content": content}
    parts = _parts_from_responses(content)
    if role == "user":
        return {"role": role, "content": parts}
    return {"role": role, "content": "".join(part.get("text", "") for part in parts)}


def _parts_from_responses(content: Any) -> list[Json]:
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise CallerError(
            "'content' must be a string or an array of parts.", param="input", code="invalid_type"
        )
    return [_part_from_responses(part) for part in content]


def _part_from_responses(part: Json) -> Json:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text", "refusal"):
        return {"type": "text", "text": str(part.get("text", part.get("refusal", "")))}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        image = {"url": part["image_url"]}
        if part.get("detail"):
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_file" and any(part.get(name) for name in _FILES):
        return {"type": "file", "file": {name: part[name] for name in (*_FILES, "filename") if part.get(name)}}
    if kind == "input_audio":
        return {name: part.get(name) for name in ("type", "input_audio")}
    raise refuse("input", f"this model doesn't accept a part of type {kind!r}.")


def _tool_from_responses(tool: Json) -> Json:
    if tool.get("type") == "custom":
        return {"type": "function", "function": as_function(tool)}
    if tool.get("type") != "function":
        raise refuse("tools", f"this model has no built-in tool {tool.get('type')!r}; {HOSTED}.")
    names = ("name", "description", "parameters", "strict")
    return {
        "type": "function",
        "function": {name: tool[name] for name in names if tool.get(name) is not None},
    }


def _choice_from_responses(raw: Raw, tools: list[Json]) -> tuple[list[Json], Any]:
    """The tools that the choice allows, and chat's `tool_choice`."""
    choice: Any = read(raw, "tool_choice", str | Json, "auto")  # type: ignore[arg-type]
    if isinstance(choice, str):
        return tools, choice
    if choice.get("type") in ("function", "custom"):
        return tools, {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools":
        return allowed(tools, choice)
    if is_search(choice):
        if not any(map(is_search, tools)):
            why = "'tool_choice' forces a search that isn't among 'tools'."
            raise CallerError(why, param="tool_choice", code="invalid_value")
        return tools, _FORCED_SEARCH
    raise refuse("tool_choice", f"unknown type {choice.get('type')!r}.")


def _text_config(text: Json) -> Json:
    fields: Json = {}
    if text.get("verbosity"):
        fields["verbosity"] = text["verbosity"]
    answer_format = text.get("format")
    if isinstance(answer_format, dict) and answer_format.get("type") == "json_schema":
        schema = {name: value for name, value in answer_format.items() if name != "type" and value is not None}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif isinstance(answer_format, dict) and answer_format.get("type") != "text":
        fields["response_format"] = answer_format
    return fields
