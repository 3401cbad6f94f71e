"""Paused turns of Anthropic's API: the request that continues one, and its parts joined into one message.

Anthropic ends an answer with `pause_turn` where its hosted tools have run for long; a request with the answer so far
gets the rest. Clients of Anthropic's API do that themselves; for other clients the gateway continues the turn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from gateway.wire.body import encode_json
from gateway.wire.web_search import NAME

Json = dict[str, Any]
PAUSED = "pause_turn"
MOST_PAUSES = 8
"""Most pauses of one turn. After as many the answer ends as if it had reached its token limit."""


class Continuation(NamedTuple):
    """A request that continues a paused turn, with the bounds of its cost."""

    body: bytes
    max_tokens: int
    searches: int


def paused(body: bytes) -> Json | None:
    """The message, if its turn is paused; None else."""
    if PAUSED.encode() not in body:
        return None
    message: Json = msgspec.json.decode(body)
    return message if message.get("stop_reason") == PAUSED else None


def continue_turn(request_body: bytes, answer: Json) -> Continuation:
    """The request that continues the paused turn of `answer`. Searches that have been run count against the request's
    bound, and a forced search is no longer forced.
    """
    fields: Json = msgspec.json.decode(request_body)
    turns, content = fields["messages"], answer["content"]
    if turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": []})
    turns[-1]["content"] += [block for block in content if block["type"] != "text" or block["text"].strip()]
    searches_run = sum(block["type"] == "web_search_tool_result" for block in content)
    searches = 0
    for tool in fields.get("tools") or ():
        if "max_uses" in tool:
            left = tool["max_uses"] - searches_run
            searches = tool["max_uses"] = max(left, 1)  # the API has no 0
            if left < 1:
                fields["tool_choice"] = {"type": "none"}
    choice = fields.get("tool_choice") or {}
    if choice.get("type") == "tool" and choice.get("name") == NAME:
        serial = {"disable_parallel_tool_use": True} if choice.get("disable_parallel_tool_use") else {}
        fields["tool_choice"] = {"type": "auto", **serial}
    return Continuation(encode_json(fields), fields["max_tokens"], searches)


def joined(first: Json, then: Json) -> Json:
    """Two parts of a turn as one message."""
    usage = _sum(first.get("usage") or {}, then.get("usage") or {})
    return {**then, "id": first.get("id"), "content": first["content"] + then["content"], "usage": usage}


def _sum(first: Json, then: Json) -> Json:
    both = first | then
    for name in first.keys() & then.keys():
        one, other = first[name], then[name]
        if isinstance(one, dict) and isinstance(other, dict):
            both[name] = _sum(one, other)
        elif type(one) is int and type(other) is int:
            both[name] = one + other
        elif other is None:
            both[name] = one
    return both
