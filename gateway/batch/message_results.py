"""The results of a message batch in the format of Anthropic's API: each request once, as a line of JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal

import msgspec

from gateway.batch.results import UNANSWERED, Result, encode, on_one_line, unbroken
from gateway.batch.types import Problem
from gateway.errors import HeadgateError
from gateway.wire.errors import classify, error_object

_TYPES = {"cancelled": "canceled", "expired": "expired"}
"""Result type of a request without an answer, by how its job ended."""
_STATUSES = {"model_not_found": 404, "request_too_large": 413, "invalid_api_key": 401, "internal_error": 500}
"""HTTP status for the code of a line's fault; 400 for any other code."""


class _Named(msgspec.Struct):
    """The id of an input line."""

    custom_id: str


class _Detail(msgspec.Struct):
    type: str
    message: str


class _Error(msgspec.Struct):
    """An error answer of Anthropic's API."""

    type: Literal["error"]
    error: _Detail


_decode_named = msgspec.json.Decoder(_Named).decode
_decode_error = msgspec.json.Decoder(_Error).decode


def each_once(
    found: Iterable[Result], lines: Iterable[bytes], count: int, rest: Result
) -> Iterator[Result]:
    """The results `found`, and `rest` for each of the `count` lines without one. Missing ids are read from the input's
    `lines`, because a plan has no id of a line that can't be read, and keeps only a limited number of bad lines.
    """
    seen, nameless = bytearray(count + 1), dict[int, Result]()
    for result in found:
        seen[result.line] = True
        if result.custom_id:
            yield result
        else:
            nameless[result.line] = result
    if not nameless and seen.count(True) == count:
        return
    for number, line in enumerate(lines, 1):
        if number in nameless or not seen[number]:
            named = nameless.get(number, rest)
            yield replace(named, line=number, custom_id=_decode_named(line).custom_id)


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a file in pieces, without their ends; the file must end with a line break."""
    held = b""
    for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        yield from whole


def result_line(result: Result) -> tuple[str, bytes]:
    """The type of the result (succeeded, errored, canceled, expired), and its line."""
    fields = _result(result)
    return fields["type"], unbroken(encode({"custom_id": result.custom_id, "result": fields})) + b"\n"


def _result(result: Result) -> dict[str, Any]:
    item = result.item
    if item is not None:
        body = on_one_line(item.answer)
        if result.ok and body is not None:
            return {"type": "succeeded", "message": body}
        return {"type": "errored", "error": _error(item.status, item.answer, item.decision_id)}
    if result.fault is None and result.why in _TYPES:
        return {"type": _TYPES[result.why]}
    code, message = (result.fault.code, result.fault.message) if result.fault else UNANSWERED["completed"]
    status = _STATUSES.get(code, 400) if result.fault else 500
    return {"type": "errored", "error": _error_fields(HeadgateError(message, status=status), None)}


def _error(status: int, body: bytes, request_id: str) -> Any:
    """The error of an answer, translated where it has the format of another API, as from a provider's batch endpoint.
    """
    try:
        _decode_error(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _error_fields(classify(status, body), request_id or None)
    return on_one_line(body)


def _error_fields(error: HeadgateError, request_id: str | None) -> dict[str, Any]:
    return error_object(error, "messages", request_id=request_id)


def left_out(job: str, why: str, code: str, message: str) -> Result:
    """The result of a line of which a plan keeps nothing; its line and id are filled in by `each_once`."""
    return Result(0, "", job, None, why, fault=Problem(0, "", message, code))
