"""Turns the requests of a message batch (Anthropic's API) into the lines of a job's input.

What Anthropic refuses at once is refused here with its messages: invalid or repeated ids, too many requests, malformed
requests, and streaming ones. Any other fault of a request is found when the job is planned, and is an error of that
request only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import IO

import msgspec

from gateway.errors import CallerError, TooLarge
from gateway.wire.chunk import BAD_JSON
from gateway.wire.json_pieces import JsonPieces

URL = "/v1/messages"
MOST_REQUESTS = 100_000
MOST_OTHER_BYTES = 64 * 1024
"""Most bytes of each field of the body other than `requests`."""
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_LINE = b'{"custom_id":"%s","method":"POST","url":"' + URL.encode() + b'","body":%s}\n'


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    params: msgspec.Raw


class _Params(msgspec.Struct):
    """The parameters that are checked before the job is made."""

    model: str
    stream: bool | None = None


_decode_request = msgspec.json.Decoder(_Request).decode
_decode_params = msgspec.json.Decoder(_Params).decode


def write_lines(body: Iterable[bytes], lines: IO[bytes], most_bytes: int) -> tuple[int, dict[str, msgspec.Raw]]:
    """Write the requests as lines of a job. Returns their number, and the body's other fields unchanged.

    `most_bytes`: size limit of one request. Raises CallerError.
    """
    text, others = JsonPieces(body), dict[str, msgspec.Raw]()
    count = 0
    for name in text.names():
        if name != "requests":
            others[name] = msgspec.Raw(text.value(MOST_OTHER_BYTES))
        elif text.peek() != "[" or count:
            raise CallerError("requests: Input should be a valid list", param="requests")
        else:
            count = _write_all(text, lines, most_bytes)
    text.end()
    if not count:
        raise CallerError("requests: List should have at least 1 item", param="requests")
    return count, others


def _write_all(text: JsonPieces, lines: IO[bytes], most_bytes: int) -> int:
    first: dict[str, int] = {}
    for place in text.items():
        if place == MOST_REQUESTS:
            raise CallerError(f"requests: List should have at most {MOST_REQUESTS} items", param="requests")
        try:
            asked = _read(text.value(most_bytes))
        except TooLarge as error:
            raise TooLarge(f"requests.{place}: {error.message}") from None
        except _Refused as refused:
            raise CallerError(f"requests.{place}{refused}", param=f"requests.{place}") from None
        known = first.setdefault(asked.custom_id, place)
        if known != place:
            message = f"requests.{place}.custom_id: '{asked.custom_id}' is the custom_id of requests.{known} already"
            raise CallerError(message, param=f"requests.{place}.custom_id")
        # line breaks can only stand between JSON's tokens, never inside a string
        params = bytes(asked.params).replace(b"\n", b" ").replace(b"\r", b" ")
        lines.write(_LINE % (asked.custom_id.encode(), params))
    return len(first)


class _Refused(Exception):
    """The place of a fault within the request, and the fault."""


def _read(value: bytes) -> _Request:
    try:
        asked = _decode_request(value)
    except BAD_JSON as error:
        raise _Refused(f": {error}") from None
    if not _ID.fullmatch(asked.custom_id):
        raise _Refused(f".custom_id: String should match pattern '^{_ID.pattern}$'")
    try:
        stream = _decode_params(asked.params).stream
    except BAD_JSON as error:
        raise _Refused(f".params: {error}") from None
    if stream:
        raise _Refused(".params.stream: a batch's answers can't be streamed: leave the field out")
    return asked
