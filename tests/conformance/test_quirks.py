"""Servers that deviate from an API: what the official client gets, and what is billed and recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.journal.record import DecisionRecord
from tests.conformance.fixed import (
    Fixed,
    Json,
    completion,
    completion_events,
    fixed,
    message,
    message_events,
    streamed,
)
from tests.conformance.test_surfaces import TURNS
from tests.faults.stage import decisions

TEXT: Json = {"type": "text", "text": "hi"}
SAID = (TEXT | {"text": ""}, [{"type": "text_delta", "text": "hi"}])
CALL: Json = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"a":1}'}}
KEEPS: dict[str, Any] = {"routes": [{"name": "r", "models": ["m"], "store_text": True, "retries": 0}]}


async def small_answer(home: Fixed, surface: str, stream: bool) -> Any:
    """The answer to a small request, streamed or not, parsed by the official client."""
    if surface == "messages":
        body: Json = {"model": "r", "max_tokens": 99, "messages": TURNS}
        sdk = home.sdk("anthropic")
        return (await sdk.helped("messages.stream", "get_final_message", **body))[1] if stream else await sdk.do(
            "messages.create", **body
        )  # fmt: skip
    sdk = home.sdk("openai")
    if surface == "responses":
        return await sdk.responded(stream, model="r", input="x")
    if stream:
        return (await sdk.helped("chat.completions.stream", "get_final_completion", model="r", messages=TURNS))[1]
    return await sdk.do("chat.completions.create", model="r", messages=TURNS)


def recorded(home: Fixed) -> list[DecisionRecord]:
    assert home.gateway is not None
    return decisions(home.gateway)


def text_of(answer: Any) -> str:
    if hasattr(answer, "choices"):
        return str(answer.choices[0].message.content)
    if hasattr(answer, "output_text"):
        return str(answer.output_text)
    return "".join(block.text for block in answer.content if block.type == "text")


@pytest.mark.parametrize("surface", ["chat", "messages", "responses"])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_a_stream_for_an_answer_and_the_reverse(tmp_path: Path, kind: str, surface: str) -> None:
    """A server that never streams, or always does, is served, and billed by the usage that it reports."""
    ours = kind == "openai"
    whole = completion(content="hi") if ours else message(TEXT)
    events = completion_events({"content": "hi"}) if ours else message_events(SAID)
    async with fixed(tmp_path, kind, whole, {"output_usd_per_mtok": 1.0, "input_usd_per_mtok": 1.0}, **KEEPS) as home:
        for stream in (True, False):
            home.answer = b"\n\n" + json.dumps(whole).encode() if stream else streamed(events)
            assert text_of(await small_answer(home, surface, stream)) == "hi"
        found = [(record.error, record.answer_text, record.cost_nanousd) for record in recorded(home)]
        assert found == [("", "hi", 8000)] * 2


async def test_an_error_told_without_a_status(tmp_path: Path) -> None:
    """A 429 inside a 200, streamed or not, is treated as one: nothing is billed, and other models may be tried."""
    said = {"error": {"message": "slow down", "code": 429}}
    async with fixed(tmp_path, "openai", said, **KEEPS) as home:
        for stream in (True, False):
            with pytest.raises(openai.RateLimitError, match="slow down"):
                await small_answer(home, "chat", stream)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("surface", ["chat", "messages", "responses"])
async def test_json_of_a_lenient_server(tmp_path: Path, surface: str, stream: bool) -> None:
    """A byte order mark, NaN and half a surrogate pair are read as other clients read them, and sent as JSON."""
    said = completion_events({"content": "hi HALF"}) if stream else completion(content="hi HALF", score="NAN")
    if isinstance(said, list):
        said[0]["score"] = "NAN"
    body = streamed(said) if isinstance(said, list) else json.dumps(said).encode()
    body = b"\xef\xbb\xbf" + body.replace(b"HALF", b"\\ud83d").replace(b'"NAN"', b"NaN")
    async with fixed(tmp_path, "openai", body, **KEEPS) as home:
        assert text_of(await small_answer(home, surface, stream)) == "hi ?"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_in_parts(tmp_path: Path, stream: bool) -> None:
    """Mistral's text and thoughts reach the other APIs, and may be sent to another provider in the next turn."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    deltas: list[Json] = [{"content": [thought]}, {"content": "h"}, {"content": [{"type": "text", "text": "i"}]}]
    said = completion_events(*deltas) if stream else completion(content=[thought, TEXT])
    async with fixed(tmp_path, "openai", said, **KEEPS) as home:
        answer = await small_answer(home, "messages", stream)
        assert [block.type for block in answer.content] == ["thinking", "text"]
        assert (answer.content[0].thinking, text_of(answer)) == ("hm", "hi")
        response = await small_answer(home, "responses", stream)
        assert ([item.type for item in response.output], response.output_text) == (["reasoning", "message"], "hi")
        assert (recorded(home)[0]).answer_text == "hi"
    async with fixed(tmp_path / "next", "anthropic", message(TEXT)) as home:
        turns = [*TURNS, {"role": "assistant", "content": [thought, TEXT]}, *TURNS]
        await home.sdk("openai").do("chat.completions.create", model="m", messages=turns)
        assert home.asked["messages"][1]["content"] == [TEXT]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_in_the_choice_is_an_error(tmp_path: Path, stream: bool) -> None:
    """A provider's failure that OpenRouter reports in the choice is an error for every client."""
    failed = {"index": 0, "finish_reason": "error", "error": {"code": 502, "message": "it died"}}
    said: Any = completion(content="hi")
    if stream:
        said = completion_events({"content": "hi"})
        said[1]["choices"] = [{**failed, "delta": {"content": ""}}]
    else:
        said["choices"] = [{**failed, "message": {"role": "assistant", "content": "hi"}}]
    async with fixed(tmp_path, "openai", said, **KEEPS) as home:
        with pytest.raises(openai.InternalServerError, match="it died"):
            await small_answer(home, "chat", stream)
        assert (recorded(home)[0]).error == "server_error"


async def test_nulls_beside_a_call(tmp_path: Path) -> None:
    """`tool_calls: null` in a stream's first chunk, as SGLang sends it, doesn't prevent recording the answer."""
    call = {"index": 0, **CALL}
    pieces: list[Json] = [{"content": "", "tool_calls": None}, {"tool_calls": [call]}, {"tool_calls": None}]
    async with fixed(tmp_path, "openai", completion_events(*pieces, finish="eos"), **KEEPS) as home:
        answer = await small_answer(home, "messages", True)
        assert (answer.content[0].input, answer.stop_reason) == ({"a": 1}, "tool_use")
        assert (recorded(home)[0]).error == ""


@pytest.mark.parametrize("stream", [False, True])
async def test_nulls_of_an_anthropic_server(tmp_path: Path, stream: bool) -> None:
    """Null fields don't fail an answer."""
    whole = message(TEXT, id=None, model=None)
    events = message_events(SAID)
    events[-2] |= {"index": None, "message": None}
    for surface in ("chat", "responses"):
        async with fixed(tmp_path / surface, "anthropic", events if stream else whole, **KEEPS) as home:
            assert text_of(await small_answer(home, surface, stream)) == "hi"
    if not stream:
        async with fixed(tmp_path / "bare", "anthropic", message(content="hi"), **KEEPS) as home:
            assert text_of(await small_answer(home, "chat", stream)) == "hi"


async def test_a_stream_that_tells_no_usage_at_its_end(tmp_path: Path) -> None:
    """Usage from the start of a stream doesn't include the output, which is then estimated."""
    events = message_events((SAID[0], [{"type": "text_delta", "text": "x" * 400}]))
    del events[-2]["usage"]
    async with fixed(tmp_path, "anthropic", events, {"output_usd_per_mtok": 1.0}, **KEEPS) as home:
        await small_answer(home, "chat", True)
        record = recorded(home)[0]
        assert (record.attempts[0].estimated, record.cost_nanousd) == (True, 105_000)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_the_record_can_not_read(tmp_path: Path, stream: bool) -> None:
    """It is recorded and settled, and nothing more is sent to the client."""
    odd = {"id": "c1", "type": "function", "function": {"name": 5, "arguments": "{}"}}
    said = completion_events({"tool_calls": [odd]}) if stream else completion(tool_calls=[odd])
    async with fixed(tmp_path, "openai", said, **KEEPS) as home:
        answer = await small_answer(home, "messages", stream)
        assert answer.content[0].type == "tool_use"
        assert (recorded(home)[0]).status == 200


async def test_a_stream_that_can_not_be_put_together(tmp_path: Path) -> None:
    """The client gets the whole stream; only the record lacks its text."""
    said = completion_events({"tool_calls": [5]}, {"content": "hi"})
    async with fixed(tmp_path, "openai", said, **KEEPS) as home:
        assert text_of(await small_answer(home, "messages", True)) == "hi"
        assert [(record.status, record.error, record.answer_text) for record in recorded(home)] == [(200, "", "")]
