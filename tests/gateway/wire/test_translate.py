"""Requests translated from one dialect into another, checked against the SDKs' parameter types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic.types import MessageCreateParams
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import CompletionCreateParams
from pydantic import TypeAdapter

from gateway.errors import CallerError
from gateway.wire.request import decode, encode, responses_input, translate_request
from gateway.wire.responses import input_items
from tests.gateway.wire.test_request import fields, junk

Json = dict[str, Any]
_CHAT: TypeAdapter[Any] = TypeAdapter(CompletionCreateParams)
_MESSAGES: TypeAdapter[Any] = TypeAdapter(MessageCreateParams)
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def put(body: Json, src: str, dst: str) -> Json:
    out: Json = json.loads(encode(translate_request(decode(json.dumps(body).encode()), src, dst)))
    _consume((_CHAT if dst == "chat" else _MESSAGES).validate_python(out))
    return out


def _consume(value: Any) -> None:
    """Validate what pydantic leaves lazy."""
    if isinstance(value, dict):
        for item in value.values():
            _consume(item)
    elif isinstance(value, list | Iterator) or type(value).__name__ == "ValidatorIterator":
        for item in value:
            _consume(item)


def chat(**more: Any) -> Json:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}


def test_the_same_dialect_is_the_same_object() -> None:
    """Between equal dialects the request is the same object, so unknown fields are passed on."""
    raw = decode(b'{"model":"m","x":1}')
    assert translate_request(raw, "chat", "chat") is raw


def test_chat_conversation_to_messages() -> None:
    """System goes to the top, tool results become blocks of one user turn."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    out = put(
        chat(
            messages=[
                {"role": "system", "content": "A"},
                {"role": "developer", "content": [{"type": "text", "text": "B"}]},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "", "tool_calls": [call, call | {"id": "c2"}]},
                {"role": "tool", "tool_call_id": "c1", "content": "r1"},
                {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "r2"}]},
                {"role": "user", "content": "so?"},
            ]
        ),
        "chat",
        "messages",
    )
    assert out["system"] == "A\n\nB"
    assert [turn["role"] for turn in out["messages"]] == ["user", "assistant", "user"]
    assert out["messages"][1]["content"][0] == {
        "type": "tool_use",
        "id": "c1",
        "name": "f",
        "input": {"a": 1},
    }
    assert [block["type"] for block in out["messages"][2]["content"]] == [
        "tool_result",
        "tool_result",
        "text",
    ]
    assert out["max_tokens"] == 4096


def test_images_to_messages_and_back() -> None:
    """URLs stay URLs, data URLs become base64 sources."""
    parts = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    out = put(chat(messages=[{"role": "user", "content": parts}]), "chat", "messages")
    assert [block.get("source") for block in out["messages"][0]["content"]] == [
        None,
        {"type": "url", "url": "https://x.test/a.png"},
        {"type": "base64", "media_type": "image/png", "data": "AAAA"},
    ]
    assert put(out, "messages", "chat")["messages"][0]["content"] == parts


@pytest.mark.parametrize(
    ("choice", "parallel", "wanted"),
    [
        ("auto", None, {"type": "auto"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ("none", False, {"type": "none"}),
        ({"type": "function", "function": {"name": "f"}}, None, {"type": "tool", "name": "f"}),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (None, None, None),
    ],
)
def test_tool_choice_there_and_back(choice: Any, parallel: bool | None, wanted: Json | None) -> None:
    """Every `tool_choice` has a counterpart in the other dialect."""
    body = chat(tools=[TOOL], tool_choice=choice, parallel_tool_calls=parallel)
    out = put({name: value for name, value in body.items() if value is not None}, "chat", "messages")
    assert out.get("tool_choice") == wanted
    assert out["tools"] == [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
    back = put(out, "messages", "chat")
    assert back["tools"] == [TOOL]
    if choice is not None:
        assert back["tool_choice"] == choice


@pytest.mark.parametrize("told", [[], [{"role": "system", "content": "Be brief."}]])
def test_a_json_object_is_asked_for_in_words(told: list[Json]) -> None:
    """Anthropic's API can only enforce a schema; without one an instruction follows the system text."""
    asked = chat(response_format={"type": "json_object"}) | {"messages": [*told, {"role": "user", "content": "hi"}]}
    out = put(asked, "chat", "messages")
    *before, last = out["system"].split("\n\n")
    assert (before, last) == ([part["content"] for part in told], "Answer with one JSON object and nothing else.")
    assert [turn["role"] for turn in out["messages"]] == ["user"]


def test_structured_output_there_and_back() -> None:
    """json_schema is output_config.format there, and text.format in Responses."""
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    out = put(chat(response_format=wanted), "chat", "messages")
    assert out["output_config"] == {"format": {"type": "json_schema", "schema": schema}}
    assert put(out, "messages", "chat")["response_format"] == wanted
    text = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}
    assert put({"model": "m", "input": "hi", "text": text}, "responses", "chat")["response_format"] == wanted


def test_effort_limits_stop_and_user() -> None:
    """Effort, limits, stop sequences and the user are translated into the other API's fields."""
    body = chat(
        reasoning_effort="high", max_tokens=5, max_completion_tokens=7, stop="x", user="u", stream=True
    )
    out = put(body, "chat", "messages")
    assert out["output_config"] == {"effort": "high"}
    assert (out["max_tokens"], out["stop_sequences"], out["metadata"]) == (7, ["x"], {"user_id": "u"})
    back = put(out, "messages", "chat")
    assert (back["reasoning_effort"], back["max_completion_tokens"], back["stop"]) == ("high", 7, ["x"])
    assert (back["user"], back["stream"]) == ("u", True)


def test_thinking_budget_becomes_effort() -> None:
    """A thinking budget becomes the nearest of three efforts."""
    body = {"model": "m", "max_tokens": 9000, "messages": [{"role": "user", "content": "hi"}]}
    thinking = {"type": "enabled", "budget_tokens": 8000}
    assert put({**body, "thinking": thinking}, "messages", "chat")["reasoning_effort"] == "medium"
    off = {**body, "thinking": {"type": "disabled"}, "output_config": {"effort": "low"}}
    assert "reasoning_effort" not in put(off, "messages", "chat")


def test_anthropic_turns_to_chat() -> None:
    """Tool results come before the user's text, and thinking is left out."""
    out = put(
        {
            "model": "m",
            "max_tokens": 5,
            "system": [{"type": "text", "text": "S"}],
            "messages": [
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": "s"},
                        {"type": "text", "text": "calling"},
                        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "and?"},
                        {
                            "type": "tool_result",
                            "tool_use_id": "t1",
                            "content": [
                                {"type": "text", "text": "r"},
                                {"type": "image", "source": {"type": "url", "url": "https://x.test/a.png"}},
                            ],
                        },
                    ],
                },
            ],
        },
        "messages",
        "chat",
    )
    assert [message["role"] for message in out["messages"]] == ["system", "user", "assistant", "tool", "user"]
    assert out["messages"][2]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}
    assert out["messages"][2]["content"] == "calling"
    assert [part["type"] for part in out["messages"][4]["content"]] == ["text", "image_url"]


def test_responses_items_to_chat_and_messages() -> None:
    """Calls join the assistant's turn, outputs become tool messages, reasoning is left out."""
    body = {
        "model": "m",
        "instructions": "S",
        "max_output_tokens": 9,
        "reasoning": {"effort": "low"},
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
        "tool_choice": {"type": "function", "name": "f"},
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "hi"},
                    {"type": "input_image", "image_url": "https://x.test/a", "detail": "low"},
                ],
            },
            {"type": "reasoning", "id": "rs", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "r1"},
            {"type": "function_call_output", "call_id": "c2", "output": "r2"},
        ],
    }
    out = put(body, "responses", "chat")
    assert [message["role"] for message in out["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    assert [call["id"] for call in out["messages"][2]["tool_calls"]] == ["c1", "c2"]
    assert (out["max_completion_tokens"], out["reasoning_effort"]) == (9, "low")
    assert out["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert len(put(body, "responses", "messages")["messages"]) == 3


def test_audio_and_cache_hints_of_responses_reach_a_chat_model() -> None:
    """Chat has the same fields for both; a model of Anthropic's API refuses audio by its name."""
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    hints = {"prompt_cache_key": "k", "prompt_cache_options": {"mode": "explicit"}}
    asked = {"model": "m", "input": [{"role": "user", "content": [sound]}], **hints}
    raw = decode(json.dumps(asked).encode())
    chat = json.loads(encode(translate_request(raw, "responses", "chat")))
    assert chat["messages"] == [{"role": "user", "content": [sound]}]
    assert chat["prompt_cache_options"] == {"mode": "explicit"}
    with pytest.raises(CallerError):
        translate_request(raw, "responses", "messages")


def test_earlier_turns_come_first() -> None:
    """The items of earlier turns come before this turn's input."""
    first = decode(b'{"model":"m","input":"one"}')
    answer = {
        "output": [
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "1"}]}
        ]
    }
    stored = [*input_items(first), *answer["output"]]
    second = responses_input(stored, decode(b'{"model":"m","input":"two","previous_response_id":"resp_1"}'))
    out = json.loads(encode(translate_request(second, "responses", "chat")))
    assert [(message["role"]) for message in out["messages"]] == ["user", "assistant", "user"]
    assert out["messages"][1]["content"] == "1"


def test_completions_to_chat() -> None:
    """One prompt is one user message."""
    out = put({"model": "m", "prompt": "hi", "max_tokens": 3, "stop": ["x"]}, "completions", "chat")
    assert out["messages"] == [{"role": "user", "content": "hi"}]
    assert (out["max_tokens"], out["stop"]) == (3, ["x"])


AUDIO = [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]
REFUSED = [
    ("chat", "messages", chat(n=2), "n"),
    ("chat", "messages", chat(logit_bias={"1": 5}), "logit_bias"),
    ("chat", "messages", chat(frequency_penalty=0.5), "frequency_penalty"),
    ("chat", "messages", chat(modalities=["audio"]), "modalities"),
    ("chat", "messages", chat(functions=[{"name": "f"}]), "functions"),
    ("chat", "messages", chat(tools=[{"type": "custom", "custom": {"name": "f"}}]), "tools"),
    ("chat", "messages", chat(messages=AUDIO), "messages"),
    ("chat", "messages", chat(messages=[{"role": "robot", "content": "x"}]), "messages"),
    ("chat", "messages", chat(response_format={"type": "json_schema"}), "response_format"),
    ("completions", "chat", {"prompt": ["a", "b"]}, "prompt"),
    ("completions", "chat", {"prompt": "a", "suffix": "b"}, "suffix"),
    ("completions", "chat", {"prompt": "a", "best_of": 2}, "best_of"),
    ("responses", "chat", {"input": "a", "tools": [{"type": "web_search"}]}, "tools"),
    ("responses", "chat", {"input": "a", "background": True}, "background"),
    ("responses", "chat", {"input": [{"type": "item_reference", "id": "x"}]}, "input"),
    ("messages", "chat", {"messages": [], "tools": [{"type": "web_search_20250305"}]}, "tools"),
    (
        "messages",
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]},
        "messages",
    ),
    ("embeddings", "messages", {"input": "x"}, "model"),
]


@pytest.mark.parametrize(("src", "dst", "body", "param"), REFUSED)
def test_what_cannot_be_put_over_is_refused_by_name(src: str, dst: str, body: Json, param: str) -> None:
    """A parameter that can't be translated is refused by its name."""
    with pytest.raises(CallerError) as caught:
        translate_request(decode(json.dumps(body).encode()), src, dst)
    assert caught.value.param == param


def test_neutral_values_are_not_refused() -> None:
    """Zeros and empty objects, which clients send by default, are not refused."""
    put(chat(n=1, logit_bias={}, frequency_penalty=0, presence_penalty=0.0, audio=None), "chat", "messages")


@given(
    st.dictionaries(fields, junk, max_size=5),
    st.sampled_from(
        [("chat", "messages"), ("messages", "chat"), ("responses", "messages"), ("completions", "chat")]
    ),
)
def test_junk_raises_only_caller_errors(body: Json, pair: tuple[str, str]) -> None:
    """Whatever JSON a client sends is translated or refused."""
    try:
        encode(translate_request(decode(json.dumps(body).encode()), *pair))
    except CallerError:
        pass
