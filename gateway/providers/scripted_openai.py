"""A scripted upstream's answers in OpenAI's chat, completions and embeddings, whole or as a stream's events."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from gateway.providers.scripted_answer import CREATED, SIGNED, Answer, Json, encode, signature_of, tokenize

DIMENSIONS = 64
MAX_DIMENSIONS = 8192


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
