"""Which requests and answers may be cached, and the reason where they may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cache.rules import Directive, Rules, may_cache, may_cache_semantically, may_store, read_directive

RULES = Rules()


def body(**fields: Any) -> dict[str, bytes]:
    """A request's fields as bytes."""
    return {name: json.dumps(value).encode() for name, value in fields.items()}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, None),
        ({"temperature": 0.7}, None),
        ({"temperature": 1.2}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"tools": []}, None),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"n": 1}, None),
        ({"n": 2}, "n"),
        ({"n": None}, None),
        ({"seed": 7}, None),
        ({"stream": True}, None),
        ({"store": True}, "store"),
        ({"store": False}, None),
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
        ({"search_parameters": {"mode": "on"}}, "search_parameters"),
        ({"mcp_servers": [{"url": "u"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"messages": "x" * (1 << 20)}, "request_bytes"),
    ],
)
def test_a_request_is_refused_for_a_reason(fields: dict[str, Any], why: str | None) -> None:
    """Requests with state, tools, several choices or too much text are not cached, each with its reason."""
    assert may_cache(body(**fields), RULES, surface="chat") == why


def test_a_strict_route_counts_a_missing_temperature_as_one() -> None:
    """A request without a temperature has the API's default of 1, not 0."""
    strict = Rules(max_temperature=0.0, seeded=False, tools=True)
    assert may_cache(body(), strict, surface="chat") == "temperature"
    assert may_cache(body(temperature=0), strict, surface="chat") is None
    assert may_cache(body(temperature=0, seed=1), strict, surface="chat") == "seed"
    assert may_cache(body(temperature=0, tools=[1]), strict, surface="chat") is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, None),
        ({"temperature": 0}, None),
        ({"temperature": 0.2}, "temperature"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": False}, None),
        ({"seed": 1}, "seed"),
        ({"tools": [1]}, "tools"),
    ],
)
def test_other_words_are_answered_only_for_plain_requests(fields: dict[str, Any], why: str | None) -> None:
    """The semantic cache refuses more requests than the exact one."""
    assert may_cache_semantically(body(**fields), Rules(tools=True), surface="chat") == why


def test_embeddings_are_never_answered_by_similarity() -> None:
    """The vector of a similar text would be wrong."""
    assert may_cache_semantically(body(), RULES, surface="embeddings") == "embeddings"
    assert may_cache(body(input="q", tools=[1]), RULES, surface="embeddings") is None
    assert may_cache(body(input="q" * (2 << 20)), RULES, surface="embeddings") == "request_bytes"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({}, None),
        ({"finish_reason": "end_turn"}, None),
        ({"finish_reason": None}, None),
        ({"status": 500}, "status"),
        ({"status": 302}, "status"),
        ({"complete": False}, "incomplete"),
        ({"finish_reason": "length"}, "finish_reason"),
        ({"finish_reason": "content_filter"}, "finish_reason"),
        ({"finish_reason": "refusal"}, "finish_reason"),
        ({"finish_reason": "tool_calls"}, "finish_reason"),
        ({"answer_bytes": 0}, "answer_bytes"),
        ({"answer_bytes": 2 << 20}, "answer_bytes"),
    ],
)
def test_only_complete_successful_answers_are_kept(answer: dict[str, Any], why: str | None) -> None:
    """Errors, broken streams, refusals and truncated answers are never cached."""
    given: dict[str, Any] = {"status": 200, "complete": True, "finish_reason": "stop", "answer_bytes": 10}
    assert may_store(RULES, **{**given, **answer}) == why


def test_tool_calls_are_kept_where_the_route_says_so() -> None:
    """An answer with tool calls is cached where the route caches tools; with a time to live of zero nothing is."""
    whole: dict[str, Any] = {"status": 200, "complete": True, "finish_reason": "tool_use", "answer_bytes": 10}
    assert may_store(Rules(tools=True), **whole) is None
    assert may_store(Rules(tools=True, ttl_s=0), **whole) == "ttl"
    assert may_store(Rules(tools=True), **{**whole, "finish_reason": "length"}) == "finish_reason"


@pytest.mark.parametrize(
    ("header", "route", "directive"),
    [
        (None, "none", Directive(False, False)),
        (None, "exact", Directive()),
        (None, "semantic", Directive(semantic=True)),
        ("exact", "semantic", Directive()),
        ("semantic", "exact", Directive()),
        ("semantic", "none", Directive(False, False)),
        ("None", "semantic", Directive(False, False)),
        ("no-store", "exact", Directive(store=False)),
        ("no-cache", "exact", Directive(look_up=False)),
        ("only-if-cached, max-age=60", "exact", Directive(only_if_cached=True, max_age_s=60.0)),
        ("nonsense", "exact", None),
        ("max-age=-1", "exact", None),
    ],
)
def test_a_directive_only_narrows_what_is_cached(header: str | None, route: str, directive: Directive | None) -> None:
    """A directive restricts what the route offers; an unknown one is an error."""
    assert read_directive(header, route) == directive
