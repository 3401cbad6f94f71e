"""A search of the web that a client of OpenAI's API asks for, as the tool that Anthropic runs itself, and what came of
it as the Responses API tells that. The model may run as many as the request's hold covers, and no more.
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
    """Of a Responses request's tools; what has a name is somebody else's."""
    return str(tool.get("type")).startswith("web_search") and "name" not in tool


def chat_search(raw: Raw) -> Json | None:
    """None: the chat asks for none."""
    if not is_set(raw, "web_search_options"):
        return None
    return _server_tool(read(raw, "web_search_options", Json, {}), CHAT_SEARCHES, "web_search_options")


def response_search(raw: Raw, tools: list[Json]) -> Json | None:
    """`tools`: those that the request's choice leaves. None: no search is among them, or none is allowed."""
    found, uses = [tool for tool in tools if is_search(tool)], response_searches(raw)
    return _server_tool(found[-1], uses, "tools") if found and uses else None


def _server_tool(asked: Json, uses: int, param: str) -> Json:
    if asked.get("external_web_access") is False:
        raise refuse(param, "this model searches the web as it is now, or not at all.")
    place, filters = (_part(asked, name, param) for name in ("user_location", "filters"))
    place = _part(place, "approximate", param) or place  # where chat has it
    if unknown := [name for name, value in filters.items() if value and name not in _FILTERS]:
        raise refuse(param, f"this model's search has no filter {unknown[0]!r}.")
    located = {name: place[name] for name in _PLACE if place.get(name)}
    return {
        **_TOOL,
        "max_uses": uses,
        **({"user_location": {"type": "approximate", **located}} if located else {}),
        **{name: value for name, value in filters.items() if value},
    }


def _part(asked: Json, name: str, param: str) -> Json:
    part = asked.get(name) or {}
    if not isinstance(part, dict):
        raise CallerError(f"'{name}' of '{param}' must be an object.", param=param, code="invalid_type")
    return part


def query_of(told: str) -> str:
    """What was looked for, of the tool's input."""
    try:
        return _query(msgspec.json.decode(told or "{}"))
    except BAD_JSON:
        return ""


def _query(given: Any) -> str:
    return str(given.get("query", "")) if isinstance(given, dict) else ""


def searches_in(message: Json) -> list[tuple[str, bool]]:
    """What Anthropic's whole answer looked for, and whether that worked."""
    content = message.get("content")
    blocks = content if isinstance(content, list) else []
    asked = {block.get("id"): block.get("input") for block in blocks if block.get("type") == "server_tool_use"}
    return [
        (_query(asked.get(block.get("tool_use_id"))), isinstance(block.get("content"), list))
        for block in blocks if block.get("type") == "web_search_tool_result"
    ]  # fmt: skip


def search_item(query: str, found: bool) -> Json:
    action = {"type": "search", "query": query, "queries": [query]}
    return {"id": "ws_", "type": "web_search_call", "status": "completed" if found else "failed", "action": action}
