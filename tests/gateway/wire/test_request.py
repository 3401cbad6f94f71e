"""Reading and describing request bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import CallerError
from gateway.wire.request import Described, ask_usage, decode, describe, encode, estimate_tokens

SURFACES = ["chat", "completions", "embeddings", "responses", "messages"]


def described(surface: str, **body: Any) -> Described:
    return describe(decode(json.dumps(body).encode()), surface)


@pytest.mark.parametrize(
    ("surface", "field", "value", "attribute", "expected"),
    [
        ("chat", "service_tier", "flex", "tier", "flex"),
        ("messages", "speed", "fast", "tier", "fast"),
        ("chat", "logprobs", True, "logprobs", True),
        ("chat", "n", 3, "n", 3),
        ("completions", "best_of", 4, "n", 4),
        ("chat", "response_format", {"type": "json_object"}, "wants_json", True),
    ],
)
def test_a_field_that_few_requests_have_is_read_without_any_other(
    surface: str, field: str, value: object, attribute: str, expected: object
) -> None:
    """It needs no second such field beside it."""
    prompt = {"prompt": "hi"} if surface == "completions" else {"messages": [{"role": "user", "content": "hi"}]}
    assert getattr(described(surface, **prompt, **{field: value}), attribute) == expected


def test_untouched_values_keep_their_bytes() -> None:
    """White space, escapes, large numbers and unknown fields reach the upstream unchanged."""
    body = (
        b'{ "model" : "a",\n "messages": [ {"role":"user", "content":"\\u00e9\\/ 1e3"} ], "x_new": 1.00e+2 }'
    )
    raw = decode(body)
    raw["model"] = decode(b'{"m":"b"}')["m"]
    out = encode(raw)
    assert out == b'{"model":"b","messages":[ {"role":"user", "content":"\\u00e9\\/ 1e3"} ],"x_new":1.00e+2}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b'"x"',
        b"null",
        b'{"a":"\xff"}',
        b'{"a":' + b"[" * 9000,
        b'{"a":NaN}',
        b'{"a":1}x',
        b'{"a":' + b"[" * 90000 + b"]" * 90000 + b"}",
    ],
)
def test_bodies_that_are_no_object_are_refused(body: bytes) -> None:
    """Malformed JSON, another type, invalid UTF-8 and too deep nesting are answered with 400."""
    with pytest.raises(CallerError) as caught:
        decode(body)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "twin"),
    [
        (b'{"model":"a","model":"b"}', "model"),
        (b'{"model":"a", "m\\u006fdel":"b"}', "model"),
        (b'{"model":"a","messages":[{"role":"user","content":"x","content":"y"}]}', "content"),
        (b'{"model":"a","stream_options":{"include_usage":true,"include_usage":false}}', "include_usage"),
        (b'{"model":"a","tools":[{"type":"web_search","type":"custom"}]}', "type"),
        (b'{"model":"a","x":1e400,"tools":[{"function":{"name":"f","name":"g"}}]}', "name"),
        (b'{"a":{"":1,"":2},"b":1e5}', ""),
        (b'{"a":{"b":1,"b":1},"c":1e9}', "b"),
    ],
)
def test_a_key_given_twice_is_refused(body: bytes, twin: str) -> None:
    """A duplicate key is refused at any depth and in any spelling, even if the re-encoded body has the same length."""
    with pytest.raises(CallerError) as caught:
        decode(body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "duplicate_parameter", twin)


OBJECTS = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), OBJECTS, min_size=1, max_size=4), st.booleans(), st.data())
def test_only_a_key_given_twice_is_refused_for_it(body: dict[str, Any], is_ascii: bool, data: st.DataObject) -> None:
    """Any other object is read, in whatever spelling and spacing."""
    spaced = data.draw(st.sampled_from([None, (",", ":"), (" , ", " :\n")]))
    text = json.dumps({"inner": body}, ensure_ascii=is_ascii, separators=spaced)
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert json.loads(bytes(decode(text.encode())["inner"])) == body
    twin = json.dumps(data.draw(st.sampled_from(sorted(body))), ensure_ascii=is_ascii)
    with pytest.raises(CallerError, match="more than once"):
        decode(f"{text[:-2]},{twin}:0}}}}".encode())


def test_describe_chat() -> None:
    """The features that a decision needs."""
    it = described(
        "chat",
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "tool", "tool_call_id": "1", "content": "result"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
        ],
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
        n=2,
        max_tokens=9,
        max_completion_tokens=7,
        tools=[{"type": "function", "function": {"name": "f"}}],
        response_format={"type": "json_object"},
        logprobs=True,
    )
    assert (it.text, it.turns, it.images, it.tools, it.n) == ("look", 2, 1, 1, 2)
    assert (it.system_chars, it.wants_json, it.stream, it.include_usage) == (9, True, True, True)
    assert (it.temperature, it.max_output_tokens, it.logprobs, it.has_user_content) == (0.0, 9, True, True)
    other = described("chat", messages=[{"role": "user", "content": ["x"]}], max_tokens=7, max_completion_tokens=9)
    assert (other.text, other.max_output_tokens) == ("x", 9), "whichever limit the upstream goes by"


@pytest.mark.parametrize(
    ("prompt", "more", "answers"),
    [
        ("a", {}, 1), ("a", {"n": 3}, 3), ("a", {"best_of": 5}, 5), ("a", {"n": 3, "best_of": 5}, 5),
        (["a", "b"], {}, 2), (["a", "b"], {"n": 3, "best_of": 5}, 10), ([1, 2, 3], {}, 1), ([[1, 2], [3]], {}, 2),
        ([], {}, 1), ("a", {"n": None, "best_of": None}, 1),
    ],
)  # fmt: skip
def test_every_completion_that_is_made_is_counted(prompt: Any, more: dict[str, Any], answers: int) -> None:
    """To each of several prompts there are as many, and the upstream bills those too that it doesn't show."""
    assert described("completions", prompt=prompt, **more).n == answers


@pytest.mark.parametrize(
    ("surface", "content"),
    [
        ("chat", {"type": "image_url", "text": "", "image_url": {"url": "https://x/y.png"}}),
        ("messages", {"type": "tool_result", "content": [{"type": "image", "source": {"type": "url", "url": "u"}}]}),
        ("messages", {"type": "tool_result", "text": "", "content": [{"type": "image", "source": {}}]}),
    ],
)
def test_an_image_counts_wherever_it_stands(surface: str, content: dict[str, Any]) -> None:
    """In a tool's result too, and whatever else its part says."""
    it = described(surface, max_tokens=1, messages=[{"role": "user", "content": [content]}])
    assert it.images == 1 and it.input_tokens_bound > 1600


@pytest.mark.parametrize("output", [[{"type": "input_image"}], {"type": "computer_screenshot"}])
def test_an_image_that_a_tool_gave_counts(output: Any) -> None:
    """In the Responses API it is an item's output."""
    it = described("responses", input=[{"type": "function_call_output", "call_id": "c", "output": output}])
    assert it.images == 1 and it.input_tokens_bound > 1600


@pytest.mark.parametrize("odd", [{"type": ["image"]}, {"type": None}, {"type": {}}, [7, None], 1.5])
def test_a_tools_result_may_hold_anything(odd: Any) -> None:
    """The gateway doesn't validate the content of a tool's result."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": [odd, "x" * 360]}
    it = described("messages", max_tokens=1, messages=[{"role": "user", "content": [result]}])
    assert it.input_tokens >= 100 and not it.images and not it.unbounded


def test_a_file_that_a_tool_gave_counts() -> None:
    """A file in a tool's result counts as text if it is text, and as a part that may name a file."""
    file = {"type": "document", "source": {"type": "text", "data": "x" * 360}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [file]}
    it = described("messages", max_tokens=1, messages=[{"role": "user", "content": [result]}])
    assert it.input_tokens >= 100 and it.attached == 1 and not it.unbounded


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("surface", "asked"),
    [
        ("chat", {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}),
        ("messages", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}),
        ("responses", {"text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}}),
    ],
)
def test_the_schema_is_found(surface: str, asked: dict[str, Any]) -> None:
    """The JSON schema is read from each surface's own field."""
    prompt = {"input": "hi"} if surface == "responses" else {"messages": [{"role": "user", "content": "hi"}]}
    assert described(surface, max_tokens=5, **prompt, **asked).schema == SCHEMA
    assert described(surface, max_tokens=5, **prompt).schema is None


def test_describe_messages() -> None:
    """In Anthropic's API the system text and the output format are top-level fields."""
    it = described(
        "messages",
        max_tokens=5,
        system=[{"type": "text", "text": "Be brief."}],
        output_config={"format": {"type": "json_schema", "schema": {}}},
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": "x" * 360},
                    {"type": "image", "source": {}},
                ],
            }
        ],
    )
    assert (it.system_chars, it.wants_json, it.images, it.max_output_tokens) == (9, True, 1, 5)
    assert 100 + 1600 < it.input_tokens < 120 + 1600


def test_describe_responses() -> None:
    """In the Responses API a string is a user turn, and items are turns or tool results."""
    assert described("responses", input="hi").text == "hi"
    it = described(
        "responses",
        instructions="Be brief.",
        text={"format": {"type": "json_schema"}},
        max_output_tokens=3,
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_image"}]},
            {"type": "function_call_output", "call_id": "c", "output": "x" * 720},
        ],
    )
    assert (it.text, it.system_chars, it.images, it.wants_json, it.max_output_tokens) == ("hi", 9, 1, True, 3)
    assert it.input_tokens > 200 + 1600


@pytest.mark.parametrize(
    ("surface", "body", "text", "tokens"),
    [
        ("completions", {"prompt": "abc"}, "abc", 1),
        ("embeddings", {"input": ["abc", "def"]}, "abc\ndef", 3),
        ("embeddings", {"input": [1, 2, 3]}, "", 3),
        ("completions", {"prompt": [[1, 2], [3]]}, "", 3),
    ],
)
def test_describe_plain_prompts(surface: str, body: dict[str, Any], text: str, tokens: int) -> None:
    """Prompts may be strings, lists of strings, and token numbers."""
    it = described(surface, **body)
    assert (it.text, it.input_tokens, it.has_user_content) == (text, tokens, True)


@pytest.mark.parametrize(
    ("surface", "body", "param"),
    [
        ("chat", {}, "messages"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": "hi"}, "messages"),
        ("chat", {"messages": [1]}, "messages"),
        ("chat", {"messages": [{"role": 1}]}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": 5}]}, "messages"),
        ("chat", {"messages": [{"role": "user"}], "stream": "yes"}, "stream"),
        ("chat", {"messages": [{"role": "user"}], "n": 0}, "n"),
        ("chat", {"messages": [{"role": "user"}], "temperature": 3}, "temperature"),
        ("chat", {"messages": [{"role": "user"}], "max_tokens": -1}, "max_tokens"),
        ("chat", {"messages": [{"role": "user"}], "tools": {}}, "tools"),
        ("chat", {"messages": [{"role": "user"}], "response_format": "json"}, "response_format"),
        ("messages", {"messages": [{"role": "user"}], "system": 3}, "system"),
        ("responses", {"input": 3}, "input"),
        ("completions", {"prompt": {}}, "prompt"),
        ("embeddings", {}, "input"),
    ],
)
def test_wrong_types_name_their_param(surface: str, body: dict[str, Any], param: str) -> None:
    """A wrong type is refused with the field's name."""
    with pytest.raises(CallerError) as caught:
        described(surface, **body)
    assert caught.value.param == param


def test_too_many_messages_are_refused() -> None:
    """Too many messages are refused before any work is done."""
    raw = decode(json.dumps({"messages": [{"role": "user", "content": "x"}] * 5}).encode())
    assert describe(raw, "chat", max_messages=5).turns == 5
    with pytest.raises(CallerError) as caught:
        describe(raw, "chat", max_messages=4)
    assert caught.value.param == "messages"


def test_null_is_absent() -> None:
    """Clients send null for what they don't set."""
    body = {
        "messages": [{"role": "user", "content": "x"}],
        "n": None,
        "stream": None,
        "tools": None,
        "max_tokens": None,
        "response_format": None,
        "stream_options": None,
    }
    it = described("chat", **body)
    assert (it.n, it.stream, it.tools, it.max_output_tokens, it.wants_json) == (1, False, 0, None, False)


@given(st.text(max_size=400), st.text(max_size=100))
def test_the_bound_is_above_the_estimate(text: str, system: str) -> None:
    """A hold made from the bound can't be too small: a token is at least one byte."""
    body = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": text}]}
    it = described("chat", **body)
    assert len(text.encode()) <= it.input_tokens_bound
    assert it.input_tokens <= it.input_tokens_bound


def test_estimate_grows_with_the_prompt() -> None:
    """The estimate for providers that can't count tokens grows with the prompt."""
    raws = [
        decode(json.dumps({"messages": [{"role": "user", "content": "word " * n}]}).encode()) for n in (1, 99)
    ]
    assert 1 <= estimate_tokens(raws[0], "messages") < 20 < estimate_tokens(raws[1], "messages")


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "role",
                    "content",
                    "type",
                    "text",
                    "image_url",
                    "url",
                    "source",
                    "tool_calls",
                    "function",
                    "input",
                    "output",
                    "name",
                    "format",
                    "effort",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        "messages",
        "input",
        "prompt",
        "tools",
        "tool_choice",
        "stop",
        "n",
        "response_format",
        "system",
        "text",
        "reasoning",
        "thinking",
        "output_config",
        "stream_options",
        "metadata",
        "max_tokens",
        "include",
        "instructions",
    ]
)


@given(st.dictionaries(fields, junk, max_size=5), st.sampled_from(SURFACES))
def test_junk_requests_raise_only_caller_errors(body: dict[str, Any], surface: str) -> None:
    """Whatever JSON a client sends is described or refused."""
    try:
        described(surface, **body)
    except CallerError:
        pass


def test_ask_usage() -> None:
    """Requesting the usage chunk keeps the other stream options."""
    raw = ask_usage(decode(b'{"stream_options":{"include_obfuscation":false}}'))
    assert json.loads(encode(raw))["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    assert ask_usage(raw) is raw


PDF = "JVBERi0xLjcK"


@pytest.mark.parametrize(
    ("surface", "part"),
    [
        ("chat", {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{PDF}"}}),
        ("chat", {"type": "file", "file": {"file_id": "file-1"}}),
        ("chat", {"type": "video_url", "video_url": {"url": "https://a.example/v"}}),
        ("responses", {"type": "input_file", "file_url": "https://a.example/a.pdf"}),
        ("responses", {"type": "input_file", "file_data": f"data:text/plain;base64,{PDF}"}),
        ("responses", {"type": "input_file", "file_data": "data:text/plain;base64,UEsDBBQA"}),
        ("messages", {"type": "document", "source": {"type": "base64", "data": PDF}}),
        ("messages", {"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
        ("messages", {"type": "document", "source": {"type": "url", "url": "https://a.example/a.pdf"}}),
        ("messages", {"type": "tool_result", "content": [{"type": "document", "source": {"type": "url", "url": "u"}}]}),
        ("messages", {"type": "container_upload", "file_id": "file_1"}),
    ],
)
def test_a_documents_tokens_are_bounded_by_the_context(surface: str, part: dict[str, Any]) -> None:
    """A document of few bytes may have many pages, so only the context bounds its tokens; plain text isn't affected."""
    field = "input" if surface == "responses" else "messages"
    body = json.dumps({field: [{"role": "user", "content": [{"type": "text", "text": "x" * 5000}, part]}]})
    spelled = body.replace(f'"type": "{part["type"]}"', f'"type": "\\u{ord(part["type"][0]):04x}{part["type"][1:]}"')
    assert spelled != body
    for text in (body, spelled):
        it = describe(decode(text.encode()), surface)
        assert it.unbounded and it.prompt_bound(8000) == 8000 and it.prompt_bound(0) == 200_000


def test_what_else_is_longer_than_its_bytes() -> None:
    """Templates stored at the provider, files in tool results and audio named by its id are unbounded as well."""
    output = [{"type": "input_file", "file_id": "file-1"}]
    assert described("responses", input=[{"type": "function_call_output", "call_id": "c", "output": output}]).unbounded
    assert described("responses", input="x", prompt={"id": "pmpt_1"}).unbounded
    assert described("chat", messages=[{"role": "assistant", "audio": {"id": "audio_1"}}, {"role": "user"}]).unbounded


@pytest.mark.parametrize(
    ("surface", "part"),
    [
        ("messages", {"type": "document", "source": {"type": "text", "data": "plain"}}),
        ("messages", {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x"}]}}),
        ("messages", {"type": "document", "source": {"type": "file", "file_id": "file_" + "a" * 28}}),
        ("chat", {"type": "file", "file": {"file_data": "data:text/plain;base64,cGxhaW4="}}),
        ("chat", {"type": "file", "file": {"file_id": "file_" + "a" * 28}}),
        ("responses", {"type": "input_file", "file_data": "data:text/csv;base64,cGxhaW4="}),
    ],
)
def test_a_text_is_no_longer_than_its_bytes(surface: str, part: dict[str, Any]) -> None:
    """Text is bounded by its bytes, and so is the id of a file stored here; a PDF declared as text is not."""
    field = "input" if surface == "responses" else "messages"
    it = described(surface, **{field: [{"role": "user", "content": [part]}]})
    assert not it.unbounded and it.prompt_bound(10**6) == it.input_tokens_bound < 200
    hidden = {"type": "document", "source": {"type": "content", "content": [{"type": "document", "source": {}}]}}
    assert described("messages", messages=[{"role": "user", "content": [hidden]}]).unbounded


def test_a_prediction_is_billed_where_it_fails() -> None:
    """The tokens of a prediction are held as output."""
    prediction = {"type": "content", "content": "x" * 3000}
    it = described("chat", messages=[{"role": "user", "content": "x"}], prediction=prediction)
    assert 3000 <= it.predicted < 3100
