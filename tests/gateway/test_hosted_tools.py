"""Tools that providers run and bill themselves, end to end: what is held, billed and reported."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args

import anthropic
import msgspec
import openai
import pytest

from gateway.config.load import parse
from gateway.config.types import ToolKind
from gateway.journal.record import DecisionRecord
from gateway.routes import RouteBook
from gateway.wire.describe import describe
from gateway.wire.hosted_tools import _CHAT, _MESSAGES, _RESPONSES, CONTAINER, RUNS, Runs, allowed_to_template, billed
from gateway.wire.request import decode
from tests.live import Live, live, table

TOOL_USD = {"file_search": 0.0025, "container": 0.03, "image_generation": 0.25, "code_interpreter": 0.005,
            "browser_search": 0.004, "web_fetch": 0.001, "code_execution": 0.0001}  # fmt: skip
PRICES: dict[str, Any] = {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 15.0, "tool_usd": TOOL_USD}
TOKENS = 1000 * 3000 + 7 * 15000
"""Nano-dollars of the tokens of every answer here."""
USED: dict[str, Any] = {"text": "it rains", "input_tokens": 1000, "output_tokens": 7}
LONG = "weather? " * 200
AUTO = {"type": "code_interpreter", "container": {"type": "auto"}}
FILES = {"type": "file_search", "vector_store_ids": ["vs_1"]}
PICTURES = {"type": "image_generation"}
SHELL = {"type": "shell", "environment": {"type": "container_auto"}}
CODE = {"type": "code_execution_20250825", "name": "code_execution"}
FETCH = {"type": "web_fetch_20250910", "name": "web_fetch"}
OWN = {"name": "own", "kind": "openai", "base_url": "UPSTREAM", "api_key": "${UP_KEY}", "responses": True}
PROVIDERS = {"responses": "own", "messages": "claude", "chat": "up"}


@asynccontextmanager
async def gateway_of(folder: Path, ran: Mapping[str, int], **prices: Any) -> AsyncIterator[Live]:
    """A gateway with one model for each surface."""
    models = [{"name": name, "provider": provider, **PRICES, **prices} for name, provider in PROVIDERS.items()]
    scripts = {name: [{**USED, "tool_runs": ran}] for name in PROVIDERS}
    async with live(folder, scripts=scripts, models=models, providers=[OWN]) as gateway:
        yield gateway
        await gateway.rest()
        assert gateway.services.ledger.outstanding == 0


async def ask(gateway: Live, surface: str, *, stream: bool, **more: Any) -> DecisionRecord:
    """Asks with the official SDKs."""
    turns: list[Any] = [{"role": "user", "content": LONG}]
    if surface == "messages":
        async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="k", max_retries=0) as claude:
            body: dict[str, Any] = {"model": surface, "max_tokens": 100, "messages": turns, **more}
            if stream:
                async with claude.messages.stream(**body) as events:
                    id = (await events.get_final_message()).id
            else:
                id = (await claude.messages.create(**body)).id
        return await record_of(gateway, id)
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="k", max_retries=0) as gpt:
        if surface == "chat":
            create: Any = gpt.chat.completions.create
            body = {"max_tokens": 100, "messages": turns}
        else:
            create, body = gpt.responses.create, {"max_output_tokens": 100, "input": turns}
        answer = await create(model=surface, stream=stream, **body, **more)
        if stream:
            told = [event async for event in answer]
            return await record_of(gateway, told[-1].id if surface == "chat" else told[-1].response.id)
        return await record_of(gateway, answer.id)


async def record_of(gateway: Live, id: str) -> DecisionRecord:
    await gateway.rest()
    return await gateway.decision(id)


CASES = [
    pytest.param("responses", {"tools": [FILES], "max_tool_calls": 2}, {"file_search": 2}, {"file_search": 2},
                 2 * 2_500_000, id="searches of files"),
    pytest.param("responses", {"tools": [AUTO], "max_tool_calls": 3}, {"code_interpreter": 3},
                 {"code_interpreter": 3, "container": 1}, 3 * 5_000_000 + 30_000_000, id="code in one container"),
    pytest.param("responses", {"tools": [SHELL, AUTO]}, {"shell": 2, "code_interpreter": 1},
                 {"shell": 2, "code_interpreter": 1, "container": 1}, 5_000_000 + 30_000_000, id="a shell beside it"),
    pytest.param("responses", {"tools": [PICTURES], "max_tool_calls": 1}, {"image_generation": 1},
                 {"image_generation": 1}, 250_000_000, id="a picture"),
    pytest.param("responses", {"tools": [FILES]}, {}, {}, 0, id="none that ran"),
    pytest.param("messages", {"tools": [CODE, {**FETCH, "max_uses": 2}]}, {"code_execution": 2, "web_fetch": 1},
                 {"code_execution": 2, "web_fetch": 1, "container": 1}, 200_000 + 1_000_000 + 30_000_000,
                 id="Claude's code and pages"),
    pytest.param("messages", {"tools": [CODE]}, {}, {}, 0, id="Claude's, unused"),
    pytest.param("chat", {"tools": [{"type": "browser_search"}, {"type": "code_interpreter"}]},
                 {"browser_search": 2, "code_interpreter": 1}, {"browser_search": 2, "code_interpreter": 1},
                 8_000_000 + 5_000_000, id="Groq's"),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("surface", "more", "ran", "told", "cost"), CASES)
async def test_what_ran_is_billed_exactly(
    tmp_path: Path, stream: bool, surface: str, more: dict[str, Any], ran: dict[str, int], told: dict[str, int],
    cost: int,
) -> None:  # fmt: skip
    """It costs the exact nano-dollars, within the hold, as the journal and the metrics show."""
    async with gateway_of(tmp_path, ran) as gateway:
        record = await ask(gateway, surface, stream=stream, **more)
        counted = gateway.services.metrics.tool_runs.values
        assert {key[2]: count[0] for key, count in counted.items()} == told
        assert gateway.services.ledger.overrun_nanousd == 0
    (attempt,) = record.attempts
    assert attempt.usage == {"input": 1000, "output": 7, **told} and not attempt.estimated
    assert record.cost_nanousd == attempt.cost_nanousd == TOKENS + cost <= record.held_nanousd


@pytest.mark.parametrize("surface", ["responses", "messages"])
async def test_what_ran_is_paid_where_the_client_leaves(tmp_path: Path, surface: str) -> None:
    """The client leaves before the end of the stream."""
    tool, ran = (AUTO, "code_interpreter") if surface == "responses" else (CODE, "code_execution")
    async with gateway_of(tmp_path, {ran: 2}) as gateway:
        gateway.upstream.scripts = type(gateway.upstream.scripts)(
            {surface: [{**USED, "text": "it rains " * 50, "gap_s": 0.05, "tool_runs": {ran: 2}}]}
        )
        url = gateway.url
        body: dict[str, Any] = {"model": surface, "stream": True, "tools": [tool]}
        turns: list[Any] = [{"role": "user", "content": "hi"}]
        id, seen = "", 0
        if surface == "responses":
            gpt = openai.AsyncOpenAI(base_url=url + "/v1", api_key="k", max_retries=0)
            events: Any = await gpt.responses.create(**body, input=turns)
        else:
            claude = anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0)
            events = await claude.messages.create(**body, max_tokens=1000, messages=turns)
        id = events.response.headers["x-headgate-decision-id"]
        async for _ in events:
            if (seen := seen + 1) == 14:
                break
        await events.close()
        record = await record_of(gateway, id)
    (attempt,) = record.attempts
    assert attempt.failure == "cancelled" and attempt.usage[ran] == 2 and attempt.usage["container"] == 1
    assert attempt.cost_nanousd >= 30_000_000


@pytest.mark.parametrize("stream", [False, True])
async def test_more_runs_than_were_held_are_billed_all_the_same(tmp_path: Path, stream: bool) -> None:
    """The budget is overrun by the rest, and the overrun is counted."""
    async with gateway_of(tmp_path, {"file_search": 90}) as gateway:
        record = await ask(gateway, "responses", stream=stream, tools=[FILES], max_tool_calls=1)
        assert record.cost_nanousd == TOKENS + 90 * 2_500_000
        assert gateway.services.ledger.overrun_nanousd == record.cost_nanousd - record.held_nanousd > 0


async def test_a_tool_without_a_price_costs_its_tokens(tmp_path: Path) -> None:
    """Its runs are still reported."""
    async with gateway_of(tmp_path, {"file_search": 2}, tool_usd={"mcp": 1.0}) as gateway:
        plain = await ask(gateway, "responses", stream=False)
        record = await ask(gateway, "responses", stream=False, tools=[FILES])
    assert record.cost_nanousd == TOKENS and record.attempts[0].usage["file_search"] == 2
    assert record.held_nanousd - plain.held_nanousd < 1_000_000, "no more than the tool's own definition"


async def test_what_runs_add_to_the_prompt_is_held(tmp_path: Path) -> None:
    """For each run that the request allows, `tool_tokens` are held."""
    held = []
    for tokens in (0, 5000):
        async with gateway_of(tmp_path / str(tokens), {}, tool_tokens={"file_search": tokens}) as gateway:
            record = await ask(gateway, "responses", stream=False, tools=[FILES], max_tool_calls=4)
            held.append(record.held_nanousd)
    assert held[1] - held[0] == 2 * 4 * 5000 * 3000, "of the attempt and of its retry"


async def test_a_model_that_runs_no_tools_holds_and_bills_none(tmp_path: Path) -> None:
    """The request is translated to the chat API and its tools are left out; the hold is released."""
    models = [{"name": "responses", "provider": "up", **PRICES, "hosted_tools": "leave_out"}]
    scripts = {"responses": [{**USED, "tool_runs": {"file_search": 2}}]}
    async with live(tmp_path, scripts=scripts, models=models) as gateway:
        for stream in (False, True):
            record = await ask(gateway, "responses", stream=stream, tools=[FILES])
            assert record.cost_nanousd == TOKENS and "file_search" not in record.attempts[0].usage
        assert gateway.services.ledger.outstanding == gateway.services.ledger.overrun_nanousd == 0


async def test_a_cap_counts_the_runs_that_are_allowed(tmp_path: Path) -> None:
    """Of two models that differ in the price of an image, only the cheaper may answer under a cap between them."""
    models = [{"name": "dear", "provider": "own", **PRICES},
              {"name": "cheap", "provider": "own", **PRICES, "tool_usd": {}}]  # fmt: skip
    routes = [{"name": "auto", "models": ["dear", "cheap"], "router": "cheapest"}]
    async with live(tmp_path, models=models, routes=routes, providers=[OWN]) as gateway:
        async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="k", max_retries=0) as gpt:
            asked: Any = {"input": "hi", "tools": [PICTURES], "max_output_tokens": 100, "max_tool_calls": 1,
                          "extra_body": {"headgate": {"max_cost_usd": 0.2}}}  # fmt: skip
            told = await gpt.responses.with_raw_response.create(model="auto", **asked)
            with pytest.raises(openai.BadRequestError, match="max_cost_usd"):
                await gpt.responses.create(model="dear", **asked)
        record = await gateway.decision(told.headers["x-headgate-decision-id"])
    assert told.headers["x-headgate-model"] == "cheap" and "max_cost_usd" in record.excluded["dear"]


async def test_a_streams_expected_cost_includes_tools(tmp_path: Path) -> None:
    """It includes one run of each tool that is offered."""
    told = []
    async with gateway_of(tmp_path, {}) as gateway:
        gpt = openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key="k", max_retries=0)
        for tools in ([], [PICTURES]):
            asked: Any = {"model": "responses", "input": LONG, "stream": True, "tools": tools}
            events = await gpt.responses.create(**asked)
            told.append(float(events.response.headers["x-headgate-cost-usd"]))
            await events.close()
    assert told[1] - told[0] == pytest.approx(0.25, abs=0.001)


@pytest.mark.parametrize(
    ("surface", "more", "runs"),
    [
        ("responses", {}, {}),
        ("responses", {"tools": [{"type": "function", "name": "file_search"}]}, {}),
        ("responses", {"tools": [{"type": "computer_use_preview"}, {"type": "local_shell"}, {"type": "shell"},
                                 {"type": "shell", "environment": {"type": "local"}}]}, {}),
        ("responses", {"tools": [FILES]}, {"file_search": RUNS}),
        ("responses", {"tools": [FILES, AUTO], "max_tool_calls": 3},
         {"file_search": 3, "code_interpreter": 3, CONTAINER: 1}),
        ("responses", {"tools": [SHELL, AUTO], "max_tool_calls": 0}, {"shell": 0, "code_interpreter": 0, CONTAINER: 2}),
        ("responses", {"tools": [FILES], "max_tool_calls": 10**30}, {"file_search": RUNS}),
        ("responses", {"tools": [{"type": "mcp", "server_label": "a"}, {"type": "mcp", "server_label": "b"}]},
         {"mcp": 2 * RUNS}),
        ("responses", {"input": [{"type": "additional_tools", "role": "developer", "tools": [FILES]}]},
         {"file_search": RUNS}),
        ("responses", {"prompt": {"id": "pmpt_1"}, "max_tool_calls": 2}, allowed_to_template(2)),
        ("responses", {"prompt": None}, {}),
        ("messages", {"tools": [{"name": "code_execution", "input_schema": {}}]}, {}),
        ("messages", {"tools": [CODE, {**FETCH, "max_uses": 4}]},
         {"code_execution": RUNS, CONTAINER: 1, "web_fetch": 4}),
        ("messages", {"tools": [{"type": "advisor_20260301", "name": "advisor", "model": "big", "max_uses": 1}]},
         {"advisor": 1}),
        ("messages", {"mcp_servers": [{"type": "url", "url": "https://example.org", "name": "a"}]}, {"mcp": RUNS}),
        ("chat", {"tools": [{"type": "browser_search"}, {"type": "file_search"}]}, {"browser_search": RUNS}),
    ],
)  # fmt: skip
def test_as_many_runs_are_held_as_the_request_allows(surface: str, more: dict[str, Any], runs: dict[str, int]) -> None:
    """Without a limit in the request a constant number is held, and none for tools that the client runs."""
    field = "input" if surface == "responses" else "messages"
    body = {"model": "m", field: [{"role": "user", "content": "hi"}], **more}
    assert describe(decode(msgspec.json.encode(body)), surface).tool_runs == runs


def test_a_template_may_search_the_web() -> None:
    """A prompt template's tools are stored at its provider, so web searches are assumed."""
    body = {"model": "m", "input": "hi", "prompt": {"id": "pmpt_1"}, "max_tool_calls": 2}
    assert describe(decode(msgspec.json.encode(body)), "responses").web_searches == 2


class _Item(msgspec.Struct):
    type: str
    status: str = "completed"
    container_id: str | None = None
    environment: Any = None


def test_a_run_that_is_reported_twice_counts_once() -> None:
    """A run is reported when it begins and ends. A failed image doesn't count, and a client's own shell costs nothing.
    """
    ran = Runs()
    ran.item(0, _Item("image_generation_call", "in_progress"))
    assert ran.counts() == {"image_generation": 1}
    ran.item(0, _Item("image_generation_call", "failed"))
    for place in (1, 2):
        for status in ("in_progress", "completed"):
            ran.item(place, _Item("code_interpreter_call", status, f"cntr_{place}"))
    ran.item(3, _Item("shell_call", environment={"type": "local"}))
    ran.item(4, _Item("shell_call"))
    ran.item(5, _Item("web_search_call"))
    ran.item(6, _Item("file_search"))
    assert ran.counts() == {"code_interpreter": 2, CONTAINER: 2}


def test_claudes_searches_run_code_of_their_own_free_of_charge() -> None:
    """Code execution is billed only if the request offered it."""
    ran = {"code_execution": 2, CONTAINER: 1, "web_fetch": 1}
    assert billed(ran, {"web_fetch": 10}) == {"web_fetch": 1}
    assert billed(ran, {"web_fetch": 10, "code_execution": 10, CONTAINER: 1}) == ran


def test_prices_can_be_stated_of_all_that_is_counted(tmp_path: Path) -> None:
    """Any other name is refused, because a misspelt one would bill too little."""
    assert set(get_args(ToolKind)) == {CONTAINER, *_RESPONSES, *_MESSAGES.values(), *_CHAT}
    wrong = table("http://127.0.0.1:1", tmp_path, [{"name": "m", "tool_usd": {"file-search": 0.1}}], {})
    _, problems = parse(wrong, {"UP_KEY": "k"})
    (problem,) = problems
    assert problem.startswith("models[0].tool_usd.file-search: unknown key; did you mean 'file_search'?; known are ")


def test_a_hold_covers_the_dearest_deployment_of_each_tool(tmp_path: Path) -> None:
    """It also covers the deployment whose runs add most to the prompt."""
    models = [{"name": "m", "tool_usd": {"mcp": 1.0, "shell": 2.0}, "tool_tokens": {"mcp": 5}},
              {"name": "m", "provider": "claude", "tool_usd": {"mcp": 3.0}, "tool_tokens": {"mcp": 7}}]  # fmt: skip
    config, problems = parse(table("http://127.0.0.1:1", tmp_path, models, {}), {"UP_KEY": "k"})
    assert config is not None and not problems
    model = RouteBook(config, {}).models["m"]
    assert model.price.tools == {"mcp": 3_000_000_000, "shell": 2_000_000_000} and model.tool_tokens == {"mcp": 7}
