"""Token usage in disjoint buckets, whatever form the provider reports it in.

OpenAI includes cached tokens in the prompt and reasoning in the completion; Anthropic counts cache reads and writes
apart from the input. Mixing them up would bill wrongly, so every form is read into one here. A field that is absent,
null, negative or not a number counts as 0, and a part never exceeds its whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

import msgspec
from msgspec.structs import replace

from gateway.wire.hosted_tools import Runs, sum_of

Json = Mapping[str, object]
MAX_COUNT = 2**31
"""Counts from here on are ignored as invalid: their cost could exceed what the journal or Redis can hold."""
MAX_USD = 1_000_000
"""A larger reported cost in US dollars is ignored."""
_FEES = frozenset({"cost", "search_context_size", "num_search_queries", "num_sources_used", "server_tool_use"})
"""Usage fields of OpenRouter, Perplexity and xAI that report fees."""
_BEYOND = _FEES | {"prompt_cache_hit_tokens", "cached_tokens"}
"""Usage fields of OpenAI's form, outside the details, that say more than how many tokens there were."""


class Usage(msgspec.Struct, frozen=True):
    """Tokens, searches and tool runs of one answer. The buckets don't overlap, so the cost is their weighted sum."""

    input_tokens: int = 0
    """Uncached tokens of text and images in the prompt."""
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    """Tokens written to the cache, except those of `cache_write_1h_tokens`."""
    output_tokens: int = 0
    """Tokens of the answer, without reasoning and audio."""
    reasoning_tokens: int = 0
    audio_input_tokens: int = 0
    audio_output_tokens: int = 0
    known: bool = False
    """False: the provider reported no usage, and the zeros have no meaning."""
    cache_write_1h_tokens: int = 0
    """Tokens written to a cache that is kept for an hour; only Anthropic reports them separately."""
    web_searches: int = 0
    """Web searches that the provider ran, each of which is billed."""
    told_nanousd: int = 0
    """Cost that the provider reports, fees included, in billionths of a US dollar; 0 where it reports none."""
    units: int = 0
    """What is billed by the piece: pictures, seconds of audio input, characters spoken, searches among documents."""
    tool_runs: dict[str, int] = {}
    """Runs of other hosted tools, by kind."""

    def with_runs(self, ran: Runs) -> Usage:
        """The same usage, with these runs of hosted tools."""
        return replace(self, tool_runs=ran.counts()) if ran else self

    @property
    def tells(self) -> bool:
        """Whether the report has counts; some servers report zeros where they haven't counted."""
        return self.known and (self.output_tokens > 0 or self.total > 0 or self.units > 0)

    @property
    def prompt_tokens(self) -> int:
        return (
            self.input_tokens
            + self.cache_read_tokens
            + self.cache_write_tokens
            + self.audio_input_tokens
            + self.cache_write_1h_tokens
        )

    @property
    def cache_written_tokens(self) -> int:
        """Tokens written to the cache, however long it is kept."""
        return self.cache_write_tokens + self.cache_write_1h_tokens

    @property
    def completion_tokens(self) -> int:
        return self.output_tokens + self.reasoning_tokens + self.audio_output_tokens

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        """The sum. It is known where either part is, since an unknown part adds nothing."""
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.output_tokens + other.output_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.audio_input_tokens + other.audio_input_tokens,
            self.audio_output_tokens + other.audio_output_tokens,
            self.known or other.known,
            self.cache_write_1h_tokens + other.cache_write_1h_tokens,
            self.web_searches + other.web_searches,
            self.told_nanousd + other.told_nanousd,
            self.units + other.units,
            sum_of(self.tool_runs, other.tool_runs),
        )

    @classmethod
    def from_openai(cls, usage: Json | None) -> Usage:
        """Read the usage of chat, completions or embeddings, including DeepSeek's and xAI's ways of counting."""
        if not isinstance(usage, dict):
            return cls()
        prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        total = _count(usage, "total_tokens")
        if not (prompt or completion or total or _has(usage, "prompt_tokens", "completion_tokens", "total_tokens")):
            return cls()
        in_prompt, in_completion = _part(usage, "prompt_tokens_details"), _part(usage, "completion_tokens_details")
        has_details = any(in_prompt.values()) or any(in_completion.values())
        if total == prompt + completion and not has_details and _BEYOND.isdisjoint(usage):  # most answers
            return cls(prompt, output_tokens=completion, known=True)
        read, write = _count(in_prompt, "cached_tokens"), _count(in_prompt, "cache_write_tokens")
        audio_in = _count(in_prompt, "audio_tokens")
        reasoning, audio_out = _count(in_completion, "reasoning_tokens"), _count(in_completion, "audio_tokens")
        read = read or _count(usage, "prompt_cache_hit_tokens") or _count(usage, "cached_tokens")
        unassigned = total - prompt - completion
        if reasoning > completion or 0 < unassigned == reasoning:
            completion += reasoning  # some providers report it in addition to the completion; only the total shows that
        elif unassigned > 0 and (unassigned == read + write or "prompt_tokens" not in usage):
            prompt += unassigned
        elif unassigned > 0 and not reasoning:  # Gemini's compatible endpoint reports thinking only in the total
            reasoning, completion = unassigned, completion + unassigned
        buckets = _buckets(prompt, completion, read, write, reasoning, audio_in, audio_out)
        return buckets if _FEES.isdisjoint(usage) else _with_fees(buckets, usage)

    @classmethod
    def from_anthropic(cls, usage: Json | None) -> Usage:
        """Read the usage of messages: cache reads and writes are not part of `input_tokens`, thinking is part of the
        output, and writes for an hour are part of all writes.
        """
        if not _has(usage, "input_tokens", "output_tokens"):
            return cls()
        read, write = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
        thinking = _count(_part(usage, "output_tokens_details"), "thinking_tokens")
        prompt = _count(usage, "input_tokens") + read + write
        buckets = _buckets(prompt, _count(usage, "output_tokens"), read, write, thinking)
        hour = min(_count(_part(usage, "cache_creation"), "ephemeral_1h_input_tokens"), write) if write else 0
        searches = _count(_part(usage, "server_tool_use"), "web_search_requests")
        if not (hour or searches):
            return buckets
        return replace(
            buckets, cache_write_tokens=write - hour, cache_write_1h_tokens=hour, web_searches=searches
        )

    @classmethod
    def from_responses(cls, usage: Json | None, web_searches: int = 0) -> Usage:
        """Read the usage of the Responses API, whose details are parts of its totals, as in chat. `web_searches`: the
        searches among the items of its output, which usage doesn't report.
        """
        if not _has(usage, "input_tokens", "output_tokens"):
            return cls(web_searches=web_searches)
        input_details, output_details = _part(usage, "input_tokens_details"), _part(usage, "output_tokens_details")
        buckets = _buckets(
            _count(usage, "input_tokens"),
            _count(usage, "output_tokens"),
            _count(input_details, "cached_tokens"),
            _count(input_details, "cache_write_tokens"),
            _count(output_details, "reasoning_tokens"),
        )
        buckets = replace(buckets, web_searches=web_searches) if web_searches else buckets
        return buckets if _FEES.isdisjoint(usage) else _with_fees(buckets, usage)

    def to_openai(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total,
            "prompt_tokens_details": {
                "cached_tokens": self.cache_read_tokens,
                "cache_write_tokens": self.cache_written_tokens,
                "audio_tokens": self.audio_input_tokens,
            },
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "audio_tokens": self.audio_output_tokens,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def to_anthropic(self) -> dict[str, object]:
        return {
            "input_tokens": self.input_tokens + self.audio_input_tokens,
            "cache_creation_input_tokens": self.cache_written_tokens,
            "cache_read_input_tokens": self.cache_read_tokens,
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"thinking_tokens": self.reasoning_tokens},
        }

    def to_responses(self) -> dict[str, object]:
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": self.cache_read_tokens,
                "cache_write_tokens": self.cache_written_tokens,
            },
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.total,
        }


def speed_of(usage: Json) -> str:
    """The speed that Anthropic's API reports, `standard` or `fast`, which costs more; empty where it reports none."""
    speed = usage.get("speed")
    return speed if isinstance(speed, str) else ""


def _buckets(
    prompt: int, completion: int, read: int, write: int, reasoning: int, audio_in: int = 0, audio_out: int = 0
) -> Usage:
    """Subtract the parts from their wholes, in turn, so that no bucket is negative and the sums stay the same."""
    if read or write or audio_in:
        read = min(read, prompt)
        write = min(write, prompt - read)
        audio_in = min(audio_in, prompt - read - write)
    if reasoning or audio_out:
        reasoning = min(reasoning, completion)
        audio_out = min(audio_out, completion - reasoning)
    return Usage(
        prompt - read - write - audio_in,
        read,
        write,
        completion - reasoning - audio_out,
        reasoning,
        audio_in,
        audio_out,
        True,
    )


def _with_fees(buckets: Usage, usage: Json) -> Usage:
    """Add the reported fees. Perplexity bills searches, or each request where it reports none; xAI's Live Search bills
    the sources that it read.
    """
    cost = usage.get("cost")
    cost_usd = _part(usage, "cost").get("total_cost") if isinstance(cost, dict) else cost
    searches = max(
        buckets.web_searches,
        _count(usage, "num_search_queries"),
        _count(usage, "num_sources_used"),
        _count(_part(usage, "server_tool_use"), "web_search_requests"),
        int("search_context_size" in usage),
    )
    usd = cost_usd if _is_count(cost_usd) and cost_usd <= MAX_USD else 0
    return replace(buckets, web_searches=searches, told_nanousd=round(usd * 1e9))


def _has(usage: Json | None, *names: str) -> TypeGuard[Json]:
    return isinstance(usage, dict) and any(map(_is_count, map(usage.get, names)))


def _part(usage: Json, name: str) -> Json:
    part = usage.get(name)
    return part if isinstance(part, dict) else {}


def _count(usage: Json, name: str) -> int:
    if name not in usage:
        return 0
    value = usage[name]
    if type(value) is int and 0 <= value < MAX_COUNT:  # nearly always
        return value
    return int(value) if _is_count(value) else 0


def _is_count(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_COUNT
