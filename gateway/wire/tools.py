"""Tools that chat has no word for: those in namespaces, those that take plain text, and those that an API's own
provider runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import msgspec

from gateway.errors import CallerError
from gateway.wire.body import Raw, read, to_raw

Json = dict[str, Any]
LONGEST_NAME = 64
"""Of a function, in every API."""
ADDED = "additional_tools"
"""Type of an item that offers tools from its place in a conversation on."""
_ADDED = f'"{ADDED}"'.encode()
_OURS = {"responses": ("function", "namespace", "custom"), "messages": (None, "custom")}
"""Kinds of tools that the client runs, per surface."""


def folded(namespace: str, name: str) -> str:
    """What a tool in a namespace is called where there are none."""
    whole = f"{namespace}__{name}"
    return whole if len(whole) <= LONGEST_NAME else f"{whole[:55]}_{sha256(whole.encode()).hexdigest()[:8]}"


def adds_tools(raw: Raw) -> bool:
    """Whether an item of a Responses request's input offers tools."""
    return _ADDED in memoryview(raw.get("input", b"")).tobytes()


def offered(raw: Raw) -> list[Json]:
    """All tools of a Responses request: its own, and those that items of its input offer."""
    tools = read(raw, "tools", list[Json], [])
    for item in _adding(raw):
        tools += item["tools"]
    return tools


def _adding(raw: Raw) -> list[Json]:
    items: Any = read(raw, "input", str | list[Json], "") if adds_tools(raw) else ()  # type: ignore[arg-type]
    found = [item for item in items if isinstance(item, dict) and item.get("type") == ADDED]
    for item in found:
        tools = item.get("tools")
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise CallerError(f"An item {ADDED!r} has 'tools'.", param="input", code="invalid_type")
    return found


def unfolded(tools: list[Json]) -> Iterator[Json]:
    """Each tool by itself, those of a namespace under their folded names."""
    for tool in tools:
        if tool.get("type") != "namespace":
            yield tool
        else:
            for inner in tool.get("tools") or ():
                yield {**inner, "name": folded(tool["name"], inner["name"])}


def called(item: Json) -> Any:
    """The name, in chat, of the function that a call's item calls."""
    return folded(item["namespace"], item["name"]) if item.get("namespace") else item.get("name")


def meant(name: str, request: Raw) -> Json:
    """Of the tool that a model calls by this name: `type` of the call's item, `name`, and `namespace` where the request
    has it in one.
    """
    told = memoryview(request.get("tools", b"")).tobytes()
    if b'"namespace"' in told or b'"custom"' in told or adds_tools(request):
        for tool in offered(request):
            is_space = tool.get("type") == "namespace"
            for inner in (tool.get("tools") or ()) if is_space else (tool,):
                if (folded(tool["name"], inner["name"]) if is_space else inner.get("name")) == name:
                    kind = "custom_tool_call" if inner.get("type") == "custom" else "function_call"
                    return {"type": kind, "name": inner["name"], **({"namespace": tool["name"]} if is_space else {})}
    return {"type": "function_call", "name": name}


def as_function(tool: Json) -> Json:
    """A tool that takes plain text, for models that know functions only: one with a text in it. A grammar, which
    nobody else can hold a model to, is told it.
    """
    told, form = [tool.get("description")], tool.get("format") or {}
    if form.get("type") == "grammar":
        told.append(f"The input follows this grammar ({form.get('syntax')}):\n{form.get('definition')}")
    text = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"],
            "additionalProperties": False}  # fmt: skip
    return {"name": tool.get("name"), "description": "\n\n".join(filter(None, told)), "parameters": text}


def text_of(arguments: str) -> str:
    """What a model put into such a function; all of it where that is no text in an object."""
    try:
        found = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return arguments
    text = found.get("input") if isinstance(found, dict) else None
    return text if isinstance(text, str) else arguments


def without_hosted(raw: Raw, surface: str) -> Raw:
    """The request without the tools that its API's own provider would run."""
    if surface not in _OURS:
        return {name: value for name, value in raw.items() if name != "web_search_options"}
    tools = read(raw, "tools", list[Json], [])
    kept = [tool for tool in tools if tool.get("type") in _OURS[surface]]
    raw = raw if len(kept) == len(tools) else {**raw, **to_raw({"tools": kept})}
    if surface != "responses" or not _adding(raw):
        return raw
    items = read(raw, "input", list[Json], [])
    for item in items:
        if item.get("type") == ADDED:
            item["tools"] = [tool for tool in item["tools"] if tool.get("type") in _OURS[surface]]
    return {**raw, **to_raw({"input": items})}
