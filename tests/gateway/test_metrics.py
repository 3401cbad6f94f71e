"""Metrics: every name is declared once, labels are bounded, and numbers add up over workers."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cache.entry import Entry, Hit
from gateway.errors import FAILURES
from gateway.exchange import Attempt
from gateway.exposition import merge
from gateway.fleet import Fleet
from gateway.metrics import MAX_SERIES, METRICS, Counter, Histogram, Metrics, watch_loop
from tests.until import until

from .exchanges import CONFIG, PROMPT, exchange

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: bytes) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, **labels: str) -> float:
    return samples(text)[name, tuple(sorted(labels.items()))]


def settled() -> Metrics:
    metrics = Metrics()
    metrics.opened()
    metrics.settled(exchange(), 2.0)
    return metrics


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("headgate_requests_total", {"route": "auto", "surface": "chat", "status": "2xx"}, 1),
        ("headgate_request_duration_seconds_sum", {"route": "auto", "surface": "chat"}, 2.0),
        ("headgate_request_duration_seconds_bucket", {"route": "auto", "surface": "chat", "le": "1.0"}, 0),
        ("headgate_request_duration_seconds_bucket", {"route": "auto", "surface": "chat", "le": "2.5"}, 1),
        ("headgate_request_duration_seconds_bucket", {"route": "auto", "surface": "chat", "le": "+Inf"}, 1),
        ("headgate_overhead_seconds_sum", {"surface": "chat"}, 0.5),
        ("headgate_ttft_seconds_sum", {"model": "large", "provider": "acme"}, 0.25),
        ("headgate_tokens_total", {"model": "large", "provider": "acme", "bucket": "input"}, 20),
        ("headgate_tokens_total", {"model": "large", "provider": "acme", "bucket": "cache_read"}, 7),
        ("headgate_tokens_total", {"model": "large", "provider": "acme", "bucket": "output"}, 5),
        ("headgate_cost_usd_total", {"route": "auto", "model": "large", "provider": "acme"}, 0.002),
        ("headgate_cache_total", {"route": "auto", "state": "miss"}, 1),
        ("headgate_attempts_total", {"model": "small", "provider": "acme", "failure": "overloaded"}, 1),
        ("headgate_attempts_total", {"model": "large", "provider": "acme", "failure": "none"}, 1),
        ("headgate_fallbacks_total", {"route": "auto"}, 1),
        ("headgate_verdicts_total", {"route": "auto", "reason": "only"}, 1),
        ("headgate_router_choices_total", {"route": "auto", "model": "small"}, 1),
        ("headgate_router_explored_total", {"route": "auto"}, 1),
        ("headgate_router_floor_total", {"route": "auto"}, 1),
        ("headgate_in_flight_requests", {}, 0),
    ],
)
def test_a_request_is_counted_everywhere_it_should_be(
    name: str, labels: dict[str, str], expected: float
) -> None:
    """One request counts in money, time, tokens, attempts, the router's choice and the cascade's verdict."""
    assert value(merge([settled().snapshot()]), name, **labels) == pytest.approx(expected)


def test_retries_escalations_and_hedges_are_told_apart() -> None:
    """The same model again is a retry, another after a rejected answer an escalation, another beside a slow one a
    hedge.
    """
    made = exchange()
    made.attempts = [
        Attempt("small", "acme/s", 0.0, 1.0, failure="timeout"),
        Attempt("small", "acme/s", 1.0, 1.0),
        Attempt("large", "acme/l", 2.0, 1.0),
        Attempt("large", "other/l", 2.5, 0.5, hedge=True),
    ]
    metrics = Metrics()
    metrics.settled(made, 3.0)
    counts = samples(merge([metrics.snapshot()]))
    for name in ("retries", "escalations", "hedges"):
        assert counts[f"headgate_{name}_total", (("route", "auto"),)] == 1
    assert ("headgate_fallbacks_total", (("route", "auto"),)) not in counts


def test_a_request_without_a_choice_counts_as_none() -> None:
    """Where nothing was chosen or climbed, no model and no reason is counted; two requests alike count twice."""
    made, metrics = exchange(), Metrics()
    made.choice = made.verdict = None
    for _ in range(2):
        metrics.settled(made, 0.1)
    counts = samples(merge([metrics.snapshot()]))
    assert counts["headgate_requests_total", (("route", "auto"), ("status", "2xx"), ("surface", "chat"))] == 2
    assert not any(name in ("headgate_router_choices_total", "headgate_verdicts_total") for name, _ in counts)


def test_a_cache_hit_saves_what_its_entry_had_cost() -> None:
    """A hit counts the cost of its entry as saved; refusals to cache count as one state, whatever the reason."""
    metrics = Metrics()
    made = exchange()
    made.hit = Hit(Entry("e", "chat", b"", "large", "d", 0.0, 1.0, 0.25), "exact")
    made.cache_state = "hit"
    metrics.settled(made, 0.1)
    made.cache_state = "refused:temperature"
    metrics.settled(made, 0.1)
    text = merge([metrics.snapshot()])
    assert value(text, "headgate_saved_usd_total", route="auto") == 0.5
    assert value(text, "headgate_cache_total", route="auto", state="refused") == 1


def test_workers_add_up() -> None:
    """Counters, histograms and requests in flight are summed; a breaker has the worst worker's state."""
    one, two = settled(), settled()
    two.opened()
    fleets = [Fleet(CONFIG.models), Fleet(CONFIG.models)]
    fleets[1].failed(fleets[1].deployments("small")[0], "unauthorized", 0.0)
    fleets[0].deployments("large")[0].begin()
    for metrics, fleet in zip((one, two), fleets, strict=True):
        metrics.watch_fleet(fleet, lambda: 1.0)
        metrics.watch("headgate_holds_outstanding", lambda: {(): 3})
    text = merge([one.snapshot(), two.snapshot()])
    assert value(text, "headgate_requests_total", route="auto", surface="chat", status="2xx") == 2
    assert value(text, "headgate_ttft_seconds_count", model="large", provider="acme") == 2
    assert value(text, "headgate_in_flight_requests") == 1
    assert value(text, "headgate_holds_outstanding") == 6
    assert value(text, "headgate_breaker_state", model="small", provider="acme") == 2
    assert value(text, "headgate_breaker_state", model="large", provider="acme") == 0
    assert value(text, "headgate_deployment_in_flight", model="large", provider="acme") == 1


def test_an_unknown_metric_of_a_newer_worker_is_left_out() -> None:
    """Workers of two versions can run side by side during an update."""
    newer = b'{"headgate_future":[[["a"],[1.0]]],"headgate_refused":[[["chat","x"],[2.0]]]}'
    assert value(merge([newer]), "headgate_refused_total", surface="chat", code="x") == 2


def test_refusals_and_gaveups_are_counted() -> None:
    """Requests without a hold, and requests whose router could not decide, are counted."""
    metrics = Metrics()
    metrics.refused("messages", "invalid_api_key")
    metrics.undecided("auto")
    text = merge([metrics.snapshot()])
    assert value(text, "headgate_refused_total", surface="messages", code="invalid_api_key") == 1
    assert value(text, "headgate_router_undecided_total", route="auto") == 1


def test_series_are_bounded() -> None:
    """Beyond the bound, further label values are counted as "other"."""
    counter, histogram = Counter("headgate_retries"), Histogram("headgate_overhead_seconds")
    for i in range(MAX_SERIES + 50):
        counter.add((str(i),))
        histogram.observe((str(i),), 1.0)
    assert len(counter.values) == len(histogram.values) == MAX_SERIES + 1
    assert counter.values["other",] == [50.0]


def test_names_follow_the_conventions_and_no_label_is_unbounded() -> None:
    """Each name is declared once, with units spelled out and labels from closed sets only."""
    names = [spec.name for spec in METRICS]
    assert len(set(names)) == len(names)
    allowed = {
        "route",
        "model",
        "provider",
        "surface",
        "status",
        "code",
        "bucket",
        "tool",
        "state",
        "failure",
        "reason",
        "setting",
    }
    for spec in METRICS:
        assert spec.name.startswith("headgate_") and set(spec.labels) <= allowed and spec.help.endswith(".")
        assert not spec.name.endswith("_total"), "the library adds it to counters"
        if spec.kind == "histogram":
            assert spec.name.endswith("_seconds") and list(spec.buckets) == sorted(set(spec.buckets))


def test_no_prompt_key_or_user_reaches_metrics() -> None:
    """No label contains text of a request."""
    text = merge([settled().snapshot()])
    assert PROMPT not in text and b"req-1" not in text and b"dec-1" not in text


def test_every_failure_may_be_a_label() -> None:
    """Failures of attempts are a closed vocabulary."""
    metrics = Metrics()
    made = exchange()
    made.attempts = [
        Attempt("small", "acme/s", float(i), failure=name) for i, name in enumerate(sorted(FAILURES))
    ]
    metrics.settled(made, 1.0)
    assert {labels[2] for labels in metrics.attempts.values} - {"none"} == FAILURES


async def test_the_loop_says_how_late_it_is() -> None:
    """A blocked event loop shows in the lag metric."""
    metrics = Metrics()
    watching = asyncio.create_task(watch_loop(metrics, every_s=0.0))
    await until(lambda: metrics.lag_s.values)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert b"headgate_loop_lag_seconds_count" in merge([metrics.snapshot()])
