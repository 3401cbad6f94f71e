"""The deployments of every model: the health of each, and which one takes the next request.

An open breaker excludes a deployment, but never the last one of its model: a request that may fail is better than one
that must. No clock, no randomness and no I/O but log lines: time and the random draw are arguments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, isnan, log, nan, sqrt
from operator import attrgetter

import msgspec

from cache.prefix import RecentTokens, warmest
from gateway.breaker import Breaker, State
from gateway.config.types import ModelConfig
from gateway.money.prices import Price
from gateway.wire.call_ids import style_of
from routers.replicas import Job, Load, Paces, least_delay
from routers.types import Candidate

_log = logging.getLogger("headgate.fleet")
_LEVELS = {"rate_limited": logging.DEBUG}
"""Log level of an opening, by failure; else WARNING. A provider at its rate limit would be logged every few seconds,
and metrics count it.
"""

HALF_LIFE_S = 300.0
"""Age in seconds at which an observation's weight has halved."""
TICK_S = 0.1
"""Shortest step in seconds by which weights decay: the power costs more than the rest of an observation."""
MEMORY = 200.0
"""Greatest total weight in observations; from there on each new one lowers the weight of the others."""
LEAST_LOG = log(1e-6)
VIEW_S = 0.1
"""Seconds for which routers may see the same delays and queues before they are computed anew."""
MOST_VIEWS = 1000
_opens_s = attrgetter("opens_s")

ExpectedTokens = Callable[[], tuple[float, float]]
"""Returns the tokens of a prompt and the expected tokens of its answer, NaN if unknown."""
CachedShares = Callable[[Sequence["Deployment"]], Sequence[float] | None]
"""Returns the share of a prompt that each deployment is expected to have cached; None if the prompt is too short."""


class _Delay:
    """What is kept of recent delays. An observation's weight decays with time and with newer ones."""

    __slots__ = ("_seen_s", "_weight")

    def __init__(self) -> None:
        self._weight = self._seen_s = 0.0

    def _share(self, now: float) -> float:
        """Count an observation; returns its share of the total weight."""
        weight, passed_s = self._weight, now - self._seen_s
        if passed_s > TICK_S:
            weight *= 0.5 ** (passed_s / HALF_LIFE_S)
            self._seen_s = now
        self._weight = weight = weight + 1.0 if weight < MEMORY - 1 else MEMORY
        return 1.0 / weight


class MeanDelay(_Delay):
    """Recent mean of a delay."""

    __slots__ = ("_mean",)

    def __init__(self) -> None:
        super().__init__()
        self._mean = 0.0

    def add(self, delay_s: float, now: float) -> None:
        self._mean += (delay_s - self._mean) * self._share(now)

    @property
    def mean_s(self) -> float:
        """Mean in seconds; NaN without observations."""
        return self._mean if self._weight else nan


class TailDelay(_Delay):
    """Recent 95th percentile of a delay, from a lognormal fit to the weighted moments, so that no samples are kept."""

    __slots__ = ("_log", "_log2")

    def __init__(self) -> None:
        super().__init__()
        self._log = self._log2 = 0.0

    def add(self, delay_s: float, now: float) -> None:
        share = self._share(now)
        logged = log(delay_s) if delay_s > 1e-6 else LEAST_LOG
        self._log += (logged - self._log) * share
        self._log2 += (logged * logged - self._log2) * share

    @property
    def p95_s(self) -> float:
        """95th percentile in seconds; NaN below a weight of ten observations."""
        if self._weight < 10:
            return nan
        return exp(self._log + 1.645 * sqrt(max(0.0, self._log2 - self._log**2)))


class Deployment:
    """One way to reach a model."""

    __slots__ = (
        "breaker", "call_ids", "config", "failures", "foreign", "id", "in_flight", "latency", "load", "model", "price",
        "provider", "recent", "report", "requests", "ttft", "turn", "upstream_name", "upstream_raw", "weight",
    )  # fmt: skip

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.model = config.name
        self.provider = config.provider
        self.upstream_name = config.upstream_name or config.name
        self.upstream_raw = msgspec.Raw(msgspec.json.encode(self.upstream_name))
        """The upstream name as JSON, for the request's body."""
        self.call_ids = style_of(config.call_ids, self.upstream_name)
        """Which ids of tool calls its chat API accepts."""
        self.foreign = frozenset((*config.leave_out, *config.rename))
        """Request fields that its API lacks or calls by another name."""
        self.id = f"{config.provider}/{self.upstream_name}"
        self.price = Price.of(config)
        self.weight = config.weight
        self.breaker = Breaker()
        self.latency = MeanDelay()
        """Time to the whole answer."""
        self.ttft = TailDelay()
        """Time to the first byte."""
        self.turn = MeanDelay()
        """Time to the whole answer divided by the requests in flight: what one more request adds where they queue."""
        self.recent = RecentTokens()
        """Tokens of recent long prompts, where the model has several deployments."""
        self.load: Load | None = None
        """The tokens under way; None where the model's deployments are balanced by weight."""
        self.report: EngineReport | None = None
        """What its inference server reports; None if it reports nothing."""
        self.in_flight = 0
        self.requests = 0
        self.failures = 0

    def lets_pass(self, now: float) -> bool:
        """True if a request may be sent."""
        return self.breaker.lets_pass(now) and (self.report is None or self.report.is_up)

    def begin(self) -> None:
        """Count a request that is sent."""
        self.in_flight += 1
        self.requests += 1

    def end(self) -> None:
        """Count the end of a request, whatever its outcome."""
        assert self.in_flight > 0, f"{self.id} ended more requests than it began"
        self.in_flight -= 1
        if not self.in_flight and self.breaker.opens_s:
            self.breaker.idle()

    def over(self, job: Job | None) -> None:
        """Remove an attempt that ended without an answer from the load."""
        if job is not None and self.load is not None:
            self.load.end(job)


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What an inference server reports about itself."""

    is_up: bool
    waiting: float | None = None
    """Requests that wait in its queue, from all clients; None if not reported."""
    running: float | None = None
    """Requests that it is answering, from all clients; None if not reported."""


@dataclass(frozen=True, slots=True)
class Health:
    """A deployment as operators see it."""

    id: str
    model: str
    state: State
    retry_in_s: float
    """Seconds until the breaker is half-open; 0 unless it is open."""
    reason: str
    """The failure that opened the breaker; empty while it is closed."""
    in_flight: int
    requests: int
    failures: int
    latency_s: float | None
    """Mean time to a whole answer; None if unknown."""
    ttft_p95_s: float | None
    """95th percentile of the time to the first byte; None if unknown."""


@dataclass(frozen=True, slots=True)
class _View:
    """A route's candidates as routers last saw them."""

    candidates: tuple[Candidate, ...]
    seen: Sequence[Candidate]
    healthy: Sequence[bool]
    breakers: Sequence[Breaker]
    calm: bool
    """True if all breakers were closed and no inference server reported: all are healthy while they stay closed."""
    ends_s: float
    """Monotonic time from which the view is computed anew."""


class Fleet:
    """All deployments, by model."""

    def __init__(self, models: Iterable[ModelConfig], queueing: Container[str] = ()) -> None:
        """`queueing`: names of providers that run on one machine, where each request under way delays the next."""
        self._queueing = queueing
        self._views: dict[tuple[int, ...], _View] = {}
        """Views by the `id()` of each of their candidates, which they keep alive."""
        self._deployments: dict[str, list[Deployment]] = {}
        for config in models:
            self._deployments.setdefault(config.name, []).append(Deployment(config))
        _attach_loads(self._deployments)

    def update(self, models: Iterable[ModelConfig]) -> None:
        """Take over another configuration. Deployments that didn't change keep their breaker, delays and counts."""
        before = {msgspec.json.encode(one.config): one for one in self.all()}
        fresh: dict[str, list[Deployment]] = {}
        for config in models:
            fresh.setdefault(config.name, []).append(before.get(msgspec.json.encode(config)) or Deployment(config))
        _attach_loads(fresh)
        self._deployments = fresh
        self._views = {}

    def pick(
        self, model: str, draw: float, now: float, avoid: Deployment | None = None,
        tokens: ExpectedTokens | None = None, failed: Deployment | None = None, warm: CachedShares | None = None,
    ) -> Deployment | None:  # fmt: skip
        """Pick a deployment whose breaker lets the request pass.

        By default it is drawn by weight, with `draw` in [0, 1). `warm`: prefer deployments that have a long prompt
        cached, unless others have far less to do. With balance = "delay", take the one where a request of these
        `tokens` delays all answers least. `failed`: the deployment that just failed this request, taken only if no
        other is left. If all breakers are open, the first to close is taken, so that a model keeps its last deployment.
        Returns None if the model is unknown or has no deployment but `avoid`.
        """
        deployments = self._deployments.get(model, ())
        if avoid is not None:
            deployments = [deployment for deployment in deployments if deployment is not avoid]
        if not deployments:
            return None
        passing = deployments if len(deployments) == 1 else [one for one in deployments if one.lets_pass(now)]
        if failed is not None and len(passing) > 1:
            passing = [one for one in passing if one is not failed]
        if not passing:
            picked = min(deployments, key=lambda one: one.breaker.opens_s)
        elif tokens is None or len(passing) == 1:
            picked = _draw(passing, draw)
        else:
            picked = _balance(passing, tokens, warm, draw, now)
        picked.breaker.begin(now)
        return picked

    def succeeded(
        self,
        deployment: Deployment,
        now: float,
        ttft_s: float | None = None,
        latency_s: float | None = None,
        job: Job | None = None,
        output_tokens: int = 0,
        begun_s: float = inf,
    ) -> None:
        """Count an answer that arrived whole, streamed or not, to a request that was sent at `begun_s`."""
        failure = deployment.breaker.reason
        deployment.breaker.succeed(now, begun_s)
        if failure and not deployment.breaker.reason:
            _log.log(_LEVELS.get(failure, logging.WARNING), "deployment %s serves again", deployment.id)
        if job is not None and deployment.load is not None:
            deployment.load.end(job)
            if latency_s is not None:
                deployment.load.learn(job, output_tokens, latency_s)
        if ttft_s is not None:
            deployment.ttft.add(ttft_s, now)
        if latency_s is not None:
            deployment.latency.add(latency_s, now)
            if deployment.provider in self._queueing:
                deployment.turn.add(latency_s / max(1, deployment.in_flight), now)

    def failed(
        self,
        deployment: Deployment,
        failure: str,
        now: float,
        retry_after_s: float | None = None,
        cause: str = "",
        begun_s: float = inf,
    ) -> None:
        """Count a failure, before the answer or inside a stream, of a request that was sent at `begun_s`. `cause`:
        describes it for the log, without words of the request.
        """
        deployment.failures += 1
        was_open = deployment.breaker.opens_s
        deployment.breaker.fail(failure, now, retry_after_s, begun_s)
        if not was_open and deployment.breaker.opens_s:
            level = _LEVELS.get(failure, logging.WARNING)
            _log.log(level, "deployment %s is left alone after its failures: %s", deployment.id, cause or failure)

    def healthy(self, model: str, now: float) -> bool:
        """True if a request may be sent to some deployment of the model."""
        for one in self._deployments.get(model, ()):  # noqa: SIM110  (a generator takes five times as long)
            if one.lets_pass(now):
                return True
        return False

    def ttft_p95_s(self, model: str) -> float:
        """95th percentile of the time to the first byte of the slowest deployment; NaN if none has enough
        observations.
        """
        known = [one.ttft.p95_s for one in self._deployments.get(model, ()) if not isnan(one.ttft.p95_s)]
        return max(known, default=nan)

    def latency_s(self, model: str) -> float:
        """Mean time to a whole answer of the fastest deployment; NaN if unknown."""
        known = [one.latency.mean_s for one in self._deployments.get(model, ()) if one.latency.mean_s > 0]
        return min(known, default=nan)

    def queue_s(self, model: str) -> float:
        """Expected wait in seconds at the least busy deployment; 0 where nothing queues or nothing is known."""
        return min(map(self._wait_s, self._deployments.get(model, ())), default=0.0)

    def _wait_s(self, one: Deployment) -> float:
        """Expected wait in seconds at one deployment. By its engine's report if there is one: as many requests leave
        the queue in one mean latency as run at the same time.
        """
        if one.report is not None and one.report.waiting:
            mean_s = one.latency.mean_s
            return 0.0 if isnan(mean_s) else one.report.waiting * mean_s / max(1.0, one.report.running or 0.0)
        return 0.0 if one.provider not in self._queueing or isnan(one.turn.mean_s) else one.in_flight * one.turn.mean_s

    def as_of(self, candidates: tuple[Candidate, ...], now: float) -> Sequence[Candidate]:
        """The candidates with their present health, queue and latency. A candidate stays the same object while these
        stay the same, because routers cache by it.
        """
        key = tuple(map(id, candidates))
        view = self._views.get(key)
        if view is not None and now < view.ends_s:
            if view.calm and not any(map(_opens_s, view.breakers)):
                return view.seen
            if view.healthy == [self.healthy(one.model, now) for one in candidates]:
                return view.seen
        if len(self._views) >= MOST_VIEWS:
            self._views.clear()
        view = self._views[key] = self._view(candidates, view.seen if view is not None else candidates, now)
        return view.seen

    def _view(self, candidates: tuple[Candidate, ...], before: Sequence[Candidate], now: float) -> _View:
        seen = []
        for candidate, known in zip(candidates, before, strict=True):
            latency_s = self.latency_s(candidate.model)
            fresh = replace(
                candidate,
                healthy=self.healthy(candidate.model, now),
                queue_s=self.queue_s(candidate.model),
                latency_s=0.0 if isnan(latency_s) else latency_s,
            )
            seen.append(known if known == fresh else fresh)
        deployments = [one for candidate in candidates for one in self._deployments.get(candidate.model, ())]
        calm = all(one.report is None and not one.breaker.opens_s for one in deployments)
        healthy = [one.healthy for one in seen]
        return _View(candidates, seen, healthy, [one.breaker for one in deployments], calm, now + VIEW_S)

    def deployments(self, model: str) -> Sequence[Deployment]:
        return self._deployments.get(model, ())

    def all(self) -> list[Deployment]:
        return [one for deployments in self._deployments.values() for one in deployments]

    def snapshot(self, now: float) -> list[Health]:
        """The health of every deployment."""
        return [_health(one, now) for one in self.all()]


def _attach_loads(fleet: Mapping[str, Sequence[Deployment]]) -> None:
    """Give each deployment that is balanced by delay a load, and all of one model the same paces."""
    for deployments in fleet.values():
        if len(deployments) == 1 or deployments[0].config.balance != "delay":
            continue
        learned = next((one.load.paces for one in deployments if one.load is not None), None)
        paces = learned or Paces()
        for one in deployments:
            if one.load is None:
                one.load = Load(paces, one.config.parallel, one.config.memory_tokens)


def _balance(
    deployments: Sequence[Deployment], expected: ExpectedTokens, warm: CachedShares | None, draw: float, now: float
) -> Deployment:
    """As `Fleet.pick` says, among deployments that let the request pass. Between equals (such as idle ones) the draw
    decides; one of weight 0 is used only if no other is left.
    """
    deployments = [one for one in deployments if one.weight] or deployments
    shares = warm(deployments) if warm is not None else None
    if deployments[0].load is not None:
        return _least_delaying(deployments, expected, shares, draw, now)
    if shares is None:
        return _draw(deployments, draw)
    loads = [one.recent.at(now) / (one.weight or 1.0) for one in deployments]
    tokens = expected()[0]
    picked = _draw([deployments[place] for place in warmest(shares, loads, tokens)], draw)
    picked.recent.add(tokens, now)
    return picked


def _least_delaying(
    deployments: Sequence[Deployment], expected: ExpectedTokens, shares: Sequence[float] | None, draw: float, now: float
) -> Deployment:
    """The deployment where the request adds the least delay. `shares`: parts of the prompt that need not be read there,
    because they are cached.
    """
    input_tokens, output_tokens = expected()
    loads = [one.load for one in deployments if one.load is not None]
    if isnan(output_tokens):
        output_tokens = loads[0].paces.typical_tokens
    unread = [input_tokens * (1.0 - share) for share in shares or [0.0] * len(loads)]
    delays = least_delay(loads, unread, output_tokens, now)
    least = min(delays)
    return _draw([one for one, delay in zip(deployments, delays, strict=True) if delay <= least], draw)


def _draw(deployments: Sequence[Deployment], draw: float) -> Deployment:
    if len(deployments) == 1:
        return deployments[0]
    point = draw * sum(one.weight for one in deployments)
    for one in deployments:
        point -= one.weight
        if point < 0:
            return one
    return deployments[-1]


def _health(one: Deployment, now: float) -> Health:
    state = one.breaker.state(now)
    return Health(
        id=one.id,
        model=one.model,
        state=state,
        retry_in_s=one.breaker.opens_s - now if state == "open" else 0.0,
        reason=one.breaker.reason,
        in_flight=one.in_flight,
        requests=one.requests,
        failures=one.failures,
        latency_s=_known(one.latency.mean_s),
        ttft_p95_s=_known(one.ttft.p95_s),
    )


def _known(value: float) -> float | None:
    return None if isnan(value) else value
