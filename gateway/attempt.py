"""One call of one deployment: sent, answered (or not) and charged, whatever happens."""

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
from gateway.ledger import Joined, Ledger
from gateway.prices import AUTO
from gateway.providers import Provider
from gateway.reply import JSON
from gateway.upstream import Endpoint, Response
from gateway.upstream_request import adds_logprobs, dialect_of, fitted_to_engine, request_body, tier_asked
from gateway.wire.answer import peek
from gateway.wire.chunk import Peek
from gateway.wire.describe import TOKENS_PER_IMAGE
from gateway.wire.documents import UNKNOWN_CONTEXT
from gateway.wire.errors import classify
from gateway.wire.hosted_tools import billed
from gateway.wire.mend import whole
from gateway.wire.pass_stream import PassStream
from gateway.wire.pause import MOST_PAUSES, Onward, joined, onward, paused
from gateway.wire.relay import Relay, relay
from gateway.wire.usage import Usage
from routers.replicas import Job

NOTHING_SEEN = Peek()
OF_THE_WAY = ("connect", "timeout", "reset")
"""Failures that we put into words ourselves."""
BLANK = b"\xef\xbb\xbf \t\r\n"
CHARS_PER_TOKEN = 4
"""To estimate tokens that nobody counted: about right for English, too few for code."""


class Opened(msgspec.Struct):
    """An attempt that has answered: whole, or as a stream whose first real chunk is here."""

    attempt: Attempt
    deployment: Deployment
    kept: Kept | None = None
    response: Response | None = None
    relay: Relay | None = None
    pending: bytes = b""
    body: bytes = b""
    """What was asked, where the turn may be paused for us to go on with."""
    before_nanousd: int = 0
    """What the parts of such a turn before this one's attempt have cost."""

    def now_at(self, attempt: Attempt, further: Onward) -> None:
        """The turn goes on by that attempt, which was asked that."""
        self.before_nanousd += self.attempt.cost_nanousd
        self.attempt, self.body = attempt, further.body


@dataclass(frozen=True, slots=True)
class Timeouts:
    first_byte_s: float
    """Longest silence before the first event of a stream, and between the events before its first real chunk."""
    stall_s: float
    """Longest silence between events after that."""
    whole_s: float = 600.0
    """From a request's arrival to its stream's end. The client's own timeout applies to each read instead."""


class Sent(msgspec.Struct):
    """An attempt under way."""

    exchange: Exchange
    attempt: Attempt
    deployment: Deployment
    rung: Rung
    dialect: str
    ends_s: float
    """Monotonic: the deadline of this attempt."""
    flow: Relay | None = None
    body: bytes = b""
    """As `Opened` has it."""


class Sender:
    """Sends attempts to deployments and charges for them. One per worker."""

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
        """Raises UpstreamError, its attempt already recorded in the exchange; so is a cancelled one."""
        deployment.begin()
        opened: Opened | None = None
        try:
            dialect, body = self._request(exchange.call, rung, deployment, live=live)
            opened = await self._ask(exchange, rung, deployment, dialect, body, live=live, hedge=hedge)
            if opened.body and opened.kept is not None:
                await self._rest(exchange, rung, opened)
        finally:
            if opened is None or opened.response is None:
                deployment.end()
        return opened

    def _request(self, call: Call, rung: Rung, deployment: Deployment, *, live: bool) -> tuple[str, bytes]:
        """Dialect and body. A request that can't be put in the upstream's terms is never sent, and so is no attempt."""
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
        """`flow`: a stream under way, which the answer is to go on with."""
        call, now, provider = exchange.call, self.now, self.providers[deployment.provider]
        head = provider.head(deployment.config, dialect, live, call.headers)
        if call.content_type:
            head += b"content-type: %b\r\n" % call.content_type
        if call.once:
            answered = sum(not one.failure for one in exchange.attempts)
            head += b"idempotency-key: %s-%d\r\n" % (call.once.encode(), answered)
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
        sent = Sent(exchange, attempt, deployment, rung, dialect, ends_s, flow, kept_body)
        try:
            if provider.engine is not None and not call.content_type:
                body = fitted_to_engine(provider.engine, body)
            limit_s = min(ends_s - begun, self.timeouts.first_byte_s) if live else ends_s - begun
            response = await provider.pool.send(head, body, timeout_s=limit_s)
            attempt.status = response.status
            if response.status >= 300:
                refusal = await response.read(self.max_answer_bytes, timeout_s=ends_s - now())
                raise classify(response.status, refusal, readable(response.headers), dialect)
            if flow is not None:
                return Opened(attempt, deployment, None, response, flow, body=kept_body)
            if call.content_type:
                exchange.media = (b"content-type", response.headers.get(b"content-type", JSON[1]))
            return await (self._first_chunk(sent, response) if live else self._whole(sent, response))
        except UpstreamError as error:
            self.failed(exchange, attempt, deployment, error, sent.flow)
            raise
        except BaseException:
            self.left(exchange, attempt, deployment, sent.flow)
            raise
        finally:
            attempt.latency_s = now() - begun

    async def _whole(self, sent: Sent, response: Response) -> Opened:
        return self._answered(sent, await response.read(self.max_answer_bytes, timeout_s=sent.ends_s - self.now()))

    def _answered(self, sent: Sent, body: bytes) -> Opened:
        exchange, attempt, deployment, now = sent.exchange, sent.attempt, sent.deployment, self.now()
        body, seen = read_answer(body, sent.dialect)
        attempt.first_byte_s = now - exchange.call.received_s - attempt.started_s
        attempt.evidence = evidence_in(exchange.call, seen)
        exchange.response_id = seen.id
        self.charge(exchange, attempt, deployment, seen.usage, said_chars(seen), seen.tier)
        self.fleet.succeeded(
            deployment, now, attempt.first_byte_s, attempt.first_byte_s, attempt.job, attempt.usage.completion_tokens
        )
        ours = adds_logprobs(sent.rung, deployment, sent.dialect) and not exchange.call.described.logprobs
        return Opened(attempt, deployment, Kept(attempt, sent.dialect, body, seen, ours), body=sent.body)

    async def _first_chunk(self, sent: Sent, response: Response) -> Opened:
        """Nothing is committed before the first chunk with content: until then another model may answer."""
        exchange, attempt = sent.exchange, sent.attempt
        call = exchange.call
        flow = sent.flow = flow_of(sent)
        try:
            pending = await self._until_started(sent, response, flow)
        except UpstreamError as error:
            response.cancel()
            if error.failure == "stream_cut" and flow.unread.lstrip(BLANK).startswith(b"{"):
                return self._answered(sent, flow.unread)  # an API that doesn't stream, or an error with status 200
            raise stall_or_deadline(error, self.now() < sent.ends_s) from None
        except BaseException:
            response.cancel()
            raise
        attempt.first_byte_s = self.now() - call.received_s - attempt.started_s
        return Opened(attempt, sent.deployment, None, response, flow, pending, sent.body)

    async def _until_started(self, sent: Sent, response: Response, flow: Relay) -> bytes:
        """The bytes up to the first chunk with content. Bytes that complete no event count as silence."""
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
            raise fault_of(flow)
        return pending

    async def _rest(self, exchange: Exchange, rung: Rung, opened: Opened) -> None:
        """Of a whole answer whose turn was paused: what the model says until its end, each part held and paid."""
        kept = opened.kept
        assert kept is not None
        part = told = paused(kept.body)
        for _ in range(MOST_PAUSES):
            if part is None or (further := await self._further(exchange, opened, part)) is None:
                break
            try:
                more = await self._ask(exchange, rung, opened.deployment, kept.dialect, further.body, live=False)
            except UpstreamError as error:
                error.before_nanousd = opened.before_nanousd + opened.attempt.cost_nanousd
                raise
            opened.now_at(more.attempt, further)
            assert more.kept is not None and told is not None
            told, part = joined(told, msgspec.json.decode(more.kept.body)), paused(more.kept.body)
        if opened.attempt is not kept.attempt:
            body = msgspec.json.encode(told)
            seen = peek(body, kept.dialect)
            opened.attempt.evidence, exchange.response_id = evidence_in(exchange.call, seen), seen.id
            opened.kept = Kept(opened.attempt, kept.dialect, body, seen, kept.strip_logprobs)

    async def go_on(self, exchange: Exchange, rung: Rung, opened: Opened) -> bool:
        """The next part of a stream whose turn was paused. False: it is not to be had, and none is under way.

        Raises UpstreamError, its attempt already recorded in the exchange.
        """
        flow = opened.relay
        assert flow is not None
        try:
            said = flow.message()
        except UpstreamError:  # what came can't be sent back
            return False
        if (further := await self._further(exchange, opened, said)) is None:
            return False
        flow.resume(said)
        more = await self._ask(exchange, rung, opened.deployment, "messages", further.body, live=True, flow=flow)
        opened.now_at(more.attempt, further)
        opened.response = more.response
        return True

    async def _further(self, exchange: Exchange, opened: Opened, said: dict[str, Any]) -> Onward | None:
        """What lets a paused turn go on, its worst case held. None: a budget, or the request's own cap, has no room."""
        further, config = onward(opened.body, said), opened.deployment.config
        into = len(further.body) + exchange.call.described.images * TOKENS_PER_IMAGE
        if exchange.call.described.unbounded:
            into = config.context_tokens or max(into, UNKNOWN_CONTEXT)
        into += further.searches * config.web_search_tokens
        tier = opened.attempt.tier
        worst = opened.deployment.price.worst(into, further.max_tokens, 1, further.searches, tier=tier)
        cap_usd = exchange.call.options.knobs.max_cost_usd
        if cap_usd is not None and exchange.cost_nanousd + worst > cap_usd * 1e9:
            return None
        try:
            more = await self.ledger.hold(exchange.caller.accounts + exchange.route.accounts, worst)
        except PolicyError:
            return None
        exchange.hold = Joined(exchange.hold, more)
        return further

    def charge(
        self, exchange: Exchange, attempt: Attempt, deployment: Deployment, usage: Usage, chars: int, tier: str = ""
    ) -> None:
        """Book the attempt's cost from the usage the upstream reports; what it doesn't report is estimated. `tier`: the
        one that it says served it; empty or auto, it is taken for the one asked for.
        """
        asked = exchange.call.described
        if not usage.tells:
            attempt.estimated = True
            usage = asked.expected or Usage(
                input_tokens=asked.input_tokens, output_tokens=tokens_in(chars), web_searches=usage.web_searches,
                tool_runs=usage.tool_runs,
            )  # fmt: skip
        elif chars and not (usage.output_tokens or usage.completion_tokens):
            attempt.estimated = True
            usage = msgspec.structs.replace(usage, output_tokens=tokens_in(chars))
        searches = deployment.config.web_searches or (asked.surely_searches and not self._counts_searches(deployment))
        if searches > usage.web_searches:
            usage = msgspec.structs.replace(usage, web_searches=int(searches))
        if usage.tool_runs and self._counts_searches(deployment):
            usage = msgspec.structs.replace(usage, tool_runs=billed(usage.tool_runs, asked.tool_runs))
        if asked.expected is not None and not usage.units:
            usage = msgspec.structs.replace(usage, units=asked.expected.units)
        attempt.usage = usage
        attempt.cost_nanousd = cost_of(usage, deployment, tier if tier not in ("", AUTO) else attempt.tier)

    def _counts_searches(self, deployment: Deployment) -> bool:
        """Whether its usage reports web searches, as Anthropic's does."""
        return self.providers[deployment.provider].main_dialect == "messages"

    def failed(
        self,
        exchange: Exchange,
        attempt: Attempt,
        deployment: Deployment,
        error: UpstreamError,
        flow: Relay | None = None,
    ) -> None:
        """Book a failure, before the answer or inside it (`flow`). Work once begun is paid for; a refusal is free."""
        attempt.failure = error.failure
        self.providers[deployment.provider].hide_secrets(error)
        seen = flow.part() if flow is not None else NOTHING_SEEN
        began = bool(attempt.status) or error.failure == "timeout"
        if said_chars(seen) or (began and error.upstream_status < 400):
            self.charge_part(exchange, attempt, deployment, seen)
        if error.upstream_status:
            attempt.status = error.upstream_status
        cause = cause_of(error, attempt.status, self.providers[deployment.provider].pool.endpoint)
        self.fleet.failed(deployment, error.failure, self.now(), error.retry_after_s, cause)
        deployment.over(attempt.job)

    def left(
        self, exchange: Exchange, attempt: Attempt, deployment: Deployment, flow: Relay | None = None
    ) -> None:
        """Book an attempt that was cancelled, by the client or a faster twin: the upstream bills what it did."""
        attempt.failure = "cancelled"
        deployment.breaker.fail("cancelled", self.now())
        deployment.over(attempt.job)
        seen = flow.part() if flow is not None else NOTHING_SEEN
        self.charge_part(exchange, attempt, deployment, seen)

    def charge_part(self, exchange: Exchange, attempt: Attempt, deployment: Deployment, seen: Peek) -> None:
        """Charge a stream that broke off for what arrived: usage reported at its start does not cover that."""
        usage, chars = seen.usage, said_chars(seen)
        if usage.tells and usage.completion_tokens < tokens_in(chars):
            attempt.estimated = True
            usage = msgspec.structs.replace(usage, output_tokens=tokens_in(chars))
        self.charge(exchange, attempt, deployment, usage, chars, seen.tier)

    def abandon(self, exchange: Exchange, opened: Opened) -> None:
        """Close a stream that lost against its twin; what it has done so far is billed."""
        if opened.response is not None:
            opened.response.cancel()
            opened.deployment.end()
            self.left(exchange, opened.attempt, opened.deployment, opened.relay)


def flow_of(sent: Sent) -> Relay:
    """The relay that passes this stream on to the client."""
    exchange, call = sent.exchange, sent.exchange.call
    if call.content_type:
        return PassStream(call.surface, exchange.media[1])
    return relay(
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


def cost_of(usage: Usage, deployment: Deployment, tier: str) -> int:
    """Nano-dollars by the configured prices; with `told_cost`, the provider's own figure where that is higher."""
    cost = deployment.price.cost(usage, tier)
    return max(cost, usage.told_nanousd) if deployment.config.told_cost else cost


def read_answer(body: bytes, dialect: str) -> tuple[bytes, Peek]:
    """The answer and what it says; mended first where it can't be read as it is."""
    try:
        return body, peek(body, dialect)
    except UpstreamError as error:
        mended = whole(body, dialect) if error.failure == "bad_response" else None
        if mended is None:
            raise
        return mended, peek(mended, dialect)


def expected_tokens(exchange: Exchange, model: str) -> tuple[float, float]:
    """Input tokens, and output tokens as the router predicts for this model; NaN: no prediction."""
    asked, choice = exchange.call.described, exchange.choice
    tokens = next((one.output_tokens for one in choice.estimates if one.model == model), nan) if choice else nan
    limit = asked.max_output_tokens
    return asked.input_tokens, min(tokens, limit) if limit and tokens == tokens else tokens


def said_chars(seen: Peek) -> int:
    """Characters of everything that an upstream bills as output."""
    said = len(seen.text) + len(seen.thought) + seen.other_chars
    return said + sum(map(len, seen.tool_arguments)) if seen.tool_arguments else said


def tokens_in(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)


def fault_of(flow: Relay) -> UpstreamError:
    """What went wrong inside a stream: the upstream's own error, or what the relay found."""
    return flow.cause or UpstreamError(flow.fault or "stream_cut", "the upstream's stream ended without its end")


def cause_of(error: UpstreamError, status: int, endpoint: Endpoint) -> str:
    """For operators, in our own words: what an upstream says of an error may repeat what it was asked."""
    is_ours = error.failure in OF_THE_WAY and not error.upstream_status
    return f"{error.failure} at {endpoint}: {error.message if is_ours else f'status {status or None}'}"


def stall_or_deadline(error: UpstreamError, time_left: bool) -> UpstreamError:
    """A stall that lasts until the request's deadline is a timeout."""
    if time_left or error.failure != "stream_stalled":
        return error
    return UpstreamError("timeout", "the upstream did not finish its answer in time", status=504)


def as_unsupported(error: CallerError) -> HeadgateError:
    """A parameter or endpoint that one model's API lacks is no fault of the caller: another model may have it."""
    if error.code not in ("unsupported_parameter", "unsupported_endpoint"):
        return error
    other = UpstreamError("unsupported", error.message, status=error.status)
    other.code, other.param = error.code, error.param
    return other


def readable(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def wants_whole(exchange: Exchange) -> bool:
    """Whether a streamed answer must be collected too, for the cache, the stored responses or the record."""
    return bool(exchange.cache_key) or exchange.call.surface == "responses" or exchange.route.config.store_text
