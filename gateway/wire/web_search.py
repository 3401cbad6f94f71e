"""Translates a web search that a client of OpenAI's API requests into Anthropic's hosted tool, and its result into an
item of the Responses API. The tool is limited to as many searches as the request's hold covers.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import CallerError
from gateway.wire.body import Raw, is_set, read
from gateway.wire.chunk import BAD_JSON
from gateway.wire.describe import CHAT_SEARCHES, response_searches
from gateway.wire.to_chat import refuse

Json = dict[str, Any]
NAME = "web_search"
_TOOL: Json = {"type": "web_search_20250305", "name": NAME}
_PLACE = ("city", "region", "country", "timezone")
_FILTERS = frozenset({"allowed_domains", "blocked_domains"})


def is_search(tool: Json) -> bool:
    """Whether a tool of a Responses request is the hosted web search; a tool with a name is the client's."""
    return str(tool.get("type")).startswith("web_search") and "name" not in tool


def chat_search(raw: Raw) -> Json | None:
    """Anthropic's tool for the web search that a chat requests; None where it requests none. Raises CallerError."""
    if not is_set(raw, "web_search_options"):
        return None
    return _server_tool(read(raw, "web_search_options", Json, {}), CHAT_SEARCHES, "web_search_options")


def response_search(raw: Raw, tools: list[Json]) -> Json | None:
    """Anthropic's tool for the web search among `tools`, which are those that the request's `tool_choice` allows. None
    where it isn't among them, or no search is allowed. Raises CallerError.
    """
    searches, uses = [tool for tool in tools if is_search(tool)], response_searches(raw)
    return _server_tool(searches[-1], uses, "tools") if searches and uses else None


def _server_tool(options: Json, uses: int, param: str) -> Json:
    if options.get("external_web_access") is False:
        raise refuse(param, "this model searches the web as it is now, or not at all.")
    place, filters = (_part(options, name, param) for name in ("user_location", "filters"))
    place = _part(place, "approximate", param) or place  # chat has another level
    if unknown := [name for name, value in filters.items() if value and name not in _FILTERS]:
        raise refuse(param, f"this model's search has no filter {unknown[0]!r}.")
    located = {name: place[name] for name in _PLACE if place.get(name)}
    return {
        **_TOOL,
        "max_uses": uses,
        **({"user_location": {"type": "approximate", **located}} if located else {}),
        **{name: value for name, value in filters.items() if value},
    }


def _part(options: Json, name: str, param: str) -> Json:
    part = options.get(name) or {}
    if not isinstance(part, dict):
        raise CallerError(f"'{name}' of '{param}' must be an object.", param=param, code="invalid_type")
    return part


def query_of(tool_input: str) -> str:
    """The query in the JSON of a search tool's input; empty where it can't be read."""
    try:
        return _query(msgspec.json.decode(tool_input or "{}"))
    except BAD_JSON:
        return ""


def _query(tool_input: Any) -> str:
    return str(tool_input.get("query", "")) if isinstance(tool_input, dict) else ""


def searches_in(message: Json) -> list[tuple[str, bool]]:
    """The query of each web search in a message of Anthropic's, and whether it succeeded."""
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    inputs = {block.get("id"): block.get("input") for block in blocks if block.get("type") == "server_tool_use"}
    return [
        (_query(inputs.get(block.get("tool_use_id"))), isinstance(block.get("content"), list))
        for block in blocks if block.get("type") == "web_search_tool_result"
    ]  # fmt: skip


def search_item(query: str, succeeded: bool) -> Json:
    action = {"type": "search", "query": query, "queries": [query]}
    return {"id": "ws_", "type": "web_search_call", "status": "completed" if succeeded else "failed", "action": action}
