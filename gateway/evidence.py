"""What an answer shows of its own worth, read from what the upstream sent. Unknown stays unknown."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cascade.evidence import fits_schema
from cascade.types import Evidence
from gateway.wire.answer import Peek


def evidence_of(seen: Peek, *, wants_json: bool, schema: object = None) -> Evidence:
    """`schema`: what the answer's JSON must look like; None: any will do."""
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
    return "\n".join(f"{n}({_spelt(a)})" for n, a in zip(seen.tool_names, seen.tool_arguments, strict=True))


def _spelt(arguments: str) -> str:
    """The same for the same arguments, whatever their order and spacing."""
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
