"""Events that are read by a template are passed on, read and collected as if they had been decoded."""

from __future__ import annotations

import json
import uuid
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.wire.event_template import learn
from gateway.wire.relay import Relay
from gateway.wire.sse import data_of
from tests.gateway.wire.streams import DONE, USAGE, data, event

PLAIN = {"content": "once"}
TEXT = st.one_of(
    st.sampled_from(["", "a", "so", " then", "content", '"', "\\", "\n", "é", "\u2028", "\U0001f600", "null"]),
    st.text(max_size=5),
)
DELTA: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(lambda text: {"content": text}, TEXT),
    st.builds(lambda text: {"content": text}, TEXT),
    st.builds(lambda text: {"role": "assistant", "content": text}, TEXT),
    st.builds(lambda text, more: {"content": text, "reasoning_content": more}, TEXT, st.none() | TEXT),
    st.builds(lambda text: {"refusal": text}, TEXT),
)
CHOICE = st.builds(
    lambda index, delta, more: {"index": index, "delta": delta, **more, "finish_reason": None},
    st.sampled_from([0, 0, 0, 0, 1]),
    DELTA,
    st.sampled_from([{}, {}, {"logprobs": None}, {"logprobs": {"content": [{"token": "a", "logprob": -0.5}]}}]),
)
AROUND = st.sampled_from([{}, {}, {"usage": None}, {"obfuscation": "x"}, {"note": "once"}, {"id": "other"}])
CHUNK = st.builds(
    lambda choice, around, spaced, ascii_only: (
        b"data: "
        + json.dumps(
            {"id": "c1", "model": "m", "choices": [choice], **around},
            separators=None if spaced else (",", ":"),
            ensure_ascii=ascii_only,
        ).encode()
        + b"\n\n"
    ),
    CHOICE, AROUND, st.booleans(), st.booleans(),
)  # fmt: skip
FIRST = [data({"id": "c1", "model": "m", "choices": [{"index": 0, "delta": PLAIN, "finish_reason": None}]})] * 2
END = data({"id": "c1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
END += data({"id": "c1", "choices": [], "usage": USAGE}) + DONE


def relayed(src: str, dst: str, pieces: list[bytes], include_usage: bool) -> tuple[Any, ...]:
    """Everything that comes of a stream."""
    with patch("uuid.uuid4", return_value=uuid.UUID(int=0)), patch("time.time", return_value=1.0):
        it = Relay(src, dst, model="m", request={}, include_usage=include_usage, collect=True)
        passed = [it.feed(piece) for piece in pieces]
        fault = it.end()
        whole = () if fault else (it.tail(), it.answer())
        return passed, fault, whole, it.peek(), it.started, it.events


def decoded(src: str, dst: str, pieces: list[bytes], include_usage: bool) -> tuple[Any, ...]:
    """The same where no template is learned."""
    with patch("gateway.wire.relay.LEARN_AT", frozenset[int]()):
        return relayed(src, dst, pieces, include_usage)


@pytest.mark.parametrize("dst", ["chat", "messages", "responses"])
@given(st.lists(CHUNK, max_size=12), st.booleans(), st.booleans())
@example(FIRST[:1], False, True)
@settings(max_examples=150, deadline=None)
def test_a_chat_is_as_if_decoded(dst: str, chunks: list[bytes], at_once: bool, include_usage: bool) -> None:
    others = [other for one in chunks for other in (one, *FIRST)]
    pieces = [*FIRST, *others, END]
    if at_once:
        pieces = [b"".join(pieces)]
    assert relayed("chat", dst, pieces, include_usage) == decoded("chat", dst, pieces, include_usage)


RUN_TEXT = st.sampled_from([b"word", b"word", b" ", b" ", b"\xc3", b"\xa9", b'"', b"\\n", b"\\", b"\t", b""])
LIKE_FIRST = FIRST[0].partition(b"once")


@given(st.lists(st.tuples(st.integers(0, 9), RUN_TEXT), max_size=6), st.booleans(), st.booleans())
@example([(9, b"\xc3"), (0, b"\xa9"), (9, b" ")], False, False)
@example([(5, b'"'), (5, b"word")], True, False)
@settings(max_examples=150, deadline=None)
def test_a_burst_is_as_if_decoded(runs: list[tuple[int, bytes]], usage_null: bool, include_usage: bool) -> None:
    """All in one read: plain words, and now and then a text that is not, or not even valid JSON."""
    before, _, after = LIKE_FIRST
    after = after.replace(b"}\n\n", b',"usage":null}\n\n') if usage_null else after
    texts = [text for plain, other in runs for text in (*[b"word"] * plain, other)]
    pieces = [b"".join([*(before + text + after for text in (b"a", b"b", *texts)), END])]
    assert relayed("chat", "chat", pieces, include_usage) == decoded("chat", "chat", pieces, include_usage)


def test_a_burst_is_taken_at_once() -> None:
    it = Relay("chat", "chat", model="m", request={}, collect=True)
    for one in FIRST:
        it.feed(one)
    with patch.object(Relay, "_take", side_effect=AssertionError):
        assert it.feed(b"".join(FIRST * 20)) == b"".join(FIRST * 20)
    it.feed(END)
    assert it.end() is None and it.events == 42 + 3 and it.peek().text == "once" * 42
    assert b"once" * 42 in it.answer()


@pytest.mark.parametrize("dst", ["chat", "messages", "responses"])
@given(st.lists(st.tuples(st.sampled_from(["text", "thinking", "input"]), TEXT), max_size=12), st.integers(0, 1))
@settings(max_examples=100, deadline=None)
def test_a_message_is_as_if_decoded(dst: str, deltas: list[tuple[str, str]], block: int) -> None:
    fields = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking"),
              "input": ("input_json_delta", "partial_json")}  # fmt: skip
    message = {"id": "m1", "type": "message", "role": "assistant", "model": "m", "content": []}
    pieces = [event("message_start", message={**message, "usage": {"input_tokens": 3}})]
    for index in range(2):
        pieces.append(event("content_block_start", index=index, content_block={"type": "text", "text": ""}))
    for kind, text in [("text", "a"), ("text", "b"), *deltas, ("text", "c")]:
        delta = {"type": fields[kind][0], fields[kind][1]: text}
        pieces.append(event("content_block_delta", index=block if text != "c" else 0, delta=delta))
    pieces.append(event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}))
    pieces.append(event("message_stop"))
    assert relayed("messages", dst, pieces, True) == decoded("messages", dst, pieces, True)


def test_events_that_fit_are_not_decoded() -> None:
    it = Relay("chat", "chat", model="m", request={}, collect=True)
    choices = [[{"index": 0, "delta": {"content": text}}] for text in "abcde"]
    sent = [data({"id": "c1", "choices": choice, "usage": None}) for choice in choices]
    passed = [it.feed(one) for one in sent[:2]]
    with patch("gateway.wire.readers.read_chunk", side_effect=AssertionError):
        passed += [it.feed(one) for one in sent[2:]]
    assert [json.loads(data_of(one) or b"")["choices"][0]["delta"]["content"] for one in passed] == [*"abcde"]
    assert not any(b"usage" in one for one in passed)
    it.feed(END)
    assert it.end() is None and it.peek().text == "abcde" and b'"content":"abcde"' in it.answer()


@pytest.mark.parametrize(
    "more",
    [
        {"choices": [{"index": 0, "delta": {"content": "a", "reasoning_content": "b"}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": []}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]},
        {"choices": [{"index": 1, "delta": {"content": "a"}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 0, "delta": {"content": "b"}}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"prompt_tokens": 1}},
        {"choices": [{"index": 0, "delta": {"content": "a"}}], "note": "a"},
        {"choices": [{"index": 0, "delta": {"content": "\n"}}]},
    ],
)
def test_what_has_more_than_text_is_no_template(more: dict[str, Any]) -> None:
    one = data({"id": "c1", **more})
    assert learn(one, data_of(one) or b"", one) is None


def test_a_text_that_is_not_valid_json_is_decoded() -> None:
    """Control characters, quotes, invalid UTF-8 and events shorter than the template."""
    one = data({"choices": [{"index": 0, "delta": {"content": "plain"}}]})
    template = learn(one, data_of(one) or b"", one)
    assert template is not None and template.text_of(one.replace(b"plain", b"more")) == "more"
    for bad in (b"\t", b'"', b"\\n", b"\xff", b"\xed\xa0\x80"):
        assert template.text_of(one.replace(b"plain", bad)) is None
    assert template.text_of(one.replace(b'"plain"', b'"')) is None
