"""Web searches that OpenAI's clients request and Claude runs: the request, the result and the cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from gateway.wire.describe import WEB_SEARCHES
from tests.conformance.fixed import Fixed, Json, fixed, message, message_events
from tests.conformance.test_citations import FOUND, RAIN, SEARCH, text, text_events
from tests.conformance.test_surfaces import TURNS

PRICES = {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0, "web_search_usd": 0.01}
TOKENS = 5 * 3000 + 3 * 15000
"""Cost of every answer's tokens here, in billionths of a dollar."""
ONE = 10_000_000
"""Cost of a search, in billionths of a dollar."""
TOOL = {"type": "web_search_20250305", "name": "web_search"}
FAILED: Json = {**FOUND, "content": {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}}
BERN = {"city": "Bern", "country": "CH", "timezone": "Europe/Zurich"}
NOW = {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}
SEARCHES = [{"type": "web_search"}]


def usage_with(searches: int) -> Json:
    return {"input_tokens": 5, "output_tokens": 3, "server_tool_use": {"web_search_requests": searches}}


def whole(searches: int) -> Json:
    return message(*[SEARCH, FOUND] * searches, text("it rains", RAIN), usage=usage_with(searches))


def streamed(searches: int, found: Json = FOUND) -> list[Json]:
    asks = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"que', 'ry": "Bern ☀"}')]
    blocks = [({**SEARCH, "input": {}}, asks), (found, [])] * searches
    *events, end, stop = message_events(*blocks, text_events("it rains", RAIN))
    return [*events, {**end, "usage": usage_with(searches if found is FOUND else 0)}, stop]


async def billed(home: Fixed, decision: str) -> int:
    """Cost of the call in billionths of a dollar; checks that the hold covered it, and all searches allowed."""
    assert home.gateway is not None
    await home.gateway.rest()
    record = await home.gateway.decision(decision)
    (tool,) = [tool for tool in home.asked["tools"] if tool.get("type")]
    most = record.attempts[0].cost_nanousd - record.attempts[0].usage.get("web_search", 0) * ONE
    assert record.cost_nanousd <= record.held_nanousd >= most + tool["max_uses"] * ONE
    assert home.gateway.services.ledger.overrun_nanousd == 0
    return record.cost_nanousd


@pytest.mark.parametrize("searches", [0, 1])
async def test_a_chat_searches_the_web(tmp_path: Path, searches: int) -> None:
    """At most one search is allowed and held, only searches that were run are billed, and the answer has citations."""
    place = {"type": "approximate", "approximate": BERN}
    options: Json = {"web_search_options": {"search_context_size": "high", "user_location": place}}
    ask: Json = {"model": "m", "messages": TURNS, **options}
    async with fixed(tmp_path, "anthropic", whole(searches), PRICES) as home:
        sdk = home.sdk("openai")
        raw = await sdk.do("chat.completions.with_raw_response.create", **ask)
        assert home.asked["tools"] == [{**TOOL, "max_uses": 1, "user_location": {"type": "approximate", **BERN}}]
        assert "tool_choice" not in home.asked
        (choice,) = raw.parse().choices
        assert choice.message.content == "it rains" and choice.message.tool_calls is None
        assert [one.url_citation.url for one in choice.message.annotations] == [RAIN["url"]]
        cost = TOKENS + searches * ONE
        assert await billed(home, raw.headers["x-headgate-decision-id"]) == cost
        home.answer = streamed(searches)
        _, final = await sdk.helped("chat.completions.stream", "get_final_completion", **ask)
        assert final.choices[0].message.content == "it rains" and not final.choices[0].message.tool_calls
        assert await billed(home, final.id) == cost


@pytest.mark.parametrize("how", ["whole", "streamed"])
async def test_a_response_searches_the_web(tmp_path: Path, how: str) -> None:
    """Each search is an item with events of its own; it is stored, replayed, and left out of the next turn."""
    tools = [{"type": "web_search", "user_location": {"type": "approximate", **BERN, "region": None},
              "filters": {"allowed_domains": ["example.com"]}, "search_context_size": "low"}, NOW]  # fmt: skip
    async with fixed(tmp_path, "anthropic", whole(2) if how == "whole" else streamed(2), PRICES) as home:
        sdk = home.sdk("openai")
        ask: Json = {"model": "m", "input": "x", "tools": tools, "max_tool_calls": 3}
        made = await sdk.responded(how == "streamed", **ask)
        assert home.asked["tools"][1] == {
            **TOOL, "max_uses": 3, "user_location": {"type": "approximate", **BERN}, "allowed_domains": ["example.com"],
        }  # fmt: skip
        query = "x" if how == "whole" else "Bern ☀"
        *searches, said = made.output
        assert [(one.type, one.status, one.action.type, one.action.query) for one in searches] == [
            ("web_search_call", "completed", "search", query)
        ] * 2
        assert said.content[0].text == "it rains" and said.content[0].annotations[0].url == RAIN["url"]
        assert await billed(home, made.id) == TOKENS + 2 * ONE
        assert (await sdk.do("responses.retrieve", made.id)).output == made.output
        home.answer = whole(0)
        await sdk.do("responses.create", model="m", input="y", tools=SEARCHES, previous_response_id=made.id)
        assert [turn["role"] for turn in home.asked["messages"]] == ["user", "assistant", "user"]
        assert home.asked["tools"] == [{**TOOL, "max_uses": WEB_SEARCHES}]


async def test_a_search_streams_as_an_item(tmp_path: Path) -> None:
    """The item begins and ends before the text that rests on it, and a failed search costs nothing."""
    async with fixed(tmp_path, "anthropic", streamed(1), PRICES) as home:
        sdk = home.sdk("openai")
        told = await sdk.events("responses.create", model="m", input="x", tools=SEARCHES, stream=True)
        assert [one.sequence_number for one in told] == list(range(len(told)))
        kinds = [one.type.removeprefix("response.") for one in told]
        steps = [f"web_search_call.{step}" for step in ("in_progress", "searching", "completed")]
        assert kinds[2:8] == ["output_item.added", *steps, "output_item.done", "output_item.added"]
        assert {one.item_id for one in told[3:6]} == {told[2].item.id} and told[2].item.status == "in_progress"
        assert told[6].item == told[-1].response.output[0]
        home.answer = streamed(1, FAILED)
        told = await sdk.events("responses.create", model="m", input="x", tools=SEARCHES, stream=True)
        assert "response.web_search_call.completed" not in [one.type for one in told]
        response = told[-1].response
        assert response.output[0].status == "failed" and await billed(home, response.id) == TOKENS
        home.answer = message(SEARCH, FAILED, text("no"), usage=usage_with(0))
        made = await sdk.do("responses.create", model="m", input="x", tools=SEARCHES)
        assert [(one.type, one.status) for one in made.output] == [
            ("web_search_call", "failed"), ("message", "completed"),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "tools", "choice"),
    [
        ({"tool_choice": "auto"}, [{**TOOL, "max_uses": WEB_SEARCHES}], None),
        ({"tool_choice": "required"}, [{**TOOL, "max_uses": WEB_SEARCHES}], {"type": "any"}),
        ({"tool_choice": {"type": "web_search"}}, [{**TOOL, "max_uses": WEB_SEARCHES}],
         {"type": "tool", "name": "web_search"}),
        ({"tool_choice": {"type": "web_search_preview"}, "parallel_tool_calls": False, "reasoning": {"effort": "low"}},
         [{**TOOL, "max_uses": WEB_SEARCHES}],
         {"type": "tool", "name": "web_search", "disable_parallel_tool_use": True}),
        ({"tool_choice": "none"}, None, None),
        ({"max_tool_calls": 0}, None, None),
        ({"tools": [{"type": "web_search_preview"}, *SEARCHES], "max_tool_calls": 2}, [{**TOOL, "max_uses": 2}], None),
    ],
)
async def test_a_response_searches_no_more_than_it_may(
    tmp_path: Path, more: Json, tools: list[Json] | None, choice: Json | None
) -> None:
    async with fixed(tmp_path, "anthropic", whole(0), PRICES) as home:
        await home.sdk("openai").do("responses.create", model="m", input="x", **{"tools": SEARCHES, **more})
        assert (home.asked.get("tools"), home.asked.get("tool_choice")) == (tools, choice)
        assert "thinking" not in home.asked, "Claude thinks before no tool that it must use"


@pytest.mark.parametrize(
    ("more", "why"),
    [({"tools": [NOW]}, "isn't among 'tools'"), ({"tools": SEARCHES, "max_tool_calls": 0}, "allows no search")],
)
async def test_a_search_that_is_forced_may_be_run(tmp_path: Path, more: Json, why: str) -> None:
    async with fixed(tmp_path, "anthropic", whole(0)) as home:
        with pytest.raises(openai.BadRequestError, match=why) as refused:
            choice: Json = {"tool_choice": {"type": "web_search"}}
            await home.sdk("openai").do("responses.create", model="m", input="x", **choice, **more)
        assert refused.value.param == "tool_choice" and not home.asked


@pytest.mark.parametrize("tokens", [0, 4000])
async def test_what_searches_add_to_the_prompt_is_held(tmp_path: Path, tokens: int) -> None:
    """The hold includes the model's `web_search_tokens` for each search, so budgets aren't exceeded by those."""
    answer = whole(2)
    answer["usage"]["input_tokens"] = 2 * 4000
    async with fixed(tmp_path, "anthropic", answer, {**PRICES, "web_search_tokens": tokens}) as home:
        ask: Json = {"model": "m", "input": "x", "tools": SEARCHES, "max_tool_calls": 2, "max_output_tokens": 9}
        made = await home.sdk("openai").do("responses.create", **ask)
        assert home.gateway is not None
        await home.gateway.rest()
        record = await home.gateway.decision(made.id)
        assert record.cost_nanousd == 2 * 4000 * 3000 + 3 * 15000 + 2 * ONE
        assert (record.held_nanousd >= record.cost_nanousd) is bool(tokens)
        assert (home.gateway.services.ledger.overrun_nanousd == 0) is bool(tokens)


@pytest.mark.parametrize(
    ("tool", "why"),
    [
        ({"external_web_access": False}, "as it is now"),
        ({"filters": {"languages": ["de"]}}, "no filter 'languages'"),
        ({"user_location": "Bern"}, "must be an object"),
        ({"name": "mine"}, "no built-in tool"),
    ],
)
async def test_a_search_that_claude_has_no_word_for_is_refused(tmp_path: Path, tool: Json, why: str) -> None:
    async with fixed(tmp_path, "anthropic", whole(0)) as home:
        with pytest.raises(openai.BadRequestError, match=why) as refused:
            tools: Any = [{"type": "web_search", **tool}]
            await home.sdk("openai").do("responses.create", model="m", input="x", tools=tools)
        assert refused.value.param == "tools" and not home.asked


async def test_a_chats_own_tools_search_nothing_unheld(tmp_path: Path) -> None:
    """Anthropic's tool in a chat is refused, since its searches would not be held."""
    async with fixed(tmp_path, "anthropic", whole(0)) as home:
        with pytest.raises(openai.BadRequestError, match="no tool of type 'web_search_20250305'"):
            tools: Any = [{**TOOL, "max_uses": 50}]
            await home.sdk("openai").do("chat.completions.create", model="m", messages=TURNS, tools=tools)
        assert not home.asked


async def test_a_model_that_leaves_hosted_tools_out_is_asked_for_no_search(tmp_path: Path) -> None:
    async with fixed(tmp_path, "anthropic", whole(0), {"hosted_tools": "leave_out"}) as home:
        sdk = home.sdk("openai")
        await sdk.do("chat.completions.create", model="m", messages=TURNS, web_search_options={})
        assert "tools" not in home.asked
        await sdk.do("responses.create", model="m", input="x", tools=SEARCHES)
        assert "tools" not in home.asked and "web_search" not in json.dumps(home.asked)


async def test_a_search_that_claudes_clients_ask_for_is_refused_elsewhere(tmp_path: Path) -> None:
    """Chat's API has no bounded search, so the error names the setting that leaves the tool out."""
    async with fixed(tmp_path, "openai", whole(0)) as home:
        with pytest.raises(anthropic.BadRequestError, match=r"no server tool 'web_search_20250305'.*hosted_tools"):
            await home.sdk("anthropic").do("messages.create", model="m", max_tokens=9, messages=TURNS, tools=[TOOL])
