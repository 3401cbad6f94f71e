"""Scripts: what a scripted upstream does with the n-th request for a model.

A script is a list of steps; each request consumes one and the last repeats. A model without a script
follows the one named `default`, and without that echoes the last user text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import msgspec

from gateway.errors import ConfigError

Fault = Literal[
    "",
    "close",  # FIN instead of an answer
    "rst",  # RST instead of an answer
    "silent",  # not one byte until the client leaves
    "garbage",  # bytes that are not HTTP
    "big_head",  # headers without end
    "empty",  # 200 with an empty body
    "not_json",  # 200 with a page of HTML
    "cut",  # FIN after `after` events, or in the middle of a body
    "cut_rst",  # the same with RST
    "cut_end",  # FIN in a stream behind the finish reason, before its last event
    "stall",  # silence after `after` events, or in the middle of a body
    "malformed",  # an event that is not JSON after `after` events; the stream goes on
    "bad_chunk",  # broken chunk framing after `after` events
    "late_error",  # an error event after `after` events, then the end
    "no_done",  # a stream without its last event ([DONE], message_stop)
    "no_finish",  # a stream without finish reason, usage and last event
    "wrong_length",  # content-length promises more than comes
    "extra_bytes",  # bytes behind the end of the answer
    "loris",  # one byte at a time, `gap_s` apart
    "close_after",  # a whole answer, then FIN without announcing it
]


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    arguments: dict[str, object] = {}


class Step(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One answer. Every field has the default of an honest, quick upstream."""

    text: str | None = None
    """None: echo the last user text (or what a JSON schema or a forced tool asks for)."""
    tool_calls: list[ToolCall] = []
    finish_reason: str = ""
    """OpenAI's word; empty: what fits."""
    logprob: float = -0.1
    """Of every token, where the request asks for log-probabilities."""
    status: int = 200
    """Anything but 200 is answered with an error object."""
    error: str = ""
    error_type: str = ""
    error_code: str = ""
    retry_after_s: float | None = None
    headers: dict[str, str] = {}
    usage: bool = True
    """False: never tells usage."""
    input_tokens: int | None = None
    """None: counted."""
    output_tokens: int | None = None
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    """Of the prompt, like those before; told in Anthropic's API."""
    cache_write_1h_tokens: int = 0
    """Of those."""
    reasoning_tokens: int = 0
    call_ids: Literal["", "nine", "signed", "late"] = ""
    """Calls of tools in a chat as Mistral has them (ids of nine letters and digits) or Gemini (a step's first call is
    signed); one that comes back otherwise is refused."""
    web_searches: int = 1
    """Run where the request offers such a tool."""
    tool_runs: dict[str, int] = {}
    """Of other hosted tools, by what the Responses API, Anthropic's or Groq's calls them: run where the request offers
    such a tool. All code runs in one container."""
    more_usage: dict[str, object] = {}
    """Told beside OpenAI's own in chat's usage."""
    x_groq: bool = False
    """True: a chat's stream tells usage beside its finish reason, as Groq's do, and asked for or not nowhere else."""
    delay_s: float = 0.0
    """Before the first byte."""
    gap_s: float = 0.0
    """Before each event of a stream but the first; between bytes of a `loris`."""
    body_bytes: int = 0
    """Least size of the text: it is padded with words."""
    framing: Literal["", "length", "chunked", "eof"] = ""
    """How the body ends; empty: length, and chunked for streams."""
    coalesce: bool = False
    """True: a stream's events leave in one write."""
    fault: Fault = ""
    after: int = 1
    """Events of content sent before a fault inside a stream."""
    late_status: int = 429
    """What a `late_error` says it is."""


ECHO = Step()


class Seen(msgspec.Struct):
    """What the upstream saw, as GET /_seen tells it."""

    requests: int = 0
    connections: int = 0
    open: int = 0
    """Connections at this moment, the asking one included."""
    disconnects: int = 0
    """Clients that left before their answer was whole."""
    repeated: int = 0
    """Requests whose idempotency key had been answered before: served again, billed once."""
    by_model: dict[str, int] = {}
    recent: list[dict[str, object]] = []
    """Path, headers, model, size and beginning of the body of the last requests."""


class Scripts:
    """The table of scripts and how far each has come."""

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
    """Checks every field; ConfigError names each faulty script."""
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
