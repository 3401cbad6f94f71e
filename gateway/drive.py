"""Climbs a plan with live providers: the cascade decides each step (cascade/climb.py), this module carries it out.

Until the first byte is sent to the client anything may change: attempt, deployment or model. After it there are only
two endings: the stream's own end, or an error inside the stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Iterator, Sequence

from msgspec.structs import replace

from cascade.climb import climb
from cascade.confidence import RAW
from cascade.types import Outcome, Plan, Rung, Verdict
from gateway.attempt import (
    Opened,
    Sender,
    evidence_in,
    expected_tokens,
    stall_or_deadline,
    stream_fault,
    wants_whole,
)
from gateway.breaker import OPENS_AT_ONCE
from gateway.checker import Checker
from gateway.errors import CallerError, UpstreamError
from gateway.exchange import Attempt, Exchange, Kept
from gateway.fleet import Deployment
from gateway.hedging import Hedging
from gateway.live_streams import LiveStream, LiveStreams
from gateway.money.charge import charge, charge_partial
from gateway.parallel_steps import run_parallel
from gateway.prefixes import Prefixes
from gateway.question_batching import QuestionBatcher
from gateway.reply import Headers, Reply
from gateway.upstream import Response
from gateway.wire.answer import with_text
from gateway.wire.pause import MOST_PAUSES
from gateway.wire.relay import Relay

log = logging.getLogger("headgate.drive")
RETRIABLE = frozenset(
    {"connect", "loading", "out_of_files", "reset", "rate_limited", "overloaded", "server_error", "bad_response",
     "stream_cut", "stream_stalled", "stream_malformed", "stream_error"}
)
"""Failures after which the same model is worth a retry. A timeout isn't: it has used up the time."""
DRAIN_S = 0.25
"""Longest wait for the rest of a response that has said all, so that its connection can be reused."""


class Driver:
    """Runs climbs. There is one per worker."""

    def __init__(
        self,
        sender: Sender,
        draws: Iterator[float],
        hedging: Hedging,
        prefixes: Prefixes,
        streams: LiveStreams,
    ) -> None:
        self.sender = sender
        self.draws = draws
        self.prefixes = prefixes
        self.streams = streams
        self.hedging = hedging
        self.gathering = QuestionBatcher(sender, draws)

    async def drive(self, exchange: Exchange, reply: Reply, headers: Callable[[], Headers]) -> bytes:
        """Climb until the cascade's verdict. A whole answer is left in `exchange.kept`; of a live stream the last bytes
        are returned, to be sent once the request is settled. `headers`: makes the headers of a live stream.

        Raises the last UpstreamError if there is no answer, CallerError (422) if the cascade abstained.
        """
        assert exchange.plan is not None
        run = Run(self, exchange, exchange.plan, reply, headers)
        steps = climb(exchange.plan, self.draws)
        try:
            await run.follow(steps)
        finally:
            steps.close()
        return run.finish()


class Run:
    """One climb in progress."""

    error: UpstreamError | None = None
    """The failure of the last step; None where it was answered."""
    tail = b""
    """The stream's last bytes, which are sent once the request is settled."""
    hedged_before = False
    """True if the request was hedged before the step under way, which else made a second attempt with its hedge."""
    failed: Deployment | None = None
    """Deployment of the last failed attempt, which a retry avoids if the model has another."""

    def __init__(
        self, driver: Driver, exchange: Exchange, plan: Plan, reply: Reply, headers: Callable[[], Headers]
    ) -> None:
        self.driver = driver
        self.sender = driver.sender
        self.exchange = exchange
        self.plan = plan
        self.reply = reply
        self.headers = headers
        self.answers: list[Kept | None] = []
        """The answer of each outcome, in order, None for a failure: a verdict names its answer by index."""

    async def follow(self, steps: Generator[Rung, Outcome, Verdict]) -> None:
        """Carry out every rung of the climb; its verdict is left in the exchange."""
        try:
            rung = next(steps)
            while True:
                if rung.delay_s:
                    await self.back_off(rung.delay_s)
                outcome = await (self.step_parallel(rung) if rung.beside else self.step(rung))
                rung = steps.send(outcome)
        except StopIteration as stop:
            self.exchange.verdict = stop.value

    async def back_off(self, delay_s: float) -> None:
        """Wait before a retry; the wait counts as the upstreams' time, not the gateway's."""
        begun = self.sender.now()
        try:
            await asyncio.sleep(delay_s)
        finally:
            self.exchange.upstream_s += self.sender.now() - begun

    def finish(self) -> bytes:
        """Take the verdict's answer into the exchange. Returns and raises as `Driver.drive` does."""
        verdict = self.exchange.verdict
        assert verdict is not None
        if self.reply.committed:
            if self.error is not None:
                raise self.error
            return self.tail
        if verdict.kept is not None:
            kept = self.answers[verdict.kept]
            if verdict.text and kept is not None:
                kept = replace(kept, body=with_text(kept.body, kept.dialect, verdict.text))
            self.exchange.kept = kept
            self.exchange.answered_by = verdict.model
            if kept is not None:
                self.exchange.response_id = kept.seen.id
            return b""
        if verdict.reason == "abstained":
            raise CallerError("No model was sure enough of its answer to give one.", code="abstained", status=422)
        raise self.error or UpstreamError("unavailable", f"no answer: {verdict.reason}", status=503)

    async def step_parallel(self, rung: Rung) -> Outcome:
        """Run a rung and those beside it concurrently. Their answers are kept in the climb's order of rungs."""
        rungs = (rung, *rung.beside)
        runs = [Run(self.driver, self.exchange, self.plan, self.reply, self.headers) for _ in rungs]
        steps = [run.step(one) for run, one in zip(runs, rungs, strict=True)]
        begun, waited_s = self.sender.now(), self.exchange.upstream_s
        outcomes = await run_parallel(steps, rung.enough, lambda place: self.cancelled_outcome(rungs[place]))
        for run in runs:
            self.answers += run.answers or [None]
            self.error = run.error or self.error
        self.exchange.upstream_s = waited_s + self.sender.now() - begun
        return replace(outcomes[0], beside=tuple(outcomes[1:]))

    async def step(self, rung: Rung) -> Outcome:
        """Run one rung: pick a deployment, call it, and relay its stream if the answer is final and streamed."""
        sender, exchange = self.sender, self.exchange
        begun = sender.now()
        if begun >= exchange.call.received_s + exchange.call.timeout_s:
            return self.failed_outcome(rung, UpstreamError("timeout", "the deadline has passed", status=504), begun)
        if exchange.route.config.gather_ms:
            if (outcome := await self.ask_batched(rung, begun)) is not None:
                return outcome
            begun = sender.now()
        deployment = sender.fleet.pick(
            rung.model, next(self.driver.draws), begun, tokens=lambda: expected_tokens(exchange, rung.model),
            failed=self.failed, warm=None if "messages" in rung.overrides else self.warm,
        )  # fmt: skip
        if deployment is None:
            error = UpstreamError("unavailable", f"every deployment of {rung.model} is down", status=503)
            return self.failed_outcome(rung, error, begun)
        live = rung.final and exchange.call.stream
        self.hedged_before = exchange.hedged
        try:
            if exchange.route.config.hedge_after_s is None:
                opened = await sender.open(exchange, rung, deployment, live=live)
            else:
                opened = await self.driver.hedging.open(sender, exchange, rung, deployment, live=live)
            if opened.relay is not None:
                await self.relay(opened, rung)
        except UpstreamError as error:
            self.failed = deployment
            return self.failed_outcome(rung, error, begun)
        finally:
            exchange.upstream_s += sender.now() - begun
        if exchange.route.checker is not None:
            await self.check(exchange.route.checker, rung, opened.attempt)
        return self.outcome(rung, opened, begun)

    def warm(self, deployments: Sequence[Deployment]) -> Sequence[float] | None:
        """Share of the client's prompt that each deployment is expected to have cached; None for a short prompt."""
        return self.driver.prefixes.affinity(self.exchange, deployments, self.sender.now())

    async def ask_batched(self, rung: Rung, begun: float) -> Outcome | None:
        """Ask in one call with other small questions. None if this one has to be asked alone."""
        try:
            opened = await self.driver.gathering.ask(self.exchange, rung)
        except UpstreamError as error:
            return self.failed_outcome(rung, error, begun)
        finally:
            self.exchange.upstream_s += self.sender.now() - begun
        return self.outcome(rung, opened, begun) if opened is not None else None

    async def check(self, checker: Checker, rung: Rung, attempt: Attempt) -> None:
        """Run the operator's check on an answer that may still be escalated, and add its result to the evidence."""
        asks_other_question = "messages" in rung.overrides and self.plan.strategy
        if rung.final or asks_other_question or not attempt.evidence.text:
            return
        left_s = self.exchange.call.received_s + self.exchange.call.timeout_s - self.sender.now()
        passed = await checker.check(attempt.evidence.text, within_s=left_s)
        attempt.evidence = replace(attempt.evidence, checks_passed=passed)

    def cancelled_outcome(self, rung: Rung) -> Outcome:
        """The outcome of a rung that was cancelled because another's answer sufficed."""
        attempts = [one for one in self.exchange.attempts if one.model == rung.model and one.failure == "cancelled"]
        elapsed_s = self.sender.now() - self.exchange.call.received_s
        return Outcome(rung.model, "cancelled", elapsed_s=elapsed_s, attempts=len(attempts))

    def outcome(self, rung: Rung, opened: Opened, begun: float) -> Outcome:
        self.error = None
        self.answers.append(opened.kept)
        attempt, now = opened.attempt, self.sender.now()
        if rung.reads_confidence:
            attempt.confidence = (self.plan.confidence or RAW)(rung.model, attempt.evidence)
        return Outcome(
            model=rung.model,
            may_move=not self.reply.committed,
            evidence=attempt.evidence,
            elapsed_s=now - self.exchange.call.received_s,
            latency_s=now - begun,
            attempts=1 + self.exchange.hedged - self.hedged_before,
        )

    def failed_outcome(self, rung: Rung, error: UpstreamError, begun: float) -> Outcome:
        self.error = error.bare()
        self.answers.append(None)
        now, committed = self.sender.now(), self.reply.committed
        return Outcome(
            model=rung.model,
            failure=error.failure,
            may_pass=error.failure in RETRIABLE and not committed,
            may_move=(error.failure != "rejected" or bool(rung.overrides)) and not committed,
            retry_after_s=0.0 if self.has_alternative(rung, error) else error.retry_after_s or 0.0,
            elapsed_s=now - self.exchange.call.received_s,
            latency_s=now - begun,
            attempts=1 + self.exchange.hedged - self.hedged_before,
        )

    def has_alternative(self, rung: Rung, error: UpstreamError) -> bool:
        """True if another deployment of the model can serve at once, so that the `retry-after` doesn't matter."""
        sender = self.sender
        return error.failure in OPENS_AT_ONCE and sender.fleet.healthy(rung.model, sender.now())

    async def relay(self, opened: Opened, rung: Rung) -> None:
        """Pass the stream on to the client as it arrives, from here on without a way back. Its last bytes are left in
        `tail`, to be sent once the request is settled.
        """
        flow, exchange = opened.relay, self.exchange
        assert flow is not None
        exchange.answered_by, exchange.flow = rung.model, flow
        try:
            await self.pass_on(opened, flow)
            for _ in range(MOST_PAUSES):
                if not flow.paused or not await self.sender.resume(exchange, rung, opened):
                    break
                await self.pass_on(opened, flow)
            if flow.paused:
                self.reply.push(flow.leave_off())
        finally:
            opened.deployment.end()
        seen = flow.peek()
        opened.attempt.evidence = evidence_in(exchange.call, seen)
        exchange.response_id = seen.id
        self.tail += flow.tail()
        if wants_whole(exchange):
            exchange.answer_body = whole_of(flow)

    async def pass_on(self, opened: Opened, flow: Relay) -> None:
        """Relay one upstream stream to its end, then charge and count it. A paused turn consists of several."""
        response, attempt, deployment = opened.response, opened.attempt, opened.deployment
        assert response is not None
        sender, exchange, reply = self.sender, self.exchange, self.reply
        try:
            if not reply.committed:
                await reply.begin(200, self.headers())
            await self.pump(response, flow, opened.pending)
            await _drain(response, sender.now)
        except UpstreamError as raised:
            response.cancel()
            error = stall_or_deadline(raised, sender.now() < self.ends_s)
            sender.failed(exchange, attempt, deployment, error, flow)
            raise error from None
        except BaseException:
            response.cancel()
            sender.cancelled(exchange, attempt, deployment, flow)
            raise
        finally:
            attempt.latency_s = sender.now() - exchange.call.received_s - attempt.started_s
        opened.pending, seen = b"", flow.part()
        request, provider = exchange.call.described, sender.providers[deployment.provider]
        if flow.counted:
            charge(request, attempt, deployment, provider, flow.usage, seen)
        else:
            charge_partial(request, attempt, deployment, provider, seen)
        sender.fleet.succeeded(
            deployment, sender.now(), attempt.first_byte_s, attempt.latency_s, attempt.job,
            attempt.usage.completion_tokens, exchange.begun_s(attempt),
        )  # fmt: skip

    @property
    def ends_s(self) -> float:
        """Monotonic deadline of the whole stream. The client's own timeout limits each read, not the stream."""
        return self.exchange.call.received_s + self.sender.timeouts.whole_s

    async def pump(self, response: Response, flow: Relay, data: bytes) -> None:
        """Relay until the stream ends. Time spent waiting for a slow client doesn't count as the upstream's silence.
        Raises UpstreamError for a stream that stalls or ends with a fault.
        """
        sender = self.sender
        if flow.finished:  # in one read: all of it is sent with its end
            self.tail = data
            return
        silence_s = min(sender.timeouts.stall_s, self.exchange.call.timeout_s)
        passing = LiveStream(response, flow, self.reply, sender.now, silence_s, self.ends_s)
        if not self.reply.push(data):
            await self.reply.room()
        ended = flow.over
        self.driver.streams.passing.add(passing)
        try:
            while not ended:
                ended = await response.pour(passing.take, passing.due_s() - sender.now()) or flow.over
                if not ended:
                    await self.reply.room()
        finally:
            self.driver.streams.passing.discard(passing)
        if not (flow.finished or flow.paused) and flow.end():
            raise stream_fault(flow)


def whole_of(flow: Relay) -> bytes:
    """The whole answer of a finished stream; empty if it can't be put together."""
    try:
        return flow.answer()
    except UpstreamError as error:
        log.warning("a streamed answer can't be put together, so it is not stored: %s", error.message)
        return b""


async def _drain(response: Response, now: Callable[[], float]) -> None:
    """Read the rest of the response, for at most `DRAIN_S`, so that its connection can be reused."""
    ends_s = now() + DRAIN_S
    try:
        while await response.chunk(ends_s - now()):
            if now() >= ends_s:
                response.cancel()
    except UpstreamError:
        response.cancel()
