"""Streams of every dialect through the relay: what is passed on, what is kept back, and how faults end."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from anthropic.types import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from gateway.errors import FAILURES, UpstreamError
from gateway.wire.answer import translate_answer
from gateway.wire.chunk import Choice, Chunk, Delta
from gateway.wire.relay import Relay
from gateway.wire.writers import ChatWriter
from tests.gateway.wire import streams
from tests.gateway.wire.streams import (
    CHAT,
    CHAT_TEXT,
    COMPLETIONS,
    DONE,
    MESSAGES,
    ROLE,
    TOOLS,
    USAGE,
    chunk,
    data,
    event,
    parsed,
    payloads,
)

PAIRS = [("chat", dst) for dst in ("chat", "completions", "messages", "responses")]
PAIRS += [("messages", dst) for dst in ("chat", "completions", "messages", "responses")]
PAIRS += [("completions", "completions")]
CASES = [(src, dst, stream) for src, dst in PAIRS for stream in streams.UPSTREAMS[src]]


def make(src: str, dst: str, **options: Any) -> Relay:
    return Relay(src, dst, model="shown", request={}, **options)


def drain(it: Relay, *pieces: bytes) -> bytes:
    """The client's whole stream; asserts that it is complete."""
    out = b"".join(it.feed(piece) for piece in pieces)
    assert it.end() is None
    return out + it.tail()


def test_chat_passes_byte_for_byte_when_usage_was_asked_for() -> None:
    """With usage requested, a chat stream is passed on byte for byte, with its terminal events last."""
    it = make("chat", "chat", include_usage=True)
    assert it.feed(CHAT) + it.tail() == CHAT


@pytest.mark.parametrize("place", [1, 2, 3])
def test_what_a_chat_cites_is_cited_in_responses(place: int) -> None:
    """Told with the text, whole and streamed, as OpenAI's types have it; of other kinds nothing is made up. Some APIs
    tell it before any text.
    """
    page = {"start_index": 0, "end_index": 2, "title": "Rain", "url": "https://example.com"}
    told = [{"type": "url_citation", "url_citation": page}, {"type": "other"}, {"type": "url_citation"}]
    pieces: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": "it"}, {"content": " rains"}]
    pieces.insert(place, {"annotations": told})
    stream = b"".join(chunk(piece) for piece in pieces) + chunk({}, "stop") + DONE
    sent = payloads(drain(make("chat", "responses", collect=True), stream))
    added = [one for one in sent if one["type"] == "response.output_text.annotation.added"]
    wanted = {"type": "url_citation", **page}
    assert [(one["annotation_index"], one["annotation"]) for one in added] == [(0, wanted)]
    streamed = Response.model_validate(sent[-1]["response"])
    message = {"role": "assistant", "content": "it rains", "annotations": told}
    body = {"id": "x", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    whole = Response.model_validate_json(
        translate_answer(json.dumps(body).encode(), "chat", "responses", model="shown", request={})
    )
    for response in (streamed, whole):
        (annotation,) = response.output[0].content[0].annotations  # type: ignore[union-attr,index]
        assert annotation.to_dict() == wanted


def test_what_comes_with_text_is_cited_at_the_end_of_a_chat() -> None:
    """Citations are kept where they come with text, or with the finish reason."""
    writer, page = ChatWriter("m", include_usage=False), {"type": "url_citation", "url_citation": {"url": "u"}}
    first = writer.write(Chunk(choices=[Choice(delta=Delta(content="a", annotations=[page]))]))
    last = writer.write(Chunk(choices=[Choice(delta=Delta(content="b"), finish_reason="stop")]))
    assert b"annotations" not in first
    assert json.loads(last[6:])["choices"][0]["delta"] == {"content": "b", "annotations": [page]}


@pytest.mark.parametrize("stream", [MESSAGES])
def test_messages_pass_byte_for_byte(stream: bytes) -> None:
    """Thinking signatures, pings and the order of blocks reach the client unchanged."""
    assert drain(make("messages", "messages"), stream) == stream


def test_terminal_events_wait_for_tail() -> None:
    """The terminal events are returned only by `tail`, so the answer is settled before the client sees its end."""
    for src, stream, last in (("chat", CHAT, b"[DONE]"), ("messages", MESSAGES, b"message_stop")):
        it = make(src, src)
        assert last not in it.feed(stream)
        assert it.finished
        assert last in it.tail()


def test_usage_not_asked_for_is_stripped() -> None:
    """The usage chunk and the null fields are removed, and the same characters inside the text are kept."""
    out = drain(make("chat", "chat"), CHAT)
    assert all("usage" not in payload for payload in payloads(out))
    text = "".join(payload["choices"][0]["delta"].get("content", "") for payload in payloads(out))
    assert text == CHAT_TEXT


@pytest.mark.parametrize("null", ['"usage": null, ', '"usage" : null,'])
def test_usage_null_is_stripped_however_it_is_spaced(null: str) -> None:
    """Providers that encode with spaces, or put usage first, are stripped too."""
    line = b'data: {%s"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n' % null.encode()
    assert (
        make("chat", "chat").feed(line) == b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
    )


def test_usage_and_evidence_are_read() -> None:
    """Usage, log-probabilities and tools of a stream are read."""
    it = make("chat", "chat")
    drain(it, CHAT)
    assert (it.peek().text, it.usage.known, it.usage.cache_read_tokens, it.usage.reasoning_tokens) == (
        CHAT_TEXT,
        True,
        8,
        5,
    )
    assert it.usage.total == 32
    tools = make("chat", "chat")
    drain(tools, TOOLS)
    assert tools.peek().tool_names == ["weather", "time"]
    assert tools.peek().tool_arguments == ['{"city":"Bern"}', '{"zone":"CET"}']


def test_anthropic_usage_adds_start_and_delta() -> None:
    """Input counts come at the start, output counts at the end."""
    it = make("messages", "chat")
    drain(it, MESSAGES)
    usage = it.usage
    assert (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens) == (25, 100, 10)
    assert usage.output_tokens == 42


def test_a_prompt_once_counted_stays_counted() -> None:
    """Zeros at the end of a stream don't replace the prompt's counts from its start."""
    zero = {"input_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    for first, last in (({"input_tokens": 7}, zero), (zero, {"input_tokens": 7})):
        it = make("messages", "chat")
        start = event("message_start", message={"usage": {**first, "output_tokens": 0}})
        stop = event("message_delta", delta={"stop_reason": "end_turn"}, usage={**last, "output_tokens": 2})
        drain(it, start + stop + event("message_stop"))
        assert (it.usage.prompt_tokens, it.usage.output_tokens, it.counted) == (7, 2, True)


def test_missing_usage_is_unknown() -> None:
    """Without a report the usage is not known."""
    it = make("chat", "chat", include_usage=True)
    out = drain(it, ROLE + chunk({"content": "x"}) + chunk({}, "stop") + DONE)
    assert not it.usage.known
    assert out.endswith(DONE)


def test_usage_inside_the_last_chunk_is_given_as_a_chunk() -> None:
    """Usage in the chunk with the finish reason is sent as the usage chunk that the client requested."""
    stream = chunk({"content": "x"}) + chunk({}, "stop", usage=USAGE) + DONE
    last = payloads(drain(make("chat", "chat", include_usage=True), stream))[-1]
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 32


@pytest.mark.parametrize(("src", "dst", "stream"), CASES)
@given(cuts=st.lists(st.integers(0, 3000), max_size=12))
@settings(max_examples=12, deadline=None)
def test_any_split_gives_the_same_bytes(src: str, dst: str, stream: bytes, cuts: list[int]) -> None:
    """The stream may be split anywhere, even inside a character."""
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(places)]
    whole, cut = make(src, dst), make(src, dst)
    assert _stable(drain(cut, *pieces)) == _stable(drain(whole, stream))
    assert cut.usage == whole.usage and cut.peek() == whole.peek()


def _stable(stream: bytes) -> str:
    """The stream without ids and times that the gateway makes."""
    events = payloads(stream)
    names: dict[str, str] = {}

    def scrub(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: scrub(item) for key, item in value.items() if key not in ("created", "created_at")}
        if isinstance(value, list):
            return [scrub(item) for item in value]
        if isinstance(value, str) and value.startswith(("resp_", "msg_", "fc_", "rs_", "call_", "cmpl-")):
            return names.setdefault(value, str(len(names)))
        return None if isinstance(value, int) and value > 10**9 else value

    return json.dumps([scrub(one) for one in events])


@pytest.mark.parametrize("ending", [b"\r\n", b"\r", b"\n"])
@given(size=st.integers(1, 40))
@settings(max_examples=10, deadline=None)
def test_every_line_ending_is_understood(ending: bytes, size: int) -> None:
    """Streams with CRLF or CR, split at any byte, give the same answer."""
    stream = b": hello\n\n".replace(b"\n", ending) + TOOLS.replace(b"\n", ending)
    it = make("chat", "messages")
    drain(it, *[stream[at : at + size] for at in range(0, len(stream), size)])
    assert it.peek().tool_arguments == ['{"city":"Bern"}', '{"zone":"CET"}']


@pytest.mark.parametrize(("src", "dst", "stream"), CASES)
def test_every_event_parses_as_the_sdks_type(src: str, dst: str, stream: bytes) -> None:
    """Translated streams have every field that the official types require."""
    assert parsed(drain(make(src, dst, include_usage=True), stream), dst)


@pytest.mark.parametrize(("src", "dst", "stream"), CASES)
def test_collected_answer_parses_as_the_sdks_type(src: str, dst: str, stream: bytes) -> None:
    """The collected answer is the one that would have come without streaming, and parses as the SDK's type."""
    it = make(src, dst, collect=True)
    drain(it, stream)
    kinds: dict[str, Any] = {
        "chat": ChatCompletion,
        "completions": Completion,
        "messages": Message,
        "responses": Response,
    }
    answer = kinds[dst].model_validate_json(it.answer())
    assert answer.usage is not None
    if dst == "responses":
        assert answer.output_text == it.peek().text
    if dst == "messages":
        assert "".join(block.text for block in answer.content if block.type == "text") == it.peek().text


def test_parallel_tools_become_blocks_in_order() -> None:
    """Interleaved arguments are written one block after the other, as Anthropic's API promises."""
    blocks: dict[int, Any] = {}
    open_block = None
    for one in parsed(drain(make("chat", "messages"), TOOLS), "messages"):
        if one.type == "content_block_start":
            assert open_block is None
            open_block = one.index
            blocks[one.index] = [one.content_block.name, ""]
        elif one.type == "content_block_delta":
            assert one.index == open_block
            blocks[one.index][1] += one.delta.partial_json
        elif one.type == "content_block_stop":
            open_block = None
    assert blocks == {0: ["weather", '{"city":"Bern"}'], 1: ["time", '{"zone":"CET"}']}


def test_responses_events_are_numbered_and_whole() -> None:
    """sequence_number counts up by one, and the last event holds the whole response."""
    events = parsed(drain(make("messages", "responses"), MESSAGES), "responses")
    assert [one.sequence_number for one in events] == list(range(len(events)))
    assert [events[0].type, events[-1].type] == ["response.created", "response.completed"]
    response = events[-1].response
    assert response.output_text == "Hello wörld"
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.name, call.arguments) for call in calls] == [("weather", '{"city":"Bern"}'), ("time", "{}")]
    assert response.usage.input_tokens == 135


@pytest.mark.parametrize(
    ("end", "tier"),
    [
        (chunk({}, "stop") + chunk(None, usage=USAGE, service_tier="flex"), "flex"),
        (chunk({}, "stop", usage=USAGE, service_tier="flex"), "flex"),
        (chunk({}, "stop") + chunk(None, usage=USAGE, service_tier=7), None),
        (chunk({}, "stop") + chunk(None, usage=USAGE, service_tier="7").replace(b'"7"', b'"\xff"'), None),
        (chunk({}, "stop") + chunk(None, usage=USAGE, cost=7, service_tier="flex").replace(b":7,", b":1e999,"), "flex"),
    ],
    ids=["alone", "beside the end", "no text", "no UTF-8", "beside a number too large"],
)
def test_the_service_tier_is_told_with_usage(end: bytes, tier: str | None) -> None:
    """The service tier is found in any chunk; one that can't be read doesn't fail the answer."""
    stream = chunk({"content": "x"}) + end + DONE
    last = parsed(drain(make("chat", "responses"), stream), "responses")[-1]
    assert (last.type, last.response.service_tier) == ("response.completed", tier)


def test_length_ends_a_response_as_incomplete() -> None:
    """A response that reached its token limit is incomplete."""
    stream = chunk({"content": "x"}) + chunk({}, "length") + DONE
    last = parsed(drain(make("chat", "responses"), stream), "responses")[-1]
    assert (last.type, last.response.incomplete_details.reason) == (
        "response.incomplete",
        "max_output_tokens",
    )


def test_calls_all_numbered_zero_are_told_apart_by_id() -> None:
    """Calls that all have the index 0, as some providers send them, are separated by their ids."""
    calls = [
        {"tool_calls": [{"index": 0, "id": f"c{n}", "function": {"name": f"f{n}", "arguments": "{}"}}]}
        for n in (1, 2)
    ]
    it = make("chat", "messages", collect=True)
    drain(it, chunk(calls[0]) + chunk(calls[1]) + chunk({}, "tool_calls") + DONE)
    assert it.peek().tool_names == ["f1", "f2"]
    assert [block["name"] for block in json.loads(it.answer())["content"]] == ["f1", "f2"]


def test_calls_without_ids_are_told_apart_by_their_names() -> None:
    """Without ids another name begins a new call, and so does the same name after complete arguments."""
    pieces = [("f", '{"a"'), ("f", ":1}"), ("f", '{"a":2}'), ("g", None), (None, "{}")]
    it = make("chat", "messages", collect=True)
    calls = [{"tool_calls": [{"function": {"name": name, "arguments": said}}]} for name, said in pieces]
    drain(it, b"".join(map(chunk, calls)) + chunk({}, "stop") + DONE)
    assert it.peek().tool_names == ["f", "f", "g"]
    assert it.peek().tool_arguments == ['{"a":1}', '{"a":2}', "{}"]
    whole = [(block["name"], block["input"]) for block in json.loads(it.answer())["content"]]
    assert whole == [("f", {"a": 1}), ("f", {"a": 2}), ("g", {})]


@pytest.mark.parametrize("reason", ["error", "abort", "insufficient_system_resource"])
def test_a_failure_as_finish_reason_is_an_error(reason: str) -> None:
    """An answer whose finish reason is a failure ends with an error."""
    it = make("chat", "chat")
    assert it.feed(chunk({"content": "x"})) and not it.feed(chunk({}, reason) + DONE)
    assert it.end() == "stream_error"
    assert it.cause is not None and it.cause.failure in ("server_error", "overloaded")


def test_started_needs_something_real() -> None:
    """A role, a comment or a ping doesn't count as the start of the answer."""
    it = make("chat", "chat")
    it.feed(b": processing\n\n" + ROLE)
    assert not it.started
    it.feed(chunk({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]}))
    assert it.started
    it = make("messages", "messages")
    it.feed(streams.MESSAGE_START + event("ping"))
    assert not it.started


@pytest.mark.parametrize(
    ("src", "stream"), [("chat", CHAT), ("messages", MESSAGES), ("completions", COMPLETIONS)]
)
def test_every_cut_is_a_fault(src: str, stream: bytes) -> None:
    """A stream that is cut anywhere before its end isn't finished."""
    ends = stream.rindex(b'"finish_reason":"') if src != "messages" else stream.rindex(b"message_stop")
    for at in range(0, ends, 7):
        it = make(src, src)
        it.feed(stream[:at])
        assert it.end() == "stream_cut", stream[:at][-80:]
        assert not it.finished
        with pytest.raises(AssertionError):
            it.tail()


def test_finish_reason_then_close_is_a_clean_end() -> None:
    """A stream with a finish reason and without [DONE] is complete, and the client gets its [DONE]."""
    stream = chunk({"content": "x"}) + chunk({}, "stop")
    assert drain(make("chat", "chat", include_usage=True), stream) == stream + DONE


def test_done_without_finish_reason_is_a_cut() -> None:
    """[DONE] without a finish reason, which some proxies append to a cut stream, doesn't end it."""
    it = make("chat", "chat")
    it.feed(chunk({"content": "x"}) + DONE)
    assert it.end() == "stream_cut"


def test_last_event_may_lack_its_blank_line() -> None:
    """A last event without its blank line counts."""
    assert drain(make("chat", "chat", include_usage=True), CHAT[:-1]) == CHAT
    assert drain(make("chat", "chat", include_usage=True), CHAT[:-2]) == CHAT


@pytest.mark.parametrize(
    "bad",
    [b"data: {not json}\n\n", b"data: \xff\xfe\n\n", b"data: [1]\n\n", b"data: " + b"[" * 5000 + b"\n\n"],
)
@pytest.mark.parametrize(("src", "dst"), PAIRS)
def test_malformed_chunk_is_a_fault(src: str, dst: str, bad: bytes) -> None:
    """After an event that isn't JSON only an error is sent, in the client's dialect."""
    it = make(src, dst)
    it.feed(bad)
    assert (it.fault, it.feed(CHAT), it.end()) == ("stream_malformed", b"", "stream_malformed")
    assert it.cause is not None
    error = it.error(it.cause)
    assert error and b"[DONE]" not in error and b"message_stop" not in error


@pytest.mark.parametrize(
    ("src", "line", "failure"),
    [
        (
            "chat",
            data({"error": {"message": "slow down", "type": "rate_limit_error", "code": 429}}),
            "rate_limited",
        ),
        ("chat", data({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}), "rate_limited"),
        ("chat", data({"object": "error", "message": "boom", "code": 500}), "server_error"),
        ("chat", b"event: error\n" + data({"error": {"message": "boom"}}), "server_error"),
        ("messages", event("error", error={"type": "overloaded_error", "message": "busy"}), "overloaded"),
    ],
)
def test_error_events_are_classed(src: str, line: bytes, failure: str) -> None:
    """Error events inside a stream are classified: a late 429 is distinguished from an overload."""
    it = make(src, src)
    it.feed((ROLE if src == "chat" else streams.MESSAGE_START) + line)
    assert it.fault == "stream_error"
    assert it.cause is not None and it.cause.failure == failure


def test_errors_in_each_dialect() -> None:
    """Errors have the form that the SDKs raise for: `error` in a chunk, `event: error`, `response.failed`."""
    exc = UpstreamError("stream_cut", "cut")
    assert set(payloads(make("chat", "chat").error(exc) or b"")[0]["error"]) == {"message", "type", "param", "code"}
    assert (make("chat", "messages").error(exc) or b"").startswith(b"event: error\n")
    assert parsed(make("chat", "responses").error(exc) or b"", "responses")[-1].type == "response.failed"


def test_logprobs_are_read_and_passed_on() -> None:
    """Log-probabilities are read for the evidence; the client gets those that it requested."""
    logprobs = {
        "content": [{"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []}],
        "refusal": None,
    }
    piece = {"index": 0, "delta": {"content": "x"}, "logprobs": logprobs, "finish_reason": None}
    line = data({"id": "1", "choices": [piece, {**piece, "index": 1}]})
    it = make("chat", "chat")
    assert it.feed(line) == line
    read = it.peek().logprobs
    assert (read.count, read.mean, read.min) == (1, -0.5, -0.5)


def test_deviant_chunks_are_read_loosely() -> None:
    """An index that is a string, or content in parts, doesn't end an otherwise sound stream."""
    it = make("chat", "messages")
    it.feed(data({"choices": [{"index": "0", "delta": {"content": [{"type": "text", "text": "hi"}]}}]}))
    assert (it.fault, it.peek().text) == (None, "hi")


@pytest.mark.parametrize(("src", "dst"), PAIRS)
@given(
    junk=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [
                    b"data: ",
                    b"\n\n",
                    b"{}",
                    b"\r",
                    b'{"type":"content_block_start","content_block":{}}',
                    b'{"choices":[{}]}',
                    b'{"choices":[{"delta":{"tool_calls":[{}]},"finish_reason":"stop"}]}',
                ]
            ),
        ),
        max_size=20,
    )
)
@settings(max_examples=40, deadline=None)
def test_junk_never_raises(src: str, dst: str, junk: list[bytes]) -> None:
    """Any bytes end as an answer or as one of the defined failures."""
    it = make(src, dst, collect=True)
    for piece in junk:
        it.feed(piece)
    fault = it.end()
    assert fault is None or fault in FAILURES
    if fault is None:
        it.tail()
        try:
            it.answer()
        except UpstreamError as error:
            assert error.failure == "bad_response"
