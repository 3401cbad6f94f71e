"""Tools that chat has no word for: those in namespaces, and those that an API's own provider runs."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from gateway.wire.body import Raw, read, to_raw

Json = dict[str, Any]
LONGEST_NAME = 64
"""Of a function, in every API."""
_OURS = {"responses": ("function", "namespace", "custom"), "messages": (None, "custom")}
"""Kinds of tools that the client runs, per surface."""


def folded(namespace: str, name: str) -> str:
    """What a tool in a namespace is called where there are none."""
    whole = f"{namespace}__{name}"
    return whole if len(whole) <= LONGEST_NAME else f"{whole[:55]}_{sha256(whole.encode()).hexdigest()[:8]}"


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
    """`name`, and `namespace` where the request has the tool in one, of the tool that a model calls by that name."""
    if b'"namespace"' in memoryview(request.get("tools", b"")).tobytes():
        for tool in read(request, "tools", list[Json], []):
            for inner in tool.get("tools") or () if tool.get("type") == "namespace" else ():
                if folded(tool["name"], inner["name"]) == name:
                    return {"name": inner["name"], "namespace": tool["name"]}
    return {"name": name}


def without_hosted(raw: Raw, surface: str) -> Raw:
    """The request without the tools that its API's own provider would run."""
    if surface not in _OURS or "tools" not in raw:
        return raw
    tools = read(raw, "tools", list[Json], [])
    kept = [tool for tool in tools if tool.get("type") in _OURS[surface]]
    return raw if len(kept) == len(tools) else {**raw, **to_raw({"tools": kept})}
