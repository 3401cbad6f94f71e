"""One call of one deployment: the body it gets, the answer it gives, what that cost, whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan

import msgspec

from cascade.types import Rung
from gateway.call import Call
from gateway.config import ModelConfig
from gateway.errors import CallerError, HeadgateError, UpstreamError
from gateway.evidence import evidence_of
from gateway.exchange import Attempt, Exchange, Kept
from gateway.fleet import Deployment, Fleet
from gateway.providers import Provider
from gateway.reply import JSON
from gateway.upstream import Response
from gateway.wire.answer import peek
from gateway.wire.call_ids import suited
from gateway.wire.chunk import Peek
from gateway.wire.errors import classify
from gateway.wire.mend import whole
from gateway.wire.pass_stream import PassStream
from gateway.wire.relay import Relay, relay
from gateway.wire.request import ask_usage, encode, signed, translate_request
from gateway.wire.usage import Usage
from local_models.backends import Profile
from local_models.errors import RequestRefused
from routers.replicas import Job

TRUE, FALSE = msgspec.Raw(b"true"), msgspec.Raw(b"false")
INCLUDE_USAGE = msgspec.Raw(b'{"include_usage":true}')
NOTHING_SEEN = Peek()
STREAMED_USAGE = frozenset({"chat", "completions"})
BLANK = b"\xef\xbb\xbf \t\r\n"
CHARS_PER_TOKEN = 4
"""For tokens nobody counted: about right for English, low for code."""


class Opened(msgspec.Struct):
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
    """Longest silence before the first event of a stream, and between the events before its first real chunk."""
    stall_s: float
    """Longest silence between events after it."""
    whole_s: float = 600.0
    """From a request's arrival to its stream's end. Not the client's own deadline, which is for each read."""


class Sent(msgspec.Struct):
    """An attempt under way."""

    exchange: Exchange
    attempt: Attempt
    deployment: Deployment
    rung: Rung
    dialect: str
    ends_s: float
    """Monotonic; nobody waits for it any longer."""
    flow: Relay | None = None


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
        deployment.begin()
        opened: Opened | None = None
        try:
            opened = await self._try(exchange, rung, deployment, live=live, hedge=hedge)
        finally:
            if opened is None or opened.response is None:
                deployment.end()
        return opened

    async def _try(
        self, exchange: Exchange, rung: Rung, deployment: Deployment, *, live: bool, hedge: bool
    ) -> Opened:
        """A request that can't be written was never sent, so it is no attempt."""
        call, now = exchange.call, self.now
        provider = self.providers[deployment.provider]
        try:
            dialect = dialect_of(provider, call.surface, rung, deployment)
            body = request_body(call, deployment, dialect, rung, live=live)
        except CallerError as error:
            raise for_others(error) from None
        head = provider.head(deployment.config, dialect, live, call.headers)
        if call.content_type:
            head += b"content-type: %b\r\n" % call.content_type
        if call.once:
            answered = sum(not one.failure for one in exchange.attempts)
            head += b"idempotency-key: %s-%d\r\n" % (call.once.encode(), answered)
        begun = now()
        attempt = Attempt(rung.model, deployment.id, begun - call.received_s, hedge=hedge)
        exchange.attempts.append(attempt)
        if deployment.load is not None:
            attempt.job = deployment.load.begin(Job(*expected_tokens(exchange, rung.model), begun))
        ends_s = min(begun + rung.timeout_s, call.received_s + call.timeout_s)
        sent = Sent(exchange, attempt, deployment, rung, dialect, ends_s)
        try:
            if provider.engine is not None and not call.content_type:
                body = taken_by(provider.engine, body)
            limit_s = min(ends_s - begun, self.timeouts.first_byte_s) if live else ends_s - begun
            response = await provider.pool.send(head, body, timeout_s=limit_s)
            attempt.status = response.status
            if response.status >= 300:
                refusal = await response.read(self.max_answer_bytes, timeout_s=ends_s - now())
                raise classify(response.status, refusal, readable(response.headers), dialect)
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
        asked = exchange.call.described
        attempt.evidence = evidence_of(seen, wants_json=asked.wants_json, schema=asked.schema)
        exchange.response_id = seen.id
        self.charge(exchange, attempt, deployment, seen.usage, said_chars(seen))
        self.fleet.succeeded(
            deployment, now, attempt.first_byte_s, attempt.first_byte_s, attempt.job, attempt.usage.completion_tokens
        )
        ours = adds_logprobs(sent.rung, deployment, sent.dialect) and not exchange.call.described.logprobs
        return Opened(attempt, deployment, Kept(attempt, sent.dialect, body, seen, ours))

    async def _first_chunk(self, sent: Sent, response: Response) -> Opened:
        """Nothing is committed before the first chunk that says something: until then another may answer."""
        exchange, attempt = sent.exchange, sent.attempt
        call = exchange.call
        flow = sent.flow = flow_of(sent)
        try:
            pending = await self._until_started(sent, response, flow)
        except UpstreamError as error:
            response.cancel()
            if error.failure == "stream_cut" and flow.unread.lstrip(BLANK).startswith(b"{"):
                return self._answered(sent, flow.unread)  # an API that doesn't stream, or an error with status 200
            raise in_time(error, self.now() < sent.ends_s) from None
        except BaseException:
            response.cancel()
            raise
        attempt.first_byte_s = self.now() - call.received_s - attempt.started_s
        return Opened(attempt, sent.deployment, None, response, flow, pending)

    async def _until_started(self, sent: Sent, response: Response, flow: Relay) -> bytes:
        """What may go out with the first real chunk. A dribble that completes no event is silence."""
        now, silence_s = self.now, self.timeouts.first_byte_s
        silent_s = sent.exchange.call.received_s + sent.attempt.started_s + silence_s
        pending, events = b"", 0
        while not (flow.started or flow.finished or flow.fault):
            if flow.events > events:
                events, silent_s = flow.events, now() + silence_s
            data = await response.chunk(min(silent_s, sent.ends_s) - now())
            if not data:
                break
            pending += flow.feed(data)
        if flow.fault or not (flow.started or flow.finished):
            flow.end()
            raise fault_of(flow)
        return pending

    def charge(
        self, exchange: Exchange, attempt: Attempt, deployment: Deployment, usage: Usage, chars: int
    ) -> None:
        """What the attempt cost, from what the upstream says it used; estimated where it says nothing."""
        asked = exchange.call.described
        if not usage.known:
            attempt.estimated = True
            usage = asked.expected or Usage(
                input_tokens=asked.input_tokens, output_tokens=tokens_in(chars), web_searches=usage.web_searches
            )
        searches = deployment.config.web_searches or (asked.surely_searches and not self._counts_searches(deployment))
        if searches > usage.web_searches:
            usage = msgspec.structs.replace(usage, web_searches=int(searches))
        if asked.expected is not None and not usage.units:
            usage = msgspec.structs.replace(usage, units=asked.expected.units)
        attempt.usage = usage
        attempt.cost_nanousd = cost_of(usage, deployment)

    def _counts_searches(self, deployment: Deployment) -> bool:
        """Whether its usage tells of each, as Anthropic's does."""
        return self.providers[deployment.provider].main_dialect == "messages"

    def failed(
        self,
        exchange: Exchange,
        attempt: Attempt,
        deployment: Deployment,
        error: UpstreamError,
        flow: Relay | None = None,
    ) -> None:
        """Before an answer or inside it (`flow`). An upstream that had begun to work is paid; a refusal is free."""
        attempt.failure = error.failure
        self.providers[deployment.provider].hide_secrets(error)
        seen = flow.peek() if flow is not None else NOTHING_SEEN
        began = bool(attempt.status) or error.failure == "timeout"
        if said_chars(seen) or (began and error.upstream_status < 400):
            self.charge_part(exchange, attempt, deployment, seen)
        if error.upstream_status:
            attempt.status = error.upstream_status
        self.fleet.failed(deployment, error.failure, self.now(), error.retry_after_s)
        deployment.over(attempt.job)

    def left(
        self, exchange: Exchange, attempt: Attempt, deployment: Deployment, flow: Relay | None = None
    ) -> None:
        """The client (or a faster twin) made this attempt pointless; its upstream bills what it did."""
        attempt.failure = "cancelled"
        deployment.breaker.fail("cancelled", self.now())
        deployment.over(attempt.job)
        seen = flow.peek() if flow is not None else NOTHING_SEEN
        self.charge_part(exchange, attempt, deployment, seen)

    def charge_part(self, exchange: Exchange, attempt: Attempt, deployment: Deployment, seen: Peek) -> None:
        """Of a stream that broke off, what came counts: usage told at its start knows nothing of the rest."""
        usage, chars = seen.usage, said_chars(seen)
        if usage.known and usage.completion_tokens < tokens_in(chars):
            attempt.estimated = True
            usage = msgspec.structs.replace(usage, output_tokens=tokens_in(chars))
        self.charge(exchange, attempt, deployment, usage, chars)

    def abandon(self, exchange: Exchange, opened: Opened) -> None:
        """Close a stream that lost against its twin; what it has done so far is billed."""
        if opened.response is not None:
            opened.response.cancel()
            opened.deployment.end()
            self.left(exchange, opened.attempt, opened.deployment, opened.relay)


def flow_of(sent: Sent) -> Relay:
    """What passes a stream on to the client."""
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
    )


def cost_of(usage: Usage, deployment: Deployment) -> int:
    """Nano-dollars by the configured prices; or what the provider says that it took, where that is more and counts."""
    cost = deployment.price.cost(usage)
    return max(cost, usage.told_nanousd) if deployment.config.told_cost else cost


def read_answer(body: bytes, dialect: str) -> tuple[bytes, Peek]:
    """An answer, made readable where it has to be."""
    try:
        return body, peek(body, dialect)
    except UpstreamError as error:
        mended = whole(body, dialect) if error.failure == "bad_response" else None
        if mended is None:
            raise
        return mended, peek(mended, dialect)


def expected_tokens(exchange: Exchange, model: str) -> tuple[float, float]:
    """Of the prompt, and as the router expects of that model's answer; NaN where it expects nothing."""
    asked, choice = exchange.call.described, exchange.choice
    tokens = next((one.output_tokens for one in choice.estimates if one.model == model), nan) if choice else nan
    limit = asked.max_output_tokens
    return asked.input_tokens, min(tokens, limit) if limit and tokens == tokens else tokens


def said_chars(seen: Peek) -> int:
    """Everything an upstream bills as output."""
    said = len(seen.text) + len(seen.thought)
    return said + sum(map(len, seen.tool_arguments)) if seen.tool_arguments else said


def tokens_in(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)


def fault_of(flow: Relay) -> UpstreamError:
    """What went wrong inside a stream, as the upstream said it or as we saw it."""
    return flow.cause or UpstreamError(flow.fault or "stream_cut", "the upstream's stream ended without its end")


def in_time(error: UpstreamError, left: bool) -> UpstreamError:
    """Silence until nobody waits any longer is the deadline's doing."""
    if left or error.failure != "stream_stalled":
        return error
    return UpstreamError("timeout", "the upstream did not finish its answer in time", status=504)


def for_others(error: CallerError) -> HeadgateError:
    """What one model's API has no word for, another's may have; what nobody could read stays the caller's fault."""
    if error.code not in ("unsupported_parameter", "unsupported_endpoint"):
        return error
    other = UpstreamError("unsupported", error.message, status=error.status)
    other.code, other.param = error.code, error.param
    return other


def adds_logprobs(rung: Rung, deployment: Deployment, dialect: str) -> bool:
    return rung.reads_confidence and deployment.config.logprobs and dialect == "chat"


def readable(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}


def taken_by(engine: Profile, body: bytes) -> bytes:
    """The body as this server takes it. Raises UpstreamError for a wish that it would ignore: others may heed it."""
    if not (engine.renamed or engine.ignored):
        return body
    fields = msgspec.json.decode(body)
    try:
        taken = engine.adapt(fields)
    except RequestRefused as refused:
        raise UpstreamError("unsupported", str(refused), status=400) from None
    return body if taken == fields else msgspec.json.encode(taken)


def wants_whole(exchange: Exchange) -> bool:
    """True: the streamed answer is needed whole as well, for the cache, the store of responses or the record."""
    return bool(exchange.cache_key) or exchange.call.surface == "responses" or exchange.route.config.store_text


def dialect_of(provider: Provider, surface: str, rung: Rung, deployment: Deployment) -> str:
    """What the upstream is spoken to in. What a cascade changes in a request, and its log-probabilities, are chat's."""
    dialect = provider.dialect_for(surface)
    if dialect == "responses" and (rung.overrides or adds_logprobs(rung, deployment, "chat")):
        return provider.main_dialect
    return dialect


def into(call: Call, deployment: Deployment, dialect: str) -> dict[str, msgspec.Raw]:
    """The client's fields as the upstream's API names them."""
    limit, hosted = deployment.config.max_output_tokens, deployment.config.hosted_tools
    return dict(translate_request(call.raw, call.surface, dialect, max_tokens=limit, hosted_tools=hosted))


def overridden(
    call: Call, deployment: Deployment, dialect: str, overrides: Mapping[str, object]
) -> dict[str, msgspec.Raw]:
    """The same with what a cascade changes, which is said in chat's words: null takes a field away. Sampling apart,
    which Anthropic's API has no words for, goes there as it was asked.
    """
    by_chat = dialect == "messages"
    if by_chat and "messages" not in overrides:
        return into(call, deployment, dialect)
    raw = into(call, deployment, "chat" if by_chat else dialect)
    for name, value in overrides.items():
        if name == "max_tokens" and "max_completion_tokens" in raw:
            name = "max_completion_tokens"
        raw[name] = msgspec.Raw(msgspec.json.encode(value))
        if value is None or (name == "tool_choice" and "tools" not in raw):
            del raw[name]
    if not by_chat:
        return raw
    limit, hosted = deployment.config.max_output_tokens, deployment.config.hosted_tools
    return dict(translate_request(raw, "chat", dialect, max_tokens=limit, hosted_tools=hosted))


def request_body(call: Call, deployment: Deployment, dialect: str, rung: Rung, *, live: bool) -> bytes:
    """The client's own bytes where nothing changes; otherwise the same fields with ours replaced."""
    if call.upload is not None:
        return call.upload.named(deployment.upstream_name)
    same = dialect == call.surface
    changes: dict[str, msgspec.Raw] = {}
    if not same or deployment.upstream_name != call.named:
        changes["model"] = deployment.upstream_raw
    if live and dialect in STREAMED_USAGE and not (same and call.include_usage):
        others = same and "stream_options" in call.raw
        changes["stream_options"] = ask_usage(call.raw)["stream_options"] if others else INCLUDE_USAGE
    if call.stream and not live:
        changes["stream"] = FALSE
    if adds_logprobs(rung, deployment, dialect):
        changes["logprobs"] = TRUE
    told = same and "messages" in call.raw and "messages" not in rung.overrides
    if told and (turns := taken(call.raw["messages"], dialect, deployment)) is not call.raw["messages"]:
        changes["messages"] = turns
    unchanged = same and not changes and not rung.overrides and dialect != "responses"
    if unchanged and call.body and deployment.foreign.isdisjoint(call.raw):
        return call.body
    raw = overridden(call, deployment, dialect, rung.overrides) if rung.overrides else into(call, deployment, dialect)
    if not told and dialect == "chat":
        raw["messages"] = suited(raw["messages"], deployment.call_ids)
    raw.update(changes)
    if call.stream and not live:
        raw.pop("stream_options", None)
    elif live and not same:
        raw["stream"] = TRUE
    return encode(adapted(raw, deployment.config) if deployment.foreign else raw)


def taken(messages: msgspec.Raw, dialect: str, deployment: Deployment) -> msgspec.Raw:
    """A client's conversation as that upstream takes it, where other upstreams had a part in it."""
    if dialect == "messages":
        return signed(messages)
    return messages if deployment.call_ids == "any" else suited(messages, deployment.call_ids)


def adapted(raw: dict[str, msgspec.Raw], config: ModelConfig) -> dict[str, msgspec.Raw]:
    """A request in the words of an API that lacks some fields and calls others otherwise."""
    for name in config.leave_out:
        raw.pop(name, None)
    for ours, theirs in config.rename.items():
        if ours in raw:
            raw[theirs] = raw.pop(ours)
    return raw


