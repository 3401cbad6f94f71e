"""What providers bill beside plain tokens, end to end: one-hour cache writes and web searches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway.journal.record import DecisionRecord
from gateway.wire.describe import WEB_SEARCHES, describe
from gateway.wire.request import decode
from tests.live import Live, live

PRICES = {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0, "cache_write_usd_per_mtok": 3.75,
          "cache_write_1h_usd_per_mtok": 6.0, "web_search_usd": 0.01}  # fmt: skip
SEARCH = 10_000_000
"""Nano-dollars of one."""
USED = {"text": "it rains", "input_tokens": 1000, "output_tokens": 7, "web_searches": 2}
WROTE = {**USED, "cache_write_tokens": 600, "cache_write_1h_tokens": 500}
LEAVES = {**USED, "text": "it rains " * 50, "gap_s": 0.05}
MESSAGES: dict[str, Any] = {
    "model": "claude", "max_tokens": 100, "messages": [{"role": "user", "content": "weather?" * 200}],
}  # fmt: skip
CLAUDES = {"type": "web_search_20250305", "name": "web_search"}
RESPONSES: dict[str, Any] = {"model": "gpt", "max_output_tokens": 100, "input": "weather?" * 200, "store": False}
GPTS = {"type": "web_search"}


@asynccontextmanager
async def gateway_of(folder: Path, claude: Mapping[str, Any], gpt: Mapping[str, Any] = USED) -> AsyncIterator[Live]:
    models = [{"name": "claude", "provider": "claude", **PRICES}, {"name": "gpt", "provider": "own", **PRICES}]
    own = {"name": "own", "kind": "openai", "base_url": "UPSTREAM", "api_key": "${UP_KEY}", "responses": True}
    scripts = {"claude": [claude], "gpt": [gpt]}
    async with live(folder, scripts=scripts, models=models, providers=[own]) as gateway:
        yield gateway
        await gateway.rest()
        assert gateway.services.ledger.overrun_nanousd == 0


async def ask(gateway: Live, path: str, body: dict[str, Any], *, events: int | None = None) -> DecisionRecord:
    """`events`: number of events after which the client leaves."""
    async with httpx.AsyncClient() as client, client.stream("POST", gateway.url + path, json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        seen = 0
        async for line in answer.aiter_lines():
            seen += line.startswith("data:")
            if events is not None and seen >= events:
                break
    await gateway.rest()
    return await gateway.decision(answer.headers["x-headgate-decision-id"])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_message_with_searches_and_writes_for_an_hour_is_billed_exactly(tmp_path: Path, stream: bool) -> None:
    """It costs the exact nano-dollars, within the hold, as the journal and the metrics show."""
    async with gateway_of(tmp_path, WROTE) as gateway:
        body = {**MESSAGES, "tools": [{**CLAUDES, "max_uses": 2}], "stream": stream}
        record = await ask(gateway, "/v1/messages", body)
        told = gateway.services.metrics.web_searches.values[("claude", "claude")][0]
    (attempt,) = record.attempts
    assert attempt.usage == {
        "input": 400, "cache_write": 100, "cache_write_1h": 500, "output": 7, "web_search": 2,
    }  # fmt: skip
    cost = 400 * 3000 + 100 * 3750 + 500 * 6000 + 7 * 15000 + 2 * SEARCH
    assert record.cost_nanousd == attempt.cost_nanousd == cost <= record.held_nanousd
    assert not attempt.estimated and told == 2


@pytest.mark.parametrize("route", ["claude", "both"])
async def test_a_streams_expected_cost_includes_searches(tmp_path: Path, route: str) -> None:
    """For a routed or pinned model it includes one search where the request offers some, and those that a model always
    runs.
    """
    models = [{"name": "claude", "provider": "claude", **PRICES},
              {"name": "finder", "provider": "claude", "upstream_name": "claude", "web_searches": 3, **PRICES}]
    routes = [{"name": "both", "models": ["claude"], "router": "cheapest"},
              {"name": "finders", "models": ["finder"], "router": "cheapest"}]  # fmt: skip
    async with live(tmp_path, scripts={"claude": [USED]}, models=models, routes=routes) as gateway:
        finder = {"claude": "finder", "both": "finders"}[route]
        told = []
        for model, tools in ((route, []), (route, [CLAUDES]), (finder, []), (finder, [CLAUDES])):
            body = {**MESSAGES, "model": model, "stream": True, "tools": tools}
            async with httpx.AsyncClient() as client:
                answer = await client.post(gateway.url + "/v1/messages", json=body)
            assert answer.status_code == 200, answer.text
            told.append(float(answer.headers["x-headgate-cost-usd"]))
        assert [round((one - told[0]) / 0.01, 1) for one in told[1:]] == [1.0, 3.0, 3.0], told


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_with_searches_is_billed_exactly(tmp_path: Path, stream: bool) -> None:
    """An upstream that serves the Responses API reports searches as items of its output."""
    async with gateway_of(tmp_path, USED) as gateway:
        body = {**RESPONSES, "tools": [GPTS], "max_tool_calls": 2, "stream": stream}
        record = await ask(gateway, "/v1/responses", body)
    (attempt,) = record.attempts
    assert attempt.usage == {"input": 1000, "output": 7, "web_search": 2}
    assert record.cost_nanousd == 1000 * 3000 + 7 * 15000 + 2 * SEARCH <= record.held_nanousd


@pytest.mark.parametrize(("path", "body"), [("/v1/messages", {**MESSAGES, "tools": [CLAUDES]}),
                                            ("/v1/responses", {**RESPONSES, "tools": [GPTS]})])  # fmt: skip
async def test_searches_are_paid_where_the_client_leaves(tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    """They were run, though the end of the stream, which reports their number, never came."""
    async with gateway_of(tmp_path, LEAVES, LEAVES) as gateway:
        record = await ask(gateway, path, {**body, "stream": True}, events=20)
    (attempt,) = record.attempts
    assert attempt.failure == "cancelled" and attempt.usage["web_search"] == 2
    assert attempt.cost_nanousd >= 2 * SEARCH


async def test_more_searches_than_were_held_are_charged_all_the_same(tmp_path: Path) -> None:
    """The budget is overrun by the rest, and the overrun is counted."""
    async with gateway_of(tmp_path, {**USED, "web_searches": 30}) as gateway:
        record = await ask(gateway, "/v1/messages", {**MESSAGES, "tools": [{**CLAUDES, "max_uses": 1}]})
        ledger = gateway.services.ledger
        assert record.cost_nanousd == 1000 * 3000 + 7 * 15000 + 30 * SEARCH
        assert ledger.overrun_nanousd == record.cost_nanousd - record.held_nanousd > 0
        ledger.overrun_nanousd = 0  # type: ignore[misc]


CHAT: dict[str, Any] = {"model": "m", "max_tokens": 100, "messages": [{"role": "user", "content": "weather?" * 200}]}
OPTIONS: dict[str, Any] = {"web_search_options": {}}
LIVE: dict[str, Any] = {"search_parameters": {"mode": "on", "max_search_results": 7}}
SONAR = {"search_context_size": "low", "cost": {"input_tokens_cost": 0.001, "total_cost": 0.5}}
TOKENS = 1000 * 3000 + 7 * 15000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("more", "usage", "model", "searches", "cost"),
    [
        pytest.param({}, {}, {}, 0, TOKENS, id="plain"),
        pytest.param(OPTIONS, {}, {}, 1, TOKENS + SEARCH, id="openai"),
        pytest.param({"web_search_options": None}, {}, {}, 0, TOKENS, id="openai, null"),
        pytest.param(LIVE, {"num_sources_used": 5}, {}, 5, TOKENS + 5 * SEARCH, id="xai"),
        pytest.param(LIVE, {"num_sources_used": 0}, {}, 0, TOKENS, id="xai, which found nothing to look for"),
        pytest.param({"search_parameters": {"mode": "auto"}}, {"num_sources_used": 20}, {}, 20, TOKENS + 20 * SEARCH,
                     id="xai, unbound"),
        pytest.param({}, SONAR, {"web_searches": 1}, 1, TOKENS + SEARCH, id="perplexity, by the prices"),
        pytest.param({}, {**SONAR, "num_search_queries": 12}, {"web_searches": 20}, 20, TOKENS + 20 * SEARCH,
                     id="perplexity, at least as many as are configured"),
        pytest.param({}, {"server_tool_use": {"web_search_requests": 2}, "cost": 0.001}, {"web_searches": 2}, 2,
                     TOKENS + 2 * SEARCH, id="openrouter"),
        pytest.param({}, {}, {"web_searches": 3}, 3, TOKENS + 3 * SEARCH, id="a model that always searches"),
        pytest.param({}, {"cost": 0.001}, {"told_cost": True}, 0, TOKENS, id="told, and less than the prices"),
        pytest.param({}, {"cost": 1e300}, {"told_cost": True}, 0, TOKENS, id="told, and nonsense"),
    ],
)  # fmt: skip
async def test_a_chats_fees_are_held_and_billed(
    tmp_path: Path, stream: bool, more: dict[str, Any], usage: dict[str, Any], model: dict[str, Any], searches: int,
    cost: int,
) -> None:  # fmt: skip
    """Under every provider's name for them they are billed, within the hold."""
    script = {"text": "it rains", "input_tokens": 1000, "output_tokens": 7, "more_usage": usage}
    models = [{"name": "m", "provider": "up", **PRICES, **model}]
    async with live(tmp_path, scripts={"m": [script]}, models=models) as gateway:
        record = await ask(gateway, "/v1/chat/completions", {**CHAT, **more, "stream": stream})
        assert gateway.services.ledger.overrun_nanousd == 0
    assert record.attempts[0].usage.get("web_search", 0) == searches
    assert record.cost_nanousd == cost <= record.held_nanousd and not record.attempts[0].estimated


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("said", "usd"), [(SONAR, 0.5), ({"cost": 0.25}, 0.25)])
async def test_a_reported_cost_counts_where_that_is_configured(
    tmp_path: Path, stream: bool, said: dict[str, Any], usd: float
) -> None:
    """It may be more than was held, which is an overrun."""
    script = {"text": "it rains", "input_tokens": 1000, "output_tokens": 7, "more_usage": said}
    models = [{"name": "m", "provider": "up", **PRICES, "told_cost": True}]
    async with live(tmp_path, scripts={"m": [script]}, models=models) as gateway:
        record = await ask(gateway, "/v1/chat/completions", {**CHAT, "stream": stream})
        assert gateway.services.ledger.overrun_nanousd == record.cost_nanousd - record.held_nanousd
    assert record.cost_nanousd == round(usd * 1e9)


async def test_a_search_is_paid_where_the_client_leaves_a_chat(tmp_path: Path) -> None:
    """It ran before the first word, and the end of the stream, which reports usage, never came."""
    script = {"text": "it rains " * 50, "gap_s": 0.05}
    models = [{"name": "m", "provider": "up", **PRICES}]
    async with live(tmp_path, scripts={"m": [script]}, models=models) as gateway:
        body = {**CHAT, **OPTIONS, "stream": True, "max_tokens": 1000}
        (attempt,) = (await ask(gateway, "/v1/chat/completions", body, events=5)).attempts
    assert attempt.failure == "cancelled" and attempt.usage["web_search"] == 1 and attempt.cost_nanousd >= SEARCH


async def test_claudes_search_is_paid_where_the_client_leaves_a_chat(tmp_path: Path) -> None:
    """It is billed as the stream reported it, not as a search that certainly ran."""
    for searches in (0, 1):
        async with gateway_of(tmp_path / str(searches), {**LEAVES, "web_searches": searches}) as gateway:
            body = {**CHAT, **OPTIONS, "model": "claude", "stream": True, "max_tokens": 1000}
            (attempt,) = (await ask(gateway, "/v1/chat/completions", body, events=5)).attempts
        assert attempt.failure == "cancelled" and attempt.usage.get("web_search", 0) == searches


@pytest.mark.parametrize("asked", [{}, {"stream_options": {"include_usage": True}}])
@pytest.mark.parametrize("surface", ["chat", "messages"])
async def test_usage_in_groqs_own_field(tmp_path: Path, surface: str, asked: dict[str, Any]) -> None:
    """Groq reports usage beside a stream's finish reason, requested or not, so nothing is estimated."""
    script = {"text": "it rains", "input_tokens": 1000, "output_tokens": 7, "x_groq": True}
    models = [{"name": "m", "provider": "up", "leave_out": ["stream_options"], **PRICES}]
    path, more = ("/v1/messages", {}) if surface == "messages" else ("/v1/chat/completions", asked)
    async with live(tmp_path, scripts={"m": [script]}, models=models) as gateway:
        record = await ask(gateway, path, {**CHAT, **more, "stream": True})
    assert record.cost_nanousd == TOKENS and not record.attempts[0].estimated


@pytest.mark.parametrize("router", ["cheapest", "default"])
async def test_a_model_that_always_searches_is_expected_to_cost_that(tmp_path: Path, router: str) -> None:
    """The other, otherwise equal model answers; under a cap below the price of a search this one can't."""
    plain = {"name": "m", "provider": "up", **PRICES}
    models = [{**plain, "name": "sonar", "web_searches": 1}, plain]
    routes = [{"name": "auto", "models": ["sonar", "m"], "router": router}]
    async with live(tmp_path, models=models, routes=routes) as gateway, httpx.AsyncClient() as client:
        url, capped = gateway.url + "/v1/chat/completions", {"headgate": {"max_cost_usd": 0.009}}
        answer = await client.post(url, json={**CHAT, "model": "auto"})
        refused = await client.post(url, json={**CHAT, "model": "sonar", **capped})
    assert answer.headers["x-headgate-model"] == "m"
    assert refused.status_code == 400 and "max_cost_usd" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("surface", "more", "searches"),
    [
        ("messages", {}, 0),
        ("messages", {"tools": [{"name": "web_search", "input_schema": {}}]}, 0),
        ("messages", {"tools": [{**CLAUDES, "max_uses": 3}]}, 3),
        ("messages", {"tools": [{**CLAUDES, "max_uses": 3}, {**CLAUDES, "type": "web_search_20260318"}]},
         3 + WEB_SEARCHES),
        ("messages", {"tools": [{**CLAUDES, "max_uses": None}]}, WEB_SEARCHES),
        ("messages", {"tools": [{**CLAUDES, "max_uses": "many"}]}, WEB_SEARCHES),
        ("messages", {"tools": [{**CLAUDES, "max_uses": 10**30}]}, WEB_SEARCHES),
        ("responses", {"max_tool_calls": 4}, 0),
        ("responses", {"tools": [{"type": "function", "name": "web_search"}], "max_tool_calls": 4}, 0),
        ("responses", {"tools": [GPTS, {"type": "web_search_preview_2025_03_11"}], "max_tool_calls": 4}, 4),
        ("responses", {"tools": [{"type": "web_search_preview"}]}, WEB_SEARCHES),
        ("responses", {"input": [{"type": "additional_tools", "role": "developer", "tools": [GPTS]}]}, WEB_SEARCHES),
        ("responses", {"tools": [GPTS], "max_tool_calls": None}, WEB_SEARCHES),
        ("chat", {"tools": [{"type": "web_search"}]}, 0),
        ("chat", {"web_search_options": {"search_context_size": "low"}}, 1),
        ("chat", {"search_parameters": {"mode": "off"}}, 0),
        ("chat", {"search_parameters": None}, 0),
        ("chat", {"search_parameters": {"max_search_results": 3}}, 3),
        ("chat", {"search_parameters": {}}, 20),
    ],
)  # fmt: skip
def test_as_many_searches_are_held_as_the_request_allows(surface: str, more: dict[str, Any], searches: int) -> None:
    """Without a limit in the request a constant number is held."""
    field = "input" if surface == "responses" else "messages"
    body = {"model": "m", field: [{"role": "user", "content": "hi"}], **more}
    assert describe(decode(msgspec.json.encode(body)), surface).web_searches == searches


async def test_a_hold_covers_the_dearest_deployment_in_every_bucket(tmp_path: Path) -> None:
    """One deployment may be expensive in output and another in searches: the hold covers whichever answers."""
    models = [
        {"name": "claude", "provider": "claude", "output_usd_per_mtok": 15.0, "weight": 0.0001},
        {"name": "claude", "provider": "again", "output_usd_per_mtok": 1.0, "web_search_usd": 0.01},
    ]
    again = {"name": "again", "kind": "anthropic", "base_url": "UPSTREAM", "api_key": "${UP_KEY}"}
    async with live(tmp_path, scripts={"claude": [USED]}, models=models, providers=[again]) as gateway:
        record = await ask(gateway, "/v1/messages", {**MESSAGES, "tools": [{**CLAUDES, "max_uses": 2}]})
        assert record.attempts[0].deployment == "again/claude"
        assert 2 * SEARCH < record.cost_nanousd <= record.held_nanousd


@pytest.mark.parametrize("router", ["cheapest", "default"])
async def test_a_cap_counts_the_searches_that_are_allowed(tmp_path: Path, router: str) -> None:
    """Of two models that differ in the price of a search, only the cheaper may answer under a cap between them."""
    models = [{"name": "dear", "provider": "claude", **PRICES},
              {"name": "cheap", "provider": "claude", **PRICES, "web_search_usd": 0.0}]  # fmt: skip
    routes = [{"name": "auto", "models": ["dear", "cheap"], "router": router}]
    capped = {**MESSAGES, "tools": [{**CLAUDES, "max_uses": 3}], "headgate": {"max_cost_usd": 0.03}}
    async with live(tmp_path, models=models, routes=routes) as gateway, httpx.AsyncClient() as client:
        answer = await client.post(gateway.url + "/v1/messages", json={**capped, "model": "auto"})
        refused = await client.post(gateway.url + "/v1/messages", json={**capped, "model": "dear"})
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
    assert answer.headers["x-headgate-model"] == "cheap" and "max_cost_usd" in record.excluded["dear"]
    assert refused.status_code == 400 and "max_cost_usd" in refused.json()["error"]["message"]
