"""Reads whole answers for billing and routing, without rewriting them."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import UpstreamError
from gateway.wire.chunk import (
    BAD_JSON,
    FAILED_FINISHES,
    Choice,
    Chunk,
    Delta,
    LogprobSummary,
    Peek,
    failure_of,
    read_chunk,
)
from gateway.wire.errors import classify_in_stream
from gateway.wire.hosted_tools import Runs
from gateway.wire.pass_through import PASSED, peek_passed
from gateway.wire.readers import STOP_TO_FINISH
from gateway.wire.responses_reader import CALLS, finish_of, is_search
from gateway.wire.seen import Seen
from gateway.wire.usage import Usage, speed_of

Json = dict[str, Any]


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Message(msgspec.Struct):
    id: str | None = None
    model: str | None = None
    content: list[_Block] | str | None = None
    stop_reason: str | None = None
    usage: Json | None = None
    type: str = ""
    error: Any = None
    container: Any = None


_decode_message = msgspec.json.Decoder(_Message).decode


def peek(body: bytes, dialect: str) -> Peek:
    """Read an answer of the upstream. Raises UpstreamError where the body is an error, or (bad_response) where it isn't
    an answer in the dialect.
    """
    try:
        if dialect == "messages":
            return _peek_message(body)
        if dialect == "responses":
            return _peek_response(body)
        if dialect in PASSED:
            return peek_passed(body, dialect)
        return _peek_chunk(read_chunk(body), dialect)
    except BAD_JSON as error:
        raise _bad(f"the upstream's answer can't be read: {error}") from None


def _peek_chunk(chunk: Chunk, dialect: str) -> Peek:
    """A whole answer is read as a single chunk whose choices have a message in place of a delta."""
    if chunk.error is not None and not chunk.choices:
        raise classify_in_stream(chunk.error)
    if dialect != "embeddings" and not chunk.choices:
        raise _bad("the upstream's answer has no choices")
    if len(chunk.choices) == 1 and (message := chunk.choices[0].message) is not None and not message.tool_calls:
        if chunk.choices[0].finish_reason in FAILED_FINISHES:
            raise classify_in_stream(failure_of(chunk.choices[0]))
        return _peek_single(chunk, chunk.choices[0], message)
    seen = Seen()
    for choice in chunk.choices:
        choice.delta, choice.message = choice.message, None
        for index, tool in enumerate((choice.delta.tool_calls if choice.delta else None) or ()):
            tool.index = index
    seen.take(chunk)
    if chunk.error is not None:
        raise classify_in_stream(chunk.error)
    return seen.peek()


def _peek_single(chunk: Chunk, choice: Choice, message: Delta) -> Peek:
    """A faster way for one choice without tool calls, as nearly every answer is: nothing has to be accumulated."""
    logprobs = LogprobSummary()
    if choice.logprobs is not None:
        logprobs.take(choice.logprobs.values())
    usage = Usage.from_openai(chunk.usage)
    if message.executed_tools:
        runs = Runs()
        runs.executed(message.executed_tools)
        usage = usage.with_runs(runs)
    return Peek(
        chunk.id or "",
        chunk.model or "",
        choice.finish_reason or "",
        message.content or "",
        message.refusal or "",
        message.thought or "",
        usage,
        logprobs,
        tier=chunk.tier if chunk.service_tier else "",
    )


def _peek_message(body: bytes) -> Peek:
    message = _decode_message(body)
    if message.error is not None:
        raise classify_in_stream(message.error)
    if message.type != "message":
        raise _bad("the upstream's answer is no message")
    blocks = message.content or []
    if isinstance(blocks, str):
        blocks = [_Block("text", blocks)]
    tools = [block for block in blocks if block.type == "tool_use"]
    finish = STOP_TO_FINISH.get(message.stop_reason or "", "stop")
    text = "".join(block.text or "" for block in blocks if block.type == "text")
    return Peek(
        message.id or "",
        message.model or "",
        finish if message.stop_reason else "",
        text,
        text if message.stop_reason == "refusal" else "",
        "".join(block.thinking or "" for block in blocks),
        Usage.from_anthropic(message.usage).with_runs(_runs_in(message, blocks)),
        tier=speed_of(message.usage or {}),
        tool_names=[tool.name or "" for tool in tools],
        tool_arguments=[bytes(tool.input).decode() for tool in tools],
    )


def _runs_in(message: _Message, blocks: list[_Block]) -> Runs:
    runs = Runs()
    for place, block in enumerate(blocks):
        runs.block(place, block.type, block.name)
    if message.container is not None:
        runs.container()
    return runs


class _OutputPart(msgspec.Struct):
    type: str = ""
    text: str = ""
    refusal: str = ""


class _Output(msgspec.Struct):
    type: str = ""
    content: list[_OutputPart] | None = None
    summary: list[_OutputPart] | None = None
    name: str | None = None
    arguments: Any = None
    action: Any = None
    status: Any = None
    container_id: Any = None
    environment: Any = None


class _Response(msgspec.Struct):
    id: str = ""
    object: str = ""
    model: str = ""
    status: str = ""
    output: list[_Output] = []
    error: Any = None
    incomplete_details: Json | None = None
    usage: Json | None = None
    service_tier: Any = None


def _peek_response(body: bytes) -> Peek:
    response = msgspec.json.decode(body, type=_Response)
    if response.error is not None:
        raise classify_in_stream(response.error)
    if response.object != "response":
        raise _bad("the upstream's answer is no response")
    parts = [part for item in response.output if item.type == "message" for part in item.content or ()]
    calls = [item for item in response.output if item.type in CALLS]
    thoughts = [part for item in response.output if item.type == "reasoning"
                for part in (*(item.summary or ()), *(item.content or ()))]  # fmt: skip
    runs = Runs()
    for place, item in enumerate(response.output):
        runs.item(place, item)
    reason = (response.incomplete_details or {}).get("reason", "") if response.status == "incomplete" else None
    finish = finish_of(reason, any(item.type in CALLS for item in response.output))
    return Peek(
        response.id,
        response.model,
        finish,
        "".join(part.text for part in parts if part.type == "output_text"),
        "".join(part.refusal for part in parts),
        "".join(part.text for part in thoughts),
        Usage.from_responses(response.usage, sum(map(is_search, response.output))).with_runs(runs),
        tier=response.service_tier if isinstance(response.service_tier, str) else "",
        tool_names=[call.name or "" for call in calls],
        tool_arguments=[str(call.arguments or "") for call in calls],
    )


def _bad(message: str) -> UpstreamError:
    return UpstreamError("bad_response", message)
