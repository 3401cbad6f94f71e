"""The deployments of every model: how each is doing, and which takes the next request.

A breaker takes a failing deployment out of the draw, but never the last one of its model: a request that may
fail is better than one that must. Pure but for its own counters and a line of the log when one is left alone; time
and the random draw are arguments.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, isnan, log, nan, sqrt

import msgspec

from cache.prefix import RecentTokens, warmest
from gateway.breaker import Breaker, State
from gateway.config import ModelConfig
from gateway.prices import Price
from gateway.wire.call_ids import style_of
from routers.replicas import Job, Load, Paces, least_delay
from routers.types import Candidate

_log = logging.getLogger("headgate.fleet")
_LEVELS = {"rate_limited": logging.DEBUG}
"""Log levels that differ: a provider at its rate limit would be logged every few seconds, and metrics count it."""

HALF_LIFE_S = 300.0
"""Age at which an observation counts half."""
TICK_S = 0.1
"""Weights fade in steps of at least this: computing a power costs more than all else in an observation."""
LEAST_LOG = log(1e-6)
VIEW_S = 0.1
"""How long the delays and queues that routers see may stay as they are."""
MOST_VIEWS = 1000


Asked = Callable[[], tuple[float, float]]
"""Gives the tokens of a prompt and the expected tokens of its answer; NaN: unknown."""
Warm = Callable[[Sequence["Deployment"]], Sequence[float] | None]
"""Gives the share of a prompt that each deployment is expected to have cached; None: the prompt is too short for it."""


class Delay:
    """Recent mean and 95th percentile of a delay: old observations fade with time and with newer ones.

    The percentile follows a lognormal fit of the faded moments, so it needs three numbers and no samples.
    """

    __slots__ = ("_log", "_log2", "_mean", "_seen_s", "_weight")

    MEMORY = 200.0
    """Greatest total weight, in observations; beyond it the oldest fade as new ones come."""

    def __init__(self) -> None:
        self._weight = self._mean = self._log = self._log2 = 0.0
        self._seen_s = 0.0

    def add(self, delay_s: float, now: float) -> None:
        weight, passed_s = self._weight, now - self._seen_s
        if passed_s > TICK_S:
            weight *= 0.5 ** (passed_s / HALF_LIFE_S)
            self._seen_s = now
        self._weight = weight = (weight if weight < self.MEMORY - 1 else self.MEMORY - 1) + 1
        share = 1 / weight
        logged = log(delay_s) if delay_s > 1e-6 else LEAST_LOG
        self._mean += (delay_s - self._mean) * share
        self._log += (logged - self._log) * share
        self._log2 += (logged * logged - self._log2) * share

    @property
    def mean_s(self) -> float:
        """NaN: never seen."""
        return self._mean if self._weight else nan

    @property
    def p95_s(self) -> float:
        """NaN below ten observations, which say too little of a tail."""
        if self._weight < 10:
            return nan
        return exp(self._log + 1.645 * sqrt(max(0.0, self._log2 - self._log**2)))


class Deployment:
    """One way to reach a model."""

    __slots__ = (
        "breaker", "call_ids", "config", "failures", "foreign", "id", "in_flight", "latency", "load", "model", "price",
        "provider", "recent", "requests", "told", "ttft", "turn", "upstream_name", "upstream_raw", "weight",
    )  # fmt: skip

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.model = config.name
        self.provider = config.provider
        self.upstream_name = config.upstream_name or config.name
        self.upstream_raw = msgspec.Raw(msgspec.json.encode(self.upstream_name))
        """The name as JSON, to be set into a request's body."""
        self.call_ids = style_of(config.call_ids, self.upstream_name)
        """Which ids of tool calls its chat API accepts."""
        self.foreign = frozenset((*config.leave_out, *config.rename))
        """Request fields that its API lacks or calls by another name."""
        self.id = f"{config.provider}/{self.upstream_name}"
        self.price = Price.of(config)
        self.weight = config.weight
        self.breaker = Breaker()
        self.latency = Delay()
        """Time to a whole answer."""
        self.ttft = Delay()
        """Time to the first byte."""
        self.turn = Delay()
        """Time to a whole answer, divided by how many were under way: what one more adds where answers queue."""
        self.recent = RecentTokens()
        """Of long prompts, where its model has several deployments."""
        self.load: Load | None = None
        """The tokens it has under way; None: its model's deployments are balanced by weight."""
        self.told: Told | None = None
        """None: it reports nothing."""
        self.in_flight = 0
        self.requests = 0
        self.failures = 0

    def lets_pass(self, now: float) -> bool:
        """True: a request may be sent."""
        return self.breaker.lets_pass(now) and (self.told is None or self.told.is_up)

    def begin(self) -> None:
        """A request is sent."""
        self.in_flight += 1
        self.requests += 1

    def end(self) -> None:
        """A request has ended, whatever its outcome."""
        assert self.in_flight > 0, f"{self.id} ended more requests than it began"
        self.in_flight -= 1
        if not self.in_flight and self.breaker.opens_s:
            self.breaker.idle()

    def over(self, job: Job | None) -> None:
        """A request under way ended without an answer."""
        if job is not None and self.load is not None:
            self.load.end(job)


@dataclass(frozen=True, slots=True)
class Told:
    """What an inference server reports of itself."""

    is_up: bool
    waiting: float | None = None
    running: float | None = None
    """Requests, whoever sent them; None: not reported."""


@dataclass(frozen=True, slots=True)
class Health:
    """A deployment as operators see it."""

    id: str
    model: str
    state: State
    retry_in_s: float
    """Seconds until it is tried again; 0 unless it is open."""
    reason: str
    in_flight: int
    requests: int
    failures: int
    latency_s: float | None
    ttft_p95_s: float | None


@dataclass(frozen=True, slots=True)
class _View:
    """What routers were last told of some candidates."""

    candidates: tuple[Candidate, ...]
    seen: Sequence[Candidate]
    healthy: Sequence[bool]
    breakers: Sequence[Breaker]
    calm: bool
    """All of these were closed and no inference server told of itself: all are healthy while they stay closed."""
    ends_s: float


class Fleet:
    """All deployments, by model."""

    def __init__(self, models: Iterable[ModelConfig], queueing: Container[str] = ()) -> None:
        """`queueing`: providers whose answers share one machine, so that each one under way makes the next wait."""
        self._queueing = queueing
        self._views: dict[int, _View] = {}
        """By the identity of their candidates."""
        self._deployments: dict[str, list[Deployment]] = {}
        for config in models:
            self._deployments.setdefault(config.name, []).append(Deployment(config))
        _weigh(self._deployments)

    def update(self, models: Iterable[ModelConfig]) -> None:
        """Take over another configuration: a deployment that is as it was keeps its breaker, delays and counts."""
        before = {msgspec.json.encode(one.config): one for one in self.all()}
        fresh: dict[str, list[Deployment]] = {}
        for config in models:
            fresh.setdefault(config.name, []).append(before.get(msgspec.json.encode(config)) or Deployment(config))
        _weigh(fresh)
        self._deployments = fresh
        self._views = {}

    def pick(
        self, model: str, draw: float, now: float, avoid: Deployment | None = None, asked: Asked | None = None,
        failed: Deployment | None = None, warm: Warm | None = None,
    ) -> Deployment | None:  # fmt: skip
        """Pick a deployment whose breaker is closed: by weight, with `draw` in [0, 1), but a prompt long enough for
        caches where it is `warm` unless others have far less to do; with balance = "delay", where a request of the
        tokens `asked` delays all answers least. One that has just `failed` this request comes last.

        Where all breakers are open: the first to close, so that a model never loses its last deployment.
        None: the model has no other deployment than `avoid`, or is unknown.
        """
        all_ = self._deployments.get(model, ())
        if avoid is not None:
            all_ = [deployment for deployment in all_ if deployment is not avoid]
        if not all_:
            return None
        open_ = all_ if len(all_) == 1 else [one for one in all_ if one.lets_pass(now)]
        if failed is not None and len(open_) > 1:
            open_ = [one for one in open_ if one is not failed]
        if not open_:
            picked = min(all_, key=lambda one: one.breaker.opens_s)
        elif asked is None or len(open_) == 1:
            picked = _draw(open_, draw)
        else:
            picked = _among(open_, asked, warm, draw, now)
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
    ) -> None:
        """Count an answer that arrived whole, streamed or not."""
        why = deployment.breaker.reason
        deployment.breaker.succeed(now)
        if why and not deployment.breaker.reason:
            _log.log(_LEVELS.get(why, logging.WARNING), "deployment %s serves again", deployment.id)
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
        self, deployment: Deployment, failure: str, now: float, retry_after_s: float | None = None, cause: str = ""
    ) -> None:
        """A failure, before or inside a stream; `cause` tells more of it in the log, without words of a request."""
        deployment.failures += 1
        was_open = deployment.breaker.opens_s
        deployment.breaker.fail(failure, now, retry_after_s)
        if not was_open and deployment.breaker.opens_s:
            level = _LEVELS.get(failure, logging.WARNING)
            _log.log(level, "deployment %s is left alone after its failures: %s", deployment.id, cause or failure)

    def healthy(self, model: str, now: float) -> bool:
        """True while some deployment of the model may be tried."""
        for one in self._deployments.get(model, ()):  # noqa: SIM110  (a generator takes five times as long)
            if one.lets_pass(now):
                return True
        return False

    def ttft_p95_s(self, model: str) -> float:
        """Of the slowest deployment with enough observations: when a hedge is due. NaN: none has enough."""
        known = [one.ttft.p95_s for one in self._deployments.get(model, ()) if not isnan(one.ttft.p95_s)]
        return max(known, default=nan)

    def latency_s(self, model: str) -> float:
        """Mean of the fastest deployment; NaN: unknown."""
        known = [one.latency.mean_s for one in self._deployments.get(model, ()) if one.latency.mean_s > 0]
        return min(known, default=nan)

    def queue_s(self, model: str) -> float:
        """Expected wait at the least busy deployment; 0 where nothing queues or nothing is known."""
        return min(map(self._wait_s, self._deployments.get(model, ())), default=0.0)

    def _wait_s(self, one: Deployment) -> float:
        """From the engine's own report if it has one: in each mean latency as many leave the queue as run at once."""
        if one.told is not None and one.told.waiting:
            mean_s = one.latency.mean_s
            return 0.0 if isnan(mean_s) else one.told.waiting * mean_s / max(1.0, one.told.running or 0.0)
        return 0.0 if one.provider not in self._queueing or isnan(one.turn.mean_s) else one.in_flight * one.turn.mean_s

    def as_of(self, candidates: tuple[Candidate, ...], now: float) -> Sequence[Candidate]:
        """The candidates with their present health, queue and latency. Each stays the same object while these stay the
        same, because routers cache what they compute from it; the tuple has to be one that is kept.
        """
        view = self._views.get(id(candidates))
        if view is not None and now < view.ends_s:
            if view.calm:
                for breaker in view.breakers:
                    if breaker.opens_s:
                        break
                else:
                    return view.seen
            if view.healthy == [self.healthy(one.model, now) for one in candidates]:
                return view.seen
        if len(self._views) >= MOST_VIEWS:
            self._views.clear()
        view = self._views[id(candidates)] = self._view(candidates, view.seen if view is not None else candidates, now)
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
        calm = all(one.told is None and not one.breaker.opens_s for one in deployments)
        healthy = [one.healthy for one in seen]
        return _View(candidates, seen, healthy, [one.breaker for one in deployments], calm, now + VIEW_S)

    def deployments(self, model: str) -> Sequence[Deployment]:
        return self._deployments.get(model, ())

    def all(self) -> list[Deployment]:
        return [one for deployments in self._deployments.values() for one in deployments]

    def snapshot(self, now: float) -> list[Health]:
        """Every deployment's state."""
        return [_health(one, now) for one in self.all()]


def _weigh(fleet: Mapping[str, Sequence[Deployment]]) -> None:
    """Give a load to each deployment that is balanced by delay, and one pace to all of a model."""
    for deployments in fleet.values():
        if len(deployments) == 1 or deployments[0].config.balance != "delay":
            continue
        known = next((one.load.paces for one in deployments if one.load is not None), None)
        paces = known or Paces()
        for one in deployments:
            if one.load is None:
                one.load = Load(paces, one.config.parallel, one.config.memory_tokens)


def _among(
    deployments: Sequence[Deployment], asked: Asked, warm: Warm | None, draw: float, now: float
) -> Deployment:
    """Among equals (such as idle ones) the draw decides; one of weight 0 is used only if no other is left."""
    deployments = [one for one in deployments if one.weight] or deployments
    shares = warm(deployments) if warm is not None else None
    if deployments[0].load is not None:
        return _soonest(deployments, asked, shares, draw, now)
    if shares is None:
        return _draw(deployments, draw)
    loads = [one.recent.at(now) / (one.weight or 1.0) for one in deployments]
    tokens = asked()[0]
    picked = _draw([deployments[place] for place in warmest(shares, loads, tokens)], draw)
    picked.recent.add(tokens, now)
    return picked


def _soonest(
    deployments: Sequence[Deployment], asked: Asked, shares: Sequence[float] | None, draw: float, now: float
) -> Deployment:
    """Where taking the request adds the least delay; what a deployment has cached it need not read."""
    input_tokens, output_tokens = asked()
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
