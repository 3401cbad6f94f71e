"""The content of a scripted upstream's answers, in no dialect yet.

Pure: a request and a step in, an answer out. A token is a word with the white space that follows it, so the reported
usage can be checked by counting.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.providers.scripted_script import Step, ToolCall

Json = dict[str, Any]
CREATED = 1_700_000_000
"""Unix time of every answer; it is fixed so that answers are deterministic."""
IMAGE_TOKENS = 85
_TOKEN = re.compile(r"\S+\s*|\s+")
UNSIGNED = {"google": {"thought_signature": "skip_thought_signature_validator"}}
"""Gemini accepts this in place of the signature of any call."""
encode = msgspec.json.encode


class Answer(msgspec.Struct):
    """The content of an answer, independent of any dialect."""

    id: str
    model: str
    tokens: list[str]
    tool_calls: list[ToolCall]
    call_ids: str
    finish_reason: str
    logprob: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    cache_write_1h_tokens: int
    reasoning_tokens: int
    web_searches: int
    ran: list[str]
    """Kinds of the hosted tools that ran, one entry per run."""
    n: int
    wants_logprobs: bool
    tells_usage: bool
    more_usage: dict[str, object]
    x_groq: bool

    @property
    def text(self) -> str:
        return "".join(self.tokens)


def compose(request: Json, step: Step, answer_id: str) -> Answer:
    """The answer to `request` that `step` describes. Raises ValueError for calls that `check_calls` refuses."""
    check_calls(request, step.call_ids)
    tools = step.tool_calls or ([] if step.text is not None else _forced_tool(request))
    text = step.text if step.text is not None else ("" if tools else _default_text(request))
    if len(text) < step.body_bytes:
        text += " lorem" * ((step.body_bytes - len(text)) // 6 + 1)
    tokens, finish = _cut(_TOKEN.findall(text), request)
    n = max(1, int(request.get("n") or 1))
    counted = len(tokens) + sum(len(tokenize(encode(c.arguments).decode())) for c in tools)
    return Answer(
        id=answer_id,
        model=str(request.get("model", "scripted")),
        tokens=tokens,
        tool_calls=tools,
        call_ids=step.call_ids,
        finish_reason=step.finish_reason or ("tool_calls" if tools else finish),
        logprob=step.logprob,
        input_tokens=count_input(request) if step.input_tokens is None else step.input_tokens,
        output_tokens=(counted * n if step.output_tokens is None else step.output_tokens),
        cached_tokens=step.cached_tokens,
        cache_write_tokens=step.cache_write_tokens,
        cache_write_1h_tokens=step.cache_write_1h_tokens,
        reasoning_tokens=step.reasoning_tokens,
        web_searches=step.web_searches if _offers_search(request) else 0,
        ran=[kind for kind, count in step.tool_runs.items() if _offers(request, kind) for _ in range(count)],
        n=n,
        wants_logprobs=bool(request.get("logprobs")),
        tells_usage=step.usage,
        more_usage=step.more_usage,
        x_groq=step.x_groq,
    )


def _offers_search(request: Json) -> bool:
    return _offers(request, "web_search")


def _offers(request: Json, kind: str) -> bool:
    return any(str(tool.get("type")).startswith(kind) for tool in request.get("tools") or ())


def tokenize(text: str) -> list[str]:
    return _TOKEN.findall(text)


def count_input(request: Json) -> int:
    """Tokens of the prompt's texts; an image counts as 85."""
    parts = list(_texts(request.get("system"))) + list(_texts(request.get("prompt")))
    parts += list(_texts(request.get("input")))
    for message in request.get("messages") or []:
        parts += list(_texts(message.get("content")))
    return sum(IMAGE_TOKENS if part is None else len(tokenize(part)) for part in parts)


def _texts(content: Any) -> Iterator[str | None]:
    """The texts of a content field, and None for each image."""
    if isinstance(content, str):
        yield content
    for part in content if isinstance(content, list) else []:
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict) and part.get("type") in ("image_url", "image", "input_image"):
            yield None
        elif isinstance(part, dict) and "text" in part:
            yield str(part["text"])


def _default_text(request: Json) -> str:
    schema = _schema_of(request)
    if schema is not None:
        return encode(instance_of(schema)).decode()
    for message in reversed(request.get("messages") or []):
        if message.get("role") == "user":
            return " ".join(part for part in _texts(message.get("content")) if part)
    return " ".join(part for part in _texts(request.get("prompt")) if part)


def _schema_of(request: Json) -> Json | None:
    form = request.get("response_format") or {}
    if form.get("type") == "json_schema":
        return dict(form.get("json_schema", {}).get("schema") or {})
    anthropic = (request.get("output_config") or {}).get("format") or {}
    if anthropic.get("type") == "json_schema":
        return dict(anthropic.get("schema") or {})
    return {"type": "object"} if form.get("type") == "json_object" else None


def _forced_tool(request: Json) -> list[ToolCall]:
    """A call of the tool that `tool_choice` forces, with the least arguments that its schema allows; [] if none is."""
    choice = request.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind not in ("required", "any", "function", "tool"):
        return []
    forced_name = (choice.get("function") or choice).get("name") if isinstance(choice, dict) else None
    for tool in request.get("tools") or []:
        function = tool.get("function") or tool
        if forced_name in (None, function.get("name")):
            schema = function.get("parameters") or function.get("input_schema") or {}
            return [ToolCall(str(function["name"]), dict(instance_of({"type": "object", **schema})))]
    return []


def instance_of(schema: Json) -> Any:
    """The least value that fits a JSON schema, as far as schemas for models use the standard."""
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return instance_of(schema[union][0])
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = kind[0]
    if kind == "object":
        properties = schema.get("properties") or {}
        return {
            name: instance_of(properties.get(name) or {}) for name in schema.get("required") or properties
        }
    if kind == "array":
        return [instance_of(schema.get("items") or {}) for _ in range(int(schema.get("minItems") or 0))]
    return {"string": "text", "integer": schema.get("minimum", 0), "number": 0.5, "boolean": True}.get(kind)


def _cut(tokens: list[str], request: Json) -> tuple[list[str], str]:
    stops = request.get("stop") or request.get("stop_sequences") or []
    text = "".join(tokens)
    places = [at for stop in ([stops] if isinstance(stops, str) else stops) if (at := text.find(stop)) >= 0]
    if places:
        tokens = tokenize(text[: min(places)])
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    if limit and len(tokens) > int(limit):
        return tokens[: int(limit)], "length"
    return tokens, "stop"


SIGNED = ("signed", "late")
"""How Gemini sends a call's signature: with the call, or in a chunk of its own after it."""


def signature_of(call_id: str) -> Json:
    """A signature as Gemini's; it is longer than other APIs allow an id to be."""
    signed = hashlib.sha512(call_id.encode()).digest() * 4
    return {"google": {"thought_signature": base64.b64encode(signed).decode()}}


def check_calls(request: Json, call_ids: str) -> None:
    """Raises ValueError where the conversation holds tool calls that an API with these `call_ids` refuses."""
    turns = request.get("messages") or []
    for turn in turns if call_ids == "nine" else ():
        for id in (*(call["id"] for call in turn.get("tool_calls") or ()), turn.get("tool_call_id")):
            if id is not None and not re.fullmatch("[a-zA-Z0-9]{9}", id):
                raise ValueError(f"Tool call id was {id} but must be a-z, A-Z, 0-9, with a length of 9.")
        if any(call.keys() - {"id", "type", "function"} for call in turn.get("tool_calls") or ()):
            raise ValueError("Extra inputs are not permitted")
    user_turns = [place for place, turn in enumerate(turns) if turn.get("role") == "user"]
    for turn in turns[user_turns[-1] :] if call_ids in SIGNED and user_turns else ():
        for call in (turn.get("tool_calls") or ())[:1]:
            if call.get("extra_content") not in (signature_of(call["id"]), UNSIGNED):
                raise ValueError("Function call is missing a thought_signature in functionCall parts.")
