"""The fleet: failing deployments get no requests, a model keeps its last one, and their state is visible."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker import CONSECUTIVE, COUNTED, LEAST, Breaker
from gateway.config.types import Config, ModelConfig, RouteConfig
from gateway.errors import FAILURES
from gateway.fleet import Deployment, EngineReport, Fleet, MeanDelay, TailDelay
from gateway.routes import RouteBook
from routers.registry import open_router
from routers.types import Candidate

A = ModelConfig(name="m", provider="a", upstream_name="m-1", weight=3.0)
B = ModelConfig(name="m", provider="b", weight=1.0)
HARMLESS = FAILURES - COUNTED - {"rate_limited", "unauthorized", "not_found"}


def two() -> tuple[Fleet, Deployment, Deployment]:
    fleet = Fleet([A, B])
    first, second = fleet.deployments("m")
    return fleet, first, second


def break_(fleet: Fleet, deployment: Deployment, now: float, failure: str = "server_error") -> None:
    for _ in range(CONSECUTIVE):
        fleet.failed(deployment, failure, now)


def picks(fleet: Fleet, now: float) -> set[str]:
    found = {fleet.pick("m", draw / 10, now) for draw in range(10)}
    return {one.id for one in found if one is not None}


def test_a_deployment_knows_what_to_send() -> None:
    """It has its upstream name as text and as JSON, and an id of provider and name."""
    fleet, first, second = two()
    assert (first.id, first.upstream_name, bytes(first.upstream_raw)) == ("a/m-1", "m-1", b'"m-1"')
    assert second.upstream_name == "m"
    assert fleet.pick("nobody", 0.5, 0.0) is None


def test_weights_share_the_traffic() -> None:
    """Requests are shared three to one, as configured; a deployment of weight 0 answers only if no other can."""
    fleet, _, _ = two()
    rng = random.Random(1)
    counts = Counter(fleet.pick("m", rng.random(), 0.0).provider for _ in range(4000))  # type: ignore[union-attr]
    assert counts["a"] / 4000 == pytest.approx(0.75, abs=0.03)
    spare = Fleet([A, ModelConfig(name="m", provider="spare", weight=0.0)])
    assert picks(spare, 0.0) == {"a/m-1"}
    assert spare.pick("m", 0.1, 0.0, avoid=spare.deployments("m")[0]) is spare.deployments("m")[1]


@pytest.mark.parametrize("failure", sorted(COUNTED))
def test_failures_in_a_row_open_the_breaker(failure: str) -> None:
    """Failures before or inside a stream open it; then the other deployment answers alone, and later a probe is sent.
    """
    fleet, first, _ = two()
    for _ in range(CONSECUTIVE - 1):
        fleet.failed(first, failure, 0.0)
    assert picks(fleet, 0.0) == {"a/m-1", "b/m"}
    fleet.failed(first, failure, 0.0)
    assert picks(fleet, 0.0) == picks(fleet, 4.9) == {"b/m"}
    assert fleet.healthy("m", 0.0)
    assert first.breaker.state(4.9) == "open" and first.breaker.state(5.0) == "half_open"
    assert "a/m-1" in picks(fleet, 5.0)


@pytest.mark.parametrize("failure", sorted(HARMLESS))
def test_what_says_nothing_about_a_deployment_is_not_held_against_it(failure: str) -> None:
    """A rejected request or a client that left doesn't count, however often it happens."""
    fleet, first, _ = two()
    for _ in range(100):
        fleet.failed(first, failure, 0.0)
    assert first.breaker.state(0.0) == "closed"


def test_every_failure_has_a_meaning_for_breakers() -> None:
    """Whoever adds a failure has to decide whether it counts."""
    assert {
        "rejected", "context_length", "unsupported", "cancelled", "unavailable", "loading", "out_of_files",
    } == HARMLESS  # fmt: skip


def test_success_between_failures_starts_the_row_again() -> None:
    """Failures in a row count, not their sum."""
    fleet, first, _ = two()
    for _ in range(LEAST // 4):
        for _ in range(CONSECUTIVE - 4):
            fleet.failed(first, "timeout", 0.0)
        fleet.succeeded(first, 0.0)
        fleet.succeeded(first, 0.0)
    assert first.breaker.state(0.0) == "closed"


def test_half_of_a_windows_requests_failing_opens_it_too() -> None:
    """That holds even if no five fail in a row; failures before the window don't count."""
    fleet, first, _ = two()
    for i in range(LEAST // 2 - 1):
        fleet.failed(first, "timeout", i * 0.1)
        fleet.succeeded(first, i * 0.1)
    assert first.breaker.state(1.0) == "closed"
    old = first.breaker
    fleet.succeeded(first, 100.0)
    fleet.failed(first, "timeout", 100.0)
    assert old.state(100.0) == "closed"
    for i in range(LEAST):
        fleet.failed(first, "timeout", 101.0 + i * 0.1)
        fleet.succeeded(first, 101.0 + i * 0.1)
    assert old.opens_s > 0


def test_a_429_opens_the_breaker_for_its_retry_after() -> None:
    """It opens at once, without waiting for five failures."""
    fleet, first, _ = two()
    fleet.failed(first, "rate_limited", 0.0, retry_after_s=42.0)
    assert picks(fleet, 41.9) == {"b/m"}
    assert "a/m-1" in picks(fleet, 42.0)
    assert first.breaker.reason == "rate_limited"


@given(
    st.lists(st.tuples(st.floats(0, 20), st.sampled_from(sorted(FAILURES)), st.floats(0, 100)), max_size=40)
)
def test_an_opening_is_only_ever_extended(events: list[tuple[float, str, float]]) -> None:
    """No failure, of whatever kind and retry-after, shortens it."""
    breaker, now = Breaker(), 0.0
    for wait_s, failure, retry_after_s in events:
        now += wait_s
        before = breaker.opens_s
        breaker.fail(failure, now, retry_after_s)
        assert breaker.opens_s >= before


def test_one_probe_at_a_time_closes_or_reopens_for_longer() -> None:
    """Half-open lets one request pass. If it fails, the breaker opens for twice as long; if it succeeds, all is reset.
    """
    fleet, first, second = two()
    break_(fleet, first, 0.0)
    assert fleet.pick("m", 0.0, 5.0) is first
    assert fleet.pick("m", 0.0, 5.0) is second
    fleet.failed(first, "timeout", 5.0)
    assert first.breaker.opens_s == 15.0
    assert fleet.pick("m", 0.0, 15.0) is first
    fleet.failed(first, "timeout", 15.0)
    assert first.breaker.opens_s == 35.0
    assert fleet.pick("m", 0.0, 35.0) is first
    fleet.succeeded(first, 36.0, 0.1)
    assert first.breaker.state(36.0) == "closed" and not first.breaker.reason
    break_(fleet, first, 40.0)
    assert first.breaker.opens_s == 45.0


def test_failures_before_it_closed_count_no_more() -> None:
    """The share of failures is counted anew."""
    fleet, first, _ = two()
    break_(fleet, first, 0.0)
    assert fleet.pick("m", 0.0, 5.0) is first
    fleet.succeeded(first, 5.0)
    for _ in range(LEAST // 2 - 1):
        fleet.failed(first, "timeout", 5.0)
        fleet.succeeded(first, 5.0)
    assert first.breaker.state(5.0) == "closed"


def test_failures_of_requests_under_way_do_not_double_the_wait() -> None:
    """When a deployment breaks, all requests that it was answering fail, some after its breaker has opened."""
    fleet, first, _ = two()
    for _ in range(4):
        break_(fleet, first, 0.0)
    assert first.breaker.opens_s == 5.0
    assert fleet.pick("m", 0.0, 5.0) is first
    fleet.failed(first, "timeout", 5.0)
    assert first.breaker.opens_s == 15.0


def test_only_the_probe_decides() -> None:
    """A request from before the probe that is cancelled, refused or answered lets no second one pass."""
    for outcome in ("cancelled", "rejected", ""):
        fleet, first, second = two()
        break_(fleet, first, 0.0)
        assert fleet.pick("m", 0.0, 5.0) is first
        for begun_s in (4.0, 5.1):
            if outcome:
                fleet.failed(first, outcome, 6.0, begun_s=begun_s)
            else:
                fleet.succeeded(first, 6.0, begun_s=begun_s)
            assert first.breaker.state(6.0) == ("closed" if begun_s > 5.0 and not outcome else "half_open")
            assert fleet.pick("m", 0.0, 6.0) is (second if begun_s < 5.0 else first), (outcome, begun_s)


def test_an_answer_begun_before_the_opening_does_not_close_it() -> None:
    """A long stream that ends well says nothing about what happened since it began."""
    fleet, first, _ = two()
    first.begin()
    break_(fleet, first, 0.0)
    fleet.succeeded(first, 6.0)
    assert first.breaker.state(6.0) == "half_open"


def test_a_probe_that_is_never_heard_of_again_does_not_block_others() -> None:
    """After a probe's client left, the next request may pass once none is under way."""
    fleet, first, second = two()
    break_(fleet, first, 0.0)
    assert fleet.pick("m", 0.0, 5.0) is first
    first.begin()
    assert fleet.pick("m", 0.0, 5.0) is second
    first.end()
    assert fleet.pick("m", 0.0, 5.0) is first
    assert fleet.pick("m", 0.0, 64.9) is second
    assert fleet.pick("m", 0.0, 65.0) is first


def test_the_last_deployment_is_never_taken_away() -> None:
    """If all breakers are open the first to close is used, and routers still see the model as unhealthy."""
    fleet, first, second = two()
    break_(fleet, first, 0.0)
    fleet.failed(second, "rate_limited", 0.0, retry_after_s=2.0)
    assert picks(fleet, 1.0) == {"b/m"}
    assert not fleet.healthy("m", 1.0)
    alone = Fleet([A])
    (only,) = alone.deployments("m")
    break_(alone, only, 0.0)
    assert alone.pick("m", 0.5, 0.0) is only and not alone.healthy("m", 0.0)
    assert alone.pick("m", 0.5, 0.0, avoid=only) is None
    alone.succeeded(only, 1.0)
    assert only.breaker.state(1.0) == "closed"


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["timeout", "rate_limited", ""])), max_size=60),
       st.floats(0, 0.999))  # fmt: skip
def test_a_known_model_always_has_a_deployment(events: list[tuple[bool, str]], draw: float) -> None:
    """Whatever happened to its deployments, one is picked."""
    fleet, first, second = two()
    for now, (which, failure) in enumerate(events):
        one = first if which else second
        if failure:
            fleet.failed(one, failure, float(now))
        else:
            fleet.succeeded(one, float(now), 0.1)
        assert fleet.pick("m", draw, float(now)) in (first, second)


def test_what_just_failed_a_request_comes_after_the_others() -> None:
    """A retry goes to another deployment if one lets it pass, else back to the same."""
    fleet, first, second = two()
    assert {fleet.pick("m", draw / 10, 0.0, failed=first) for draw in range(10)} == {second}
    break_(fleet, second, 0.0)
    assert fleet.pick("m", 0.0, 0.0, failed=first) is first
    assert Fleet([A]).pick("m", 0.0, 0.0, failed=first) is not None


def test_requests_under_way_are_counted() -> None:
    """The count never falls below 0."""
    _, first, _ = two()
    first.begin()
    first.begin()
    first.end()
    assert (first.in_flight, first.requests) == (1, 2)
    first.end()
    with pytest.raises(AssertionError):
        first.end()


def test_delays_are_estimated_from_what_was_seen() -> None:
    """Mean and 95th percentile of a lognormal sample are right within a tenth or so; too few observations give NaN."""
    mean, tail, rng = MeanDelay(), TailDelay(), random.Random(3)
    assert math.isnan(mean.mean_s)
    for _ in range(9):
        tail.add(1.0, 0.0)
    assert math.isnan(tail.p95_s)
    for _ in range(3000):
        delay_s = rng.lognormvariate(-1.0, 0.5)
        mean.add(delay_s, 0.0)
        tail.add(delay_s, 0.0)
    assert mean.mean_s == pytest.approx(math.exp(-1 + 0.125), rel=0.15)
    assert tail.p95_s == pytest.approx(math.exp(-1 + 1.645 * 0.5), rel=0.15)


def test_delays_forget() -> None:
    """Old observations give way to new ones."""
    delay = MeanDelay()
    for _ in range(100):
        delay.add(10.0, 0.0)
    for i in range(20):
        delay.add(1.0, 3600.0 + i)
    assert delay.mean_s == pytest.approx(1.0, abs=0.05)


def test_a_hedge_is_due_after_the_slowest_known_percentile() -> None:
    """It is NaN while nothing is known."""
    fleet, first, second = two()
    assert math.isnan(fleet.ttft_p95_s("m")) and math.isnan(fleet.latency_s("m"))
    for _ in range(20):
        fleet.succeeded(first, 0.0, 0.2, 1.0)
        fleet.succeeded(second, 0.0, 0.4, 3.0)
    assert fleet.ttft_p95_s("m") == pytest.approx(0.4)
    assert fleet.latency_s("m") == pytest.approx(1.0)


def test_the_state_of_every_deployment_can_be_seen() -> None:
    """Health shows which breaker is open, why, for how long, and the requests in flight."""
    fleet, first, _ = two()
    fleet.failed(first, "rate_limited", 0.0, 10.0)
    first.begin()
    seen, other = fleet.snapshot(4.0)
    assert (seen.state, seen.retry_in_s, seen.reason, seen.in_flight) == ("open", 6.0, "rate_limited", 1)
    assert (other.state, other.failures, other.ttft_p95_s) == ("closed", 0, None)


def test_routers_see_a_candidates_present_state() -> None:
    """Delays and queues reach routers, and health at once; while nothing changes they see the same object."""
    fleet, candidates = Fleet([A], queueing={A.provider}), (Candidate(A.name),)
    (deployment,) = fleet.all()
    (before,) = fleet.as_of(candidates, 0.0)
    assert before == candidates[0] and fleet.as_of(candidates, 5.0)[0] is before
    for _ in range(3):
        deployment.begin()
    fleet.succeeded(deployment, 6.0, 0.5, 3.0)
    (busy,) = fleet.as_of(candidates, 6.0)
    assert (busy.latency_s, busy.queue_s) == pytest.approx((3.0, 3.0))
    assert fleet.as_of(candidates, 6.01)[0] is busy
    for _ in range(20):
        fleet.failed(deployment, "connect", 6.02)
    (ill,) = fleet.as_of(candidates, 6.03)
    assert not ill.healthy and fleet.as_of(candidates, 6.04)[0] is ill
    deployment.breaker.begin(6.05)
    fleet.succeeded(deployment, 6.05)
    assert fleet.as_of(candidates, 6.06)[0].healthy


def test_an_engines_report_is_seen_at_once() -> None:
    """A deployment that reports itself down is unhealthy, whatever was seen a moment ago."""
    fleet, candidates = Fleet([A]), (Candidate(A.name),)
    (deployment,) = fleet.all()
    deployment.report = EngineReport(is_up=True)
    assert fleet.as_of(candidates, 0.0)[0].healthy
    deployment.report = EngineReport(is_up=False)
    assert not fleet.as_of(candidates, 0.01)[0].healthy


def test_service_tiers_do_not_disturb_what_routers_see() -> None:
    """Each tier of a model has its own prices and its own candidate, which stays the same object while nothing changes.
    """
    models = [ModelConfig(name="m", provider="openai", input_usd_per_mtok=1.0, output_usd_per_mtok=2.0,
                          tier_prices={"flex": 0.5, "priority": 2.0})]  # fmt: skip
    fleet, route = Fleet(models), RouteBook(Config(models=models), {}).find("m")
    seen = {tier: route.candidates(fleet, 0.0, tier)[0] for tier in ("", "flex", "priority")}
    assert [one.output_usd_per_mtok for one in seen.values()] == [2.0, 1.0, 4.0]
    for tier, before in seen.items():
        assert route.candidates(fleet, 0.05, tier)[0] is before
    assert route.candidates(fleet, 0.05, "unheard-of")[0] == seen[""]


def test_a_narrowed_route_sees_the_same_candidates_each_time() -> None:
    """Each request narrows its route anew. What routers cache by the candidates' identity must serve the next one."""
    models = [ModelConfig(name=name, provider="openai", upstream_name="up") for name in ("a", "b", "c")]
    config = Config(models=models, routes=[RouteConfig(name="auto", models=["a", "b"], fallback=["c"])])
    fleet, book = Fleet(models), RouteBook(config, {"auto": open_router("cheapest")})
    fleet.succeeded(fleet.deployments("b")[0], 0.0, latency_s=2.0)
    route = book.find("auto")
    for make in (lambda: book.narrow(route, ("b",)), lambda: replace(route, fallbacks=())):
        before = make().candidates(fleet, 0.0)
        assert before[-1].latency_s == 2.0
        assert all(one is was for one, was in zip(make().candidates(fleet, 0.05), before, strict=True))


def test_only_models_of_one_machine_queue() -> None:
    """Requests in flight at a remote provider delay nobody here."""
    fleet = Fleet([A])
    (deployment,) = fleet.all()
    deployment.begin()
    fleet.succeeded(deployment, 1.0, 0.5, 3.0)
    assert fleet.queue_s(A.name) == 0.0
