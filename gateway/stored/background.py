"""Background responses (Responses API): acknowledged at once, generated without a waiting client, stored when they end.

gateway/stored/background_state.py says how a response under way is stored and shown.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.answer import Answering
from gateway.call import Call
from gateway.errors import CallerError, Draining, HeadgateError
from gateway.exchange import Exchange
from gateway.headers import answer_headers
from gateway.journal.durable import append_durably
from gateway.journal.record import ResponseRecord
from gateway.reply import EVENTS, JSON, Heard, Reply, give
from gateway.settle import settle
from gateway.stored.background_state import ENDED_EARLY, MARK, BackgroundJob, Mark, failed
from gateway.stored.event_streams import OWN_RESPONSE_ID, EventStream, with_keepalives
from gateway.wire.body import encode_json, read
from gateway.wire.request import Raw
from gateway.wire.responses import Turn, new_id, response_object
from gateway.wire.to_responses import is_kept

if TYPE_CHECKING:
    from gateway.services import Services

log = logging.getLogger("headgate.background")
LOOK_AFTER_S, LOOK_EVERY_S = 1.0, 15.0
"""Seconds until the first look whether another worker cancelled the response, and the most between two looks; the
intervals double.
"""
GRACE_S = 60.0
"""Seconds after the request's timeout from which a response still under way counts as failed."""


def is_background(raw: Raw) -> bool:
    """True if the request asks for a background response. Raises CallerError."""
    return "background" in raw and read(raw, "background", bool, False)


class Background:
    """Generates background responses. There is one per worker."""

    def __init__(self, services: Services, answering: Answering) -> None:
        self.s, self.answering = services, answering
        self.running = services.responses.running
        self._closing = False

    async def begin(self, call: Call, reply: Reply) -> None:
        """Store the response as under way, start to generate it, and answer with its initial state or its stream.
        Raises HeadgateError.
        """
        s = self.s
        call.raw, call.background = without_background(call.raw), new_id("resp_")
        call.timeout_s = s.config.server.request_timeout_s  # no client waits, so no read timeout counts
        if not is_kept(call.raw):
            raise CallerError("A background response is stored: 'store' can't be false.", param="store")
        if self._closing or len(self.running) >= s.config.server.max_concurrency:
            raise Draining("too many background responses on this worker", retry_after_s=1.0)
        exchange = await self.answering.hold(call, self.answering.identify(call))
        try:
            record, response = self._initial(call, exchange)
            s.responses.worker.begin()
            await append_durably(s.spool, record)
        except BaseException as raised:
            error = raised if isinstance(raised, HeadgateError) else HeadgateError("not begun", code="cancelled")
            settle(s, exchange, error)
            raise
        s.responses.recent.remember(record, _turn_of(call).before)
        job = self.running[record.id] = BackgroundJob(record.tenant)
        job.stream = EventStream(response) if call.stream else None
        job.task = asyncio.create_task(self._run(exchange, record, job))
        job.task.add_done_callback(lambda _: self.running.pop(record.id, None))
        headers = answer_headers(exchange, s.now())
        if job.stream is None:
            await reply.whole(200, [*headers, JSON], encode_json(response))
        else:
            events = with_keepalives(s.responses.events_from(record.id, record.tenant, 0))
            await give(reply, 200, [*headers, *EVENTS], events)

    async def close(self, patience_s: float = 0.0) -> None:
        """Refuse new responses, wait `patience_s` seconds for those under way, then end the rest as failed."""
        self._closing = True
        jobs = list(self.running.values())
        if jobs and patience_s:
            await asyncio.wait({job.task for job in jobs if job.task}, timeout=patience_s)
        await asyncio.gather(*(job.end() for job in jobs))
        self.s.responses.worker.end()

    def _initial(self, call: Call, exchange: Exchange) -> tuple[ResponseRecord, dict[str, Any]]:
        """The record of a response under way, with its mark; and the response as the client sees it at first."""
        now_s = self.s.clock()
        response = response_object(call.raw, response_id=call.background, model=call.model, created_s=int(now_s))
        response["background"] = True
        mark = Mark(self.s.responses.worker.name, now_s + call.timeout_s + GRACE_S, call.stream)
        turn = _turn_of(call)
        record = ResponseRecord(
            id=call.background, time_s=now_s, decision_id=exchange.decision_id, tenant=exchange.caller.tenant,
            model=call.model, previous_response_id=turn.previous, input=turn.stored,
            output=encode_json({**response, MARK: mark}),
        )  # fmt: skip
        return record, response

    async def _run(self, exchange: Exchange, record: ResponseRecord, job: BackgroundJob) -> None:
        """Generate the response until it ends, somebody cancels it or this worker closes; then store its last state."""
        stream = job.stream
        reply = stream or Heard()
        storing = asyncio.create_task(self._store_stream(stream, record)) if stream is not None else None
        work = asyncio.create_task(self.answering.answer(exchange.call, reply, held=exchange))
        ends: set[asyncio.Future[Any]] = {work, job.is_over}
        pause_s = LOOK_AFTER_S
        while not (work.done() or job.is_over.done()):
            await asyncio.wait(ends, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            pause_s = min(2 * pause_s, LOOK_EVERY_S)
            if not work.done() and not await self._is_wanted(record):
                break
        if work.done():
            if not work.cancelled() and (fault := work.exception()) is not None:
                log.error("the background response %s broke off", record.id, exc_info=fault)
            final = self._final(record, reply)
        else:
            await _cancel(work)
            final = self._with(record, failed(ENDED_EARLY) if self._closing else {"status": "cancelled"})
        if stream is not None and storing is not None:
            stream.close()
            await storing
        try:
            if await self._is_wanted(record):
                final = await self._add_to_conversation(exchange.call, final)
                await append_durably(self.s.spool, final)
                self.s.responses.recent.remember(final)
                self.s.responses.keep_items(final, msgspec.json.decode(final.output)["output"])
            elif stream is not None and await self.s.journal.response(record.id, record.tenant) is None:
                await self.s.responses.forget_events(record.id, record.tenant)  # those stored since it was deleted
        except HeadgateError as error:
            log.error("the end of the background response %s is not stored: %s", record.id, error.message)

    async def _store_stream(self, stream: EventStream, record: ResponseRecord) -> None:
        try:
            await self.s.responses.kept.write(stream, record.id, record.tenant)
        except Exception:  # readers at this worker get every event without the store
            log.exception("the stream of the background response %s is not stored", record.id)

    async def _add_to_conversation(self, call: Call, final: ResponseRecord) -> ResponseRecord:
        """Add the response, if it has an answer, to its conversation. Returns its record, as failed if that fails."""
        turn, response = _turn_of(call), msgspec.json.decode(final.output)
        if not turn.conversation or response["status"] not in ("completed", "incomplete"):
            return final
        try:
            await self.s.responses.add_to_conversation(turn, final.tenant, final.output)
        except HeadgateError as error:
            output = encode_json({**response, **failed(error.message)})
            return msgspec.structs.replace(final, output=output)
        return final

    async def _is_wanted(self, record: ResponseRecord) -> bool:
        """False if the journal says that the response was cancelled or deleted; True also while it can't be read."""
        try:
            stored = await self.s.journal.response(record.id, record.tenant)
        except (HeadgateError, OSError):
            return True
        is_wanted = stored is not None and MARK.encode() in stored.output
        if not is_wanted:
            self.s.responses.recent.forget(record.tenant, record.id)
        return is_wanted

    def _final(self, record: ResponseRecord, reply: Heard | EventStream) -> ResponseRecord:
        """The record of the response as the request path answered it."""
        if isinstance(reply, EventStream) and reply.final is not None:
            return self._with(record, reply.final)
        answer: dict[str, Any] = msgspec.json.decode(bytes(reply.body)) if reply.body else {}
        if reply.status != 200 or isinstance(reply, EventStream):
            error = answer.get("error") or {}
            code = "rate_limit_exceeded" if error.get("code") == "rate_limit_exceeded" else ""
            return self._with(record, failed(error.get("message") or ENDED_EARLY, code))
        if OWN_RESPONSE_ID.fullmatch(answer["id"]):  # then the ids of its items contain it too
            old, new = answer["id"].removeprefix("resp_"), record.id.removeprefix("resp_")
            answer = msgspec.json.decode(bytes(reply.body).replace(old.encode(), new.encode()))
        return self._with(record, {**answer, "id": record.id})

    def _with(self, record: ResponseRecord, changes: dict[str, Any]) -> ResponseRecord:
        """The record of the response with these changes, no longer marked as under way."""
        response = msgspec.json.decode(record.output)
        del response[MARK]
        output = encode_json({**response, **changes, "background": True, "created_at": response["created_at"]})
        return msgspec.structs.replace(record, time_s=self.s.clock(), output=output)


async def _cancel(work: asyncio.Task[Any]) -> None:
    """Cancel the task until it has ended: a timeout that expires at the same moment may swallow a cancellation."""
    while not work.done():
        work.cancel()
        await asyncio.wait({work}, timeout=LOOK_AFTER_S)


def _turn_of(call: Call) -> Turn:
    return call.turn or Turn(call.raw)


def without_background(raw: Raw) -> Raw:
    """The request as one whose client waits."""
    return {name: value for name, value in raw.items() if name not in ("background", "background_options")}
