"""Whole answers: read, stripped of logprobs, translated and replayed."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from gateway.errors import UpstreamError
from gateway.wire.answer import strip_logprobs, translate_answer, with_text
from gateway.wire.peek import peek
from gateway.wire.relay import Relay
from gateway.wire.replay import replay
from tests.gateway.wire.streams import USAGE, parsed, payloads

Json = dict[str, Any]
LOGPROBS: Json = {
    "content": [
        {"token": "a", "logprob": -0.1, "bytes": None, "top_logprobs": []},
        {"token": "b", "logprob": -0.5, "bytes": None, "top_logprobs": []},
    ],
    "refusal": None,
}
CALL = {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}}


def chat(finish: str = "stop", **message: Any) -> Json:
    whole = {"role": "assistant", "content": None, "refusal": None, **message}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1694268190,
        "model": "up-1",
        "usage": USAGE,
        "choices": [{"index": 0, "message": whole, "logprobs": None, "finish_reason": finish}],
    }


CHAT = chat(content="Grüß Gott")
TOOLS = chat("tool_calls", tool_calls=[CALL, CALL | {"id": "call_b"}])
THOUGHT = chat(content="yes", reasoning_content="Hm.")
REFUSAL = chat(refusal="I can't.")
LONG = chat("length", content="and so")
MESSAGE: Json = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-1",
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "sig=="},
        {"type": "text", "text": "Hello"},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 25,
        "cache_read_input_tokens": 100,
        "cache_creation_input_tokens": 0,
        "output_tokens": 42,
    },
}
COMPLETION: Json = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": "up-1",
    "usage": USAGE,
    "choices": [{"index": 0, "text": "Once", "logprobs": None, "finish_reason": "stop"}],
}
KINDS: Json = {"chat": ChatCompletion, "completions": Completion, "messages": Message, "responses": Response}
ANSWERS = [("chat", body) for body in (CHAT, TOOLS, THOUGHT, REFUSAL, LONG)] + [("messages", MESSAGE)]
CASES = [(src, dst, body) for src, body in ANSWERS for dst in KINDS]


def put(body: Json, src: str, dst: str, **options: Any) -> bytes:
    return translate_answer(json.dumps(body).encode(), src, dst, model="shown", request={}, **options)


@pytest.mark.parametrize(("src", "dst", "body"), CASES)
def test_translated_answers_are_the_sdks_types(src: str, dst: str, body: Json) -> None:
    """A translated answer parses as the SDK's type, with the original's text, usage and calls."""
    out = put(body, src, dst)
    KINDS[dst].model_validate_json(out)
    before, after = peek(json.dumps(body).encode(), src), peek(out, dst)
    assert after.usage.total == before.usage.total
    assert before.text == after.text or body == REFUSAL
    if dst != "completions":
        assert after.tool_names == before.tool_names
        assert list(map(json.loads, after.tool_arguments)) == list(map(json.loads, before.tool_arguments))
        assert after.finish_reason == before.finish_reason or body == REFUSAL
    if src != dst:
        assert after.model == "shown"


def test_the_same_dialect_keeps_its_bytes() -> None:
    """Between equal dialects an answer keeps its bytes, white space and unknown fields included."""
    body = json.dumps({**CHAT, "x_new": 1}, indent=2).encode()
    assert translate_answer(body, "chat", "chat", model="shown", request={}) == body


def test_peek_reads_evidence() -> None:
    """`peek` reads log-probabilities, refusals and tools without rewriting the answer."""
    body = chat(content="ab")
    body["choices"][0]["logprobs"] = LOGPROBS
    seen = peek(json.dumps(body).encode(), "chat")
    assert (seen.logprobs.count, seen.logprobs.min, seen.text) == (2, -0.5, "ab")
    assert seen.logprobs.mean == pytest.approx(-0.3)
    assert seen.usage.cache_read_tokens == 8
    assert peek(json.dumps(REFUSAL).encode(), "chat").refusal == "I can't."
    call = {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c", "name": "patch", "input": "+ a"}
    answer = {"id": "resp_1", "object": "response", "model": "m", "status": "completed", "output": [call]}
    own = peek(json.dumps(answer).encode(), "responses")
    assert (own.tool_names, own.tool_arguments, own.finish_reason) == (["patch"], [""], "tool_calls")
    assert peek(json.dumps(TOOLS).encode(), "chat").tool_names == ["weather", "weather"]


def test_strip_logprobs() -> None:
    """Log-probabilities become null, and nothing else changes."""
    body = chat(content="ab")
    body["choices"][0]["logprobs"] = LOGPROBS
    raw = json.dumps(body).encode()
    assert json.loads(strip_logprobs(raw)) == chat(content="ab")
    assert json.loads(put(body, "chat", "chat", strip=True))["choices"][0]["logprobs"] is None


def test_responses_echo_the_request() -> None:
    """A response has the request's settings as they were sent, and defaults for null ones."""
    request = {
        "instructions": msgspec.Raw(b'"S"'),
        "tools": msgspec.Raw(b"null"),
        "metadata": msgspec.Raw(b'{"a":"b"}'),
    }
    out = translate_answer(json.dumps(CHAT).encode(), "chat", "responses", model="shown", request=request)
    response = Response.model_validate_json(out)
    assert (response.instructions, response.tools, response.metadata) == ("S", [], {"a": "b"})


def test_arguments_that_are_no_json_survive() -> None:
    """A model's invalid arguments reach an Anthropic client unchanged, in `_raw`."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"city": Ber'}}
    [block] = json.loads(put(chat("tool_calls", tool_calls=[call]), "chat", "messages"))["content"]
    assert block["input"] == {"_raw": '{"city": Ber'}


@pytest.mark.parametrize("dialect", list(KINDS))
@given(
    junk=st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [
                b"{}",
                b'{"choices":[{}]}',
                b'{"choices":[1]}',
                b'{"content":1}',
                b'{"output":[{"type":"message","content":3}]}',
                b'{"type":"message","content":[{}]}',
            ]
        ),
    )
)
def test_junk_is_a_bad_response(dialect: str, junk: bytes) -> None:
    """An unreadable answer raises `bad_response` in every function."""
    for act in (
        lambda: peek(junk, dialect),
        lambda: translate_answer(
            junk, "messages" if dialect == "chat" else "chat", dialect, model="", request={}
        ),
        lambda: replay(junk, dialect),
        lambda: translate_answer(junk, "chat", "chat", model="", request={}, strip=True),
    ):
        try:
            act()
        except UpstreamError as error:
            assert error.failure == "bad_response"


REPLAYED = [("chat", body) for body in (CHAT, TOOLS, THOUGHT, REFUSAL, LONG)]
REPLAYED += [("messages", MESSAGE), ("completions", COMPLETION)]
REPLAYED += [
    ("responses", json.loads(put(body, "chat", "responses")))
    for body in (CHAT, TOOLS, THOUGHT, REFUSAL, LONG)
]


@pytest.mark.parametrize(("surface", "body"), REPLAYED)
def test_a_replayed_answer_is_a_valid_stream(surface: str, body: Json) -> None:
    """Each event of a replay parses as the SDK's type."""
    assert parsed(replay(json.dumps(body).encode(), surface, include_usage=True), surface)


@pytest.mark.parametrize(("surface", "body"), [case for case in REPLAYED if case[0] != "responses"])
def test_a_replayed_answer_collects_to_itself(surface: str, body: Json) -> None:
    """Assembling a replayed answer gives the answer again."""
    it = Relay(surface, surface, model="", request={}, include_usage=True, collect=True)
    it.feed(replay(json.dumps(body).encode(), surface, include_usage=True))
    assert it.end() is None
    assert json.loads(it.answer()) == body


def test_a_replayed_response_ends_with_itself() -> None:
    """The last event of a replayed response holds the response with its stored ids."""
    for surface, body in REPLAYED:
        if surface == "responses":
            events = payloads(replay(json.dumps(body).encode(), "responses"))
            assert events[-1]["response"] == body
            assert [one["sequence_number"] for one in events] == list(range(len(events)))


def test_usage_is_replayed_only_when_asked_for() -> None:
    """A replay has a usage chunk only where the client requested it, as a live stream does."""
    events = payloads(replay(json.dumps(CHAT).encode(), "chat"))
    assert all("usage" not in one for one in events)
    assert payloads(replay(json.dumps(CHAT).encode(), "chat", include_usage=True))[-1]["usage"] == USAGE


@pytest.mark.parametrize("dialect", ["chat", "messages", "responses"])
def test_another_text_cites_nothing(dialect: str) -> None:
    """A text that a cascade puts in the place of another doesn't keep the other's citations."""
    page = {"start_index": 0, "end_index": 4, "title": "Greetings", "url": "https://example.com"}
    body = json.dumps(chat(content="Grüß Gott", annotations=[{"type": "url_citation", "url_citation": page}])).encode()
    told = body if dialect == "chat" else translate_answer(body, "chat", dialect, model="m", request={})
    assert b"example.com" in told
    other = with_text(told, dialect, "Guten Tag")
    assert peek(other, dialect).text == "Guten Tag" and b"example.com" not in other
