"""Usage in each provider's form, read into disjoint buckets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from anthropic.types import Usage as AnthropicUsage
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CompletionUsage
from openai.types.responses import ResponseUsage

from gateway.wire.peek import peek
from gateway.wire.readers import MessagesReader, reader_of
from gateway.wire.seen import Seen
from gateway.wire.usage import Usage

SEARCHES = [
    {"type": "web_search_call", "action": {"type": "search", "query": "rain"}},
    {"type": "web_search_call", "action": {"queries": ["rain"]}},
    {"type": "web_search_call", "action": None},
    {"type": "web_search_call"},
]
NO_SEARCHES = [
    {"type": "web_search_call", "action": {"type": "open_page", "url": "https://example.org"}},
    {"type": "web_search_call", "action": {"type": "find_in_page", "url": "https://example.org", "pattern": "rain"}},
    {"type": "image_generation_call", "action": "generate"},
    {"type": "file_search_call"},
    {"type": "message", "content": [{"type": "output_text", "text": "it rains"}]},
]
OPENAI: dict[str, tuple[dict[str, Any], Usage]] = {
    "openai": (
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 6},
            "completion_tokens_details": {
                "reasoning_tokens": 192,
                "audio_tokens": 8,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        Usage(80, 1920, 0, 100, 192, 6, 8, True),
    ),
    "openai with cache writes": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 1,
            "total_tokens": 101,
            "prompt_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 50},
        },
        Usage(10, 40, 50, 1, 0, 0, 0, True),
    ),
    "azure without details": (
        {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
        Usage(9, 0, 0, 12, 0, 0, 0, True),
    ),
    "vllm with null details": (
        {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21, "prompt_tokens_details": None},
        Usage(9, 0, 0, 12, 0, 0, 0, True),
    ),
    "deepseek": (
        {
            "prompt_tokens": 16,
            "completion_tokens": 10,
            "total_tokens": 26,
            "prompt_cache_hit_tokens": 12,
            "prompt_cache_miss_tokens": 4,
            "completion_tokens_details": {"reasoning_tokens": 3},
        },
        Usage(4, 12, 0, 7, 3, 0, 0, True),
    ),
    "xai, reasoning beside the completion": (
        {
            "prompt_tokens": 32,
            "completion_tokens": 9,
            "total_tokens": 135,
            "completion_tokens_details": {"reasoning_tokens": 94},
        },
        Usage(32, 0, 0, 9, 94, 0, 0, True),
    ),
    "reasoning beside a longer completion": (
        {
            "prompt_tokens": 32,
            "completion_tokens": 100,
            "total_tokens": 172,
            "completion_tokens_details": {"reasoning_tokens": 40},
        },
        Usage(32, 0, 0, 100, 40, 0, 0, True),
    ),
    "reasoning inside the completion, and a total of something else": (
        {
            "prompt_tokens": 10,
            "completion_tokens": 20,
            "total_tokens": 50,
            "completion_tokens_details": {"reasoning_tokens": 5},
        },
        Usage(10, 0, 0, 15, 5, 0, 0, True),
    ),
    "gemini, thinking in the total alone": (
        {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623},
        Usage(20, 0, 0, 198, 405, 0, 0, True),
    ),
    "no completion, but a total": (
        {"prompt_tokens": 20, "completion_tokens": None, "total_tokens": 25},
        Usage(20, 0, 0, 0, 5, 0, 0, True),
    ),
    "cached tokens beside the prompt": (
        {
            "prompt_tokens": 5,
            "completion_tokens": 1,
            "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 9},
        },
        Usage(5, 9, 0, 1, 0, 0, 0, True),
    ),
    "embeddings with a total alone": ({"total_tokens": 8}, Usage(8, 0, 0, 0, 0, 0, 0, True)),
    "embeddings": ({"prompt_tokens": 8, "total_tokens": 8}, Usage(8, 0, 0, 0, 0, 0, 0, True)),
    "parts larger than the whole": (
        {
            "prompt_tokens": 5,
            "completion_tokens": 1,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 9},
        },
        Usage(0, 5, 0, 1, 0, 0, 0, True),
    ),
    "nonsense": ({"prompt_tokens": "many", "completion_tokens": -4}, Usage()),
}


@pytest.mark.parametrize("name", OPENAI)
def test_openai_shapes(name: str) -> None:
    """Cached tokens are part of the prompt, reasoning and audio part of the completion."""
    shape, wanted = OPENAI[name]
    assert Usage.from_openai(shape) == wanted


def test_anthropic_shape() -> None:
    """Cache reads and writes are not part of the input, and thinking is part of the output."""
    shape = {
        "input_tokens": 50,
        "cache_read_input_tokens": 1000,
        "cache_creation_input_tokens": 200,
        "output_tokens": 30,
        "output_tokens_details": {"thinking_tokens": 12},
    }
    usage = Usage.from_anthropic(shape)
    assert usage == Usage(50, 1000, 200, 18, 12, 0, 0, True)
    assert usage.total == 1280


def test_anthropics_writes_for_an_hour_are_apart() -> None:
    """Cache writes for an hour are part of all writes, and never exceed them."""
    written = {"ephemeral_5m_input_tokens": 50, "ephemeral_1h_input_tokens": 150}
    shape = {"input_tokens": 50, "cache_creation_input_tokens": 200, "cache_creation": written, "output_tokens": 3}
    usage = Usage.from_anthropic(shape)
    assert usage == Usage(50, 0, 50, 3, known=True, cache_write_1h_tokens=150)
    assert usage.prompt_tokens == 250
    assert Usage.from_anthropic({**shape, "cache_creation_input_tokens": 100}).cache_write_1h_tokens == 100
    assert Usage.from_anthropic({**shape, "cache_creation": None}) == Usage(50, 0, 200, 3, known=True)


def test_anthropics_searches_are_no_tokens() -> None:
    """Anthropic's web searches are counted apart from tokens."""
    shape = {"input_tokens": 5, "output_tokens": 3, "server_tool_use": {"web_search_requests": 2}}
    usage = Usage.from_anthropic(shape)
    assert usage == Usage(5, 0, 0, 3, known=True, web_searches=2) and usage.total == 8
    assert Usage.from_anthropic({**shape, "server_tool_use": None}).web_searches == 0


def read(reader: Any, seen: Seen, **event: Any) -> None:
    reader.read(msgspec.json.encode(event), seen)


@pytest.mark.parametrize("usage", [{"input_tokens": 5, "output_tokens": 3}, None])
def test_a_responses_searches_are_items_of_its_output(usage: Any) -> None:
    """Pages opened or looked through are free, other tools counted apart. A stream that never ends tells what came."""
    output = [*SEARCHES, *NO_SEARCHES]
    whole = {"id": "resp_1", "object": "response", "status": "completed", "output": output, "usage": usage}
    wanted = Usage(5, 0, 0, 3, known=True, web_searches=4) if usage else Usage(web_searches=4)
    tools = {"image_generation": 1, "file_search": 1}
    assert peek(msgspec.json.encode(whole), "responses").usage == msgspec.structs.replace(wanted, tool_runs=tools)
    reader, seen = reader_of("responses"), Seen()
    for index, item in enumerate(output):
        read(reader, seen, type="response.output_item.added", output_index=index, item=item)
        read(reader, seen, type="response.output_item.done", output_index=index, item=item)
    assert seen.usage == Usage(web_searches=4)
    read(reader, seen, type="response.completed", response=whole)
    assert seen.usage == wanted and seen.ran.counts() == tools


def test_a_messages_searches_are_counted_before_its_end_tells_them() -> None:
    """Search results are counted as they come, and errors are free; the number in the last event replaces the count."""
    reader, seen = MessagesReader(), Seen()
    read(reader, seen, type="message_start", message={"id": "msg_1", "usage": {"input_tokens": 5, "output_tokens": 1}})
    for content in ([], [{"type": "web_search_result"}], {"type": "web_search_tool_result_error"}, None):
        block = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": content}
        read(reader, seen, type="content_block_start", index=0, content_block=block)
    assert seen.usage == Usage(5, 0, 0, 1, known=True, web_searches=2)
    ended = {"output_tokens": 9, "server_tool_use": {"web_search_requests": 3}}
    read(reader, seen, type="message_delta", delta={"stop_reason": "end_turn"}, usage=ended)
    assert seen.usage == Usage(5, 0, 0, 9, known=True, web_searches=3)


def test_responses_shape() -> None:
    """The Responses API counts as chat does, under other names."""
    shape = {
        "input_tokens": 36,
        "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 2},
        "output_tokens": 87,
        "output_tokens_details": {"reasoning_tokens": 80},
        "total_tokens": 123,
    }
    assert Usage.from_responses(shape) == Usage(4, 30, 2, 7, 80, 0, 0, True)


@pytest.mark.parametrize("nothing", [None, {}, {"prompt_tokens": None}, "x"])
def test_nothing_reported_is_unknown(nothing: Any) -> None:
    """No report is distinguished from a report of zero tokens."""
    assert not Usage.from_openai(nothing).known
    assert not Usage.from_anthropic(nothing).known
    assert not Usage.from_responses(nothing).known


@pytest.mark.parametrize(
    ("told", "nano"),
    [(0.25, 250_000_000), ({"total_cost": 2}, 2 * 10**9), (10**6, 10**15), (10**6 + 1, 0), (-1, 0), (True, 0),
     ("x", 0)],
)  # fmt: skip
def test_a_cost_that_is_told_is_one(told: Any, nano: int) -> None:
    """A reported cost counts if it is a valid amount."""
    assert Usage.from_openai({"prompt_tokens": 1, "completion_tokens": 1, "cost": told}).told_nanousd == nano


some = st.integers(0, 9)


@given(some, some, some, some, some, some, some)
def test_parts_never_exceed_their_wholes(
    prompt: int, answer: int, read: int, written: int, heard: int, thought: int, spoken: int
) -> None:
    """Whatever an upstream reports, no bucket is negative, and the buckets add up to the whole."""
    inside = {"cached_tokens": read, "cache_write_tokens": written, "audio_tokens": heard}
    outside = {"reasoning_tokens": thought, "audio_tokens": spoken}
    whole = {"input_tokens": prompt, "output_tokens": answer}
    beside = {"cache_read_input_tokens": read, "cache_creation_input_tokens": written}
    chat = Usage.from_openai({"prompt_tokens": prompt, "completion_tokens": answer, "prompt_tokens_details": inside,
                              "completion_tokens_details": outside})  # fmt: skip
    responses = Usage.from_responses({**whole, "input_tokens_details": inside, "output_tokens_details": outside})
    messages = Usage.from_anthropic({**whole, **beside, "output_tokens_details": {"thinking_tokens": thought}})
    counts = [msgspec.structs.astuple(usage)[:-1] for usage in (chat, responses, messages)]  # less the runs of tools
    assert min(map(min, counts)) >= 0
    assert (chat.prompt_tokens, responses.prompt_tokens) == (prompt, prompt)
    assert messages.prompt_tokens == prompt + read + written
    assert chat.completion_tokens == answer + (thought if thought > answer else 0)
    assert responses.completion_tokens == messages.completion_tokens == answer


@pytest.mark.parametrize("part", ["input_tokens", "output_tokens"])
def test_half_a_report_is_one(part: str) -> None:
    """A report with only one part, as in the middle of a stream, counts."""
    assert Usage.from_anthropic({part: 5}).total == Usage.from_responses({part: 5}).total == 5


counts = st.integers(0, 10**6)
usages = st.builds(Usage, *[counts] * 7, st.just(True))
all_usages = st.builds(Usage, *[counts] * 7, st.just(True), counts, counts)


@given(usages)
def test_openai_round_trip_loses_nothing(usage: Usage) -> None:
    """Usage written in OpenAI's form reads back the same, and parses as the SDK's type."""
    assert Usage.from_openai(CompletionUsage.model_validate(usage.to_openai()).model_dump()) == usage


@given(all_usages)
def test_other_round_trips_keep_totals(usage: Usage) -> None:
    """Anthropic and Responses have no audio buckets; their totals are the same all the same."""
    anthropic = AnthropicUsage.model_validate(usage.to_anthropic()).model_dump()
    responses = ResponseUsage.model_validate(usage.to_responses()).model_dump()
    assert Usage.from_openai(usage.to_openai()).total == usage.total
    assert Usage.from_anthropic(anthropic).total == usage.total
    assert Usage.from_responses(responses).total == usage.total


@given(all_usages, all_usages)
def test_adding_adds_every_bucket(a: Usage, b: Usage) -> None:
    """A cascade's usage is the sum of its attempts', and an unknown one adds nothing."""
    assert (a + b).total == a.total + b.total
    assert (a + b).web_searches == a.web_searches + b.web_searches
    runs = Usage(tool_runs={"mcp": 1, "shell": 2}) + a + Usage(tool_runs={"mcp": 3})
    assert runs.tool_runs == {"mcp": 4, "shell": 2}
    assert a + Usage() == a


COUNTED = st.sampled_from([0, 1, 7, 8, 2**31, -1, 2.5, None, "7", True])


@given(
    st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens"]), COUNTED),
    st.none() | st.dictionaries(st.sampled_from(["cached_tokens", "audio_tokens"]), COUNTED),
    st.none() | st.dictionaries(st.sampled_from(["reasoning_tokens", "audio_tokens"]), COUNTED),
)
def test_the_short_way_of_a_usage_of_text_alone_agrees_with_the_long_way(
    counts: dict[str, Any], prompt: dict[str, Any] | None, completion: dict[str, Any] | None
) -> None:
    """A field that says nothing, but is read only on the long way, changes nothing."""
    usage = counts | {"prompt_tokens_details": prompt, "completion_tokens_details": completion}
    assert Usage.from_openai(usage) == Usage.from_openai(usage | {"cached_tokens": 0})
