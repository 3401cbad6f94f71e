"""Every surface with every kind of provider, whole and streamed, with a client that checks every field."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from anthropic.types import MessageTokensCount
from openai.types import Batch, CreateEmbeddingResponse, FileObject, Model
from openai.types.conversations import Conversation, ConversationItem, ConversationItemList
from openai.types.responses import InputTokenCountResponse, Response, ResponseItemList

from tests.conformance.fixed import Json, completion, completion_events, fixed, message, message_events
from tests.conformance.house import KINDS, WEATHER, House, house
from tests.conformance.strict import Page, Strict
from tests.conformance.test_citations import FOUND, RAIN, SEARCH, text, text_events
from tests.conformance.test_surfaces import CHAT_TOOLS, MESSAGES_TOOLS, RESPONSES_TOOLS, TURNS

ASKS: dict[str, Json] = {
    "chat": {"messages": TURNS}, "completions": {"prompt": "hello"}, "responses": {"input": "hello"},
    "messages": {"messages": TURNS, "max_tokens": 99},
}  # fmt: skip
LOGPROBS = ["message.output_text.logprobs"]
TOOLS = {"chat": CHAT_TOOLS, "responses": RESPONSES_TOOLS, "messages": MESSAGES_TOOLS}
PAIRS = [(surface, live) for surface in ASKS for live in (False, True)]
THINKS: Json = {"type": "thinking", "thinking": "hm, well", "signature": "c2ln"}
CALL: Json = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": WEATHER}


@pytest.fixture
async def strict(home: House) -> AsyncIterator[Strict]:
    client = Strict(home.url)
    yield client
    await client.close()


@pytest.mark.parametrize(("surface", "live"), PAIRS)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_told_is_as_the_types_have_it(strict: Strict, surface: str, live: bool, kind: str) -> None:
    for script in ("echo", "long", "used", *(("tools", "says") if surface in TOOLS else ())):
        more: Json = {"tools": TOOLS[surface]} if script in ("tools", "says") else {}
        if script == "long":
            more |= {"max_output_tokens" if surface == "responses" else "max_tokens": 16}
        told = await strict.ask(surface, {"model": f"{kind}/{script}", **ASKS[surface], **more}, live=live)
        assert told["id"]


def claude(live: bool, *blocks: Json, stop: str = "end_turn") -> Any:
    """Anthropic's answer, whole or streamed in pieces."""
    if not live:
        return message(*blocks, stop=stop)
    told: list[tuple[Json, list[Json]]] = []
    for block in blocks:
        if block["type"] == "text":
            told.append(text_events(block["text"], *block.get("citations") or ()))
        elif block["type"] == "thinking":
            pieces = [{"type": "thinking_delta", "thinking": piece} for piece in ("hm, ", "well")]
            sign = {"type": "signature_delta", "signature": block["signature"]}
            told.append(({**block, "thinking": "", "signature": ""}, [*pieces, sign]))
        elif "input" in block:
            given = json.dumps(block["input"], separators=(",", ":"))
            pieces = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", given[:5], given[5:])]
            told.append(({**block, "input": {}}, pieces))
        else:
            told.append((block, []))
    return message_events(*told, stop=stop)


CLAUDES: dict[str, tuple[Json, ...]] = {
    "thinks": (THINKS, text("hello"), {}),
    "thinks and calls": (THINKS, text("so"), CALL, {**CALL, "id": "toolu_2", "name": "time"}, {"stop": "tool_use"}),
    "calls between": (CALL, text("so"), {"stop": "tool_use"}),
    "sealed": ({"type": "redacted_thinking", "data": "c2Vj"}, text("so"), {}),
    "refuses": (text("I can't."), {"stop": "refusal"}),
    "refuses at once": ({"stop": "refusal"},),
    "nothing": ({},),
    "stops": (text("hello"), {"stop": "stop_sequence"}),
    "too long": (text("hello"), {"stop": "model_context_window_exceeded"}),
    "pauses": (text("hello"), {"stop": "pause_turn"}),
    "searches": (text("I look."), SEARCH, FOUND, text("it "), text("rains", RAIN), text("."), {}),
    "thinks twice": (THINKS, text("a", RAIN), THINKS, text("b", RAIN), {}),
}


BESIDE = {"thinks twice", "calls between", "searches"}
"""Cases whose order is lost when a whole answer is translated by way of chat."""


@pytest.mark.parametrize(("surface", "live"), PAIRS)
async def test_what_claude_tells_is_as_the_types_have_it(tmp_path: Path, surface: str, live: bool) -> None:
    async with fixed(tmp_path, "anthropic", {}) as home:
        client = Strict(home.url)
        for case, (*blocks, how) in CLAUDES.items():
            home.answer = claude(live, *blocks, **how)
            told = await client.ask(surface, {"model": "m", **ASKS[surface]}, live=live)
            home.answer = claude(not live, *blocks, **how)
            other = await client.ask(surface, {"model": "m", **ASKS[surface]}, live=not live)
            if case not in BESIDE or surface == "messages":
                assert shape(surface, told) == shape(surface, other), case
        await client.close()


CITED: Json = {"start_index": 0, "end_index": 2, "title": "Rain", "url": "https://example.com"}
PAGE: Json = {"type": "url_citation", "url_citation": CITED}


def call(index: int, **more: Any) -> Json:
    function: Json = {name: more.pop(name) for name in ("name", "arguments") if name in more}
    return {"tool_calls": [{"index": index, **more, "function": function}]}


FIRST, SECOND = {"id": "call_a", "type": "function", "name": "weather", "arguments": ""}, {
    "id": "call_b", "type": "function", "name": "time", "arguments": ""}  # fmt: skip
ROLE: Json = {"role": "assistant", "content": ""}
GPTS: dict[str, tuple[list[Json], str]] = {
    "says": ([ROLE, {"content": "it "}, {"content": "rains"}], "stop"),
    "refuses": ([ROLE, {"refusal": "I "}, {"refusal": "can't."}], "stop"),
    "says and refuses": ([ROLE, {"content": "well: "}, {"refusal": "no"}], "stop"),
    "thinks": ([ROLE, {"reasoning_content": "hm"}, {"reasoning_content": ", well"}, {"content": "so"}], "stop"),
    "thinks, says, thinks": (
        [ROLE, {"reasoning": "hm"}, {"content": "a"}, {"reasoning": "hm"}, {"content": "b"}], "stop"),
    "calls one after the other": (
        [ROLE, call(0, **FIRST), call(0, arguments='{"city":"Bern"}'), call(1, **SECOND), call(1, arguments="{}")],
        "tool_calls"),
    "calls at once": (
        [ROLE, call(0, **FIRST), call(1, **SECOND), call(0, arguments='{"city":'), call(1, arguments="{}"),
         call(0, arguments='"Bern"}')], "tool_calls"),
    "says behind a call": ([ROLE, call(0, **FIRST), call(0, arguments="{}"), {"content": "so"}], "tool_calls"),
    "calls without a word": (
        [{"role": "assistant", "content": None}, call(0, **FIRST), call(0, arguments="{}")], "stop"),
    "cites": ([ROLE, {"content": "it"}, {"annotations": [PAGE]}], "stop"),
    "cites first": ([{**ROLE, "annotations": [PAGE]}, {"content": "it"}], "stop"),
    "is filtered": ([ROLE, {"content": "it"}], "content_filter"),
    "is cut": ([ROLE, {"content": "it"}], "length"),
    "is cut in a call": ([ROLE, call(0, **FIRST), call(0, arguments='{"ci')], "length"),
    "says nothing": ([ROLE], "stop"),
}  # fmt: skip


_UNORDERED = {"thinks, says, thinks", "says behind a call"}
UNLIKE = {"responses": {*_UNORDERED, "says and refuses"}, "messages": {*_UNORDERED, "is cut in a call"}}
"""Cases that a whole chat can't represent: the order of its parts, and incomplete arguments of a call."""


def gpt(live: bool, deltas: list[Json], finish: str) -> Any:
    """A chat upstream's answer, whole or streamed."""
    if live:
        return completion_events(*deltas, finish=finish)
    said: Json = {}
    for delta in deltas:
        for name, value in delta.items():
            if name == "tool_calls":
                (one,) = value
                calls = said.setdefault("tool_calls", [])
                if "id" in one:
                    calls.append({"id": one["id"], "type": "function", "function": dict(one["function"])})
                else:
                    calls[one["index"]]["function"]["arguments"] += one["function"]["arguments"]
            else:
                said[name] = (said.get(name) or "") + value if isinstance(value, str) and name != "role" else value
    return completion(finish, **{"refusal": None, **said})


@pytest.mark.parametrize(("surface", "live"), [pair for pair in PAIRS if pair[0] not in ("chat", "completions")])
async def test_what_a_chat_upstream_tells_is_as_the_types_have_it(tmp_path: Path, surface: str, live: bool) -> None:
    """A client of chat gets the upstream's bytes unchanged."""
    async with fixed(tmp_path, "openai", {}) as home:
        client = Strict(home.url)
        for case, (deltas, finish) in GPTS.items():
            home.answer = gpt(live, deltas, finish)
            ask = {"model": "m", **ASKS[surface], "tools": TOOLS[surface]}
            told = await client.ask(surface, ask, live=live)
            home.answer = gpt(not live, deltas, finish)
            other = await client.ask(surface, ask, live=not live)
            if case not in UNLIKE[surface]:
                assert shape(surface, told) == shape(surface, other), case
        await client.close()


def shape(surface: str, told: Json) -> Any:
    """The content of an answer, without ids and times."""
    if surface in ("chat", "completions"):
        said = [one.get("message") or {"content": one["text"]} for one in told["choices"]]
        said = [{name: value for name, value in one.items() if value and name != "role"} for one in said]
        for call in (call for one in said for call in one.get("tool_calls", ())):
            call.pop("index", None)
        return [said, [one["finish_reason"] for one in told["choices"]]]
    if surface == "messages":
        content = [{name: value for name, value in one.items() if value is not None} for one in told["content"]]
        return [content, told["stop_reason"]]
    items = [{name: value for name, value in item.items() if name != "id"} for item in told["output"]]
    return [items, told["status"], told["incomplete_details"], told["usage"]]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("surface", ASKS)
async def test_what_is_told_again_is_as_the_types_have_it(tmp_path: Path, surface: str, live: bool) -> None:
    """Replays from the cache conform, whether the answer came whole or as a stream."""
    routes = [{"name": "r", "models": ["m"], "cache": "exact", "cache_ttl_s": 60}]
    async with fixed(tmp_path, "anthropic", {}, routes=routes) as home:
        client = Strict(home.url)
        for case in ("thinks", "thinks and calls", "searches", "stops"):
            *blocks, how = CLAUDES[case]
            home.answer = claude(live, *blocks, **how)
            ask = {"model": "r", **ASKS[surface], "user" if surface != "messages" else "system": case}
            told = [await client.ask(surface, ask, live=way) for way in (live, live, not live)]
            assert shape(surface, told[0]) == shape(surface, told[1]) == shape(surface, told[2]), case
        await client.close()


CUSTOM: Json = {"type": "custom", "name": "weather", "description": "x"}


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kind", ["openai", "anthropic", "native", "azure", "local"])
async def test_a_conversation_is_as_the_types_have_it(strict: Strict, kind: str, live: bool) -> None:
    """A stored conversation is replayed and continued at another kind of provider, custom tools included."""
    before = ""
    turns: list[tuple[str, Json]] = [
        (f"{kind}/tools", {"tools": [CUSTOM, *RESPONSES_TOOLS[1:]]}),
        ("native/echo", {}), ("anthropic/says", {"tools": RESPONSES_TOOLS}), (f"{kind}/echo", {"include": LOGPROBS}),
    ]  # fmt: skip
    for model, more in turns:
        outputs: list[Json] = []
        if before:
            kept = await strict.get(f"/v1/responses/{before}", Response)
            outputs = [
                {"type": item["type"] + "_output", "call_id": item["call_id"], "output": "fine"}
                for item in kept["output"] if item["type"] in ("function_call", "custom_tool_call")
            ]
            more = {**more, "previous_response_id": before}
        ask = {"model": model, "input": [*outputs, {"role": "user", "content": "hello"}], "metadata": {"a": "b"},
               "truncation": "auto", "service_tier": "auto", **more}  # fmt: skip
        told = await strict.ask("responses", ask, live=live)
        assert told["previous_response_id"] == (before or None) and told["metadata"] == {"a": "b"}
        assert await strict.get(f"/v1/responses/{told['id']}", Response) == told
        assert await strict.again(told["id"]) == told
        before = told["id"]
        items = await strict.get(f"/v1/responses/{before}/input_items", ResponseItemList)
        assert items["object"] == "list"


async def test_other_pages_are_as_the_types_have_them(home: House, strict: Strict) -> None:
    sdk = home.sdk("openai")
    for one in (await strict.get("/v1/models", Page[Model]))["data"]:
        await strict.get(f"/v1/models/{one['id']}", Model)
    turn = {"role": "user", "content": "x"}
    conversation = (await sdk.do("conversations.create", items=[turn], metadata={"a": "b"})).id
    await strict.get(f"/v1/conversations/{conversation}", Conversation)
    await strict.ask("responses", {"model": "openai/echo", "input": "y", "conversation": conversation}, live=True)
    items = await strict.get(f"/v1/conversations/{conversation}/items", ConversationItemList)
    assert len(items["data"]) == 3
    for item in items["data"]:
        assert await strict.get(f"/v1/conversations/{conversation}/items/{item['id']}", ConversationItem) == item
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "openai/echo", "messages": TURNS}}  # fmt: skip
    file = (await sdk.do("files.create", file=("in.jsonl", json.dumps(line).encode()), purpose="batch")).id
    await strict.get(f"/v1/files/{file}", FileObject)
    await strict.get("/v1/files", Page[FileObject])
    batch = await sdk.do(
        "batches.create", input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
    )
    await strict.get(f"/v1/batches/{batch.id}", Batch)
    await strict.get("/v1/batches", Page[Batch])
    await strict.post("/v1/embeddings", {"model": "openai/echo", "input": ["a", "b"]}, CreateEmbeddingResponse)
    asked = {"model": "anthropic/echo", **ASKS["messages"]}
    await strict.post("/v1/messages/count_tokens", asked, MessageTokensCount)
    await strict.post("/v1/responses/input_tokens", {"model": "openai/echo", "input": "x"}, InputTokenCountResponse)


@pytest.mark.parametrize("kind", ["openai", "anthropic", "native"])
async def test_an_error_inside_a_stream_is_as_the_types_have_it(tmp_path: Path, kind: str) -> None:
    scripts = {"cut": [{"text": "one two three four five six", "fault": "cut", "after": 5}]}
    async with house(tmp_path, scripts, kinds=(kind,)) as home:
        strict = Strict(home.url)
        for surface in ASKS:
            events = await strict.broken(surface, {"model": f"{kind}/cut", **ASKS[surface]})
            last = events[-1]
            if surface == "responses":
                assert last["type"] == "response.failed" and last["response"]["error"]["message"]
                assert [one["sequence_number"] for one in events] == list(range(len(events)))
            else:
                assert last["error"]["message"] and last["error"]["type"]
        await strict.close()
