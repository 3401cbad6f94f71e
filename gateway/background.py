"""Responses that are made while nobody waits: answered for at once, kept when they end, cancelled where that is asked
for. What they look like meanwhile says gateway/background_state.py.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.answer import Answering
from gateway.background_state import LEFT, MARK, Making, Mark, failed
from gateway.call import Call
from gateway.errors import CallerError, Draining, HeadgateError
from gateway.event_streams import OURS, EventStream, with_signs
from gateway.exchange import Exchange
from gateway.headers import answer_headers
from gateway.journal.durable import append_durably
from gateway.journal.record import ResponseRecord
from gateway.reply import EVENTS, JSON, Heard, Reply, give
from gateway.settle import settle
from gateway.wire.body import encode_json, read
from gateway.wire.request import Raw
from gateway.wire.responses import Turn, response_object
from gateway.wire.to_responses import is_kept

if TYPE_CHECKING:
    from gateway.services import Services

log = logging.getLogger("headgate.background")
LOOK_AFTER_S, LOOK_EVERY_S = 1.0, 15.0
"""To the first look whether somebody cancelled it at another worker, and at most between two: they double."""
GRACE_S = 60.0
"""Beyond the time that a request may take: then nobody makes it any more."""


def asked_for(raw: Raw) -> bool:
    return "background" in raw and read(raw, "background", bool, False)


class Background:
    """One per worker."""

    def __init__(self, services: Services, answering: Answering) -> None:
        self.s, self.answering = services, answering
        self.running = services.responses.running
        self._closing = False

    async def begin(self, call: Call, reply: Reply) -> None:
        """Answers with the response as it begins, which outlives this process as a record. Raises HeadgateError."""
        s = self.s
        if not is_kept(call.raw):
            raise CallerError("A background response is stored: 'store' can't be false.", param="store")
        if self._closing or len(self.running) >= s.config.server.max_concurrency:
            raise Draining("too many background responses on this worker", retry_after_s=1.0)
        exchange = await self.answering.hold(call, self.answering.identify(call))
        try:
            record, response = self._begun(call, exchange)
            s.responses.worker.begin()
            await append_durably(s.spool, record)
        except BaseException as error:
            ours = error if isinstance(error, HeadgateError) else HeadgateError("not begun", code="cancelled")
            settle(s, exchange, ours)
            raise
        s.responses.remember(record, _turn_of(call).before)
        making = self.running[record.id] = Making(record.tenant)
        making.told = EventStream(response) if call.stream else None
        making.task = asyncio.create_task(self._carry_out(exchange, record, making))
        making.task.add_done_callback(lambda _: self.running.pop(record.id, None))
        headers = answer_headers(exchange, s.now())
        if making.told is None:
            await reply.whole(200, [*headers, JSON], encode_json(response))
        else:
            await give(reply, 200, [*headers, *EVENTS], with_signs(s.responses.told(record.id, record.tenant, 0)))

    async def close(self, patience_s: float = 0.0) -> None:
        """What is under way may end within that time; the rest has failed."""
        self._closing = True
        making = list(self.running.values())
        if making and patience_s:
            await asyncio.wait({one.task for one in making if one.task}, timeout=patience_s)
        await asyncio.gather(*(one.end() for one in making))
        self.s.responses.worker.end()

    def _begun(self, call: Call, exchange: Exchange) -> tuple[ResponseRecord, dict[str, Any]]:
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

    async def _carry_out(self, exchange: Exchange, record: ResponseRecord, making: Making) -> None:
        told = making.told
        heard = told or Heard()
        writing = asyncio.create_task(self._kept(told, record)) if told is not None else None
        work = asyncio.create_task(self.answering.answer(exchange.call, heard, held=exchange))
        signs: set[asyncio.Future[Any]] = {work, making.is_over}
        pause_s = LOOK_AFTER_S
        while not (work.done() or making.is_over.done()):
            await asyncio.wait(signs, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            pause_s = min(2 * pause_s, LOOK_EVERY_S)
            if not work.done() and not await self._is_wanted(record):
                break
        if work.done():
            if not work.cancelled() and (fault := work.exception()) is not None:
                log.error("the background response %s broke off", record.id, exc_info=fault)
            ended = self._ended(record, heard)
        else:
            await _stopped(work)
            ended = self._with(record, failed(LEFT) if self._closing else {"status": "cancelled"})
        if told is not None and writing is not None:
            told.close()
            await writing
        try:
            if await self._is_wanted(record):
                ended = await self._added(exchange.call, ended)
                await append_durably(self.s.spool, ended)
                self.s.responses.remember(ended)
                self.s.responses.keep_items(ended, msgspec.json.decode(ended.output)["output"])
        except HeadgateError as error:
            log.error("the end of the background response %s is not kept: %s", record.id, error.message)

    async def _kept(self, told: EventStream, record: ResponseRecord) -> None:
        try:
            await self.s.responses.kept.write(told, record.id, record.tenant)
        except Exception:  # whoever listens here hears all of it, whatever becomes of that
            log.exception("the stream of the background response %s is not kept", record.id)

    async def _added(self, call: Call, ended: ResponseRecord) -> ResponseRecord:
        """Added to its conversation where it is of one; it has failed where that can't be done."""
        turn, response = _turn_of(call), msgspec.json.decode(ended.output)
        if not turn.conversation or response["status"] not in ("completed", "incomplete"):
            return ended
        try:
            await self.s.responses.add_to_conversation(turn, ended.tenant, ended.output)
        except HeadgateError as error:
            output = encode_json({**response, **failed(error.message)})
            return msgspec.structs.replace(ended, output=output)
        return ended

    async def _is_wanted(self, record: ResponseRecord) -> bool:
        """Nobody has cancelled or deleted it, as far as the journal tells."""
        try:
            found = await self.s.journal.response(record.id, record.tenant)
        except (HeadgateError, OSError):
            return True
        wanted = found is not None and MARK.encode() in found.output
        if not wanted:
            self.s.responses.forget(record.tenant, record.id)
        return wanted

    def _ended(self, record: ResponseRecord, heard: Heard | EventStream) -> ResponseRecord:
        if isinstance(heard, EventStream) and heard.final is not None:
            return self._with(record, heard.final)
        said: dict[str, Any] = msgspec.json.decode(bytes(heard.body)) if heard.body else {}
        if heard.status != 200 or isinstance(heard, EventStream):
            error = said.get("error") or {}
            limited = error.get("code") == "rate_limit_exceeded"
            return self._with(record, failed(error.get("message") or LEFT, "rate_limit_exceeded" if limited else ""))
        if OURS.fullmatch(said["id"]):  # ids of its items tell their response
            was, is_now = said["id"].removeprefix("resp_"), record.id.removeprefix("resp_")
            said = msgspec.json.decode(bytes(heard.body).replace(was.encode(), is_now.encode()))
        return self._with(record, {**said, "id": record.id})

    def _with(self, record: ResponseRecord, changes: dict[str, Any]) -> ResponseRecord:
        response = msgspec.json.decode(record.output)
        del response[MARK]
        output = encode_json({**response, **changes, "background": True, "created_at": response["created_at"]})
        return msgspec.structs.replace(record, time_s=self.s.clock(), output=output)


async def _stopped(work: asyncio.Task[Any]) -> None:
    """Asked again where a time-out that ended in the same moment has swallowed it."""
    while not work.done():
        work.cancel()
        await asyncio.wait({work}, timeout=LOOK_AFTER_S)


def _turn_of(call: Call) -> Turn:
    return call.turn or Turn(call.raw)


def without(raw: Raw) -> Raw:
    return {name: value for name, value in raw.items() if name not in ("background", "background_options")}
