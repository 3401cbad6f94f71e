"""Scripts: what a scripted upstream does with the n-th request for a model.

A script is a list of steps. Each request uses the next one, and the last repeats. A model without a script follows the
script named `default`, and where there is none echoes the last user text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from gateway.errors import ConfigError

Fault = Literal[
    "",
    "close",  # FIN instead of an answer
    "rst",  # RST instead of an answer
    "silent",  # not one byte until the client leaves
    "garbage",  # bytes that are not HTTP
    "big_head",  # headers that never end
    "empty",  # 200 with an empty body
    "not_json",  # 200 with a page of HTML
    "cut",  # FIN after `after` events, or in the middle of a body
    "cut_rst",  # RST after `after` events, or in the middle of a body
    "cut_end",  # FIN in a stream after the finish reason and before its last event
    "stall",  # silence after `after` events, or in the middle of a body
    "malformed",  # an event that is not JSON after `after` events; the stream goes on
    "bad_chunk",  # broken chunk framing after `after` events
    "late_error",  # an error event after `after` events, then the end
    "no_done",  # a stream without its last event ([DONE], message_stop)
    "no_finish",  # a stream without finish reason, usage and last event
    "wrong_length",  # a content-length that is larger than the body
    "extra_bytes",  # bytes after the end of the answer
    "loris",  # one byte at a time, `gap_s` apart
    "close_after",  # a whole answer, then FIN without `connection: close`
]


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    arguments: dict[str, object] = {}


class Step(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One answer. The defaults are those of a correct and fast upstream."""

    text: str | None = None
    """None: echo the last user text, or give what a JSON schema or a forced tool demands."""
    tool_calls: list[ToolCall] = []
    finish_reason: str = ""
    """OpenAI's name of it; empty: the one that fits the answer."""
    logprob: float = -0.1
    """Log-probability of every token, where the request asks for them."""
    status: int = 200
    """Any status but 200 comes with an error object."""
    error: str = ""
    error_type: str = ""
    error_code: str = ""
    retry_after_s: float | None = None
    headers: dict[str, str] = {}
    usage: bool = True
    """False: usage is never reported."""
    input_tokens: int | None = None
    """None: they are counted."""
    output_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    """Part of `input_tokens`, as are `cached_tokens`; reported only in Anthropic's API."""
    cache_write_1h_tokens: int = 0
    """Part of `cache_write_tokens`."""
    reasoning_tokens: int = 0
    call_ids: Literal["", "nine", "signed", "late"] = ""
    """Tool calls in chat as in Mistral's API (`nine`: ids of nine letters and digits) or in Gemini's (`signed`, `late`:
    the first call of a step is signed). A call that comes back in another form is refused."""
    web_searches: int = 1
    """Web searches that it runs if the request offers such a tool."""
    tool_runs: dict[str, int] = {}
    """Runs of other hosted tools, by the names that the Responses API, Anthropic's or Groq's gives them, if the request
    offers such a tool. All code runs in one container."""
    more_usage: dict[str, object] = {}
    """Fields to add to the usage of chat."""
    x_groq: bool = False
    """True: a chat stream reports usage in its chunk with the finish reason and nowhere else, as Groq's does."""
    delay_s: float = 0.0
    """Seconds before the first byte."""
    gap_s: float = 0.0
    """Seconds before each event of a stream but the first, or between the bytes of a `loris`."""
    body_bytes: int = 0
    """Minimum size of the text, which is padded with words."""
    framing: Literal["", "length", "chunked", "eof"] = ""
    """How the end of the body is marked; empty: by its length, and for streams by chunks."""
    coalesce: bool = False
    """True: all events of a stream are sent in one write."""
    fault: Fault = ""
    after: int = 1
    """Content events that are sent before a fault inside a stream; -1: the fault comes before everything."""
    late_status: int = 429
    """The status that a `late_error` reports."""


ECHO = Step()


class Seen(msgspec.Struct):
    """What the upstream has received, as GET /_seen reports it."""

    requests: int = 0
    connections: int = 0
    open: int = 0
    """Connections that are open now, including the one of this request."""
    disconnects: int = 0
    """Clients that disconnected before their answer was complete."""
    repeated: int = 0
    """Requests whose idempotency key had been answered before: answered again, and billed once."""
    by_model: dict[str, int] = {}
    recent: list[dict[str, Any]] = []
    """Path, headers, model, body size and beginning of the body of the last requests."""


class Scripts:
    """The scripts by model, and how many requests each model has had."""

    def __init__(self, table: Mapping[str, object] | None = None) -> None:
        self._steps = read_scripts(table or {})
        self._served: Counter[str] = Counter()

    def next(self, model: str) -> Step:
        steps = self._steps.get(model) or self._steps.get("default") or [ECHO]
        count = self._served[model]
        self._served[model] += 1
        return steps[min(count, len(steps) - 1)]

    @property
    def models(self) -> list[str]:
        return sorted(self._steps)


def read_scripts(table: Mapping[str, object]) -> dict[str, list[Step]]:
    """Parse the scripts by model. Raises ConfigError that names each faulty script."""
    scripts: dict[str, list[Step]] = {}
    problems = []
    for model, steps in table.items():
        try:
            scripts[model] = msgspec.convert(steps, list[Step])
        except msgspec.ValidationError as error:
            problems.append(f"options.scripts.{model}: {error}")
    if problems:
        raise ConfigError(problems)
    return scripts
