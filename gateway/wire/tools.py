"""Tools that chat lacks: tools in namespaces, custom tools (whose input is plain text) and hosted tools."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import msgspec

from gateway.errors import CallerError
from gateway.wire.body import Raw, read, to_raw

Json = dict[str, Any]
MAX_NAME_CHARS = 64
"""Longest name of a function, in characters, that every API accepts."""
ADDED = "additional_tools"
"""Type of an item that adds tools in the middle of a conversation."""
_ADDED = f'"{ADDED}"'.encode()
_CLIENT_TYPES = {"responses": ("function", "namespace", "custom"), "messages": (None, "custom")}
"""Types of tools that the client runs, per surface."""


def folded(namespace: str, name: str) -> str:
    """The name, in APIs without namespaces, of a tool in a namespace."""
    whole = f"{namespace}__{name}"
    return whole if len(whole) <= MAX_NAME_CHARS else f"{whole[:55]}_{sha256(whole.encode()).hexdigest()[:8]}"


def adds_tools(raw: Raw) -> bool:
    """Whether an item in the input of a Responses request adds tools."""
    return _ADDED in memoryview(raw.get("input", b"")).tobytes()


def offered(raw: Raw) -> list[Json]:
    """All tools of a Responses request: its own, and those that items of its input add. Raises CallerError."""
    tools = read(raw, "tools", list[Json], [])
    for item in _adding(raw):
        tools += item["tools"]
    return tools


def _adding(raw: Raw) -> list[Json]:
    items: Any = read(raw, "input", str | list[Json], "") if adds_tools(raw) else ()  # type: ignore[arg-type]
    adding = [item for item in items if isinstance(item, dict) and item.get("type") == ADDED]
    for item in adding:
        tools = item.get("tools")
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise CallerError(f"An item {ADDED!r} must have a list 'tools'.", param="input", code="invalid_type")
    return adding


def unfolded(tools: list[Json]) -> Iterator[Json]:
    """All tools, with those in a namespace under their folded names."""
    for tool in tools:
        if tool.get("type") != "namespace":
            yield tool
        else:
            for inner in tool.get("tools") or ():
                yield {**inner, "name": folded(tool["name"], inner["name"])}


def chat_name(item: Json) -> Any:
    """The name in chat of the function that an item calls."""
    return folded(item["namespace"], item["name"]) if item.get("namespace") else item.get("name")


def target_of(name: str, request: Raw) -> Json:
    """The fields of a call's item that name the tool which a model calls by `name`: `type`, `name`, and `namespace` if
    the request has the tool in one.
    """
    tools_json = memoryview(request.get("tools", b"")).tobytes()
    if b'"namespace"' in tools_json or b'"custom"' in tools_json or adds_tools(request):
        for tool in offered(request):
            is_space = tool.get("type") == "namespace"
            for inner in (tool.get("tools") or ()) if is_space else (tool,):
                if (folded(tool["name"], inner["name"]) if is_space else inner.get("name")) == name:
                    kind = "custom_tool_call" if inner.get("type") == "custom" else "function_call"
                    return {"type": kind, "name": inner["name"], **({"namespace": tool["name"]} if is_space else {})}
    return {"type": "function_call", "name": name}


def as_function(tool: Json) -> Json:
    """A custom tool as a function with one argument, its text. A grammar, which other APIs can't enforce, is put into
    the description.
    """
    description, input_format = [tool.get("description")], tool.get("format") or {}
    if input_format.get("type") == "grammar":
        syntax, definition = input_format.get("syntax"), input_format.get("definition")
        description.append(f"The input follows this grammar ({syntax}):\n{definition}")
    text = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"],
            "additionalProperties": False}  # fmt: skip
    return {"name": tool.get("name"), "description": "\n\n".join(filter(None, description)), "parameters": text}


def text_of(arguments: str) -> str:
    """The text in the arguments of a function that stands for a custom tool; the arguments themselves where they aren't
    an object with a text.
    """
    try:
        decoded = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return arguments
    text = decoded.get("input") if isinstance(decoded, dict) else None
    return text if isinstance(text, str) else arguments


def without_hosted(raw: Raw, surface: str) -> Raw:
    """The request without hosted tools, which its API's own provider would run."""
    if surface not in _CLIENT_TYPES:
        return {name: value for name, value in raw.items() if name != "web_search_options"}
    tools = read(raw, "tools", list[Json], [])
    kept = [tool for tool in tools if tool.get("type") in _CLIENT_TYPES[surface]]
    raw = raw if len(kept) == len(tools) else {**raw, **to_raw({"tools": kept})}
    if surface != "responses" or not _adding(raw):
        return raw
    items = read(raw, "input", list[Json], [])
    for item in items:
        if item.get("type") == ADDED:
            item["tools"] = [tool for tool in item["tools"] if tool.get("type") in _CLIENT_TYPES[surface]]
    return {**raw, **to_raw({"input": items})}
