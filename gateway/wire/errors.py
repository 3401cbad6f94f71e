"""Errors in both directions: ours in the client's dialect, and an upstream's answer as one of ours.

A client never sees an upstream's credentials problem as its own: 401, 402 and 403 from a provider are the fault
of our configuration or account, and only the upstream's 4xx about the request itself are passed on with their
message.
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
_MAX_MESSAGE = 2000
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
    """Anthropic has a status of its own for an overload, which its clients look for; OpenAI's know 503."""
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


def classify(
    status: int, body: bytes, headers: Mapping[str, str] | None = None, dialect: str = "chat"
) -> UpstreamError:
    """What an upstream's non-2xx answer means for us. `headers` have lower-case names."""
    said = _said(body)
    message = _text(said, "message") or f"the upstream answered {status}"
    code = _text(said, "code") or _text(said, "type")
    failure = _failure(status, message, code)
    if failure == "unauthorized":  # providers repeat the credential in their message
        ours = "account" if _is_unpaid(status, message) else "credential"
        message = f"the provider refused the gateway's own {ours} ({status})"
    error = UpstreamError(
        failure,
        message[:_MAX_MESSAGE],
        status=_client_status(status, failure),
        retry_after_s=retry_after_s(headers or {}),
        body=body,
        upstream_status=status,
    )
    if failure in ("rejected", "unsupported"):
        error.param = _text(said, "param") or None
        error.code = _word(_text(said, "code"))
    return error


def classify_in_stream(error: object) -> UpstreamError:
    """What an error event inside a 200 stream means: a late 429 is still a 429."""
    said = _inner(error)
    status = _status_in(said)
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
        status in (400, 413, 422) and _TOO_LONG.search(message[:_MAX_MESSAGE])
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
    return status == 402 or (status == 400 and _UNPAID.search(message[:_MAX_MESSAGE]) is not None)


def _client_status(status: int, failure: str) -> int:
    if failure in ("rejected", "context_length", "unsupported"):
        return status
    return {"rate_limited": 429, "overloaded": 503, "timeout": 504}.get(failure, 502)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """From `retry-after-ms` or `retry-after` (seconds or an HTTP date); None when there is no usable one."""
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


def _said(body: bytes) -> dict[str, Any]:
    """A body's error in any dialect: `{"error": {...}}`, `{"error": "..."}`, `{"detail": ...}` or bare."""
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
    said = next((value[name] for name in ("message", "detail", "errors", "msg") if value.get(name)), None)
    return {**value, "message": _listed(said)}


def _listed(said: Any) -> Any:
    """One line of what a validator found; Mistral and others of FastAPI's kind tell each field apart."""
    if isinstance(said, dict):
        said = said.get("detail")
    if not isinstance(said, list):
        return said
    return "; ".join(_finding(one) for one in said if isinstance(one, dict))


def _finding(one: dict[str, Any]) -> str:
    place = one.get("loc")
    where = ".".join(str(step) for step in place if step != "body") if isinstance(place, list) else ""
    what = _text(one, "msg") or _text(one, "message")
    return f"{where}: {what}" if where else what


def _text(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    return value if isinstance(value, str) else ""


def _word(code: str) -> str | None:
    """Codes are kept in spans and in the journal, where nobody's sentences belong."""
    return code if _WORD.fullmatch(code) else None


def _status_in(said: dict[str, Any]) -> int:
    for name in ("status", "status_code", "code"):
        value = said.get(name)
        if isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value[:4])
        if isinstance(value, int) and 400 <= value < 600:
            return value
    for name in ("type", "code"):
        status = _STATUS_OF_TYPE.get(_text(said, name))
        if status is not None:
            return status
    return 500
