"""The content of a scripted upstream's answers, and their form in OpenAI's chat, completions and embeddings.

Pure: a request and a step in, JSON out. A token is a word with the white space that follows it, so the reported usage
can be checked by counting.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from gateway.providers.scripted_script import Step, ToolCall

Json = dict[str, Any]
CREATED = 1_700_000_000
"""Unix time of every answer; it is fixed so that answers are deterministic."""
IMAGE_TOKENS = 85
DIMENSIONS = 64
MAX_DIMENSIONS = 8192
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


def compose(request: Json, step: Step, dialect: str, answer_id: str) -> Answer:
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


def usage_openai(answer: Answer) -> Json:
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens + answer.reasoning_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens + answer.reasoning_tokens,
        "prompt_tokens_details": {"cached_tokens": answer.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        **answer.more_usage,
    }


def token_logprob(token: str, logprob: float) -> Json:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode()), "top_logprobs": []}


def _chat_logprobs(answer: Answer, tokens: list[str]) -> Json | None:
    if not answer.wants_logprobs:
        return None
    return {"content": [token_logprob(token, answer.logprob) for token in tokens], "refusal": None}


def _completion_logprobs(answer: Answer, tokens: list[str]) -> Json | None:
    if not answer.wants_logprobs:
        return None
    return {
        "tokens": tokens,
        "token_logprobs": [answer.logprob] * len(tokens),
        "top_logprobs": None,
        "text_offset": [sum(map(len, tokens[:i])) for i in range(len(tokens))],
    }


def _tool_call_openai(answer: Answer, index: int) -> Json:
    call = answer.tool_calls[index]
    function = {"name": call.name, "arguments": encode(call.arguments).decode()}
    id = f"call_{answer.id}_{index}"
    if answer.call_ids == "nine":
        id = hashlib.sha256(id.encode()).hexdigest()[:9]
    tool_call: Json = {"id": id, "type": "function", "function": function}
    if answer.call_ids in SIGNED and not index:
        tool_call["extra_content"] = signature_of(id)
    return tool_call


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


def chat(answer: Answer) -> Json:
    message: Json = {"role": "assistant", "content": answer.text or None, "refusal": None}
    if answer.tool_calls:
        message["tool_calls"] = [_tool_call_openai(answer, i) for i in range(len(answer.tool_calls))]
    elif message["content"] is None:
        message["content"] = ""
    if answer.call_ids in SIGNED and answer.text:
        message["extra_content"] = signature_of(answer.text)
    if answer.ran:
        message["executed_tools"] = _executed_tools(answer, "done")
    logprobs = _chat_logprobs(answer, answer.tokens)
    finish = answer.finish_reason
    return _openai("chat.completion", answer) | {
        "choices": [
            {"index": i, "message": message, "logprobs": logprobs, "finish_reason": finish}
            for i in range(answer.n)
        ]
    }


def _executed_tools(answer: Answer, output: str | None) -> list[Json]:
    """The hosted tools that ran, in the form of Groq's `executed_tools`."""
    names = {"browser_search": "browser.search", "code_interpreter": "python"}
    return [{"index": index, "type": "function", "name": names[kind], "arguments": "{}", "output": output}
            for index, kind in enumerate(answer.ran)]  # fmt: skip


def completions(answer: Answer) -> Json:
    logprobs = _completion_logprobs(answer, answer.tokens)
    choice = {"text": answer.text, "logprobs": logprobs, "finish_reason": answer.finish_reason}
    return _openai("text_completion", answer) | {"choices": [{"index": i, **choice} for i in range(answer.n)]}


def _openai(kind: str, answer: Answer, *, chunk: bool = False) -> Json:
    body: Json = {"id": answer.id, "object": kind, "created": CREATED, "model": answer.model}
    if answer.tells_usage and not chunk:
        body["usage"] = usage_openai(answer)
    return body


def chat_events(answer: Answer, include_usage: bool) -> Iterator[Json]:
    """The stream's events: content first, then the finish reasons, then usage if it was requested."""
    base = _openai("chat.completion.chunk", answer, chunk=True)
    if include_usage:
        base["usage"] = None

    def event(index: int, delta: Json, logprobs: Json | None = None, finish: str | None = None) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return base | {"choices": [choice]}

    for i in range(answer.n):
        yield event(i, {"role": "assistant", "content": "" if not answer.tool_calls else None})
    for output in (None, "done") if answer.ran else ():
        yield event(0, {"executed_tools": _executed_tools(answer, output)})
    for token in answer.tokens:
        for i in range(answer.n):
            yield event(i, {"content": token}, _chat_logprobs(answer, [token]))
    for number, call in enumerate(answer.tool_calls):
        opened = _tool_call_openai(answer, number)
        opened["function"]["arguments"] = ""
        signature = opened.pop("extra_content", None) if answer.call_ids == "late" else None
        yield event(0, {"tool_calls": [{"index": number, **opened}]})
        for piece in tokenize(encode(call.arguments).decode()):
            yield event(0, {"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
        if signature is not None:
            yield event(0, {"tool_calls": [{"index": number, "extra_content": signature}]})
    if answer.call_ids in SIGNED and answer.text:
        yield event(0, {"content": "", "extra_content": signature_of(answer.text)})
    for i in range(answer.n):
        groq = {"x_groq": {"id": "req_1", "usage": usage_openai(answer)}} if answer.x_groq else {}
        yield event(i, {}, finish=answer.finish_reason) | groq
    if include_usage and answer.tells_usage and not answer.x_groq:
        yield base | {"choices": [], "usage": usage_openai(answer)}


def completion_events(answer: Answer, include_usage: bool) -> Iterator[Json]:
    base = _openai("text_completion", answer, chunk=True)
    if include_usage:
        base["usage"] = None
    for token in answer.tokens:
        for i in range(answer.n):
            logprobs = _completion_logprobs(answer, [token])
            yield base | {
                "choices": [{"index": i, "text": token, "logprobs": logprobs, "finish_reason": None}]
            }
    for i in range(answer.n):
        finish = answer.finish_reason
        yield base | {"choices": [{"index": i, "text": "", "logprobs": None, "finish_reason": finish}]}
    if include_usage and answer.tells_usage:
        yield base | {"choices": [], "usage": usage_openai(answer)}


def embeddings(request: Json) -> Json:
    """Hashed bags of words, so texts that share words have similar vectors. Raises ValueError for bad `dimensions`."""
    value = request.get("input", "")
    texts = [value] if isinstance(value, str) else list(value)
    dimensions = int(request.get("dimensions") or DIMENSIONS)
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"dimensions must be between 1 and {MAX_DIMENSIONS}")
    vectors = [_vector(str(text), dimensions) for text in texts]
    packed: list[Any] = [v.tolist() for v in vectors]
    if request.get("encoding_format") == "base64":
        packed = [base64.b64encode(v.astype("<f4").tobytes()).decode() for v in vectors]
    tokens = sum(len(tokenize(str(text))) for text in texts)
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(packed)],
        "model": str(request.get("model", "scripted")),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _vector(text: str, dimensions: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.zeros(dimensions, dtype=np.float32)
    for word in text.lower().split() or [""]:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        vector += np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector) or 1.0)
