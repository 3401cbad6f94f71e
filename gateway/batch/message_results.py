"""What the requests of a batch of Anthropic's API came to, as that API tells it: each once, as a line of JSON."""

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
"""Of a request that was never asked to the end, by how its job ended."""
_STATUSES = {"model_not_found": 404, "request_too_large": 413, "invalid_api_key": 401, "internal_error": 500}
"""Of what is wrong with a line; any other is 400."""


class _Named(msgspec.Struct):
    """Of a line of the input."""

    custom_id: str


class _Said(msgspec.Struct):
    type: str
    message: str


class _Error(msgspec.Struct):
    """An error answer of Anthropic's API."""

    type: Literal["error"]
    error: _Said


_decode_named = msgspec.json.Decoder(_Named).decode
_decode_error = msgspec.json.Decoder(_Error).decode


def each_once(
    found: Iterable[Result], lines: Iterable[bytes], count: int, rest: Result
) -> Iterator[Result]:
    """What was found, under the names that the input's `lines` have, and for every other of the `count` lines `rest`.

    Of lines that can't be read, and of many that are bad, a plan keeps no name, or nothing.
    """
    told, nameless = bytearray(count + 1), dict[int, Result]()
    for result in found:
        told[result.line] = True
        if result.custom_id:
            yield result
        else:
            nameless[result.line] = result
    if not nameless and told.count(True) == count:
        return
    for number, line in enumerate(lines, 1):
        if number in nameless or not told[number]:
            named = nameless.get(number, rest)
            yield replace(named, line=number, custom_id=_decode_named(line).custom_id)


def lines_of(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Of a file in pieces that ends with a line's end."""
    held = b""
    for piece in pieces:
        *whole, held = (held + piece).split(b"\n")
        yield from whole


def result_line(result: Result) -> tuple[str, bytes]:
    """How it ended (succeeded, errored, canceled, expired), and its line."""
    came = _result(result)
    return came["type"], unbroken(encode({"custom_id": result.custom_id, "result": came})) + b"\n"


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
    return {"type": "errored", "error": _told(HeadgateError(message, status=status), None)}


def _error(status: int, body: bytes, request_id: str) -> Any:
    """As the answer has it; one that a provider's batch endpoint gave may have the shape of another API."""
    try:
        _decode_error(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return _told(classify(status, body), request_id or None)
    return on_one_line(body)


def _told(error: HeadgateError, request_id: str | None) -> dict[str, Any]:
    return error_object(error, "messages", request_id=request_id)


def left_out(job: str, why: str, code: str, message: str) -> Result:
    """Of a line that no plan has anything of."""
    return Result(0, "", job, None, why, fault=Problem(0, "", message, code))
