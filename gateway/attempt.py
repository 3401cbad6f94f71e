"""Sends one attempt to one deployment. It is charged whether it is answered, fails or is cancelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import msgspec

from cascade.types import Evidence, Rung
from gateway.call import Call
from gateway.errors import CallerError, HeadgateError, PolicyError, UpstreamError
from gateway.evidence import evidence_of
from gateway.exchange import Attempt, Exchange, Kept
from gateway.fleet import Deployment, Fleet
from gateway.money.charge import charge, charge_partial, output_chars
from gateway.money.ledger import Joined, Ledger
from gateway.providers import Provider
from gateway.reply import JSON
from gateway.upstream import Endpoint, Response
from gateway.upstream_request import adds_logprobs, dialect_of, fitted_to_engine, request_body, tier_asked
from gateway.wire.chunk import Peek
from gateway.wire.describe import TOKENS_PER_IMAGE
from gateway.wire.documents import UNKNOWN_CONTEXT
from gateway.wire.errors import classify
from gateway.wire.mend import whole
from gateway.wire.pass_stream import PassStream
from gateway.wire.pause import MOST_PAUSES, Continuation, continue_turn, joined, paused
from gateway.wire.peek import peek
from gateway.wire.relay import Relay
from routers.replicas import Job

NOTHING_SEEN = Peek()
TRANSPORT_FAILURES = ("connect", "timeout", "reset")
"""Failures whose messages are the gateway's own, and hold no words of the upstream."""
BLANK = b"\xef\xbb\xbf \t\r\n"
"""Bytes that may precede JSON: a byte order mark and white space."""


class Opened(msgspec.Struct):
    """An attempt that was answered: with a whole answer (`kept`), or a stream up to its first chunk with content."""

    attempt: Attempt
    deployment: Deployment
    kept: Kept | None = None
    response: Response | None = None
    relay: Relay | None = None
    pending: bytes = b""
    body: bytes = b""
    """The request sent, kept where the upstream may pause the turn and expect the gateway to resume it; else empty."""

    def continue_with(self, attempt: Attempt, continuation: Continuation) -> None:
        """Move on to the next part of a paused turn: the attempt that sent this continuation."""
        self.attempt, self.body = attempt, continuation.body


@dataclass(frozen=True, slots=True)
class Timeouts:
    first_byte_s: float
    """Longest silence before the first event of a stream, and between the events before its first real chunk."""
    stall_s: float
    """Longest silence between later events."""
    whole_s: float = 600.0
    """Longest time from a request's arrival to its stream's end. The client's own timeout limits each read instead."""


class Sent(msgspec.Struct):
    """An attempt under way."""

    exchange: Exchange
    attempt: Attempt
    deployment: Deployment
    provider: Provider
    rung: Rung
    dialect: str
    ends_s: float
    """Monotonic deadline of this attempt, in seconds."""
    flow: Relay | None = None
    body: bytes = b""
    """As in `Opened`."""


class Sender:
    """Sends attempts to deployments and charges for them. There is one per worker."""

    def __init__(
        self,
        fleet: Fleet,
        providers: Mapping[str, Provider],
        timeouts: Timeouts,
        ledger: Ledger,
        max_answer_bytes: int,
        now: Callable[[], float],
    ) -> None:
        self.fleet = fleet
        self.providers = providers
        self.timeouts = timeouts
        self.ledger = ledger
        self.max_answer_bytes = max_answer_bytes
        self.now = now

    async def open(
        self, exchange: Exchange, rung: Rung, deployment: Deployment, *, live: bool, hedge: bool = False
    ) -> Opened:
        """Send one attempt. `live`: stream the answer. `hedge`: the attempt is a hedge of a late one.

        Raises UpstreamError. An attempt that fails or is cancelled is already recorded in the exchange.
        """
        deployment.begin()
        opened: Opened | None = None
        try:
            dialect, body = self._request(exchange.call, rung, deployment, live=live)
            opened = await self._ask(exchange, rung, deployment, dialect, body, live=live, hedge=hedge)
            if opened.body and opened.kept is not None:
                await self._finish_paused(exchange, rung, opened)
        finally:
            if opened is None or opened.response is None:
                deployment.end()
        return opened

    def _request(self, call: Call, rung: Rung, deployment: Deployment, *, live: bool) -> tuple[str, bytes]:
        """Dialect and body of the upstream request. Raises CallerError, or UpstreamError `unsupported`, for a request
        that the upstream's API can't express; nothing is sent and no attempt recorded.
        """
        try:
            dialect = dialect_of(self.providers[deployment.provider], call.surface, rung, deployment)
            return dialect, request_body(call, deployment, dialect, rung, live=live)
        except CallerError as error:
            raise as_unsupported(error) from None

    async def _ask(
        self,
        exchange: Exchange,
        rung: Rung,
        deployment: Deployment,
        dialect: str,
        body: bytes,
        *,
        live: bool,
        hedge: bool = False,
        flow: Relay | None = None,
    ) -> Opened:
        """Record an attempt and send it. `flow`: the client's stream under way, which this answer continues."""
        call, now, provider = exchange.call, self.now, self.providers[deployment.provider]
        head = provider.head(deployment.config, dialect, live, call.headers)
        if call.content_type:
            head += b"content-type: %b\r\n" % call.content_type
        if call.idempotency_key:
            answered = sum(not one.failure for one in exchange.attempts)
            head += b"idempotency-key: %s-%d\r\n" % (call.idempotency_key.encode(), answered)
        begun = now()
        attempt = Attempt(rung.model, deployment.id, begun - call.received_s, hedge=hedge)
        attempt.tier = tier_asked(call, deployment, dialect)
        exchange.attempts.append(attempt)
        if deployment.load is not None:
            attempt.job = deployment.load.begin(Job(*expected_tokens(exchange, rung.model), begun))
        ends_s = min(begun + rung.timeout_s, call.received_s + call.timeout_s)
        if flow is not None:
            ends_s = call.received_s + self.timeouts.whole_s
        kept_body = body if call.described.web_searches and dialect == "messages" != call.surface else b""
        sent = Sent(exchange, attempt, deployment, provider, rung, dialect, ends_s, flow, kept_body)
        try:
            if provider.engine is not None and not call.content_type:
                body = fitted_to_engine(provider.engine, body)
            limit_s = min(ends_s - begun, self.timeouts.first_byte_s) if live else ends_s - begun
            response = await provider.pool.send(head, body, timeout_s=limit_s)
            attempt.status = response.status
            if response.status >= 300:
                refusal = await response.read(self.max_answer_bytes, timeout_s=ends_s - now())
                raise classify(response.status, refusal, readable(response.headers))
            if flow is not None:
                return Opened(attempt, deployment, None, response, flow, body=kept_body)
            if call.content_type:
                exchange.media = (b"content-type", response.headers.get(b"content-type", JSON[1]))
            if live:
                return await self._first_chunk(sent, response)
            return self._answered(sent, await response.read(self.max_answer_bytes, timeout_s=ends_s - now()))
        except UpstreamError as error:
            self.failed(exchange, attempt, deployment, error, sent.flow)
            raise
        except BaseException:
            self.cancelled(exchange, attempt, deployment, sent.flow)
            raise
        finally:
            attempt.latency_s = now() - begun

    def _answered(self, sent: Sent, body: bytes) -> Opened:
        exchange, attempt, deployment, now = sent.exchange, sent.attempt, sent.deployment, self.now()
        body, seen = read_answer(body, sent.dialect)
        attempt.first_byte_s = now - exchange.call.received_s - attempt.started_s
        attempt.evidence = evidence_in(exchange.call, seen)
        exchange.response_id = seen.id
        charge(exchange.call.described, attempt, deployment, sent.provider, seen.usage, seen)
        self.fleet.succeeded(
            deployment, now, attempt.first_byte_s, attempt.first_byte_s, attempt.job, attempt.usage.completion_tokens,
            exchange.begun_s(attempt),
        )  # fmt: skip
        strip_logprobs = adds_logprobs(sent.rung, deployment, sent.dialect) and not exchange.call.described.logprobs
        return Opened(attempt, deployment, Kept(attempt, sent.dialect, body, seen, strip_logprobs), body=sent.body)

    async def _first_chunk(self, sent: Sent, response: Response) -> Opened:
        """Read a stream up to its first chunk with content: until then another model may still answer."""
        exchange, attempt = sent.exchange, sent.attempt
        call = exchange.call
        flow = sent.flow = relay_for(sent)
        try:
            pending = await self._until_started(sent, response, flow)
        except UpstreamError as error:
            response.cancel()
            if error.failure == "stream_cut" and flow.unread.lstrip(BLANK).startswith(b"{"):
                return self._answered(sent, flow.unread)  # a whole answer though a stream was asked for, or an error
            raise stall_or_deadline(error, self.now() < sent.ends_s) from None
        except BaseException:
            response.cancel()
            raise
        attempt.first_byte_s = self.now() - call.received_s - attempt.started_s
        return Opened(attempt, sent.deployment, None, response, flow, pending, sent.body)

    async def _until_started(self, sent: Sent, response: Response, flow: Relay) -> bytes:
        """The client's bytes up to the first chunk with content. Bytes that complete no event count as silence."""
        now, silence_s = self.now, self.timeouts.first_byte_s
        silent_s = sent.exchange.call.received_s + sent.attempt.started_s + silence_s
        pending, events = b"", 0
        while not (flow.started or flow.over):
            if flow.events > events:
                events, silent_s = flow.events, now() + silence_s
            data = await response.chunk(min(silent_s, sent.ends_s) - now())
            if not data:
                break
            pending += flow.feed(data)
        if flow.fault or not (flow.started or flow.finished or flow.paused):
            flow.end()
            raise stream_fault(flow)
        return pending

    async def _finish_paused(self, exchange: Exchange, rung: Rung, opened: Opened) -> None:
        """Resume a whole answer while its turn is paused, and join the parts. Each part is held and charged."""
        kept = opened.kept
        assert kept is not None
        part = answer = paused(kept.body)
        for _ in range(MOST_PAUSES):
            if part is None or (continuation := await self._hold_next(exchange, opened, part)) is None:
                break
            more = await self._ask(exchange, rung, opened.deployment, kept.dialect, continuation.body, live=False)
            opened.continue_with(more.attempt, continuation)
            assert more.kept is not None and answer is not None
            answer, part = joined(answer, msgspec.json.decode(more.kept.body)), paused(more.kept.body)
        if opened.attempt is not kept.attempt:
            body = msgspec.json.encode(answer)
            seen = peek(body, kept.dialect)
            opened.attempt.evidence, exchange.response_id = evidence_in(exchange.call, seen), seen.id
            opened.kept = Kept(opened.attempt, kept.dialect, body, seen, kept.strip_logprobs)

    async def resume(self, exchange: Exchange, rung: Rung, opened: Opened) -> bool:
        """Start the next part of a stream whose turn is paused. False if that is impossible; then nothing was sent.

        Raises UpstreamError, its attempt already recorded in the exchange.
        """
        flow = opened.relay
        assert flow is not None
        try:
            message = flow.message()
        except UpstreamError:  # the part received is malformed, so it can't be sent back
            return False
        if (continuation := await self._hold_next(exchange, opened, message)) is None:
            return False
        flow.resume(message)
        more = await self._ask(exchange, rung, opened.deployment, "messages", continuation.body, live=True, flow=flow)
        opened.continue_with(more.attempt, continuation)
        opened.response = more.response
        return True

    async def _hold_next(self, exchange: Exchange, opened: Opened, message: dict[str, Any]) -> Continuation | None:
        """The request that continues a paused turn after this message, its worst case held. None if a budget, or the
        request's own `max_cost_usd`, has no room for it.
        """
        continuation, config = continue_turn(opened.body, message), opened.deployment.config
        input_tokens = len(continuation.body) + exchange.call.described.images * TOKENS_PER_IMAGE
        if exchange.call.described.unbounded:
            input_tokens = config.context_tokens or max(input_tokens, UNKNOWN_CONTEXT)
        searches, tier = continuation.searches, opened.attempt.tier
        input_tokens += searches * config.web_search_tokens
        worst = opened.deployment.price.worst(input_tokens, continuation.max_tokens, 1, searches, tier=tier)
        cap_usd = exchange.call.options.knobs.max_cost_usd
        if cap_usd is not None and exchange.cost_nanousd + worst > cap_usd * 1e9:
            return None
        try:
            more = await self.ledger.hold(exchange.caller.accounts + exchange.route.accounts, worst)
        except PolicyError:
            return None
        exchange.hold = Joined(exchange.hold, more)
        return continuation

    def failed(
        self,
        exchange: Exchange,
        attempt: Attempt,
        deployment: Deployment,
        error: UpstreamError,
        flow: Relay | None = None,
    ) -> None:
        """Record a failure before the answer or inside a stream (`flow`). It is charged if output arrived, or if the
        upstream began to answer or timed out; a refusal is free.
        """
        provider = self.providers[deployment.provider]
        attempt.failure = error.failure
        provider.hide_secrets(error)
        seen = flow.part() if flow is not None else NOTHING_SEEN
        began = bool(attempt.status) or error.failure == "timeout"
        if output_chars(seen) or (began and error.upstream_status < 400):
            charge_partial(exchange.call.described, attempt, deployment, provider, seen)
        if error.upstream_status:
            attempt.status = error.upstream_status
        cause = cause_of(error, attempt.status, provider.pool.endpoint)
        begun_s = exchange.begun_s(attempt)
        self.fleet.failed(deployment, error.failure, self.now(), error.retry_after_s, cause, begun_s)
        deployment.over(attempt.job)

    def cancelled(
        self, exchange: Exchange, attempt: Attempt, deployment: Deployment, flow: Relay | None = None
    ) -> None:
        """Record and charge an attempt that was cancelled, because the client left or a faster attempt answered: the
        upstream bills its work so far.
        """
        attempt.failure = "cancelled"
        deployment.breaker.fail("cancelled", self.now(), begun_s=exchange.begun_s(attempt))
        deployment.over(attempt.job)
        seen = flow.part() if flow is not None else NOTHING_SEEN
        charge_partial(exchange.call.described, attempt, deployment, self.providers[deployment.provider], seen)

    def abandon(self, exchange: Exchange, opened: Opened) -> None:
        """Close and charge an attempt that answered later than its twin."""
        if opened.response is not None:
            opened.response.cancel()
            opened.deployment.end()
            self.cancelled(exchange, opened.attempt, opened.deployment, opened.relay)


def relay_for(sent: Sent) -> Relay:
    """The relay that translates this stream for the client."""
    exchange, call = sent.exchange, sent.exchange.call
    if call.content_type:
        return PassStream(call.surface, exchange.media[1])
    return Relay(
        sent.dialect,
        call.surface,
        model=sent.attempt.model,
        request=call.raw,
        include_usage=call.include_usage,
        collect=wants_whole(exchange),
        pauses=bool(sent.body),
    )


def evidence_in(call: Call, seen: Peek) -> Evidence:
    return evidence_of(seen, wants_json=call.described.wants_json, schema=call.described.schema)


def read_answer(body: bytes, dialect: str) -> tuple[bytes, Peek]:
    """The answer and a peek into it; an answer that can't be read is repaired first. Raises UpstreamError."""
    try:
        return body, peek(body, dialect)
    except UpstreamError as error:
        mended = whole(body, dialect) if error.failure == "bad_response" else None
        if mended is None:
            raise
        return mended, peek(mended, dialect)


def expected_tokens(exchange: Exchange, model: str) -> tuple[float, float]:
    """Input tokens of the request, and output tokens that the router predicts of this model, NaN if it doesn't."""
    request, choice = exchange.call.described, exchange.choice
    tokens = next((one.output_tokens for one in choice.estimates if one.model == model), nan) if choice else nan
    limit = request.max_output_tokens
    return request.input_tokens, min(tokens, limit) if limit and tokens == tokens else tokens


def stream_fault(flow: Relay) -> UpstreamError:
    """The error of a stream: the upstream's own, else the fault that the relay found."""
    return flow.cause or UpstreamError(flow.fault or "stream_cut", "the upstream's stream ended without its end")


def cause_of(error: UpstreamError, status: int, endpoint: Endpoint) -> str:
    """The failure's cause for the log, without the upstream's words, which may quote the request."""
    is_safe = error.failure in TRANSPORT_FAILURES and not error.upstream_status
    return f"{error.failure} at {endpoint}: {error.message if is_safe else f'status {status or None}'}"


def stall_or_deadline(error: UpstreamError, time_left: bool) -> UpstreamError:
    """The same error, or a timeout in place of a stall that lasted until the deadline (not `time_left`)."""
    if time_left or error.failure != "stream_stalled":
        return error
    return UpstreamError("timeout", "the upstream did not finish its answer in time", status=504)


def as_unsupported(error: CallerError) -> HeadgateError:
    """An UpstreamError for a parameter or endpoint that only this model's API lacks, so that another model may answer;
    any other error unchanged.
    """
    if error.code not in ("unsupported_parameter", "unsupported_endpoint"):
        return error
    unsupported = UpstreamError("unsupported", error.message, status=error.status)
    unsupported.code, unsupported.param = error.code, error.param
    return unsupported


def readable(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def wants_whole(exchange: Exchange) -> bool:
    """True if a streamed answer must also be collected: for the cache, stored responses or the decision record."""
    return bool(exchange.cache_key) or exchange.call.surface == "responses" or exchange.route.config.store_text
