"""One call of one deployment: the body it gets, the answer it gives, what that cost, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from cascade.types import Rung
from gateway.call import Call
from gateway.errors import UpstreamError
from gateway.evidence import evidence_of
from gateway.exchange import Attempt, Exchange, Kept
from gateway.fleet import Deployment, Fleet
from gateway.providers import Provider
from gateway.upstream import Response
from gateway.wire.answer import peek
from gateway.wire.errors import classify
from gateway.wire.relay import Relay, relay
from gateway.wire.request import Raw, encode, translate_request
from gateway.wire.usage import Usage

TRUE, FALSE = msgspec.Raw(b"true"), msgspec.Raw(b"false")
INCLUDE_USAGE = msgspec.Raw(b'{"include_usage":true}')
STREAMED_USAGE = frozenset({"chat", "completions"})
BYTES_PER_TOKEN = 4
"""For tokens nobody counted: about right for English, low for code."""


@dataclass(slots=True)
class Opened:
    """An attempt that has answered: whole, or as a stream whose first real chunk is here."""

    attempt: Attempt
    deployment: Deployment
    kept: Kept | None = None
    response: Response | None = None
    relay: Relay | None = None
    pending: bytes = b""


@dataclass(frozen=True, slots=True)
class Timeouts:
    first_byte_s: float
    stall_s: float


class Caller:
    """Calls deployments. One per worker."""

    def __init__(
        self,
        fleet: Fleet,
        providers: Mapping[str, Provider],
        timeouts: Timeouts,
        max_answer_bytes: int,
        now: Callable[[], float],
    ) -> None:
        self.fleet = fleet
        self.providers = providers
        self.timeouts = timeouts
        self.max_answer_bytes = max_answer_bytes
        self.now = now

    async def open(
        self, exchange: Exchange, rung: Rung, deployment: Deployment, *, live: bool, hedge: bool = False
    ) -> Opened:
        """Raises UpstreamError, its attempt already recorded in the exchange; so is a cancelled one."""
        call, now = exchange.call, self.now
        provider = self.providers[deployment.provider]
        dialect = provider.dialect_for(call.surface)
        begun = now()
        attempt = Attempt(rung.model, deployment.id, begun - call.received_s, hedge=hedge)
        exchange.attempts.append(attempt)
        deployment.begin()
        flows = False
        try:
            body = request_body(call, deployment, dialect, rung, live=live)
            head = provider.head(deployment.config, dialect, live, call.headers)
            limit_s = min(rung.timeout_s, self.timeouts.first_byte_s) if live else rung.timeout_s
            response = await provider.pool.send(head, body, timeout_s=limit_s)
            attempt.status = response.status
            if response.status >= 300:
                refusal = await response.read(self.max_answer_bytes, timeout_s=limit_s)
                raise classify(response.status, refusal, readable(response.headers), dialect)
            if live:
                opened = await self._first_chunk(exchange, attempt, deployment, dialect, response)
                flows = True
                return opened
            return await self._whole(exchange, rung, attempt, deployment, dialect, response, limit_s)
        except UpstreamError as error:
            self.failed(exchange, attempt, deployment, error)
            raise
        except asyncio.CancelledError:
            self.left(exchange, attempt, deployment)
            raise
        finally:
            attempt.latency_s = now() - begun
            if not flows:
                deployment.end()

    async def _whole(
        self,
        exchange: Exchange,
        rung: Rung,
        attempt: Attempt,
        deployment: Deployment,
        dialect: str,
        response: Response,
        limit_s: float,
    ) -> Opened:
        body = await response.read(self.max_answer_bytes, timeout_s=limit_s)
        now = self.now()
        seen = peek(body, dialect)
        attempt.first_byte_s = now - exchange.call.received_s - attempt.started_s
        attempt.evidence = evidence_of(seen, wants_json=exchange.call.described.wants_json)
        exchange.response_id = seen.id
        self.charge(exchange, attempt, deployment, seen.usage, len(seen.text))
        self.fleet.succeeded(deployment, now, attempt.first_byte_s, attempt.first_byte_s)
        ours = adds_logprobs(rung, deployment, dialect) and not exchange.call.described.logprobs
        return Opened(attempt, deployment, Kept(attempt, dialect, body, strip_logprobs=ours))

    async def _first_chunk(
        self, exchange: Exchange, attempt: Attempt, deployment: Deployment, dialect: str, response: Response
    ) -> Opened:
        """Nothing is committed before the first chunk that says something: until then another may answer."""
        call = exchange.call
        flow = relay(
            dialect,
            call.surface,
            model=attempt.model,
            request=call.raw,
            include_usage=call.include_usage,
            collect=wants_whole(exchange),
        )
        pending = b""
        try:
            while not (flow.started or flow.finished or flow.fault):
                data = await response.chunk(self.timeouts.first_byte_s)
                if not data:
                    break
                pending += flow.feed(data)
            if flow.fault or not (flow.started or flow.finished):
                flow.end()
                raise fault_of(flow)
        except BaseException:
            response.cancel()
            raise
        attempt.first_byte_s = self.now() - call.received_s - attempt.started_s
        return Opened(attempt, deployment, None, response, flow, pending)

    def charge(
        self, exchange: Exchange, attempt: Attempt, deployment: Deployment, usage: Usage, text_bytes: int
    ) -> None:
        """What the attempt cost, from what the upstream says it used; estimated where it says nothing."""
        if not usage.known:
            attempt.estimated = True
            usage = Usage(
                input_tokens=exchange.call.described.input_tokens,
                output_tokens=-(-text_bytes // BYTES_PER_TOKEN),
            )
        attempt.usage = usage
        attempt.cost_nanousd = deployment.price.cost(usage)

    def failed(
        self, exchange: Exchange, attempt: Attempt, deployment: Deployment, error: UpstreamError
    ) -> None:
        attempt.failure = error.failure
        if error.upstream_status:
            attempt.status = error.upstream_status
        self.fleet.failed(deployment, error.failure, self.now(), error.retry_after_s)

    def left(self, exchange: Exchange, attempt: Attempt, deployment: Deployment, text_bytes: int = 0) -> None:
        """The client (or a faster twin) made this attempt pointless; its upstream bills what it did."""
        attempt.failure = "cancelled"
        deployment.breaker.fail("cancelled", self.now())
        self.charge(exchange, attempt, deployment, Usage(), text_bytes)

    def abandon(self, exchange: Exchange, opened: Opened) -> None:
        """Close a stream that lost against its twin; what it has done so far is billed."""
        if opened.response is not None and opened.relay is not None:
            opened.response.cancel()
            opened.deployment.end()
            self.left(exchange, opened.attempt, opened.deployment, len(opened.relay.text))


def fault_of(flow: Relay) -> UpstreamError:
    """What went wrong inside a stream, as the upstream said it or as we saw it."""
    return flow.cause or UpstreamError(flow.fault or "stream_cut", "the upstream's stream ended without its end")


def adds_logprobs(rung: Rung, deployment: Deployment, dialect: str) -> bool:
    return rung.reads_confidence and deployment.config.logprobs and dialect == "chat"


def readable(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def wants_whole(exchange: Exchange) -> bool:
    """True: the streamed answer is needed whole as well, for the cache, the store of responses or the record."""
    return bool(exchange.cache_key) or exchange.call.surface == "responses" or exchange.route.config.store_text


def request_body(call: Call, deployment: Deployment, dialect: str, rung: Rung, *, live: bool) -> bytes:
    """The client's own bytes where nothing changes; otherwise the same fields with ours replaced."""
    same = dialect == call.surface
    changes: dict[str, msgspec.Raw] = {}
    if not same or deployment.upstream_name != call.named:
        changes["model"] = deployment.upstream_raw
    if live and dialect in STREAMED_USAGE and not (same and call.include_usage):
        changes["stream_options"] = INCLUDE_USAGE
    if call.stream and not live:
        changes["stream"] = FALSE
    if adds_logprobs(rung, deployment, dialect):
        changes["logprobs"] = TRUE
    for name, value in rung.overrides.items():
        changes[name] = msgspec.Raw(msgspec.json.encode(value))
    if same and not changes and call.body:
        return call.body
    raw: Raw = dict(call.raw) if same else translate_request(call.raw, call.surface, dialect)
    raw.update(changes)
    if call.stream and not live:
        raw.pop("stream_options", None)
    elif live and not same:
        raw["stream"] = TRUE
    return encode(raw)


