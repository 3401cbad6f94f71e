"""Tools that a provider runs itself and bills by the piece: how often a request lets it, and how often an answer tells
that it did. Searches of the web have counts and prices of their own (`gateway.wire.web_search`), and what the client
runs, such as a computer, costs nothing but tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Protocol

CONTAINER = "container"
"""What code runs in. One that several runs use counts once an answer."""
_CODE = "code_execution"
RUNS = 10
"""Held of each kind for a request that bounds it nowhere."""
_MOST = 1 << 20
"""A larger bound bounds nothing."""
_RESPONSES = frozenset({"code_interpreter", "file_search", "image_generation", "mcp", "shell"})
"""Types of the Responses API's tools; their runs are items of these types with `_call` behind."""
_MESSAGES = {"advisor_": "advisor", "code_execution_": _CODE, "mcp_toolset": "mcp", "web_fetch_": "web_fetch"}
"""How the types of Anthropic's tools begin."""
_CHAT = {"browser_search": "browser", "code_interpreter": "python"}
"""Types of tools that Groq's API runs in a chat, and what its answer calls them otherwise."""
_SAME = {"bash_code_execution": _CODE, "text_editor_code_execution": _CODE}
"""Other names of Claude's runs of code."""


class _Tool(Protocol):
    type: Any
    max_uses: Any
    environment: Any


class _Item(Protocol):
    type: str
    status: Any
    container_id: Any
    environment: Any


def bounded(stated: object, otherwise: int = RUNS) -> int:
    """How often a tool may be run, where a request may have stated that."""
    return stated if type(stated) is int and 0 <= stated <= _MOST else otherwise


def allowed(surface: str, tools: Iterable[_Tool], most: int) -> dict[str, int]:
    """Most runs by kind, of the tools that are offered; `most`: of each that states no bound of its own."""
    runs: Counter[str] = Counter()
    for tool in tools:
        kind = _kind(surface, tool)
        if kind:
            runs[kind] += bounded(tool.max_uses, most)
        if kind in (_CODE, "code_interpreter", "shell"):
            runs[CONTAINER] += surface != "chat"
    return dict(runs)


def allowed_to_template(most: int) -> dict[str, int]:
    """The same of a template that lies at its provider, which may offer any tool."""
    return {**dict.fromkeys(_RESPONSES, most), CONTAINER: 2}


def _kind(surface: str, tool: _Tool) -> str:
    """Empty: the client runs it, or it costs nothing but tokens."""
    if not isinstance(tool.type, str):
        return ""
    if surface == "messages":
        return next((kind for begins, kind in _MESSAGES.items() if tool.type.startswith(begins)), "")
    known = _RESPONSES if surface == "responses" else _CHAT
    return tool.type if tool.type in known and (tool.type != "shell" or _is_remote(tool.environment)) else ""


def _is_remote(environment: Any) -> bool:
    """A shell that says nothing of it is the client's."""
    return isinstance(environment, dict) and environment.get("type") != "local"


class Runs:
    """What an answer tells of such tools, piece by piece. Told again, at the same place, a run counts once."""

    __slots__ = ("_containers", "_kinds")

    def __init__(self) -> None:
        self._kinds: dict[Hashable, str] = {}
        self._containers: dict[Hashable, object] = {}
        """Of the runs that tell theirs."""

    def __bool__(self) -> bool:
        return bool(self._kinds or self._containers)

    def item(self, place: int, item: _Item) -> None:
        """Of a response's output, begun or done. A picture that failed is none."""
        kind = item.type.removesuffix("_call")
        if kind not in _RESPONSES or kind == item.type or (kind == "shell" and not _is_remote(item.environment)):
            return
        self._kinds[place] = kind
        if kind == "image_generation" and item.status == "failed":
            del self._kinds[place]
        container = item.environment.get("container_id") if kind == "shell" else item.container_id
        if container:
            self._containers[place] = str(container)

    def block(self, place: Hashable, type: str, name: str | None) -> None:
        """Of a message's content."""
        kind = "mcp" if type == "mcp_tool_use" else name or ""
        if type not in ("server_tool_use", "mcp_tool_use") or _SAME.get(kind, kind) not in _MESSAGES.values():
            return
        self._kinds[place] = _SAME.get(kind, kind)
        if self._kinds[place] == _CODE:
            self.container()

    def container(self) -> None:
        """A message has one at most."""
        self._containers[CONTAINER] = CONTAINER

    def executed(self, told: Iterable[Any]) -> None:
        """What a chat's message or one of its pieces tells."""
        for number, one in enumerate(told):
            names = [str(one.get(name)) for name in ("type", "name")] if isinstance(one, dict) else []
            for kind, begins in _CHAT.items():
                if any(name.startswith((kind, begins)) for name in names):
                    self._kinds[one.get("index", number)] = kind

    def counts(self) -> dict[str, int]:
        containers = len(set(self._containers.values()))
        return {**Counter(self._kinds.values()), **({CONTAINER: containers} if containers else {})}


def billed(ran: Mapping[str, int], may_run: Mapping[str, int]) -> dict[str, int]:
    """Of what ran at Claude: its searches run code of their own, free of charge, where none was offered a request."""
    return {kind: count for kind, count in ran.items() if kind not in (_CODE, CONTAINER) or kind in may_run}


def sum_of(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in {**one, **other}}
