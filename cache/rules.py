"""What may be looked up and what may be kept. Each rule returns the reason for which it refuses, or None.

The rules are deliberately simple. A request that asks for variety, for state or for tools, and an answer that is not
whole, are never cached; the reason goes into the decision record.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import msgspec

from cache.key import Body

_CONTROLS = ("none", "exact", "semantic")
_WHOLE = frozenset({"stop", "end_turn", "stop_sequence", "completed"})
_TOOL_ENDINGS = frozenset({"tool_calls", "tool_use", "function_call"})
_TOOL_FIELDS = ("tools", "functions")
_STATE_FIELDS = (
    "previous_response_id", "conversation", "web_search_options", "search_parameters", "mcp_servers", "container",
)  # fmt: skip
_ASKS_MORE = frozenset(_STATE_FIELDS)
_IMPERSONAL_NULL = (b"null", b"[]", b"{}")

_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Rules:
    """What a route caches."""

    ttl_s: float = 3600.0
    max_temperature: float = 1.0
    """Requests above this temperature are not cached. A request without one has the API's own default, 1."""
    semantic_max_temperature: float = 0.0
    """The same for the semantic cache; applied only where the request names a temperature."""
    tools: bool = False
    """Whether requests with tools may be answered from the exact cache."""
    seeded: bool = True
    """Whether requests that name a seed may be answered from the exact cache."""
    max_request_bytes: int = 1 << 20
    max_answer_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Directive:
    """What the caller's `x-headgate-cache` leaves of the route's cache."""

    look_up: bool = True
    store: bool = True
    semantic: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None


@lru_cache(maxsize=256)
def read_directive(header: str | None, route: str) -> Directive | None:
    """Read `x-headgate-cache`; None when it says something unknown.

    `no-store`: answer from the cache but keep nothing; `no-cache`: ask anew and keep the answer;
    `only-if-cached`; `max-age=SECONDS`; `exact`, `semantic` or `none`: the tier for this request. Callers may
    only take away from what `route` (none, exact, semantic) offers.
    """
    tier, look_up, store, only, max_age_s = route, True, True, False, None
    for word in (header or "").lower().replace(" ", "").split(","):
        if word in _CONTROLS:
            tier = min(word, tier, key=_CONTROLS.index)
        elif word == "no-store":
            store = False
        elif word == "no-cache":
            look_up = False
        elif word == "only-if-cached":
            only = True
        elif word.startswith("max-age=") and word[8:].isdigit():
            max_age_s = float(word[8:])
        elif word:
            return None
    on = tier != "none"
    return Directive(look_up and on, store and on, tier == "semantic", only, max_age_s)


def may_cache(body: Body, rules: Rules, *, surface: str) -> str | None:
    """Say why neither tier may answer or keep this request; None when they may."""
    if surface == "embeddings":
        return None if _size(body) <= rules.max_request_bytes else "request_bytes"
    if not _ASKS_MORE.isdisjoint(body):
        for name in _STATE_FIELDS:
            if _given(body, name):
                return name
    if _given(body, "store") and _value(body, "store") is not False:
        return "store"
    if not rules.tools and (_given(body, "tools") or _given(body, "functions")):
        return "tools"
    if not rules.seeded and _given(body, "seed"):
        return "seed"
    if _given(body, "n") and _value(body, "n") != 1:
        return "n"
    if _temperature(body) > rules.max_temperature:
        return "temperature"
    return None if _size(body) <= rules.max_request_bytes else "request_bytes"


def may_cache_semantically(body: Body, rules: Rules, *, surface: str) -> str | None:
    """Say why an answer to other words may not do, beyond what `may_cache` refuses already."""
    if surface == "embeddings":
        return "embeddings"
    for name in (*_TOOL_FIELDS, "logprobs", "top_logprobs", "seed", "audio", "suffix"):
        if _given(body, name) and _value(body, name) is not False:
            return name
    if _given(body, "temperature") and _temperature(body) > rules.semantic_max_temperature:
        return "temperature"
    return None


def may_store(rules: Rules, *, status: int, complete: bool, finish_reason: str | None, answer_bytes: int) -> str | None:
    """Say why an answer may not be kept; None when it is whole, successful and of a bearable size.

    `complete`: a stream was read to its own end marker, a body to its declared length.
    """
    if not 200 <= status < 300:
        return "status"
    if not complete:
        return "incomplete"
    if finish_reason in _TOOL_ENDINGS and rules.tools:
        finish_reason = "stop"
    if finish_reason is not None and finish_reason not in _WHOLE:
        return "finish_reason"
    if not 0 < answer_bytes <= rules.max_answer_bytes:
        return "answer_bytes"
    return None if rules.ttl_s > 0 else "ttl"


def _given(body: Body, name: str) -> bool:
    """Whether the request says anything by `name`: null and empty lists say nothing."""
    return name in body and bytes(body[name]).strip() not in _IMPERSONAL_NULL


def _value(body: Body, name: str) -> object:
    try:
        return _decode(body[name])
    except msgspec.MsgspecError:
        return None


def _temperature(body: Body) -> float:
    """The request's temperature; what is no number is taken for too hot."""
    if not _given(body, "temperature"):
        return 1.0
    value = _value(body, "temperature")
    return float(value) if isinstance(value, (int, float)) else float("inf")


def _size(body: Body) -> int:
    return sum(map(len, map(memoryview, body.values())))  # type: ignore[arg-type]
