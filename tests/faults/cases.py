"""The faults of an upstream, and the one way in which each request must end.

`before`: the client has received nothing of the answer, so another model answers, or the client gets one error in its
API's form. `inside`: the client has received a part, so the stream ends with one error event and no terminal event.
`none`: the answer is complete all the same. `late`: the deadline has passed, so no other model can answer either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Where = Literal["before", "inside", "none", "late"]
TEXT = "one two three four"
FALLBACK_TEXT = "the other one"
PACED = {"gap_s": 0.03}
"""Pauses between events, so that what comes before a fault isn't read together with it."""


@dataclass(frozen=True)
class Fault:
    """One misbehaviour of an upstream."""

    name: str
    step: dict[str, Any]
    where: Where
    failure: str = ""
    """The recorded failure of the attempt."""
    status: int = 502
    """The client's status where no other model can answer."""
    at_typed: Where | None = None
    """The place of the failure in dialects whose events have types, where it differs."""
    billed: bool = True
    """Whether the failed attempt is billed, because its upstream had begun to work."""

    @property
    def is_silence(self) -> bool:
        return self.failure in ("timeout", "stream_stalled")

    def where_at(self, provider: str) -> Where:
        return self.at_typed or self.where if provider in ("claude", "own") else self.where


def _refusals(*, late: bool) -> list[Fault]:
    """Error answers before any work is done."""
    statuses = [(429, "rate_limited", 429), (500, "server_error", 502), (503, "overloaded", 503),
                (529, "overloaded", 503), (401, "unauthorized", 502), (404, "not_found", 502)]  # fmt: skip
    faults = [
        Fault(f"status {status}", {"status": status, "retry_after_s": 0.05}, "before", failure, shown, billed=False)
        for status, failure, shown in statuses
    ]
    faults += [
        Fault("connection refused", {"refused": True}, "before", "connect", billed=False),
        Fault("closed before headers", {"fault": "close"}, "before", "reset", billed=False),
        Fault("RST before headers", {"fault": "rst"}, "before", "reset", billed=False),
        Fault("not HTTP", {"fault": "garbage"}, "before", "bad_response", billed=False),
        Fault("endless headers", {"fault": "big_head"}, "before", "bad_response", billed=False),
        Fault("silence instead of headers", {"fault": "silent"}, "late" if late else "before", "timeout", 504),
        Fault("slow loris", {"fault": "loris", "gap_s": 0.05}, "late" if late else "before", "timeout", 504),
        Fault("byte by byte, in time", {"fault": "loris"}, "none"),
        Fault("bytes behind the end", {"fault": "extra_bytes"}, "none"),
        Fault("closed behind the end", {"fault": "close_after"}, "none"),
        Fault("usage missing", {"usage": False}, "none"),
    ]
    return faults


def _stream(name: str, fault: str, where: Where, failure: str = "", *, after: int = 1, **more: Any) -> Fault:
    step = {"fault": fault, "after": after, **more.pop("step", {})}
    return Fault(name, step, where, failure, **more)


STREAMED = [
    *_refusals(late=False),
    _stream("HTML with status 200", "not_json", "before", "stream_cut"),
    _stream("empty body with status 200", "empty", "before", "stream_cut"),
    _stream("cut behind the headers", "cut", "before", "reset", after=-1),
    _stream("RST behind the headers", "cut_rst", "before", "reset", after=-1),
    _stream("cut before the first chunk", "cut", "before", "reset", after=0),
    _stream("RST before the first chunk", "cut_rst", "before", "reset", after=0),
    _stream("stall behind the headers", "stall", "before", "stream_stalled", after=-1),
    _stream("stall before the first chunk", "stall", "before", "stream_stalled", after=0),
    _stream("malformed event first", "malformed", "before", "stream_malformed", after=-1),
    _stream("malformed first chunk", "malformed", "before", "stream_malformed", after=0),
    _stream("broken framing first", "bad_chunk", "before", "bad_response", after=0),
    _stream("late 429 first", "late_error", "before", "rate_limited", after=-1, status=429, billed=False),
    _stream("late 429 before the first chunk", "late_error", "before", "rate_limited", after=0, status=429,
            billed=False),
    _stream("late 529 before the first chunk", "late_error", "before", "overloaded", after=0, status=503,
            step={"late_status": 529}, billed=False),
    _stream("cut behind the first chunk", "cut", "inside", "reset"),
    _stream("cut in the middle", "cut", "inside", "reset", after=2),
    _stream("RST in the middle", "cut_rst", "inside", "reset", after=2),
    _stream("stall in the middle", "stall", "inside", "stream_stalled", after=2),
    _stream("malformed chunk in the middle", "malformed", "inside", "stream_malformed", after=2, step=PACED),
    _stream("broken framing in the middle", "bad_chunk", "inside", "bad_response", after=2),
    _stream("late 429 in the middle", "late_error", "inside", "rate_limited", after=2, step=PACED),
    _stream("late 500 in the middle", "late_error", "inside", "server_error", after=2,
            step={**PACED, "late_status": 500}),
    _stream("late 429 together with content", "late_error", "before", "rate_limited", after=2, status=429,
            step={"coalesce": True}),
    _stream("cut behind the finish reason", "cut_end", "inside", "reset"),
    _stream("end without finish reason", "no_finish", "inside", "stream_cut"),
    _stream("end without [DONE]", "no_done", "none", "stream_cut", at_typed="inside"),
    _stream("end without [DONE], closed", "no_done", "none", "stream_cut", at_typed="inside",
            step={"framing": "eof"}),
    _stream("closed instead of a finish reason", "no_finish", "inside", "stream_cut", step={"framing": "eof"}),
    _stream("content-length too long", "wrong_length", "none"),
    Fault("slow but steady", PACED, "none"),
]  # fmt: skip

WHOLE = [
    *_refusals(late=True),
    Fault("HTML with status 200", {"fault": "not_json"}, "before", "bad_response"),
    Fault("empty body with status 200", {"fault": "empty"}, "before", "bad_response"),
    Fault("half a JSON document", {"fault": "malformed"}, "before", "bad_response"),
    Fault("a 429 with status 200", {"fault": "late_error"}, "before", "rate_limited", 429, billed=False),
    Fault("cut in the body", {"fault": "cut"}, "before", "reset"),
    Fault("RST in the body", {"fault": "cut_rst"}, "before", "reset"),
    Fault("stall in the body", {"fault": "stall"}, "late", "timeout", 504),
    Fault("broken framing", {"fault": "bad_chunk"}, "before", "bad_response"),
    Fault("content-length too long", {"fault": "wrong_length"}, "before", "reset"),
    Fault("closed instead of a length", {"framing": "eof"}, "none"),
]


@dataclass(frozen=True)
class Case:
    """A fault on one surface, at one kind of provider, with or without a fallback model."""

    fault: Fault
    surface: str
    provider: str
    """up (OpenAI's dialect) | claude (Anthropic's)"""
    fallback: bool
    stream: bool

    @property
    def name(self) -> str:
        """Unique, and a name that routes, models and keys may have."""
        how = ("f" if self.fallback else "n") + ("s" if self.stream else "w")
        words = "-".join((self.fault.name, self.surface, self.provider, how))
        return words.translate(str.maketrans(" ", "_", "[],"))

    @property
    def ending(self) -> Literal["answer", "fallback", "error", "in-band error"]:
        where = self.fault.where_at(self.provider)
        if where == "before":
            return "fallback" if self.fallback else "error"
        return {"inside": "in-band error", "none": "answer", "late": "error"}[where]  # type: ignore[return-value]


def cases_of(fault: Fault, *, stream: bool) -> Iterator[Case]:
    """Every surface on every provider, with and without a fallback; `own` serves the Responses API itself."""
    for surface in ("chat", "messages", "responses", "completions"):
        for provider in ("up", "claude", "own") if surface == "responses" else ("up", "claude"):
            for fallback in (False, True):
                yield Case(fault, surface, provider, fallback, stream)
