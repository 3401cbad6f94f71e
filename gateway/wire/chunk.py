"""One piece of a streamed answer, in the shape every dialect is read into: OpenAI's chunk.

Typed so that a peek costs half a microsecond. Providers deviate in details (a number where a string belongs,
content as a list), which must not end a stream that is otherwise fine: what doesn't fit the types is read
again, loosely.
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
"""What decoding bytes that aren't JSON raises."""


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class ToolDelta(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: Function | None = None
    extra_content: dict[str, Any] | None = None
    """Gemini's signature, to be given back with the call."""


class Delta(msgspec.Struct):
    content: str | None = None
    role: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolDelta] | None = None
    function_call: Function | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    signature: str | None = None
    """Of a thinking block; only Anthropic has it."""
    audio: dict[str, Any] | None = None
    extra_content: dict[str, Any] | None = None
    """Gemini's signature of what it said, which may be given back with it."""
    annotations: list[dict[str, Any]] | None = None
    """What the text cites."""
    executed_tools: list[Any] | None = None
    """That Groq's API ran itself."""

    @property
    def thought(self) -> str | None:
        return self.reasoning_content or self.reasoning


class Search(Delta):
    """One that the provider ran itself."""

    query: str = ""
    found: bool = True
    """False: it failed."""


class TokenLogprob(msgspec.Struct):
    logprob: float = 0.0
    token: str = ""
    bytes: list[int] | None = None
    top_logprobs: list[dict[str, Any]] | None = None


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None = None
    token_logprobs: list[float | None] | None = None
    """Of completions."""

    def values(self) -> list[float]:
        if self.content is not None:
            return [token.logprob for token in self.content]
        return [value for value in self.token_logprobs or () if value is not None]


class Choice(msgspec.Struct):
    index: int = 0
    delta: Delta | None = None
    message: Delta | None = None
    """In a whole answer, where a chunk has `delta`."""
    text: str | None = None
    """Of completions."""
    finish_reason: str | None = None
    logprobs: Logprobs | None = None
    error: Any = None
    """Why it ended so, as OpenRouter says it."""

    @property
    def is_real(self) -> bool:
        """It carries something of the answer, not just a role."""
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
        """Of all that an upstream bills as output."""
        delta = self.delta
        said = len(self.text or "")
        if delta is None:
            return said
        called = (tool.function.arguments for tool in delta.tool_calls or () if tool.function is not None)
        return said + len(delta.content or "") + len(delta.thought or "") + sum(len(one or "") for one in called)


LOST = {
    "error": "the upstream ended its answer with an error",
    "abort": "the upstream aborted its answer",
    "insufficient_system_resource": "the upstream ran out of resources inside its answer",
}
"""Finish reasons of answers that are not at their end: Mistral's and OpenRouter's, vLLM's, DeepSeek's."""


def lost(choice: Choice) -> Any:
    """The error that such a choice tells."""
    overload = choice.finish_reason == "insufficient_system_resource"
    return choice.error or {"message": LOST[choice.finish_reason or "error"], "code": 503 if overload else 502}


FINISHES = {"model_length": "length", "max_tokens": "length"}
"""Other names for OpenAI's finish reasons."""


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    id: str | None = None
    model: str | None = None
    created: int | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    object: str | None = None
    message: str | None = None
    """Of a bare error object, as vLLM sends it."""
    code: Any = None
    stop_sequence: str | None = None
    service_tier: msgspec.Raw = NOTHING
    x_groq: dict[str, Any] | None = None
    """Where Groq tells usage at a stream's end, asked for or not."""


    @property
    def tier(self) -> str:
        """The service tier that it names; empty: none that can be read."""
        try:
            return _decode_text(self.service_tier)
        except BAD_JSON:
            return ""


class LogprobSummary(msgspec.Struct):
    """Log-probabilities of the answer's tokens, natural logarithm; NaN when there are none."""

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
    """What an answer shows without being rewritten. Text, refusal and tools are of the first choice only."""

    id: str = ""
    model: str = ""
    finish_reason: str = ""
    """OpenAI's names: stop, length, tool_calls, content_filter."""
    text: str = ""
    refusal: str = ""
    thought: str = ""
    usage: Usage = Usage()
    logprobs: LogprobSummary = msgspec.field(default_factory=LogprobSummary)
    tool_names: list[str] = []
    tool_arguments: list[str] = []
    """JSON text of each call, in order."""
    other_endings: list[str] = []
    """Of the choices after the first."""
    other_chars: int = 0
    """Theirs, of all that an upstream bills as output."""
    tier: str = ""
    """The service tier that gave it, as `tier_prices` names it; empty: it doesn't say."""


_decode = msgspec.json.Decoder(Chunk).decode


def read_chunk(payload: bytes) -> Chunk:
    """Raises one of BAD_JSON when the payload isn't a JSON object."""
    try:
        return _decode(payload)
    except msgspec.ValidationError:
        return loosely(payload)


def strict(payload: bytes) -> bytes | None:
    """JSON as lenient parsers read it, in the standard's form: without a byte order mark, null for NaN and infinity, ?
    for half a surrogate pair. None: it was in that form, or is no JSON object at all.
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


def loosely(payload: bytes) -> Chunk:
    """The chunk with everything left out that doesn't fit the types."""
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
        told = plain(value["content"])
        delta.content = told["content"]
        delta.reasoning_content = delta.reasoning_content or told.get("reasoning_content")
    if delta.tool_calls is None and isinstance(value.get("tool_calls"), list):
        delta.tool_calls = [_fit_tool(tool) for tool in value["tool_calls"] if isinstance(tool, dict)]
    return delta


def plain(parts: list[Any]) -> dict[str, str]:
    """What a list of parts, as Mistral has it, says as `content` and, where one is thought, `reasoning_content`."""
    thoughts = [_text(part["thinking"]) for part in parts if isinstance(part, dict) and part.get("type") == "thinking"]
    said = {"content": _text(parts)}
    return {**said, "reasoning_content": "".join(thoughts)} if thoughts else said


def _text(given: Any) -> str:
    if isinstance(given, list):
        texts = (part.get("text") for part in given if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    return given if isinstance(given, str) else ""


def tells_another(call_id: str | None, name: str | None, known: str | None, arguments: str) -> bool:
    """Whether a piece of a call on a known index begins a new one. Where no id tells, its name does: another one, or
    the same after arguments that are complete, as some servers repeat the name in each piece.
    """
    if call_id or not name or not known:
        return False
    return name != known or _is_whole(arguments)


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
