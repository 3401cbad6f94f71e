"""Requests of the Responses API as chat requests: items become turns, tools of every kind functions."""

from __future__ import annotations

from typing import Any

from gateway.errors import CallerError
from gateway.wire.body import Raw, encode_json, is_set, read, to_raw
from gateway.wire.call_ids import call_of, give_back, opened
from gateway.wire.responses import input_items
from gateway.wire.to_chat import HOSTED, allowed, passed, refuse, refuse_set, with_tools
from gateway.wire.tools import ADDED, as_function, called, offered, unfolded
from gateway.wire.web_search import NAME, is_search, response_search

Json = dict[str, Any]
_FORCED_SEARCH: Json = {"type": "function", "function": {"name": NAME}}
_PASSED_RESPONSES = ("service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
                     "prompt_cache_options")  # fmt: skip
_OWN_WORK = frozenset(
    {"reasoning", "web_search_call", "file_search_call", "code_interpreter_call", "mcp_list_tools", "mcp_call"}
)
"""Items that tell how an answer came about; what came of them, it says."""
_FILES = ("file_data", "file_url", "file_id")


def responses_to_chat(raw: Raw, *, to_messages: bool = False) -> Raw:
    """`to_messages`: what Anthropic's API has a word for as well, and chat's between them has none, may be asked:
    tools that answer in images and files, a file by its address, and a search of the web, which `search_of` tells.
    """
    tools = offered(raw)
    why = "isn't served here; send the whole conversation, or previous_response_id."
    refuse_set(raw, ("background", "prompt"), why)
    if not (to_messages and any(map(is_search, tools))):
        refuse_set(raw, ("max_tool_calls",), why)
    refuse_set(raw, ("moderation",), "isn't served here.")
    why = "isn't served by this model's API; leave out items that are no longer needed, or name a model whose provider "
    refuse_set(raw, ("context_management",), why + "serves the Responses API.")
    messages: list[Json] = []
    if is_set(raw, "instructions"):
        messages.append({"role": "system", "content": read(raw, "instructions", str, "")})
    for item in input_items(raw):
        _add_item(messages, item)
    if not to_messages and any("file_url" in part.get("file", ()) for part in _parts(messages)):
        raise refuse("input", "this model takes no file by its address; send 'file_data'.")
    fields: Json = {"messages": messages if to_messages else _plain_results(messages)}
    if is_set(raw, "max_output_tokens"):
        fields["max_completion_tokens"] = raw["max_output_tokens"]
    shown, choice = _shown(raw, tools)
    tools = [_tool_from_responses(tool) for tool in shown if not (to_messages and is_search(tool))]
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
    return passed(raw, *_PASSED_RESPONSES) | to_raw(fields)


def search_of(raw: Raw) -> Json | None:
    """Anthropic's tool for the web search that the request offers; None: the model may run none."""
    shown, told = _shown(raw, offered(raw))
    choice = told.get("tool_choice")
    search = None if choice == "none" else response_search(raw, shown)
    if search is None and choice == _FORCED_SEARCH:
        raise refuse("tool_choice", "'max_tool_calls' allows no search.")
    return search


def _shown(raw: Raw, tools: list[Json]) -> tuple[list[Json], Json]:
    """Each tool that the request's choice leaves, and that choice."""
    shown = list(unfolded(tools))
    if not is_set(raw, "tool_choice"):
        return shown, {}
    shown, choice = _choice_from_responses(raw, shown)
    return shown, {"tool_choice": choice}


def _add_item(messages: list[Json], item: Json) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        _add_message(messages, _message_from_item(item))
    elif kind in ("function_call", "custom_tool_call"):
        arguments = item.get("arguments") or "{}"
        if kind == "custom_tool_call":
            arguments = encode_json({"input": item.get("input")}).decode()
        call = call_of(str(item.get("call_id") or ""), called(item), arguments)
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        output = item.get("output")
        content = output if isinstance(output, str) else _parts_from_responses(output)
        call_id, _ = opened(str(item.get("call_id") or ""))
        messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
    elif kind == "reasoning" and messages and messages[-1]["role"] == "assistant":
        give_back(messages[-1], item.get("encrypted_content"))
    elif kind not in _OWN_WORK and kind != ADDED:
        raise refuse("input", f"an item of type {kind!r} can't be served by this model.")


def _add_message(messages: list[Json], message: Json) -> None:
    """What a model said behind its calls belongs to the turn that holds them: chat's answers to them come next."""
    last = messages[-1] if messages else {}
    if message["role"] == "assistant" and "tool_calls" in last:
        last["content"] = (last["content"] or "") + message["content"]
    else:
        messages.append(message)


def _parts(messages: list[Json]) -> list[Json]:
    return [part for message in messages if isinstance(message["content"], list) for part in message["content"]]


def _plain_results(messages: list[Json]) -> list[Json]:
    """Chat's tools answer in text: what else they gave goes to the user's side, behind all of their answers."""
    told: list[Json] = []
    shown: list[Json] = []
    for message in messages:
        content = message["content"]
        if message["role"] != "tool" and shown:
            told.append({"role": "user", "content": shown})
            shown = []
        elif message["role"] == "tool" and not isinstance(content, str):
            shown += [part for part in content if part["type"] != "text"]
            message = {**message, "content": "\n".join(part["text"] for part in content if part["type"] == "text")}
        told.append(message)
    return [*told, {"role": "user", "content": shown}] if shown else told


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
    raise refuse("input", f"a part of type {kind!r} can't be served by this model.")


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
    """And the tools that it leaves."""
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
    wanted = text.get("format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        schema = {name: value for name, value in wanted.items() if name != "type" and value is not None}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif isinstance(wanted, dict) and wanted.get("type") != "text":
        fields["response_format"] = wanted
    return fields
