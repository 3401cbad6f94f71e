"""What each line asks for, and every fault that it may have."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.batch.dedupe import keys_of
from gateway.batch.read import LineReader, ReadOptions, Request
from gateway.batch.types import Problem
from gateway.routes import RouteBook
from tests.gateway.batch.planned import LARGE, SMALL, plan_context


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> RouteBook:
    return plan_context(tmp_path_factory.mktemp("read")).book


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def batch_line(**body: Any) -> bytes:
    """A batch line with one user turn."""
    return line(
        custom_id="a", method="POST", url="/v1/chat/completions",
        body={"model": "auto", "messages": [{"role": "user", "content": "hi"}], **body},
    )  # fmt: skip


def good(book: RouteBook, record: bytes, options: ReadOptions | None = None) -> Request:
    found = LineReader(book, options or ReadOptions()).judge(7, record)
    assert isinstance(found, Request), found
    return found


def bad(book: RouteBook, record: bytes, options: ReadOptions | None = None) -> Problem:
    found = LineReader(book, options or ReadOptions()).judge(7, record)
    assert isinstance(found, Problem), found
    assert found.line == 7
    assert found.message
    return found


def test_a_batch_line_keeps_its_body_byte_for_byte(book: RouteBook) -> None:
    """A good line is never serialised again."""
    record = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":' + (
        b'{"model" : "auto","messages":[{"role":"user","content":"hi"}],"top_p":0.10}}'
    )
    found = good(book, record)
    assert found.body == b'{"model" : "auto","messages":[{"role":"user","content":"hi"}],"top_p":0.10}'
    assert (found.custom_id, found.line, found.route.name) == ("a", 7, "auto")


def test_a_duplicate_key_is_found_in_every_line(book: RouteBook) -> None:
    """That includes lines that were judged like an earlier one except for their messages."""
    reader = LineReader(book, ReadOptions())
    twice = batch_line().replace(b'"content": "hi"', b'"content": "hi", "content": "ho"')
    assert isinstance(reader.judge(1, batch_line()), Request) and isinstance(reader.judge(2, batch_line()), Request)
    found = reader.judge(3, twice)
    assert isinstance(found, Problem) and found.code == "duplicate_parameter"


@pytest.mark.parametrize("name", ["previous_response_id", "conversation"])
def test_a_prompt_may_not_continue_a_conversation(book: RouteBook, name: str) -> None:
    """A job doesn't read stored turns, so such a line is refused."""
    body = {"model": "auto", "input": "hi"}
    record = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {**body, name: "resp_1"}}
    assert bad(book, line(**record)).code == "unsupported_parameter"
    assert good(book, line(**{**record, "body": {**body, name: None}})).route.name == "auto"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"max_tokens": 5, "temperature": 0.5, "n": 2, "headgate": {"min_quality": 0.4}},
        {"model": "no-such-model"},
        {"messages": []},
        {"stream": True},
        {"headgate": {"unknown": 1}},
    ],
)
@pytest.mark.parametrize(
    "options", [ReadOptions(), ReadOptions(floor=0.2, ignore_models=True), ReadOptions(url="/v1/embeddings")]
)
def test_the_fast_path_reads_what_the_full_path_reads(
    book: RouteBook, body: dict[str, Any], options: ReadOptions
) -> None:
    """It reads lines in the documented form, with the same fields and the same faults."""
    usual = batch_line(**body)
    odd = json.dumps({**json.loads(usual), "method": "post"}).encode()
    reader = LineReader(book, options)
    one, other = reader.judge(7, usual), reader.judge(7, odd)
    assert type(one) is type(other)
    if isinstance(one, Request) and isinstance(other, Request):
        parts = ("line", "custom_id", "url", "body", "route", "floor", "reference")
        assert [getattr(one, name) for name in parts] == [getattr(other, name) for name in parts]
        assert one.call == other.call
    else:
        assert one == other


@pytest.mark.parametrize(
    "record",
    [
        b'"What is 2 + 2?"',
        line(prompt="What is 2 + 2?"),
        line(text="What is 2 + 2?", topic="arithmetic"),
        line(question="What is 2 + 2?"),
        line(messages=[{"role": "user", "content": "What is 2 + 2?"}], id=3),
    ],
)
def test_plain_prompts_become_chats_on_the_jobs_route(book: RouteBook, record: bytes) -> None:
    """A prompt is a string, a field with a usual name, or messages."""
    found = good(book, record)
    body = json.loads(found.body)
    assert body == {"model": "auto", "messages": [{"role": "user", "content": "What is 2 + 2?"}]}
    assert found.call.described.text == "What is 2 + 2?"


def test_columns_of_a_plain_prompt_are_in_its_body(book: RouteBook) -> None:
    """These are the system prompt, limits, temperature and model, with numbers parsed where a table has text; the
    reference isn't sent.
    """
    found = good(
        book, line(prompt="hi", system="be brief", max_tokens="40", temperature=0, model=SMALL, reference=4, id="x")
    )
    assert json.loads(found.body) == {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "max_tokens": 40, "temperature": 0, "model": SMALL,
    }  # fmt: skip
    assert (found.custom_id, found.reference, found.route.name) == ("x", "4", SMALL)


def test_lines_keep_their_model_unless_the_job_ignores_it(book: RouteBook) -> None:
    """A named model is pinned; a job that ignores names sends the line to its route."""
    assert [model.name for model in good(book, batch_line(model=LARGE)).route.models] == [LARGE]
    rerouted = good(book, batch_line(model="gpt-unheard-of"), ReadOptions(ignore_models=True))
    assert rerouted.route.name == "auto"
    assert json.loads(rerouted.body)["model"] == "auto"


def test_floors_come_from_the_line_then_its_knobs_then_the_job(book: RouteBook) -> None:
    job = ReadOptions(floor=0.2)
    assert good(book, batch_line(), job).floor == 0.2
    assert good(book, batch_line(headgate={"min_quality": 0.5}), job).floor == 0.5
    assert good(book, line(prompt="hi", floor="0.7"), job).floor == 0.7
    assert bad(book, line(prompt="hi", floor=1.5)).code == "invalid_floor"
    assert bad(book, line(prompt="hi", min_quality="high")).code == "invalid_floor"


def test_knobs_narrow_the_models(book: RouteBook) -> None:
    """A line may exclude models of its route, and add none."""
    narrowed = good(book, batch_line(headgate={"models": [SMALL]})).route
    assert [model.name for model in narrowed.models] == [SMALL]
    assert "auto" in bad(book, batch_line(headgate={"models": ["elsewhere"]})).message


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (b"{broken", "invalid_json"),
        (batch_line().replace(b'"content": "hi"', b'"content": "hi", "content": "ho"'), "duplicate_parameter"),
        (line(messages=[{"content": "hi"}]).replace(b'"hi"', b'"hi", "content": "ho"'), "duplicate_parameter"),
        (b"\xff\xfe", "invalid_json"),
        (b"[1, 2]", "invalid_line"),
        (b"42", "invalid_line"),
        (b"null", "invalid_line"),
        (line(), "missing_prompt"),
        (line(prompt="   "), "empty_prompt"),
        (line(prompt=["a"]), "invalid_prompt"),
        (line(body={"model": "auto"}, custom_id="a", url="/v1/images"), "invalid_url"),
        (line(body={"model": "auto"}, custom_id="a", method="GET"), "invalid_method"),
        (line(body=[], custom_id="a"), "invalid_body"),
        (line(body={"model": "auto", "messages": []}), "missing_custom_id"),
        (line(body={"model": "auto", "messages": []}, custom_id=""), "invalid_custom_id"),
        (line(body={"model": "auto", "messages": []}, custom_id=["a"]), "invalid_custom_id"),
        (line(body={"model": "auto"}, custom_id="a"), "missing_required_parameter"),
        (batch_line(messages=[]), "empty_array"),
        (batch_line(messages="hi"), "invalid_type"),
        (batch_line(model="nope"), "model_not_found"),
        (batch_line(model=4), "invalid_type"),
        (batch_line(stream=True), "invalid_stream"),
        (batch_line(n=0), "value_out_of_range"),
        (batch_line(max_tokens=-1), "value_out_of_range"),
        (batch_line(headgate={"unheard": 1}), "invalid_request"),
    ],
)
def test_every_fault_of_a_line_is_named(book: RouteBook, record: bytes, code: str) -> None:
    """It has the line's number and a code; nothing is raised."""
    assert bad(book, record).code == code


def test_a_job_for_one_endpoint_refuses_lines_for_others(book: RouteBook) -> None:
    """OpenAI's batches do the same."""
    assert bad(book, batch_line(), ReadOptions(url="/v1/embeddings")).code == "mismatched_url"


def test_a_problem_has_its_line_and_id(book: RouteBook) -> None:
    assert str(bad(book, batch_line(model="nope"))).startswith("line 7 (a): ")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_fields = st.dictionaries(
    st.sampled_from(["custom_id", "id", "body", "url", "method", "prompt", "messages", "floor", "reference", "model",
                     "system", "max_tokens", "headgate", "stream", "n", "input"]),
    _json | st.just("hi") | st.just({"model": "auto", "messages": [{"role": "user", "content": "hi"}]}),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(record=st.one_of(st.binary(max_size=60), _fields.map(lambda fields: json.dumps(fields).encode())))
def test_no_line_breaks_the_reader(book: RouteBook, record: bytes) -> None:
    """Any line is a request or a problem with that line's number."""
    found = LineReader(book, ReadOptions()).judge(7, record)
    assert found.line == 7


MESSAGES = st.one_of(
    st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "system", "assistant", "tool"]),
             "content": st.one_of(
                 st.text(max_size=12),
                 st.just(None),
                 st.just([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]),
             )}
        ),
        max_size=3,
    ),
    st.sampled_from(["hi", 3, [3], [{"role": 1}], None]),
)  # fmt: skip
OPTIONS = st.sampled_from([
    {}, {"max_tokens": 5}, {"max_tokens": 0}, {"temperature": 0.2, "n": 2}, {"stream": True}, {"model": "nobody"},
    {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"headgate": {"min_quality": 0.5, "cache": "none"}},
    {"x": [{"role": "user", "content": "hi"}]}, {"response_format": {"type": "json_object"}}, {"metadata": {"a": "b"}},
])  # fmt: skip


@given(st.lists(st.tuples(MESSAGES, OPTIONS), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_lines_read_together_are_read_as_each_alone(book: RouteBook, asked: list[tuple[Any, Any]]) -> None:
    """What the reader remembers of earlier lines saves work, and changes neither requests nor keys nor problems."""
    together = LineReader(book, ReadOptions())
    for number, (messages, options) in enumerate([*asked, *asked], 1):
        body = {"model": "auto", "messages": messages, **options}
        record = line(custom_id="a", method="POST", url="/v1/chat/completions", body=body)
        found, alone = together.judge(number, record), LineReader(book, ReadOptions()).judge(number, record)
        if isinstance(alone, Problem):
            assert found == alone
            continue
        assert isinstance(found, Request)
        for name in ("line", "custom_id", "url", "body", "floor", "reference"):
            assert getattr(found, name) == getattr(alone, name)
        assert found.call.described == alone.call.described and found.call.options == alone.call.options
        assert {k: bytes(v) for k, v in found.call.raw.items()} == {k: bytes(v) for k, v in alone.call.raw.items()}
        assert found.route.scope == alone.route.scope
        assert keys_of(found, "team", "exact", "v") == keys_of(alone, "team", "exact", "v")


def test_lines_with_the_same_options_are_checked_once(book: RouteBook) -> None:
    """They share a template, unlike lines with other options; a body that has its messages inside a text has none."""
    reader = LineReader(book, ReadOptions())
    first, second, other = (reader.judge(1, batch_line(**body)) for body in ({"n": 1}, {"n": 1}, {"n": 2}))
    assert isinstance(first, Request) and isinstance(second, Request) and isinstance(other, Request)
    assert first.mould is second.mould is not None and other.mould is not first.mould
    chat = b'[{"role":"user","content":"hi"}]'
    body = b'{"x":%b,"model":"auto","messages":%b}' % (chat, chat)
    last = reader.judge(2, b'{"custom_id":"a","url":"/v1/chat/completions","body":%b}' % body)
    assert isinstance(last, Request) and last.mould is None


def test_repeated_texts_count_as_often_as_they_are_named(book: RouteBook) -> None:
    """That holds whether or not other lines are alike."""
    id = "file_" + "0" * 28
    part = {"type": "file", "file": {"file_id": id}}
    reader = LineReader(book, ReadOptions(file_tokens={id: 5000}))
    for count in (0, 1, 2):
        content = [{"type": "text", "text": "hi"}, *[part] * count]
        for _ in range(2):
            found = reader.judge(7, batch_line(messages=[{"role": "user", "content": content}]))
            assert isinstance(found, Request) and found.call.described.input_tokens // 5000 == count
