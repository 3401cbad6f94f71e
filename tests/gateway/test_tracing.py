"""Spans are made at the end of a request, by the GenAI conventions, without its text."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tracing import Parent, Tracing, parse_traceparent, traceparent, tracing_to

from .exchanges import PROMPT, exchange

HEADER = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    "header",
    [
        b"", b"junk", HEADER[:-1], HEADER + b"-extra", HEADER.upper(), HEADER.replace(b"00-4b", b"ff-4b"),
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
    ],
)  # fmt: skip
def test_a_malformed_traceparent_begins_a_new_trace(header: bytes) -> None:
    """It is neither refused nor continued, as the specification asks."""
    assert parse_traceparent(header) is None


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_a_traceparent_reads_as_it_was_written(trace_id: int, span_id: int, sampled: bool) -> None:
    """A child keeps the trace and the sampling decision, with a span id of its own."""
    parent = parse_traceparent(traceparent(trace_id, span_id, sampled))
    assert parent == Parent(trace_id, span_id, sampled)
    child = parse_traceparent(parent.child())
    assert child is not None and (child.trace_id, child.sampled) == (trace_id, sampled)


def test_a_later_version_may_say_more() -> None:
    """The first four fields of a later version are read."""
    assert parse_traceparent(b"01" + HEADER[2:] + b"-more") == parse_traceparent(HEADER)


def spans(headers: dict[bytes, bytes] | None = None, error: str = "") -> list[Any]:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    tracing = Tracing(exporter, {"acme": "azure"}, now=lambda: 2.0, batch=False)
    made = exchange(headers)
    made.error = error
    tracing.finish(made)
    found = list(exporter.get_finished_spans())
    tracing.close()
    return found


def test_a_request_is_a_span_with_a_child_for_each_attempt() -> None:
    """Spans are named, timed and attributed as the conventions say."""
    first, second, whole = spans({b"traceparent": HEADER})
    assert [span.name for span in (first, second, whole)] == ["chat small", "chat large", "chat auto"]
    assert whole.parent.span_id == 0x00F067AA0BA902B7
    assert whole.context.trace_id == 0x4BF92F3577B34DA6A3CE929D0E0E4736
    assert first.parent.span_id == second.parent.span_id == whole.context.span_id
    assert whole.end_time - whole.start_time == pytest.approx(2e9, abs=1e3)
    assert second.start_time - whole.start_time == pytest.approx(0.6e9, abs=1e3)
    assert second.end_time - second.start_time == pytest.approx(1e9, abs=1e3)
    assert whole.attributes["gen_ai.operation.name"] == "chat"
    assert whole.attributes["gen_ai.request.model"] == "auto"
    assert whole.attributes["gen_ai.response.model"] == "large"
    assert whole.attributes["gen_ai.usage.input_tokens"] == 27
    assert whole.attributes["gen_ai.usage.output_tokens"] == 5
    assert second.attributes["gen_ai.provider.name"] == "azure.ai.openai"
    assert second.attributes["gen_ai.request.model"] == "large-1"
    assert second.attributes["gen_ai.usage.cache_read.input_tokens"] == 7
    assert second.attributes["headgate.cost_usd"] == 0.002


def test_failures_mark_their_span() -> None:
    """An attempt's span has its failure, and the request's span the error that the client got."""
    first, second, whole = spans(error="upstream_error")
    assert (first.attributes["error.type"], first.status.is_ok) == ("overloaded", False)
    assert "error.type" not in second.attributes and second.status.is_ok
    assert whole.attributes["error.type"] == "upstream_error"
    assert whole.parent is None


def test_no_span_holds_text_of_a_request() -> None:
    """No text is in a name or an attribute."""
    text = "".join(span.to_json() for span in spans())
    assert PROMPT.decode() not in text and "cinnamon" not in text


def test_without_an_endpoint_nothing_is_imported() -> None:
    """OpenTelemetry is not imported where tracing is off."""
    assert tracing_to("", {}) is None
    code = (
        "import sys, gateway.tracing; gateway.tracing.tracing_to('', {}); "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_endpoint_is_sent_to_over_http() -> None:
    """Spans go to the collector's address with the path of traces added."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    tracing = tracing_to("http://127.0.0.1:9/", {})
    assert tracing is not None
    tracing.close()
