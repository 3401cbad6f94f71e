"""The OpenAI dialect as JSON: bodies to requests, events to answers, errors to their shape. No sockets.

Refuses what it would not do: an unknown field, a tool, an image is an error that names the field, never a
warning.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from math import ceil
from typing import Any

from local_models.errors import EngineDead, EngineFull, LocalModelError, ModelLost, RequestRefused
from local_models.grammar import ANY_OBJECT, Grammar, one_of
from local_models.request import Ending, Sampling, TokenLogprob, Usage
from local_models.text import TextCodec

Body = dict[str, Any]

_SAMPLING = {
    "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias",
}  # fmt: skip
_STRUCTURED = "structured_outputs"
_COMMON = {"model", "stream", "stream_options", "stop", "n", "ignore_eos", "deadline_s", _STRUCTURED, *_SAMPLING}
# Of no effect on an answer here, and harmless: who asks, what for, where to keep it.
_IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "parallel_tool_calls", "reasoning_effort", "verbosity",
}  # fmt: skip
CHAT_FIELDS = _COMMON | _IGNORED | {
    "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "response_format",
    "modalities", "tools", "tool_choice", "chat_template_kwargs",
}  # fmt: skip
COMPLETION_FIELDS = _COMMON | _IGNORED | {"prompt", "max_tokens", "logprobs", "echo", "best_of", "suffix"}
EMBEDDING_FIELDS = {"model", "input", "encoding_format", "dimensions", "user"}

_MOST_CHOICES = 16
_MOST_TOP_LOGPROBS = 20
_MOST_STOPS = 16
_FINISH: dict[Ending, str] = {"stop": "stop", "length": "length", "cancelled": "stop", "deadline": "length"}


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """What a chat or completions body asks for, prompts still to be encoded."""

    model: str
    stream: bool
    include_usage: bool
    choices: int
    max_tokens: int | None
    sampling: Sampling
    stop: tuple[str, ...]
    top_logprobs: int | None
    grammar: Grammar | None
    ignore_end: bool
    deadline_s: float | None
    """Seconds from now."""


def read_chat(body: Body, temperature: float = 1.0) -> GenerationParams:
    """The parameters of a chat body. Raises `RequestRefused`, which names the field that can't be served.

    `temperature` is the model's default, for bodies without one.
    """
    _refuse_unknown(body, CHAT_FIELDS)
    if body.get("tools") and body.get("tool_choice") != "none":
        raise RequestRefused("this model calls no tools", code="unsupported_value", param="tools")
    if body.get("modalities") not in (None, ["text"]):
        raise RequestRefused("this model writes text only", code="unsupported_value", param="modalities")
    _checked_messages(body)
    top = _integer(body, "top_logprobs", 0, 0, _MOST_TOP_LOGPROBS)
    wants_logprobs = _flag(body, "logprobs")
    if top and not wants_logprobs:
        raise RequestRefused("top_logprobs needs logprobs to be true", param="top_logprobs")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    grammar = _grammar(body)
    return _params({"temperature": temperature, **_set(body)}, limit, None, top if wants_logprobs else None, grammar)


def read_completion(body: Body, temperature: float = 1.0) -> GenerationParams:
    """The parameters of a completions body; without `max_tokens` an answer has at most 16 tokens, as OpenAI defines."""
    _refuse_unknown(body, COMPLETION_FIELDS)
    if body.get("suffix"):
        raise RequestRefused("this model completes at the end only", code="unsupported_value", param="suffix")
    if body.get("best_of") not in (None, body.get("n") or 1):
        raise RequestRefused("best_of must equal n", code="unsupported_value", param="best_of")
    if body.get("echo"):
        raise RequestRefused("echo is not served", code="unsupported_value", param="echo")
    top = body.get("logprobs")
    top = None if top is None else _integer(body, "logprobs", 0, 0, 5)
    return _params({"temperature": temperature, **_set(body)}, "max_tokens", 16, top, _structured(body))


def completion_prompts(body: Body, codec: TextCodec) -> list[list[int]]:
    """Token ids of every prompt: a text, token ids, or a list of either."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [codec.encode(prompt)]
    if isinstance(prompt, list) and prompt:
        if all(_is_token(item, codec) for item in prompt):
            return [prompt]
        if all(isinstance(item, str) for item in prompt):
            return [codec.encode(item) for item in prompt]
        if all(isinstance(item, list) and item and all(_is_token(i, codec) for i in item) for item in prompt):
            return prompt
    raise RequestRefused("prompt must be a text, token ids, or a list of either", param="prompt")


def embedding_inputs(body: Body, codec: TextCodec) -> list[list[int]]:
    """Token ids of every text to embed."""
    _refuse_unknown(body, EMBEDDING_FIELDS)
    if body.get("dimensions") is not None:
        raise RequestRefused("dimensions cannot be chosen here", code="unsupported_value", param="dimensions")
    if body.get("encoding_format", "float") not in ("float", "base64"):
        raise RequestRefused("encoding_format must be float or base64", param="encoding_format")
    try:
        inputs = completion_prompts({"prompt": body.get("input")}, codec)
    except RequestRefused as error:
        raise RequestRefused(str(error).replace("prompt", "input"), param="input") from error
    if not all(inputs):
        raise RequestRefused("input must not be empty", param="input")
    return inputs


def scoring_inputs(body: Body, codec: TextCodec) -> tuple[list[int], list[int]]:
    """Token ids of a prompt or a conversation, and of an answer to it."""
    _refuse_unknown(body, {"model", "messages", "prompt", "answer"})
    if ("messages" in body) == ("prompt" in body):
        raise RequestRefused("one of messages and prompt is needed", param="prompt")
    if "messages" in body:
        _checked_messages(body)
        prompt = codec.encode_chat(body["messages"])
    else:
        prompt = completion_prompts({"prompt": [_text(body, "prompt")]}, codec)[0]
    answer = codec.tokenizer.encode(_text(body, "answer"), add_special_tokens=False).ids
    return prompt, list(answer)


def score_json(model: str, prompt_tokens: int, answer: Ids[int], logprobs: Ids[float], codec: TextCodec) -> Body:
    """How likely the model finds an answer: each token's log-probability, their sum and mean."""
    total = sum(logprobs)
    return {
        "object": "score",
        "model": model,
        "tokens": [codec.token(token_id) for token_id in answer],
        "logprobs": list(logprobs),
        "sum": total,
        "mean": total / len(logprobs),
        "usage": {"prompt_tokens": prompt_tokens + len(answer), "total_tokens": prompt_tokens + len(answer)},
    }


def usage_json(usages: Ids[Usage], prompt_tokens: int) -> Body:
    """Exact counts; the prompt is counted once however many answers it had."""
    output = sum(usage.output_tokens for usage in usages)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output,
        "total_tokens": prompt_tokens + output,
        "prompt_tokens_details": {"cached_tokens": min((u.cached_tokens for u in usages), default=0)},
        "headgate": {
            "queue_s": max((u.queue_s for u in usages), default=0.0),
            "prefill_s": sum(u.prefill_s for u in usages),
            "decode_s": sum(u.decode_s for u in usages),
            "compute_s": sum(u.compute_s for u in usages),
            "joules": None if any(u.joules is None for u in usages) else sum(u.joules or 0.0 for u in usages),
        },
    }


def chat_logprobs(logprobs: Ids[TokenLogprob], codec: TextCodec) -> Body:
    """The chat dialect's shape of log-probabilities."""
    content = []
    for chosen in logprobs:
        entry = _logprob_entry(chosen.token_id, chosen.logprob, codec)
        entry["top_logprobs"] = [_logprob_entry(token_id, value, codec) for token_id, value in chosen.top]
        content.append(entry)
    return {"content": content, "refusal": None}


def completion_logprobs(logprobs: Ids[TokenLogprob], codec: TextCodec, offset: int) -> Body:
    """The completions dialect's shape; `offset` is the first token's place in the text."""
    tokens = [codec.token(chosen.token_id) for chosen in logprobs]
    offsets = [offset + sum(len(token) for token in tokens[:at]) for at in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [chosen.logprob for chosen in logprobs],
        "top_logprobs": [{codec.token(i): value for i, value in chosen.top} for chosen in logprobs],
        "text_offset": offsets,
    }


def embedding_json(index: int, vector: list[float], encoding: str) -> Body:
    """One embedding, as numbers or as base64 of little-endian float32."""
    packed: object = vector
    if encoding == "base64":
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    return {"object": "embedding", "index": index, "embedding": packed}


def finish_reason(reason: Ending) -> str:
    """OpenAI's word for an ending that is not an error."""
    return _FINISH[reason]


def error_json(error: LocalModelError) -> tuple[int, Body]:
    """HTTP status and body of an error."""
    if isinstance(error, RequestRefused):
        status = 404 if error.code == "model_not_found" else 400
        return status, _error(str(error), "invalid_request_error", error.code, error.param)
    if isinstance(error, EngineFull):
        return 429, _error(str(error), "rate_limit_error", "engine_full", None)
    if isinstance(error, ModelLost):
        return 503, _error(str(error), "server_error", "model_not_loaded", None)
    if isinstance(error, EngineDead):
        return 503, _error(str(error), "server_error", "engine_dead", None)
    return 500, _error(str(error), "server_error", "engine_error", None)


def error_headers(error: LocalModelError) -> list[tuple[bytes, bytes]]:
    """When to ask again, where that is known."""
    if not isinstance(error, EngineFull):
        return []
    wait_ms = max(1, ceil(error.retry_after_s * 1e3))
    return [(b"retry-after", b"%d" % ceil(wait_ms / 1e3)), (b"retry-after-ms", b"%d" % wait_ms)]


def _error(message: str, kind: str, code: str, param: str | None) -> Body:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _params(
    body: Body, limit: str, default_tokens: int | None, top: int | None, grammar: Grammar | None
) -> GenerationParams:
    stream = _flag(body, "stream")
    options = body.get("stream_options") or {}
    if options and not stream:
        raise RequestRefused("stream_options needs stream to be true", param="stream_options")
    deadline = _number(body, "deadline_s", 0.0) or None
    max_tokens = body.get(limit)
    return GenerationParams(
        model=_text(body, "model"),
        stream=stream,
        include_usage=bool(options.get("include_usage", False)),
        choices=_integer(body, "n", 1, 1, _MOST_CHOICES),
        max_tokens=default_tokens if max_tokens is None else _integer(body, limit, 1, 1, 1_000_000),
        sampling=_sampling(body),
        stop=_stops(body.get("stop")),
        top_logprobs=top,
        grammar=grammar,
        ignore_end=_flag(body, "ignore_eos"),
        deadline_s=deadline,
    )


def _sampling(body: Body) -> Sampling:
    seed = body.get("seed")
    bias = body.get("logit_bias") or {}
    try:
        pairs = tuple((int(token), float(value)) for token, value in bias.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise RequestRefused("logit_bias must map token ids to numbers", param="logit_bias") from error
    return Sampling(
        temperature=_number(body, "temperature", 1.0),
        top_k=_integer(body, "top_k", 0, 0, 1_000_000),
        top_p=_number(body, "top_p", 1.0),
        min_p=_number(body, "min_p", 0.0),
        seed=None if seed is None else _integer(body, "seed", 0, -(2**63), 2**63),
        presence_penalty=_number(body, "presence_penalty", 0.0),
        frequency_penalty=_number(body, "frequency_penalty", 0.0),
        logit_bias=pairs,
    )


def _grammar(body: Body) -> Grammar | None:
    """The grammar that the answer must obey, in OpenAI's or vLLM's field; None for free text."""
    asked, wanted = _schema(body.get("response_format")), _structured(body)
    if asked is not None and wanted is not None:
        raise RequestRefused("response_format and structured_outputs exclude each other", param=_STRUCTURED)
    return asked or wanted


def _structured(body: Body) -> Grammar | None:
    """vLLM's field: one of json, regex, choice and grammar."""
    wanted = body.get(_STRUCTURED)
    if wanted is None:
        return None
    if isinstance(wanted, dict) and len(wanted) == 1:
        kind, value = next(iter(wanted.items()))
        if kind == "json" and isinstance(value, dict | str):
            return Grammar("json", value if isinstance(value, str) else json.dumps(value), _STRUCTURED)
        if kind == "regex" and isinstance(value, str):
            return Grammar("regex", value, _STRUCTURED)
        if kind == "grammar" and isinstance(value, str):
            return Grammar("lark", value, _STRUCTURED)
        if kind == "choice" and isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return one_of(value, _STRUCTURED)
    raise RequestRefused(
        "structured_outputs must be one of json (a schema), regex, choice (texts) and grammar (Lark)",
        param=_STRUCTURED,
    )


def _schema(response_format: object) -> Grammar | None:
    """The JSON schema an answer must obey; None for free text."""
    if response_format is None:
        return None
    if isinstance(response_format, dict):
        kind = response_format.get("type")
        if kind == "text":
            return None
        if kind == "json_object":
            return Grammar("json", ANY_OBJECT)
        wrapped = response_format.get("json_schema")
        if kind == "json_schema" and isinstance(wrapped, dict) and isinstance(wrapped.get("schema"), dict):
            return Grammar("json", json.dumps(wrapped["schema"]))
    raise RequestRefused(
        "response_format must be text, json_object or json_schema with a schema", param="response_format"
    )


def _checked_messages(body: Body) -> None:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestRefused("messages must be a list of at least one message", param="messages")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestRefused("a message needs a role", param=f"messages[{at}]")
        message["content"] = _text_content(message.get("content"), at)
        if message["role"] == "developer":
            message["role"] = "system"


def _text_content(content: object, at: int) -> str:
    """A message's text; its parts may be several, but text only."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        for part in content:
            if part.get("type") != "text":
                raise RequestRefused(
                    f"this model reads text only, not {part.get('type')}",
                    code="unsupported_value",
                    param=f"messages[{at}].content",
                )
        return "".join(str(part.get("text", "")) for part in content)
    raise RequestRefused("content must be a text or a list of text parts", param=f"messages[{at}].content")


def _stops(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise RequestRefused(f"stop must be a text or up to {_MOST_STOPS} texts", param="stop")
    return tuple(stops)


def _refuse_unknown(body: Body, known: set[str]) -> None:
    for name, value in body.items():
        if name not in known and value is not None:
            raise RequestRefused(f"unknown field {name}", code="unknown_parameter", param=name)


def _set(body: Body) -> Body:
    """The fields that are not null, since null means absent."""
    return {name: value for name, value in body.items() if value is not None}


def _text(body: Body, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise RequestRefused(f"{name} must be a text", param=name)
    return value


def _flag(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestRefused(f"{name} must be true or false", param=name)
    return bool(value)


def _number(body: Body, name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestRefused(f"{name} must be a number", param=name)
    return float(value)


def _integer(body: Body, name: str, default: int, low: int, high: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestRefused(f"{name} must be a whole number from {low} to {high}", param=name)
    return value


def _is_token(value: object, codec: TextCodec) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < codec.size


def _logprob_entry(token_id: int, logprob: float, codec: TextCodec) -> Body:
    text = codec.token(token_id)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
