"""Errors in both directions: the gateway's in the client's dialect, and an upstream's error answers as UpstreamError.

Only an upstream's 4xx about the request itself is passed on with its message. 401, 402 and 403 are the fault of the
gateway's configuration or account, so a client never sees them as its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from gateway.errors import HeadgateError, UpstreamError
from gateway.wire.chunk import BAD_JSON

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_CODES = {"context_length": "context_length_exceeded", "rate_limited": "rate_limit_exceeded",
          "unsupported": "unsupported_value"}  # fmt: skip
_STATUS_OF_TYPE = {name: status for status, name in _ANTHROPIC_TYPES.items() if status != 503} | {
    "api_error": 500,
    "server_error": 500,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "requests": 429,
    "tokens": 429,
    "context_length_exceeded": 400,
}
_TOO_LONG = re.compile(
    r"context.{0,12}(length|window)|maximum context|prompt is too long|too many (input )?tokens"
    r"|exceed.{0,30}max_model_len|input length and .?max_tokens",
    re.IGNORECASE,
)
_UNPAID = re.compile(r"credit balance is too low|insufficient (account )?balance", re.IGNORECASE)
_UNSUPPORTED = ("unsupported_parameter", "unsupported_value")
_WORD = re.compile(r"[\w.:/-]{1,80}", re.ASCII)
_MAX_MESSAGE_CHARS = 2000
_MAX_RETRY_AFTER_S = 86400.0


def render_error(exc: HeadgateError, surface: str, *, request_id: str | None = None) -> bytes:
    """The body of an error answer in the surface's dialect."""
    return msgspec.json.encode(error_object(exc, surface, request_id=request_id))


def error_object(exc: HeadgateError, surface: str, *, request_id: str | None = None) -> dict[str, Any]:
    if surface == "messages":
        error = {"type": anthropic_type(exc), "message": exc.message}
        return {"type": "error", "error": error, "request_id": request_id}
    return {
        "error": {
            "message": exc.message,
            "type": openai_type(exc),
            "param": exc.param,
            "code": error_code(exc),
        }
    }


def status_of(exc: HeadgateError, surface: str) -> int:
    """The status of the answer: for Anthropic's clients an overload is 529, for OpenAI's it is 503."""
    overload = isinstance(exc, UpstreamError) and exc.upstream_status == 529 and surface == "messages"
    return 529 if overload else exc.status


def anthropic_type(exc: HeadgateError) -> str:
    return _ANTHROPIC_TYPES.get(
        exc.status, "invalid_request_error" if 400 <= exc.status < 500 else "api_error"
    )


def openai_type(exc: HeadgateError) -> str:
    if isinstance(exc, UpstreamError) and exc.failure in ("rejected", "context_length", "unsupported"):
        return "invalid_request_error"
    return exc.kind


def error_code(exc: HeadgateError) -> str | None:
    return _CODES.get(exc.code, exc.code) if exc.code else None


def classify(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> UpstreamError:
    """The UpstreamError for an upstream's non-2xx answer. `headers` have names in lower case."""
    fields = _error_fields(body)
    message = _text(fields, "message") or f"the upstream answered {status}"
    code = _text(fields, "code") or _text(fields, "type")
    failure = _failure(status, message, code)
    if failure == "unauthorized":  # providers repeat the credential in their message
        refused = "account" if _is_unpaid(status, message) else "credential"
        message = f"the provider refused the gateway's own {refused} ({status})"
    error = UpstreamError(
        failure,
        message[:_MAX_MESSAGE_CHARS],
        status=_client_status(status, failure),
        retry_after_s=retry_after_s(headers or {}),
        body=body,
        upstream_status=status,
    )
    if failure in ("rejected", "unsupported"):
        error.param = _text(fields, "param") or None
        error.code = _code(_text(fields, "code"))
    return error


def classify_in_stream(error: object) -> UpstreamError:
    """The UpstreamError for an error event inside a stream, by the status that it names, if it names one."""
    fields = _inner(error)
    status = _status_in(fields)
    body = msgspec.json.encode({"error": error})
    return classify(status, body)


def _failure(status: int, message: str, code: str) -> str:
    if status == 429:
        return "rate_limited"
    if status in (503, 529):
        return "overloaded"
    if status >= 500 or status < 400:
        return "server_error" if status >= 500 else "bad_response"
    if code == "context_length_exceeded" or (
        status in (400, 413, 422) and _TOO_LONG.search(message[:_MAX_MESSAGE_CHARS])
    ):
        return "context_length"
    if status in (401, 403) or _is_unpaid(status, message):
        return "unauthorized"
    if status == 408:
        return "timeout"
    if code in _UNSUPPORTED:
        return "unsupported"
    return "not_found" if status == 404 else "rejected"


def _is_unpaid(status: int, message: str) -> bool:
    return status == 402 or (status == 400 and _UNPAID.search(message[:_MAX_MESSAGE_CHARS]) is not None)


def _client_status(status: int, failure: str) -> int:
    if failure in ("rejected", "context_length", "unsupported"):
        return status
    return {"rate_limited": 429, "overloaded": 503, "timeout": 504}.get(failure, 502)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` or `retry-after` (seconds or an HTTP date), at most a day; None without either."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return _bounded_s(float(milliseconds) / 1000)
        if (value := headers.get("retry-after")) is None:
            return None
        if value.strip()[:1].isalpha():
            return _bounded_s(parsedate_to_datetime(value).timestamp() - time.time())
        return _bounded_s(float(value))
    except (ValueError, TypeError, OverflowError):
        return None


def _bounded_s(seconds: float) -> float | None:
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S) if seconds == seconds else None


def _error_fields(body: bytes) -> dict[str, Any]:
    """The error in a body: `{"error": {...}}`, `{"error": "..."}`, `{"detail": ...}` or a bare object; {} if none."""
    try:
        return _inner(msgspec.json.decode(body))
    except BAD_JSON:
        return {}


def _inner(value: object) -> dict[str, Any]:
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, str):
        return {"message": value}
    if not isinstance(value, dict):
        return {}
    inner = value.get("error")
    if isinstance(inner, dict):
        return inner
    if isinstance(inner, str):
        return {"message": inner}
    message = next((value[name] for name in ("message", "detail", "errors", "msg") if value.get(name)), None)
    return {**value, "message": _in_one_line(message)}


def _in_one_line(message: Any) -> Any:
    """A message in one line; Mistral and other servers on FastAPI send a list with one entry per faulty field."""
    if isinstance(message, dict):
        message = message.get("detail")
    if not isinstance(message, list):
        return message
    return "; ".join(_finding(one) for one in message if isinstance(one, dict))


def _finding(entry: dict[str, Any]) -> str:
    place = entry.get("loc")
    where = ".".join(str(step) for step in place if step != "body") if isinstance(place, list) else ""
    what = _text(entry, "msg") or _text(entry, "message")
    return f"{where}: {what}" if where else what


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _code(code: str) -> str | None:
    """The code, if it is a short word; None else, since spans and the journal keep codes and no sentences."""
    return code if _WORD.fullmatch(code) else None


def _status_in(fields: dict[str, Any]) -> int:
    for name in ("status", "status_code", "code"):
        value = fields.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value[:4])
        if isinstance(value, int) and 400 <= value < 600:
            return value
    for name in ("type", "code"):
        status = _STATUS_OF_TYPE.get(_text(fields, name))
        if status is not None:
            return status
    return 500
