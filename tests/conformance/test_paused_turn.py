"""Turns that Claude pauses: OpenAI's clients get the whole turn as one answer, and each part is held and billed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.wire.pause import MOST_PAUSES
from tests.conformance.fixed import Fixed, Json, fixed, message, message_events
from tests.conformance.test_citations import FOUND, RAIN, SEARCH, places, text, text_events
from tests.conformance.test_surfaces import TURNS
from tests.conformance.test_web_search import ONE, PRICES, SEARCHES, TOOL

AGAIN = {**SEARCH, "id": "srvtoolu_2"}
FOUND_AGAIN = {**FOUND, "tool_use_id": "srvtoolu_2"}
PARTS = ([text("Let me see: "), SEARCH, FOUND, AGAIN], [FOUND_AGAIN, text("it "), text("rains", RAIN)])
"""The second search was requested before the pause, and run after it."""
USED = (
    {"input_tokens": 7, "cache_read_input_tokens": None, "output_tokens": 4,
     "server_tool_use": {"web_search_requests": 1}},
    {"input_tokens": 5, "cache_read_input_tokens": 11, "output_tokens": 3,
     "server_tool_use": {"web_search_requests": 1}},
)  # fmt: skip
COST = (7 + 5 + 11) * 3000 + (4 + 3) * 15000 + 2 * ONE
TEXT = "Let me see: it rains"
ASKS: dict[str, tuple[str, Json]] = {
    "chat": ("chat.completions.create", {"messages": TURNS, "web_search_options": {}}),
    "responses": ("responses.create", {"input": "x", "tools": SEARCHES}),
}


def said(part: int, *, live: bool, stop: str = "") -> Any:
    stop = stop or ("pause_turn", "end_turn")[part]
    if not live:
        return message(*PARTS[part], stop=stop, usage=USED[part], id=f"msg_{part}")
    pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ('{"query', '": "x"}')]
    blocks: list[tuple[Json, list[Json]]] = []
    for block in PARTS[part]:
        if block["type"] == "text":
            blocks.append(text_events(block["text"], *block["citations"] or ()))
        else:
            blocks.append(({**block, "input": {}}, pieces) if "input" in block else (block, []))
    start, *events, end, last = message_events(*blocks, stop=stop)
    start["message"] |= {"id": f"msg_{part}", "usage": {**USED[part], "output_tokens": 1, "server_tool_use": None}}
    return [start, *events, {**end, "usage": USED[part]}, last]


async def ask(home: Fixed, surface: str, live: bool, **more: Any) -> Any:
    """The answer, whole or assembled from its stream by the SDK."""
    sdk, (path, body) = home.sdk("openai", api_key=more.pop("key", "k")), ASKS[surface]
    if surface == "responses":
        return await sdk.responded(live, model="m", **body, **more)
    if not live:
        return await sdk.do(path, model="m", **body, **more)
    try:
        more["stream_options"] = {"include_usage": True}
        return (await sdk.helped("chat.completions.stream", "get_final_completion", model="m", **body, **more))[1]
    except openai.LengthFinishReasonError as cut:
        return cut.completion


async def paid(home: Fixed, id: str) -> list[int]:
    """The cost of each part; checks that the hold covered them all."""
    assert home.gateway is not None
    await home.gateway.rest()
    record = await home.gateway.decision(id)
    assert record.held_nanousd >= record.cost_nanousd and home.gateway.services.ledger.overrun_nanousd == 0
    return [attempt.cost_nanousd for attempt in record.attempts]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("surface", ASKS)
async def test_a_paused_turn_goes_on(tmp_path: Path, surface: str, live: bool) -> None:
    async with fixed(tmp_path, "anthropic", said(0, live=live), PRICES) as home:
        home.then = [said(1, live=live)]
        answer = await ask(home, surface, live)
        first, then = home.heard
        *before, turn = then.pop("messages")
        assert before == first.pop("messages") and turn["role"] == "assistant"
        assert json.loads(json.dumps(turn["content"]).replace("[]", "null")) == json.loads(
            json.dumps(PARTS[0]).replace("[]", "null")
        ), "as it was said"
        (tool,) = then.pop("tools")
        uses = first.pop("tools")[0]["max_uses"]
        assert tool == {**TOOL, "max_uses": max(uses - 1, 1)}
        assert then.pop("tool_choice", None) == ({"type": "none"} if uses == 1 else None)
        assert then == first
        if surface == "chat":
            (choice,) = answer.choices
            assert (choice.message.content, choice.finish_reason) == (TEXT, "stop")
            cites, usage = places(choice.message.annotations, nested=True), answer.usage
            assert (usage.prompt_tokens, usage.completion_tokens) == (23, 7)
            assert cites == [(15, 20, "Weather", RAIN["url"])]
        else:
            assert answer.status == "completed" and answer.output_text == TEXT
            kinds = [(one.type, one.action.query) for one in answer.output if one.type != "message"]
            assert kinds == [("web_search_call", "x")] * 2
            assert (answer.usage.input_tokens, answer.usage.output_tokens) == (23, 7)
            assert (await home.sdk("openai").do("responses.retrieve", answer.id)).output == answer.output
        parts = await paid(home, answer.id)
        assert len(parts) == 2 and sum(parts) == COST


async def test_a_streams_parts_have_no_seam(tmp_path: Path) -> None:
    """The parts have one role and one id in a chat, and one beginning and one numbering in a response."""
    async with fixed(tmp_path, "anthropic", said(0, live=True)) as home:
        home.then = [said(1, live=True), said(0, live=True), said(1, live=True)]
        sdk = home.sdk("openai")
        chunks = await sdk.events("chat.completions.create", model="m", **ASKS["chat"][1], stream=True)
        assert len({chunk.id for chunk in chunks}) == 1
        assert [chunk.choices[0].delta.role for chunk in chunks].count("assistant") == 1
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
        events = await sdk.events("responses.create", model="m", **ASKS["responses"][1], stream=True)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        kinds = [event.type for event in events]
        assert kinds.count("response.created") == kinds.count("response.completed") == 1
        assert kinds.count("response.web_search_call.completed") == 2


@pytest.mark.parametrize("surface", ASKS)
async def test_a_turn_that_is_paused_before_any_word(tmp_path: Path, surface: str) -> None:
    async with fixed(tmp_path, "anthropic", message_events((SEARCH, []), stop="pause_turn"), PRICES) as home:
        home.then = [said(1, live=True)]
        answer = await ask(home, surface, True)
        text = answer.output_text if surface == "responses" else answer.choices[0].message.content
        assert text == "it rains" and len(await paid(home, answer.id)) == 2


async def test_a_client_that_leaves_a_turn_that_went_on(tmp_path: Path) -> None:
    """A client that disconnects is charged for each part once."""
    rest = said(1, live=True)
    cut = next(place for place, event in enumerate(rest) if event.get("delta", {}).get("type") == "text_delta")
    async with fixed(tmp_path, "anthropic", said(0, live=True), PRICES) as home:
        home.then, home.silent_after = [rest[: cut + 1]], 1
        async with httpx.AsyncClient(base_url=home.url, verify=False) as client:
            body = {"model": "m", **ASKS["chat"][1], "stream": True}
            async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    if '"it' in line:
                        break
        assert home.gateway is not None
        await home.gateway.rest()
        record = await home.gateway.decision(answer.headers["x-headgate-decision-id"])
        first, then = record.attempts
        assert (first.failure, first.cost_nanousd) == ("", 7 * 3000 + 4 * 15000 + ONE)
        assert then.failure == "cancelled" and then.usage["output"] == 1 and then.usage["web_search"] == 1
        assert record.cost_nanousd <= record.held_nanousd


@pytest.mark.parametrize("live", [False, True])
async def test_a_turn_that_is_cached_is_whole(tmp_path: Path, live: bool) -> None:
    """The cached answer holds all parts of the turn."""
    routes = [{"name": "r", "models": ["m"], "cache": "exact"}]
    async with fixed(tmp_path, "anthropic", said(0, live=live), PRICES, routes=routes) as home:
        home.then = [said(1, live=live)]
        sdk, asks = home.sdk("openai"), ASKS["chat"][1]
        if live:
            await sdk.events("chat.completions.create", model="r", **asks, stream=True)
        else:
            await sdk.do("chat.completions.create", model="r", **asks)
        again = await sdk.do("chat.completions.create", model="r", **asks)
        assert again.choices[0].message.content == TEXT and again.usage.total_tokens == 30
        assert len(home.heard) == 2


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("surface", ASKS)
async def test_a_turn_goes_on_only_so_often(tmp_path: Path, surface: str, live: bool) -> None:
    """After the most pauses the answer ends as incomplete."""
    async with fixed(tmp_path, "anthropic", said(0, live=live), PRICES) as home:
        answer = await ask(home, surface, live)
        if surface == "chat":
            assert answer.choices[0].finish_reason == "length"
        else:
            assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        parts = await paid(home, answer.id)
        assert len(home.heard) == len(parts) == MOST_PAUSES + 1
        assert parts == [7 * 3000 + 4 * 15000 + ONE] * len(parts)
        assert home.asked["messages"][-1]["content"].count(AGAIN) == MOST_PAUSES


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("how", ["budget", "cap"])
async def test_a_turn_goes_on_only_for_what_may_be_spent(tmp_path: Path, how: str, live: bool) -> None:
    """The first part is held at the start; each further part is requested only if its hold fits the budget."""
    limit: Json = {"budget_usd": 0.7} if how == "budget" else {}
    auth = {"keys": [{"name": "k", "key": "hg-k", **limit}]}
    async with fixed(tmp_path, "anthropic", said(0, live=live), PRICES, auth=auth) as home:
        home.then = [said(1, live=live)]
        more: Json = {"key": "hg-k", "max_completion_tokens": 16_000}
        if how == "cap":
            more["extra_headers"] = {"x-headgate-max-cost-usd": "0.255"}
        answer = await ask(home, "chat", live, **more)
        assert answer.choices[0].finish_reason == "length"
        assert answer.choices[0].message.content == "Let me see: "
        assert len(home.heard) == 1 and await paid(home, answer.id) == [7 * 3000 + 4 * 15000 + ONE]


@pytest.mark.parametrize("live", [False, True])
async def test_a_turn_that_fails_as_it_goes_on(tmp_path: Path, live: bool) -> None:
    """The client gets an error and no end, and the parts until then are billed."""
    refusal: Json = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    async with fixed(tmp_path, "anthropic", said(0, live=live), PRICES) as home:
        home.then = [[refusal] if live else refusal]
        async with httpx.AsyncClient(base_url=home.url, verify=False) as client:
            body = {"model": "m", **ASKS["chat"][1], "stream": live}
            answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == (200 if live else 503)
        assert "busy" in answer.text and "[DONE]" not in answer.text and '"finish_reason":"' not in answer.text
        assert home.gateway is not None
        await home.gateway.rest()
        record = await home.gateway.decision(answer.headers["x-headgate-decision-id"])
        assert record.attempts[0].cost_nanousd == 7 * 3000 + 4 * 15000 + ONE and not record.attempts[0].failure
        assert record.attempts[1].failure and record.cost_nanousd >= record.attempts[0].cost_nanousd


async def test_a_forced_search_is_forced_once(tmp_path: Path) -> None:
    async with fixed(tmp_path, "anthropic", said(0, live=False)) as home:
        home.then = [said(1, live=False)]
        await ask(home, "responses", False, tool_choice={"type": "web_search"}, parallel_tool_calls=False)
        first, then = (one["tool_choice"] for one in home.heard)
        assert first == {"type": "tool", "name": "web_search", "disable_parallel_tool_use": True}
        assert then == {"type": "auto", "disable_parallel_tool_use": True}


@pytest.mark.parametrize("live", [False, True])
async def test_claudes_own_clients_get_the_pause(tmp_path: Path, live: bool) -> None:
    """Anthropic's clients get the pause, since they continue the turn themselves; it isn't cached as an answer."""
    routes = [{"name": "r", "models": ["m"], "cache": "exact"}]
    async with fixed(tmp_path, "anthropic", said(0, live=live), PRICES, routes=routes) as home:
        sdk = home.sdk("anthropic")
        asks: Json = {"model": "r", "max_tokens": 9, "messages": TURNS, "tools": [TOOL]}
        for count in (1, 2):
            if live:
                _, told = await sdk.helped("messages.stream", "get_final_message", **asks)
            else:
                told = await sdk.do("messages.create", **asks)
            assert told.stop_reason == "pause_turn" and [one.type for one in told.content] == [
                "text", "server_tool_use", "web_search_tool_result", "server_tool_use",
            ]  # fmt: skip
            assert len(home.heard) == count
