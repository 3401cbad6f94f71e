"""Hosted tools, which a provider runs itself and bills per run: how many runs a request allows, and how many an answer
reports. Web searches are counted and priced separately (`gateway.wire.web_search`), and tools that the client runs,
such as a computer, cost only tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Protocol

CONTAINER = "container"
"""The container that code runs in. One that several runs share counts once per answer."""
_CODE = "code_execution"
RUNS = 10
"""Runs held for each kind of tool that a request doesn't bound."""
_MAX_BOUND = 1 << 20
"""A larger bound is treated as none."""
_RESPONSES = frozenset({"code_interpreter", "file_search", "image_generation", "mcp", "shell"})
"""Types of the Responses API's tools; the type of a run's item is the tool's with `_call` appended."""
_MESSAGES = {"advisor_": "advisor", "code_execution_": _CODE, "mcp_toolset": "mcp", "web_fetch_": "web_fetch"}
"""How the types of Anthropic's tools begin, and the kinds they are counted as."""
_CHAT = {"browser_search": "browser", "code_interpreter": "python"}
"""Types of tools that Groq's API runs in a chat, and how their names in an answer begin."""
_ALIASES = {"bash_code_execution": _CODE, "text_editor_code_execution": _CODE}
"""Anthropic's other names of code runs."""


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
    """The bound that a request states; `otherwise` where it states none, or one that isn't usable."""
    return stated if type(stated) is int and 0 <= stated <= _MAX_BOUND else otherwise


def allowed(surface: str, tools: Iterable[_Tool], max_runs: int) -> dict[str, int]:
    """Most runs by kind of the offered tools. `max_runs`: bound of a tool that states none."""
    runs: Counter[str] = Counter()
    for tool in tools:
        kind = _kind(surface, tool)
        if kind:
            runs[kind] += bounded(tool.max_uses, max_runs)
        if kind in (_CODE, "code_interpreter", "shell"):
            runs[CONTAINER] += surface != "chat"
    return dict(runs)


def allowed_to_template(max_runs: int) -> dict[str, int]:
    """Most runs by kind of a template that is stored at its provider, and may offer any tool."""
    return {**dict.fromkeys(_RESPONSES, max_runs), CONTAINER: 2}


def _kind(surface: str, tool: _Tool) -> str:
    """The kind that a tool's runs are counted as; empty where the client runs it, or it costs only tokens."""
    if not isinstance(tool.type, str):
        return ""
    if surface == "messages":
        return next((kind for begins, kind in _MESSAGES.items() if tool.type.startswith(begins)), "")
    known = _RESPONSES if surface == "responses" else _CHAT
    return tool.type if tool.type in known and (tool.type != "shell" or _is_remote(tool.environment)) else ""


def _is_remote(environment: Any) -> bool:
    """Whether a shell runs at the provider; without an environment it is the client's."""
    return isinstance(environment, dict) and environment.get("type") != "local"


class Runs:
    """The runs that an answer reports, piece by piece. A run that is reported again at the same place counts once."""

    __slots__ = ("_containers", "_kinds")

    def __init__(self) -> None:
        self._kinds: dict[Hashable, str] = {}
        self._containers: dict[Hashable, object] = {}
        """Container ids by the place of the run that names one."""

    def __bool__(self) -> bool:
        return bool(self._kinds or self._containers)

    def item(self, place: int, item: _Item) -> None:
        """Take an item of a response's output, begun or done. A failed image generation doesn't count."""
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
        """Take a block of a message's content."""
        kind = "mcp" if type == "mcp_tool_use" else name or ""
        if type not in ("server_tool_use", "mcp_tool_use") or _ALIASES.get(kind, kind) not in _MESSAGES.values():
            return
        self._kinds[place] = _ALIASES.get(kind, kind)
        if self._kinds[place] == _CODE:
            self.container()

    def container(self) -> None:
        """Count the message's container, of which it has at most one."""
        self._containers[CONTAINER] = CONTAINER

    def executed(self, entries: Iterable[Any]) -> None:
        """Take the `executed_tools` of a chat's message or delta."""
        for number, entry in enumerate(entries):
            names = [str(entry.get(name)) for name in ("type", "name")] if isinstance(entry, dict) else []
            for kind, begins in _CHAT.items():
                if any(name.startswith((kind, begins)) for name in names):
                    self._kinds[entry.get("index", number)] = kind

    def counts(self) -> dict[str, int]:
        containers = len(set(self._containers.values()))
        return {**Counter(self._kinds.values()), **({CONTAINER: containers} if containers else {})}


def billed(ran: Mapping[str, int], may_run: Mapping[str, int]) -> dict[str, int]:
    """The runs that are billed. Anthropic's web search runs code free of charge, so code counts only where the request
    offered it.
    """
    return {kind: count for kind, count in ran.items() if kind not in (_CODE, CONTAINER) or kind in may_run}


def sum_of(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {kind: one.get(kind, 0) + other.get(kind, 0) for kind in {**one, **other}}
