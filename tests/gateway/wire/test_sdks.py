"""The official clients parse the gateway's streams, which a transport of the test gives to them."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import anthropic
import httpx
import openai
import pytest

from gateway.errors import UpstreamError
from gateway.wire.relay import Relay
from gateway.wire.replay import replay
from tests.gateway.wire.streams import CHAT, CHAT_TEXT, MESSAGES, ROLE, TOOLS, chunk

URL = "http://gateway.test"


# Newer versions of Anthropic's SDK stand on httpx2 and refuse httpx's objects.
anthropic_http: Any = importlib.import_module("httpx2" if importlib.util.find_spec("httpx2") else "httpx")


def _served(stream: bytes, http: Any) -> Any:
    answer = http.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    return http.Client(transport=http.MockTransport(lambda request: answer))


def _openai(stream: bytes) -> openai.OpenAI:
    return openai.OpenAI(api_key="k", base_url=URL + "/v1", http_client=_served(stream, httpx), max_retries=0)


def _anthropic(stream: bytes) -> anthropic.Anthropic:
    client = _served(stream, anthropic_http)
    return anthropic.Anthropic(api_key="k", base_url=URL, http_client=client, max_retries=0)


def _relayed(stream: bytes, src: str, dst: str) -> bytes:
    it = Relay(src, dst, model="shown", request={}, include_usage=True)
    out = it.feed(stream)
    assert it.end() is None
    return out + it.tail()


@pytest.mark.parametrize(("src", "stream"), [("chat", CHAT), ("chat", TOOLS), ("messages", MESSAGES)])
def test_openai_chat_stream(src: str, stream: bytes) -> None:
    """The SDK's accumulator builds the completion, tools included."""
    seen = Relay(src, "chat", model="", request={})
    seen.feed(stream)
    client = _openai(_relayed(stream, src, "chat"))
    with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "hi"}]) as events:
        final = events.get_final_completion()
    message = final.choices[0].message
    assert (message.content or "") == seen.peek().text
    assert [call.function.arguments for call in message.tool_calls or ()] == seen.peek().tool_arguments
    assert final.usage is not None and final.usage.total_tokens == seen.usage.total


@pytest.mark.parametrize(("src", "stream"), [("chat", CHAT), ("chat", TOOLS), ("messages", MESSAGES)])
def test_openai_responses_stream(src: str, stream: bytes) -> None:
    """The deltas add up to the final response."""
    client = _openai(_relayed(stream, src, "responses"))
    text, final = "", None
    with client.responses.stream(model="m", input="hi") as events:
        for one in events:
            text += one.delta if one.type == "response.output_text.delta" else ""
        final = events.get_final_response()
    assert final.output_text == text
    assert final.status == "completed"


@pytest.mark.parametrize(("src", "stream"), [("chat", CHAT), ("chat", TOOLS), ("messages", MESSAGES)])
def test_anthropic_stream(src: str, stream: bytes) -> None:
    """The SDK's accumulator builds the message, tool inputs parsed."""
    client = _anthropic(_relayed(stream, src, "messages"))
    messages: list[anthropic.types.MessageParam] = [{"role": "user", "content": "hi"}]
    with client.messages.stream(model="m", max_tokens=9, messages=messages) as events:
        final = events.get_final_message()
    inputs = [block.input for block in final.content if block.type == "tool_use"]
    texts = [block.text for block in final.content if block.type == "text"]
    wanted = {CHAT: ([], [CHAT_TEXT]), TOOLS: ([{"city": "Bern"}, {"zone": "CET"}], []),
              MESSAGES: ([{"city": "Bern"}, {}], ["Hello wörld"])}  # fmt: skip
    assert (inputs, texts) == wanted[stream]
    assert final.usage.output_tokens > 0


def test_a_fault_raises_in_the_sdks() -> None:
    """A cut stream raises an exception, and never looks like a short answer."""
    exc = UpstreamError("stream_cut", "the stream was cut")
    it = Relay("chat", "chat", model="m", request={})
    cut = it.feed(ROLE + chunk({"content": "x"})) + (it.error(exc) or b"")
    with pytest.raises(openai.APIError, match="the stream was cut"):
        list(_openai(cut).chat.completions.create(model="m", messages=[], stream=True))
    it = Relay("chat", "messages", model="m", request={})
    cut = it.feed(ROLE + chunk({"content": "x"})) + (it.error(exc) or b"")
    with pytest.raises(anthropic.APIStatusError, match="the stream was cut"):
        list(_anthropic(cut).messages.create(model="m", max_tokens=9, messages=[], stream=True))


def test_a_replay_streams_in_the_sdk() -> None:
    """A cached answer is indistinguishable from a live one."""
    it = Relay("chat", "chat", model="", request={}, collect=True)
    it.feed(TOOLS)
    client = _openai(replay(it.answer(), "chat", include_usage=True))
    with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "hi"}]) as events:
        calls = events.get_final_completion().choices[0].message.tool_calls
    assert [call.function.name for call in calls or ()] == ["weather", "time"]
