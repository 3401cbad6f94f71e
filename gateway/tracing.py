"""OpenTelemetry spans by the GenAI conventions, made only where an endpoint is configured.

A request becomes one span with a child span for each attempt. They are made from the Exchange when the request has
ended, so that serving handles no spans. Prompts and answers are never in a span.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.exchange import Attempt, Exchange

OPERATIONS = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
}
"""`gen_ai.operation.name` by surface."""
PROVIDERS = {"azure": "azure.ai.openai", "anthropic": "anthropic", "openai": "openai"}
"""`gen_ai.provider.name` by the provider's kind; a provider of another kind has its own name."""
_HEX = frozenset(b"0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Parent:
    """The caller's span, as W3C trace context defines it."""

    trace_id: int
    span_id: int
    sampled: bool

    def child(self) -> bytes:
        """The `traceparent` of a request that is made on the caller's behalf, with a new span id."""
        return traceparent(self.trace_id, secrets.randbits(64) or 1, self.sampled)


def parse_traceparent(header: bytes) -> Parent | None:
    """The parent in a `traceparent` header. None, so that a new trace begins, where it is missing or invalid."""
    parts = header.split(b"-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return None
    if not all(_HEX.issuperset(part) for part in parts[:4]):
        return None
    if parts[0] == b"ff" or (parts[0] == b"00" and len(parts) > 4):
        return None
    trace_id, span_id = int(parts[1], 16), int(parts[2], 16)
    return Parent(trace_id, span_id, bool(int(parts[3], 16) & 1)) if trace_id and span_id else None


def traceparent(trace_id: int, span_id: int, sampled: bool) -> bytes:
    return b"00-%032x-%016x-%02x" % (trace_id, span_id, sampled)


class Tracing:
    """Exports the spans of settled requests."""

    def __init__(
        self,
        exporter: Any,
        kinds: dict[str, str] | None = None,
        *,
        now: Callable[[], float] = time.monotonic,
        batch: bool = True,
    ) -> None:
        """`kinds` has the kind of each provider by name; `now` is the clock of `Call.received_s`."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        self._provider = TracerProvider(
            resource=Resource({"service.name": "headgate"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor((BatchSpanProcessor if batch else SimpleSpanProcessor)(exporter))
        self._tracer = self._provider.get_tracer("headgate")
        self._kinds = kinds or {}
        self._now = now

    def finish(self, exchange: Exchange) -> None:
        """Export the spans of a request that has just been settled."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        call = exchange.call
        end_ns = time.time_ns()
        start_ns = end_ns - int((self._now() - call.received_s) * 1e9)
        span = self._tracer.start_span(
            f"{OPERATIONS.get(call.surface, call.surface)} {exchange.route.name}",
            context=_context(call.headers.get(b"traceparent", b"")),
            kind=SpanKind.SERVER,
            attributes=request_attributes(exchange),
            start_time=start_ns,
        )
        context = set_span_in_context(span)
        for attempt in exchange.attempts:
            attempt_start_ns = start_ns + int(attempt.started_s * 1e9)
            child = self._tracer.start_span(
                f"{OPERATIONS.get(call.surface, call.surface)} {attempt.model}",
                context=context,
                kind=SpanKind.CLIENT,
                attributes=attempt_attributes(exchange, attempt, self._kinds),
                start_time=attempt_start_ns,
            )
            _set_error(child, attempt.failure)
            child.end(attempt_start_ns + int(attempt.latency_s * 1e9))
        _set_error(span, exchange.error)
        span.end(end_ns)

    def close(self) -> None:
        """Export the remaining spans and stop."""
        self._provider.shutdown()


def tracing_to(endpoint: str, kinds: dict[str, str]) -> Tracing | None:
    """Tracing by OTLP over HTTP to `endpoint`; None where that is empty. Raises ImportError without the extra `otel`.
    """
    if not endpoint:
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Tracing(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces"), kinds)


def request_attributes(exchange: Exchange) -> dict[str, str | int | float | bool]:
    """Span attributes of the whole request; numbers are sums over its attempts."""
    call = exchange.call
    prompt = sum(attempt.usage.prompt_tokens for attempt in exchange.attempts)
    completion = sum(attempt.usage.completion_tokens for attempt in exchange.attempts)
    found: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": OPERATIONS.get(call.surface, call.surface),
        "gen_ai.provider.name": "headgate",
        "gen_ai.request.model": call.model,
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": completion,
        "headgate.request.id": call.request_id,
        "headgate.decision.id": exchange.decision_id,
        "headgate.route": exchange.route.name,
        "headgate.cache": exchange.cache_state,
        "headgate.cost_usd": exchange.cost_nanousd / 1e9,
        "http.response.status_code": exchange.status,
    }
    if exchange.answered_by:
        found["gen_ai.response.model"] = exchange.answered_by
    if exchange.response_id:
        found["gen_ai.response.id"] = exchange.response_id
    if exchange.choice is not None:
        found["headgate.router"] = exchange.choice.router
        found["headgate.reason"] = exchange.choice.reason
        found["headgate.propensity"] = exchange.choice.propensity
    if exchange.error:
        found["error.type"] = exchange.error
    return found


def attempt_attributes(
    exchange: Exchange, attempt: Attempt, kinds: dict[str, str]
) -> dict[str, str | int | float | bool]:
    """Span attributes of one attempt."""
    provider, _, upstream_name = attempt.deployment.partition("/")
    usage = attempt.usage
    found: dict[str, str | int | float | bool] = {
        "gen_ai.operation.name": OPERATIONS.get(exchange.call.surface, exchange.call.surface),
        "gen_ai.provider.name": PROVIDERS.get(kinds.get(provider, ""), provider),
        "gen_ai.request.model": upstream_name or attempt.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cache_read_tokens,
        "gen_ai.usage.cache_creation.input_tokens": usage.cache_written_tokens,
        "headgate.cost_usd": attempt.cost_nanousd / 1e9,
    }
    if attempt.status:
        found["http.response.status_code"] = attempt.status
    if attempt.first_byte_s is not None:
        found["gen_ai.response.time_to_first_chunk"] = attempt.first_byte_s
    if attempt.failure:
        found["error.type"] = attempt.failure
    return found


def _context(header: bytes) -> Any:
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    parent = parse_traceparent(header)
    if parent is None:
        return None
    flags = TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT)
    return set_span_in_context(NonRecordingSpan(SpanContext(parent.trace_id, parent.span_id, True, flags)))


def _set_error(span: Any, error: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    if error:
        span.set_status(Status(StatusCode.ERROR, error))
