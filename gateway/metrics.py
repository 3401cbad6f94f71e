"""The metrics that a worker counts, as plain numbers; gateway/exposition.py writes them for Prometheus.

Every name, label and bucket is listed once, in `METRICS`. Labels are bounded: they come from the configuration and from
closed vocabularies, never from a key, a user or a prompt, and each metric has at most MAX_SERIES series.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from gateway.exchange import Attempt, Exchange
    from gateway.fleet import Fleet
    from gateway.routes import Route
    from routers.types import Choice

MAX_SERIES = 2000
Labels = tuple[str, ...]
Series = dict[Labels, list[float]]
"""Numbers by label values: [value] of a counter or gauge, and [sum, count of each bucket, count beyond the last bucket]
of a histogram.
"""
Children = tuple[list[float], ...]
Read = Callable[[], Mapping[Labels, float]]
read_snapshot = msgspec.json.Decoder(dict[str, list[tuple[Labels, list[float]]]]).decode
"""Decodes `Metrics.snapshot`."""

_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OURS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_TTFT_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


@dataclass(frozen=True, slots=True)
class Spec:
    """Declaration of one metric. `merged` says how the values of several workers are combined."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = ()
    buckets: tuple[float, ...] = ()
    merged: Literal["sum", "max"] = "sum"


METRICS = (
    Spec("headgate_requests", "counter", "Requests answered.", ("route", "surface", "status")),
    Spec("headgate_refused", "counter", "Requests refused before a hold.", ("surface", "code")),
    Spec("headgate_request_duration_seconds", "histogram", "From the request's arrival to its end.",
         ("route", "surface"), _REQUEST_S),
    Spec("headgate_overhead_seconds", "histogram", "Time of a request not spent waiting for upstreams.",
         ("surface",), _OURS_S),
    Spec("headgate_ttft_seconds", "histogram", "From an attempt's start to its first byte.",
         ("model", "provider"), _TTFT_S),
    Spec("headgate_tokens", "counter", "Tokens by disjoint price bucket.", ("model", "provider", "bucket")),
    Spec("headgate_web_searches", "counter", "Searches of the web that providers ran.", ("model", "provider")),
    Spec("headgate_tool_runs", "counter", "Runs of the providers' other tools.",
         ("model", "provider", "tool")),
    Spec("headgate_cost_usd", "counter", "Money spent on attempts.", ("route", "model", "provider")),
    Spec("headgate_saved_usd", "counter", "What the answers that the cache served had cost at first.", ("route",)),
    Spec("headgate_cache", "counter", "Outcomes of the cache.", ("route", "state")),
    Spec("headgate_semantic_misses", "counter", "Why the semantic cache served nothing.", ("route", "reason")),
    Spec("headgate_attempts", "counter", "Attempts on deployments; failure is \"none\" where one answered.",
         ("model", "provider", "failure")),
    Spec("headgate_retries", "counter", "Attempts repeated on the same model.", ("route",)),
    Spec("headgate_fallbacks", "counter",
         "Attempts on another model after a failure, or while the route's own models are unhealthy.", ("route",)),
    Spec("headgate_escalations", "counter", "Attempts on another model after a rejected answer.", ("route",)),
    Spec("headgate_hedges", "counter", "Second attempts started beside a slow first.", ("route",)),
    Spec("headgate_verdicts", "counter", "Cascades by the reason for which they ended.", ("route", "reason")),
    Spec("headgate_router_choices", "counter", "Models chosen by routers.", ("route", "model")),
    Spec("headgate_router_explored", "counter", "Choices of a model that the router did not rank first.", ("route",)),
    Spec("headgate_router_floor", "counter", "Choices made at the exploration floor.", ("route",)),
    Spec("headgate_router_undecided", "counter", "Requests whose router could not decide.", ("route",)),
    Spec("headgate_router_lost", "gauge", "1 while a route's promoted router can't be opened and another one serves.",
         ("route",), merged="max"),
    Spec("headgate_in_flight_requests", "gauge", "Requests held and not yet settled."),
    Spec("headgate_holds_outstanding", "gauge", "Open holds of money."),
    Spec("headgate_redis_away", "gauge", "1 while a worker has to go by its own share of budgets and limits.",
         merged="max"),
    Spec("headgate_budgets_spoilt", "gauge", "Budgets that can't be read in Redis.", merged="max"),
    Spec("headgate_overrun_usd", "gauge", "Money spent beyond what was held for it."),
    Spec("headgate_bandit_answers", "gauge", "Scored answers that a bandit has learnt from.", ("route",), merged="max"),
    Spec("headgate_purse_fullness", "gauge", "Fullness of a route's purse, 0 to 1; at 0 it chooses by cost alone.",
         ("route",), merged="max"),
    Spec("headgate_breaker_state", "gauge", "Circuit breakers: 0 closed, 1 half-open, 2 open.", ("model", "provider"),
         merged="max"),
    Spec("headgate_engine_waiting", "gauge", "Requests in an inference server's own queue, from all of its clients.",
         ("model", "provider"), merged="max"),
    Spec("headgate_deployment_in_flight", "gauge", "Attempts in flight.", ("model", "provider")),
    Spec("headgate_pool_connections", "gauge", "Connections to providers.", ("provider", "state")),
    Spec("headgate_tasks", "gauge", "Tasks alive in the workers' event loops."),
    Spec("headgate_journal_lag_bytes", "gauge", "Bytes in the spool that the store doesn't have yet."),
    Spec("headgate_journal_dropped", "counter", "Records that no spool could take: the disk or the spools are full."),
    Spec("headgate_journal_dropping", "gauge", "Workers that had to drop their last record."),
    Spec("headgate_reload_refused", "gauge", "1 while the configuration in force is older than the file.",
         merged="max"),
    Spec("headgate_certificate_expiry_seconds", "gauge",
         "Seconds until the first certificate in a setting's file expires; below 0 since it has.", ("setting",)),
    Spec("headgate_loop_lag_seconds", "histogram", "How late the event loop woke up.", (), _OURS_S),
)  # fmt: skip
SPECS = {spec.name: spec for spec in METRICS}
_RARE = ("cache_read", "cache_write", "reasoning", "audio_input", "audio_output", "cache_write_1h")
"""Buckets that most answers leave empty."""
_rare_counts = attrgetter(*(f"{bucket}_tokens" for bucket in _RARE), "web_searches")
_STATUS = ("", "1xx", "2xx", "3xx", "4xx", "5xx")


class Counter:
    """Adds up amounts by label values."""

    __slots__ = ("_width", "name", "values")

    def __init__(self, name: str) -> None:
        self.name = name
        self._width = len(SPECS[name].labels)
        self.values: Series = {}

    def child(self, labels: Labels) -> list[float]:
        """The list that holds the one number of a series; it is created at the first call."""
        return self.values.get(labels) or _child(self.values, labels, self._width, 1)

    def add(self, labels: Labels, amount: float = 1) -> None:
        self.child(labels)[0] += amount


class Histogram:
    """Counts values by bucket and adds them up."""

    __slots__ = ("_bounds", "_width", "name", "values")

    def __init__(self, name: str) -> None:
        self.name = name
        self._width = len(SPECS[name].labels)
        self._bounds = SPECS[name].buckets
        self.values: Series = {}

    def child(self, labels: Labels) -> list[float]:
        """The numbers of a series, for `put`; they are created at the first call."""
        return self.values.get(labels) or _child(self.values, labels, self._width, len(self._bounds) + 2)

    def put(self, child: list[float], value: float) -> None:
        child[0] += value
        child[1 + bisect_left(self._bounds, value)] += 1

    def observe(self, labels: Labels, value: float) -> None:
        self.put(self.child(labels), value)


def _child(values: Series, labels: Labels, width: int, size: int) -> list[float]:
    """A new series; from MAX_SERIES on the one series of all others, whose labels are "other"."""
    assert len(labels) == width, labels
    if len(values) >= MAX_SERIES:
        labels = ("other",) * width
    return values.setdefault(labels, [0.0] * size)


class Metrics:
    """The metrics of one worker."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.requests = Counter("headgate_requests")
        self.refusals = Counter("headgate_refused")
        self.duration_s = Histogram("headgate_request_duration_seconds")
        self.overhead_s = Histogram("headgate_overhead_seconds")
        self.ttft_s = Histogram("headgate_ttft_seconds")
        self.tokens = Counter("headgate_tokens")
        self.web_searches = Counter("headgate_web_searches")
        self.tool_runs = Counter("headgate_tool_runs")
        self.cost_usd = Counter("headgate_cost_usd")
        self.saved_usd = Counter("headgate_saved_usd")
        self.cache = Counter("headgate_cache")
        self.semantic_misses = Counter("headgate_semantic_misses")
        self.attempts = Counter("headgate_attempts")
        self.retries = Counter("headgate_retries")
        self.fallbacks = Counter("headgate_fallbacks")
        self.escalations = Counter("headgate_escalations")
        self.hedges = Counter("headgate_hedges")
        self.verdicts = Counter("headgate_verdicts")
        self.choices = Counter("headgate_router_choices")
        self.explored = Counter("headgate_router_explored")
        self.floor = Counter("headgate_router_floor")
        self.undecideds = Counter("headgate_router_undecided")
        self.lag_s = Histogram("headgate_loop_lag_seconds")
        self._gauges: dict[str, Read] = {
            "headgate_in_flight_requests": lambda: {(): self.in_flight},
            "headgate_tasks": _tasks,
        }
        self._by_request: dict[tuple[str, str, int, str, str, str], Children] = {}
        self._by_attempt: dict[tuple[str, str, str], Children] = {}
        self._all = [metric for metric in vars(self).values() if isinstance(metric, Counter | Histogram)]

    # Called while serving

    def opened(self) -> None:
        """A request has its hold."""
        self.in_flight += 1

    def refused(self, surface: str, code: str) -> None:
        """A request was refused before it had a hold."""
        self.refusals.add((surface, code))

    def undecided(self, route: str) -> None:
        """The router could not decide, so the route's default model answers."""
        self.undecideds.add((route,))

    def fell_back(self, route: str) -> None:
        """The route's own models are unhealthy, so a fallback is tried first."""
        self.fallbacks.add((route,))

    def settled(self, exchange: Exchange, elapsed_s: float) -> None:
        """A request that had a hold was settled."""
        self.in_flight -= 1
        route = exchange.route.name
        choice, verdict = exchange.choice, exchange.verdict
        model, reason = choice.model if choice else "", verdict.reason if verdict else ""
        key = (route, exchange.call.surface, exchange.status, exchange.cache_state, model, reason)
        requests, cache, chosen, verdicts, duration_s, overhead_s = (
            self._by_request.get(key) or self._remember_request(*key)
        )
        requests[0] += 1
        cache[0] += 1
        chosen[0] += 1
        verdicts[0] += 1
        self.duration_s.put(duration_s, elapsed_s)
        self.overhead_s.put(overhead_s, max(0.0, elapsed_s - exchange.upstream_s))
        if exchange.hit is not None:
            self.saved_usd.add((route,), exchange.hit.entry.cost_usd)
        elif exchange.missed is not None:
            self.semantic_misses.add((route, exchange.missed.why))
        if choice is not None:
            self._chosen(choice, exchange.route)
        before: Attempt | None = None
        for attempt in exchange.attempts:
            self._attempted(attempt, route)
            if attempt.hedge:
                self.hedges.add((route,))
            elif before is not None:
                self._moved(before, attempt, route)
            before = attempt

    def _remember_request(
        self, route: str, surface: str, status: int, cache_state: str, model: str, reason: str
    ) -> Children:
        """Requests, cache, choices, verdicts, duration and overhead series of such requests, kept so that the next one
        needs a single look-up. Where no `model` was chosen or no verdict has a `reason` (empty), a list that is in no
        series stands for it.
        """
        if len(self._by_request) >= MAX_SERIES:
            self._by_request.clear()
        children = self._by_request[route, surface, status, cache_state, model, reason] = (
            self.requests.child((route, surface, _STATUS[status // 100])),
            self.cache.child((route, cache_state.partition(":")[0])),
            self.choices.child((route, model)) if model else [0.0],
            self.verdicts.child((route, reason)) if reason else [0.0],
            self.duration_s.child((route, surface)),
            self.overhead_s.child((surface,)),
        )
        return children

    def _remember_attempt(self, route: str, model: str, deployment: str) -> Children:
        """The series of such attempts: answered, time to first byte, cost, input tokens, output tokens."""
        if len(self._by_attempt) >= MAX_SERIES:
            self._by_attempt.clear()
        provider = deployment.partition("/")[0]
        children = self._by_attempt[route, model, deployment] = (
            self.attempts.child((model, provider, "none")),
            self.ttft_s.child((model, provider)),
            self.cost_usd.child((route, model, provider)),
            self.tokens.child((model, provider, "input")),
            self.tokens.child((model, provider, "output")),
        )
        return children

    def _chosen(self, choice: Choice, route: Route) -> None:
        if choice.ranked and choice.ranked[0] != choice.model:
            self.explored.add((route.name,))
        floor = route.config.explore
        if floor and choice.propensity * len(choice.probabilities) <= floor * 1.000001:
            self.floor.add((route.name,))

    def _attempted(self, attempt: Attempt, route: str) -> None:
        key = (route, attempt.model, attempt.deployment)
        answered, ttft_s, cost_usd, into, out = self._by_attempt.get(key) or self._remember_attempt(*key)
        usage = attempt.usage
        if attempt.failure:
            self.attempts.add((attempt.model, attempt.deployment.partition("/")[0], attempt.failure))
        else:
            answered[0] += 1
        if attempt.first_byte_s is not None:
            self.ttft_s.put(ttft_s, attempt.first_byte_s)
        cost_usd[0] += attempt.cost_nanousd / 1e9
        into[0] += usage.input_tokens
        out[0] += usage.output_tokens
        if any(rare := _rare_counts(usage)) or usage.tool_runs:
            self._count_rare(attempt, rare)

    def _count_rare(self, attempt: Attempt, counts: tuple[int, ...]) -> None:
        provider = attempt.deployment.partition("/")[0]
        *tokens, searches = counts
        for bucket, count in zip(_RARE, tokens, strict=True):
            if count:
                self.tokens.add((attempt.model, provider, bucket), count)
        if searches:
            self.web_searches.add((attempt.model, provider), searches)
        for kind, count in attempt.usage.tool_runs.items():
            self.tool_runs.add((attempt.model, provider, kind), count)

    def _moved(self, before: Attempt, attempt: Attempt, route: str) -> None:
        if attempt.model == before.model:
            self.retries.add((route,))
        elif before.failure:
            self.fallbacks.add((route,))
        else:
            self.escalations.add((route,))

    # Called when metrics are read

    def watch(self, name: str, read: Read) -> None:
        """Call `read` for a metric's values at every snapshot."""
        assert SPECS[name].kind != "histogram", name
        self._gauges[name] = read

    def watch_fleet(self, fleet: Fleet, now: Callable[[], float]) -> None:
        """Read the state of circuit breakers and the attempts in flight from the fleet."""
        level = {"closed": 0.0, "half_open": 1.0, "open": 2.0}

        def states() -> dict[Labels, float]:
            values: dict[Labels, float] = {}
            for one in fleet.all():
                key = (one.model, one.provider)
                values[key] = max(values.get(key, 0.0), level[one.breaker.state(now())])
            return values

        def in_flight() -> dict[Labels, float]:
            values: dict[Labels, float] = {}
            for one in fleet.all():
                key = (one.model, one.provider)
                values[key] = values.get(key, 0.0) + one.in_flight
            return values

        self.watch("headgate_breaker_state", states)
        self.watch("headgate_deployment_in_flight", in_flight)

    def snapshot(self) -> bytes:
        """All metrics as JSON, for `read_snapshot`."""
        series = {metric.name: list(metric.values.items()) for metric in self._all}
        for name, read in self._gauges.items():
            series[name] = [(labels, [float(value)]) for labels, value in read().items()]
        return msgspec.json.encode(series)


def _tasks() -> dict[Labels, float]:
    try:
        return {(): float(len(asyncio.all_tasks()))}
    except RuntimeError:  # called in a thread without an event loop
        return {}


async def watch_loop(metrics: Metrics, every_s: float = 0.25) -> None:
    """Measure how late the event loop runs its timers, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every_s
        await asyncio.sleep(every_s)
        metrics.lag_s.observe((), max(0.0, loop.time() - due))
