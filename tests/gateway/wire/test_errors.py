"""Errors rendered for clients, and upstream answers classified as UpstreamError."""

from __future__ import annotations

import json
from email.utils import formatdate
from typing import Any

import pytest
from anthropic.types.shared import ErrorResponse
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import (
    FAILURES,
    CallerError,
    Draining,
    HeadgateError,
    OverBudget,
    Unauthorized,
    UpstreamError,
)
from gateway.wire.errors import classify, classify_in_stream, render_error, retry_after_s

ERRORS = [
    CallerError("bad", param="n"),
    Unauthorized("who?"),
    OverBudget("spent"),
    Draining("bye"),
    UpstreamError("timeout", "late", status=504),
]


@pytest.mark.parametrize("surface", ["chat", "completions", "embeddings", "responses"])
@pytest.mark.parametrize("exc", ERRORS)
def test_openai_errors_have_four_keys(exc: HeadgateError, surface: str) -> None:
    """The SDK reads message, type, param and code; null is allowed, absence isn't."""
    error = json.loads(render_error(exc, surface))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["message"], error["param"]) == (exc.message, exc.param)


@pytest.mark.parametrize("exc", ERRORS)
def test_anthropic_errors_are_the_sdks_type(exc: HeadgateError) -> None:
    """{"type": "error", "error": {...}, "request_id": ...}"""
    parsed = ErrorResponse.model_validate_json(render_error(exc, "messages", request_id="req_1"))
    assert (parsed.request_id, parsed.error.message) == ("req_1", exc.message)


def _openai(message: str, code: str | None = None, kind: str = "invalid_request_error") -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "param": "p", "code": code}}).encode()


CASES: list[tuple[int, bytes, str, int]] = [
    (429, _openai("slow down", "rate_limit_exceeded"), "rate_limited", 429),
    (500, b"<html>oops", "server_error", 502),
    (503, b"", "overloaded", 503),
    (529, b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}', "overloaded", 503),
    (401, _openai("Incorrect API key", "invalid_api_key"), "unauthorized", 502),
    (403, b"{}", "unauthorized", 502),
    (402, _openai("Insufficient Balance", "invalid_request_error"), "unauthorized", 502),
    (400, _openai("Your credit balance is too low to access the Anthropic API."), "unauthorized", 502),
    (404, _openai("no such model", "model_not_found"), "not_found", 502),
    (400, _openai("This model's maximum context length is 8192 tokens."), "context_length", 400),
    (400, _openai("too long", "context_length_exceeded"), "context_length", 400),
    (
        400,
        b'{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 9 > 8"}}',
        "context_length",
        400,
    ),
    (400, _openai("bad temperature", "invalid_value"), "rejected", 400),
    (422, b'{"detail":"field required"}', "rejected", 422),
    (400, _openai("Use 'max_completion_tokens' instead.", "unsupported_parameter"), "unsupported", 400),
    (408, b"", "timeout", 504),
    (302, b"", "bad_response", 502),
]


@pytest.mark.parametrize(("status", "body", "failure", "seen"), CASES)
def test_upstream_answers_are_classed(status: int, body: bytes, failure: str, seen: int) -> None:
    """Failures that another model may avoid are distinguished from the request's own faults."""
    error = classify(status, body, {})
    assert (error.failure, error.status, error.upstream_status) == (failure, seen, status)


def test_a_rejected_request_keeps_the_upstreams_words() -> None:
    """The client gets the upstream's message and the parameter that was wrong."""
    error = classify(400, _openai("bad temperature", "invalid_value"))
    body = json.loads(render_error(error, "chat"))["error"]
    assert body == {
        "message": "bad temperature",
        "type": "invalid_request_error",
        "param": "p",
        "code": "invalid_value",
    }


_FINDING = {"type": "extra_forbidden", "loc": ["body", "messages", 0, "foo"], "msg": "Extra inputs are not permitted"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"detail": [_FINDING]}, "messages.0.foo: Extra inputs are not permitted"),
        ({"object": "error", "message": {"detail": [_FINDING, {"msg": "No"}]}, "code": None},
         "messages.0.foo: Extra inputs are not permitted; No"),
        ({"success": False, "errors": [{"code": 7003, "message": "No route"}], "messages": []}, "No route"),
        ({"code": 20012, "msg": "No such model", "data": None}, "No such model"),
        ([{"error": {"code": 400, "message": "No such role"}}], "No such role"),
        ({"detail": []}, "the upstream answered 422"),
    ],
)  # fmt: skip
def test_what_a_validator_found_is_told(said: object, message: str) -> None:
    """A list of refused fields, as Mistral and others send it, becomes one message."""
    assert classify(422, json.dumps(said).encode(), {}).message == message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": formatdate(0, usegmt=True)}, 0.0),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds, milliseconds and dates are read; anything else counts as absent."""
    assert retry_after_s(headers) == seconds


def test_retry_after_a_date_ahead() -> None:
    """An HTTP date becomes the seconds until then, within a day."""
    assert retry_after_s({"retry-after": formatdate(4e9, usegmt=True)}) == 86400.0


@given(st.integers(200, 599), st.binary(max_size=80))
def test_any_answer_has_a_class(status: int, body: bytes) -> None:
    """Any status with any body is classified without an exception."""
    assert classify(status, body, {"retry-after": "x"}).failure in FAILURES


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-9, 999) | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["error", "message", "code", "type", "status"]), inner, max_size=4
            )
        ),
    )
)
def test_any_error_event_has_a_class(error: Any) -> None:
    """Any error event inside a stream is classified without an exception."""
    assert classify_in_stream(error).failure in FAILURES
