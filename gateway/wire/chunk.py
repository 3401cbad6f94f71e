"""One piece of a streamed answer in the form that every dialect is read into: OpenAI's chunk.

The types make reading one cost half a microsecond. Providers deviate in details (a number in place of a string, content
as a list), which must not end a stream that is otherwise sound, so a chunk that doesn't fit the types is read again
leniently.
"""

from __future__ import annotations

import json
from math import inf, nan
from typing import Any

import msgspec

from gateway.wire.usage import Usage

NOTHING = msgspec.Raw()
_decode_text = msgspec.json.Decoder(str).decode
BAD_JSON = (msgspec.MsgspecError, ValueError, RecursionError)
"""The exceptions that decoding raises for bytes that aren't JSON."""


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolDelta(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: Function | None = None
    extra_content: dict[str, Any] | None = None
    """Gemini's signature of the call, which must be returned with it."""


class Delta(msgspec.Struct):
    content: str | None = None
    role: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolDelta] | None = None
    function_call: Function | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    signature: str | None = None
    """Signature of a thinking block; only Anthropic's API has it."""
    audio: dict[str, Any] | None = None
    extra_content: dict[str, Any] | None = None
    """Gemini's signature of the text, which may be returned with it."""
    annotations: list[dict[str, Any]] | None = None
    """The citations of the text."""
    executed_tools: list[Any] | None = None
    """Hosted tools that Groq's API ran."""

    @property
    def thought(self) -> str | None:
        return self.reasoning_content or self.reasoning


class Search(Delta):
    """A web search that the provider ran."""

    query: str = ""
    found: bool = True
    """Whether the search succeeded."""


class TokenLogprob(msgspec.Struct):
    logprob: float = 0.0
    token: str = ""
    bytes: list[int] | None = None
    top_logprobs: list[dict[str, Any]] | None = None


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None = None
    token_logprobs: list[float | None] | None = None
    """The form of completions."""

    def values(self) -> list[float]:
        if self.content is not None:
            return [token.logprob for token in self.content]
        return [value for value in self.token_logprobs or () if value is not None]


class Choice(msgspec.Struct):
    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    """A whole answer has it in place of `delta`."""
    text: str | None = None
    """The form of completions."""
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    error: Any = None
    """OpenRouter's reason for the finish reason `error`."""

    @property
    def is_real(self) -> bool:
        """Whether it carries a part of the answer, and not just a role."""
        if self.text or self.finish_reason:
            return True
        delta = self.delta
        return delta is not None and bool(
            delta.content
            or delta.tool_calls
            or delta.thought
            or delta.refusal
            or delta.function_call
            or delta.audio
            or delta.signature
        )

    @property
    def chars(self) -> int:
        """Characters of everything that an upstream bills as output."""
        delta = self.delta
        chars = len(self.text or "")
        if delta is None:
            return chars
        arguments = (tool.function.arguments for tool in delta.tool_calls or () if tool.function is not None)
        return chars + len(delta.content or "") + len(delta.thought or "") + sum(len(one or "") for one in arguments)


FAILED_FINISHES = {
    "error": "the upstream ended its answer with an error",
    "abort": "the upstream aborted its answer",
    "insufficient_system_resource": "the upstream ran out of resources inside its answer",
}
"""Finish reasons of answers that failed before their end: Mistral's and OpenRouter's, vLLM's, DeepSeek's."""


def failure_of(choice: Choice) -> Any:
    """The error object of a choice that ended with one of FAILED_FINISHES."""
    reason = choice.finish_reason or "error"
    code = 503 if reason == "insufficient_system_resource" else 502
    return choice.error or {"message": FAILED_FINISHES[reason], "code": code}


FINISHES = {"model_length": "length", "max_tokens": "length"}
"""Other providers' names of OpenAI's finish reasons."""


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    id: str | None = None
    model: str | None = None
    created: int | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None
    """Message of a bare error object, as vLLM sends it."""
    code: Any = None
    stop_sequence: str | None = None
    service_tier: msgspec.Raw = NOTHING
    x_groq: dict[str, Any] | None = None
    """Groq's report of usage at the end of a stream, requested or not."""

    @property
    def tier(self) -> str:
        """The service tier; empty where it is absent or not a string."""
        try:
            return _decode_text(self.service_tier)
        except BAD_JSON:
            return ""


def text_chunk(text: str) -> Chunk:
    """A chunk with nothing but a piece of the first choice's text."""
    return Chunk([Choice(delta=Delta(text))])


class LogprobSummary(msgspec.Struct):
    """Summary of the log-probabilities (natural logarithm) of an answer's tokens; NaN where there are none."""

    count: int = 0
    sum: float = 0.0
    least: float = inf

    @property
    def mean(self) -> float:
        return self.sum / self.count if self.count else nan

    @property
    def min(self) -> float:
        return self.least if self.count else nan

    def take(self, values: list[float]) -> None:
        if values:
            self.count += len(values)
            self.sum += sum(values)
            self.least = min(self.least, *values)


class Peek(msgspec.Struct):
    """The contents of an answer that routing and billing need. Text, refusal and tools are the first choice's."""

    id: str = ""
    model: str = ""
    finish_reason: str = ""
    """In OpenAI's names: stop, length, tool_calls, content_filter."""
    text: str = ""
    refusal: str = ""
    thought: str = ""
    usage: Usage = Usage()
    logprobs: LogprobSummary = msgspec.field(default_factory=LogprobSummary)
    tool_names: list[str] = []
    tool_arguments: list[str] = []
    """JSON text of each call's arguments, in order."""
    other_endings: list[str] = []
    """Finish reasons of the choices after the first."""
    other_chars: int = 0
    """Characters in the choices after the first of everything that an upstream bills as output."""
    tier: str = ""
    """The service tier that answered, as `tier_prices` names it; empty where the answer doesn't name one."""


_decode = msgspec.json.Decoder(Chunk).decode


def read_chunk(payload: bytes) -> Chunk:
    """Raises one of BAD_JSON where the payload isn't a JSON object."""
    try:
        return _decode(payload)
    except msgspec.ValidationError:
        return read_leniently(payload)


def to_strict_json(payload: bytes) -> bytes | None:
    """JSON that only lenient parsers accept, in the standard's form: without a byte order mark, with null for NaN and
    infinity and ? for half a surrogate pair. None where it already is valid JSON, or isn't a JSON object at all.
    """
    try:
        msgspec.json.decode(payload)
    except BAD_JSON:
        pass
    else:
        return None
    try:
        value: Any = json.loads(payload.decode("utf-8-sig"), parse_constant=lambda _: None)
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except BAD_JSON:
        return None
    return text.encode(errors="replace") if isinstance(value, dict) else None


def read_leniently(payload: bytes) -> Chunk:
    """The chunk without the fields that don't fit the types."""
    value = msgspec.json.decode(payload)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    chunk: Chunk = _fit(value, Chunk)
    if isinstance(tier := value.get("service_tier"), str):
        chunk.service_tier = msgspec.Raw(msgspec.json.encode(tier))
    choices = value.get("choices")
    if not chunk.choices and isinstance(choices, list):
        chunk.choices = [_fit_choice(choice) for choice in choices if isinstance(choice, dict)]
    return chunk


def _fit_choice(value: dict[str, Any]) -> Choice:
    choice: Choice = _fit(value, Choice)
    for name in ("delta", "message"):
        if getattr(choice, name) is None and isinstance(value.get(name), dict):
            setattr(choice, name, _fit_delta(value[name]))
    return choice


def _fit_delta(value: dict[str, Any]) -> Delta:
    delta: Delta = _fit(value, Delta)
    if delta.content is None and isinstance(value.get("content"), list):
        joined = join_parts(value["content"])
        delta.content = joined["content"]
        delta.reasoning_content = delta.reasoning_content or joined.get("reasoning_content")
    if delta.tool_calls is None and isinstance(value.get("tool_calls"), list):
        delta.tool_calls = [_fit_tool(tool) for tool in value["tool_calls"] if isinstance(tool, dict)]
    return delta


def join_parts(parts: list[Any]) -> dict[str, str]:
    """Mistral's content, a list of parts, as the fields `content` and, if it has thoughts, `reasoning_content`."""
    thoughts = [_text(part["thinking"]) for part in parts if isinstance(part, dict) and part.get("type") == "thinking"]
    fields = {"content": _text(parts)}
    return {**fields, "reasoning_content": "".join(thoughts)} if thoughts else fields


def _text(content: Any) -> str:
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def begins_new_call(call_id: str | None, name: str | None, known_name: str | None, arguments: str) -> bool:
    """Whether a piece without an id, on the index of a known call, begins a new call. It does if its name differs, or
    is the same and the known call's arguments are complete, since some servers repeat the name in each piece.
    """
    if call_id or not name or not known_name:
        return False
    return name != known_name or _is_whole(arguments)


def _is_whole(arguments: str) -> bool:
    try:
        return isinstance(msgspec.json.decode(arguments), dict)
    except BAD_JSON:
        return False


def _fit_tool(value: dict[str, Any]) -> ToolDelta:
    tool: ToolDelta = _fit(value, ToolDelta)
    if tool.function is None and isinstance(value.get("function"), dict):
        tool.function = _fit(value["function"], Function)
        arguments = value["function"].get("arguments")
        if tool.function.arguments is None and isinstance(arguments, dict):
            tool.function.arguments = msgspec.json.encode(arguments).decode()
    return tool


def _fit(value: dict[str, Any], kind: type[Any]) -> Any:
    fields = {}
    for field in msgspec.structs.fields(kind):
        if field.name in value:
            try:
                fields[field.name] = msgspec.convert(value[field.name], field.type)
            except msgspec.ValidationError:
                continue
    return kind(**fields)
