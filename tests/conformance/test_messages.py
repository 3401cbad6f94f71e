"""Anthropic's Messages API with its own client, on Anthropic's kind of provider and on OpenAI's."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest
from pydantic import BaseModel

from tests.conformance.clients import MODES
from tests.conformance.house import House
from tests.conformance.test_chat import PIXEL
from tests.conformance.test_surfaces import MESSAGES_TOOLS, TURNS

KINDS = ("anthropic", "openai")


class Trip(BaseModel):
    city: str
    days: int


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
async def test_stream_events(home: House, kind: str, mode: str) -> None:
    """The helper's text and tool events add up to the final message."""
    events, final = await home.sdk("anthropic", mode).helped(
        "messages.stream", "get_final_message", model=f"{kind}/says", max_tokens=99, messages=TURNS,
        tools=MESSAGES_TOOLS,
    )  # fmt: skip
    assert "".join(event.text for event in events if event.type == "text") == "Let me look."
    partial = "".join(event.partial_json for event in events if event.type == "input_json")
    assert [block.type for block in final.content] == ["text", "tool_use"]
    assert json.loads(partial) == final.content[1].input == {"city": "Bern", "days": 2}
    assert final.stop_reason == "tool_use" and final.usage.output_tokens > 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
async def test_tool_loop(home: House, kind: str, mode: str) -> None:
    """A conversation with tool calls and results continues as the SDK stores it."""
    sdk = home.sdk("anthropic", mode)
    body: dict[str, Any] = {"max_tokens": 99, "tools": MESSAGES_TOOLS, "tool_choice": {"type": "auto"}}
    first = await sdk.do("messages.create", model=f"{kind}/tools", messages=TURNS, **body)
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": block.name} for block in first.content]
    turns = [*TURNS, {"role": "assistant", "content": first.content},
             {"role": "user", "content": [*results, {"type": "text", "text": "well?"}]}]  # fmt: skip
    last = await sdk.do("messages.create", model=f"{kind}/echo", messages=turns, **body)
    sent = json.loads(home.last["body"])["messages"]
    ids = [block.id for block in first.content]
    if kind == "openai":
        assert [turn["role"] for turn in sent] == ["user", "assistant", "tool", "tool", "user"]
        assert [call["id"] for call in sent[1]["tool_calls"]] == ids
    else:
        assert [block["id"] for block in sent[1]["content"]] == ids
    assert last.content[0].text == "well?"


@pytest.mark.parametrize("kind", KINDS)
async def test_image_and_system(home: House, kind: str) -> None:
    """Images and system blocks reach both dialects."""
    source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "what is this?"}]
    system = [{"type": "text", "text": "be brief"}, {"type": "text", "text": "be kind"}]
    answer = await home.sdk("anthropic").do(
        "messages.create", model=f"{kind}/echo", max_tokens=99, system=system,
        messages=[{"role": "user", "content": content}],
    )  # fmt: skip
    sent = json.loads(home.last["body"])
    assert answer.content[0].text == "what is this?"
    if kind == "anthropic":
        assert sent["system"] == system and sent["messages"][0]["content"] == content
    else:
        assert sent["messages"][0] == {"role": "system", "content": "be brief\n\nbe kind"}
        assert sent["messages"][1]["content"][0]["image_url"]["url"] == f"data:image/png;base64,{PIXEL}"


@pytest.mark.parametrize("mode", MODES)
async def test_count_tokens(home: House, mode: str) -> None:
    """The provider counts if it can, and gets the beta header; else the gateway estimates without asking it."""
    sdk = home.sdk("anthropic", mode)
    counted = await sdk.do("messages.count_tokens", model="anthropic/echo", messages=TURNS, system="be brief",
                           extra_headers={"anthropic-beta": "count-1"})  # fmt: skip
    assert counted.input_tokens == 8 and home.last["path"].endswith("/messages/count_tokens")
    assert json.loads(home.last["body"])["model"] == "echo"
    assert home.last["headers"]["anthropic-beta"] == "count-1"
    ours = {"headgate": {"cost_weight": 0.5}}
    await sdk.do("messages.count_tokens", model="anthropic/echo", messages=TURNS, extra_body=ours)
    assert "headgate" not in home.last["body"]
    before = home.requests
    estimated = await sdk.do("messages.count_tokens", model="openai/echo", messages=TURNS)
    assert estimated.input_tokens > 0 and home.requests == before
    with pytest.raises(anthropic.NotFoundError):
        await sdk.do("messages.count_tokens", model="nope", messages=TURNS)


async def test_bytes_between_equal_dialects(home: House) -> None:
    """Cache hints and signed thinking blocks are passed on byte for byte."""
    body = (
        b'{"model":"anthropic/echo", "max_tokens": 50, "thinking": {"type":"enabled","budget_tokens":1024},\n'
        b' "system":[{"type":"text","text":"s","cache_control":{"type":"ephemeral","ttl":"1h"}}],'
        b' "messages":[{"role":"user","content":"hi"},{"role":"assistant","content":[{"type":"thinking",'
        b'"thinking":"h\\u00e9","signature":"RXUr/+=="},{"type":"redacted_thinking","data":"x"},'
        b'{"type":"text","text":"a", "cache_control": {"type":"ephemeral"}}]},{"role":"user","content":"b"}]}'
    )
    async with httpx.AsyncClient() as client:
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "b-1,b-2", "x-api-key": "k"}
        answer = await client.post(home.url + "/v1/messages", content=body, headers=headers)
    assert answer.status_code == 200
    sent, given = home.last["body"], body.decode()
    for name in ("thinking", "system", "messages"):
        value = given[given.index(f'"{name}"') + len(name) + 3 :].lstrip()
        size = json.JSONDecoder().raw_decode(value)[1]
        assert value[:size] in sent, name
    assert home.last["headers"]["anthropic-beta"] == "b-1,b-2"
    assert home.last["headers"]["x-api-key"] == "sk-upstream-secret"


async def test_thinking_does_not_hinder_another_dialect(home: House) -> None:
    """A conversation with thinking blocks continues at a provider without them."""
    turns = [*TURNS, {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"}, {"type": "text", "text": "ah"}]},
        {"role": "user", "content": "so?"}]  # fmt: skip
    await home.sdk("anthropic").do(
        "messages.create", model="openai/echo", max_tokens=5000, messages=turns,
        thinking={"type": "enabled", "budget_tokens": 1024},
    )  # fmt: skip
    sent = json.loads(home.last["body"])
    assert [turn["content"] for turn in sent["messages"]] == [TURNS[0]["content"], "ah", "so?"]
    assert sent["reasoning_effort"] == "low"


@pytest.mark.parametrize("kind", KINDS)
async def test_structured_output(home: House, kind: str) -> None:
    """`messages.parse` returns an object of the given class."""
    answer = await home.sdk("anthropic").do(
        "messages.parse", model=f"{kind}/echo", max_tokens=99, messages=TURNS, output_format=Trip
    )
    assert answer.parsed_output == Trip(city="text", days=0)


@pytest.mark.parametrize("kind", KINDS)
async def test_stop_sequence_and_forced_tool(home: House, kind: str) -> None:
    """Stop sequences and a forced tool reach both dialects."""
    sdk = home.sdk("anthropic")
    body: dict[str, Any] = {"max_tokens": 99, "messages": TURNS}
    answer = await sdk.do("messages.create", model=f"{kind}/long", stop_sequences=["three"], **body)
    assert answer.content[0].text.strip() == "one two"
    answer = await sdk.do("messages.create", model=f"{kind}/echo", tools=MESSAGES_TOOLS,
                          tool_choice={"type": "tool", "name": "time"}, **body)  # fmt: skip
    assert [(block.type, block.name) for block in answer.content] == [("tool_use", "time")]


async def test_bearer_and_request_id(home: House) -> None:
    """A bearer token is accepted, and `_request_id` is the header's value."""
    sdk = home.sdk("anthropic", api_key=None, auth_token="t")
    answer = await sdk.do("messages.with_raw_response.create", model="anthropic/echo", max_tokens=9, messages=TURNS)
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == answer.request_id
    counted = await sdk.do("messages.count_tokens", model="anthropic/echo", messages=TURNS)
    assert counted._request_id.startswith("req") and (await sdk.do("models.retrieve", "openai/echo"))._request_id
