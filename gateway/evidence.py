"""Reads the evidence of an answer's quality from what the upstream sent. What it doesn't show stays None."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cascade.evidence import fits_schema
from cascade.types import Evidence
from gateway.wire.chunk import Peek


def evidence_of(seen: Peek, *, wants_json: bool, schema: object = None) -> Evidence:
    """`wants_json`: the request asks for JSON, of this `schema`; None allows any JSON."""
    logprobs = seen.logprobs
    return Evidence(
        mean_logprob=logprobs.mean,
        min_logprob=logprobs.min,
        sum_logprob=logprobs.sum if logprobs.count else logprobs.mean,
        output_tokens=seen.usage.completion_tokens,
        refused=True if seen.refusal or seen.finish_reason == "content_filter" else None,
        schema_valid=_valid(seen.text, schema) if wants_json and not seen.tool_names else None,
        tools_parse=_all_json(seen.tool_arguments) if seen.tool_names else None,
        text=seen.text,
        calls=_calls(seen) if seen.tool_names else "",
    )


def _valid(text: str, schema: object) -> bool | None:
    return _is_json(text) if schema is None else fits_schema(text, schema)


def _calls(seen: Peek) -> str:
    """One line for each tool call, equal for equal calls."""
    return "\n".join(f"{n}({_canonical(a)})" for n, a in zip(seen.tool_names, seen.tool_arguments, strict=True))


def _canonical(arguments: str) -> str:
    """The arguments' JSON in one order and spacing; text that is no JSON as it is."""
    try:
        return msgspec.json.encode(msgspec.json.decode(arguments), order="deterministic").decode()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return arguments


def _all_json(texts: Sequence[str]) -> bool:
    return all(_is_json(text) for text in texts if text)


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True
