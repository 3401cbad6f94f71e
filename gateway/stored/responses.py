"""Stored /v1/responses objects, for `previous_response_id`, `item_reference` and `GET /v1/responses/{id}`.

A stored response is a record in the journal like any other. With `store: false` nothing is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from gateway.config.types import Server
from gateway.errors import CallerError, HeadgateError, NotFound, TooLarge
from gateway.exchange import Exchange
from gateway.journal.durable import append_durably
from gateway.journal.reader import Reader
from gateway.journal.record import ResponseRecord
from gateway.journal.spool import Spool
from gateway.stored.background_state import STATES, BackgroundJob, Worker, as_it_stands, failed, mark_of
from gateway.stored.conversations import MARK, ConversationService, conversation_of
from gateway.stored.event_streams import LOOK_EVERY_S, StoredEventStreams, last_event
from gateway.stored.recent_responses import RecentResponses
from gateway.wire.body import encode_json, is_set, read
from gateway.wire.request import Raw, responses_input, to_raw
from gateway.wire.responses import REFERENCE, Turn, input_items, input_json, owner_of, turn_items
from gateway.wire.to_responses import is_kept

MOST_OWNERS = 512
"""Most responses whose items one request may refer to."""
NOTHING = msgspec.Raw()
Items = dict[str, dict[str, object]]
"""Items by id."""
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Responses:
    """The stored responses as one worker reads and writes them."""

    def __init__(self, spool: Spool, journal: Reader, clock: Callable[[], float], server: Server) -> None:
        self._spool = spool
        self._journal = journal
        self._clock = clock
        self._server = server
        self.worker = Worker(server.run_dir)
        self.conversations = ConversationService(journal, server, clock)
        self.kept = StoredEventStreams(journal, clock)
        self.running: dict[str, BackgroundJob] = {}
        """Background responses that this worker is making, by id."""
        self.recent = RecentResponses(Path(server.run_dir), clock)

    async def continued(self, raw: Raw, tenant: str) -> Turn:
        """The request preceded by the turns that it continues. Raises NotFound where `previous_response_id` or
        `conversation` names nothing, and CallerError where it can't be continued.
        """
        conversation = conversation_of(raw)
        if conversation:
            return await self._within(raw, conversation, tenant)
        previous = read(raw, "previous_response_id", str, "")
        if not previous:
            return Turn(await self.recalled(raw, tenant))
        record, before = await self._whole(previous, tenant, param="previous_response_id")
        answer = msgspec.json.decode(record.output, type=_Output)
        if answer.status in STATES:
            raise CallerError(f"Previous response '{previous}' has not ended.", param="previous_response_id",
                              code="previous_response_in_progress")  # fmt: skip
        items = [*_decode_items(before), *turn_items(record.input), *answer.output]
        raw = await self.recalled(_with_input(raw), tenant, lambda: _by_id(items))
        self._fits(len(before) + len(record.input) + len(record.output) + _sent(raw))
        continued = self._bounded(responses_input(items, raw), len(items), "previous_response_id")
        if MARK in record.previous_response_id:  # the conversation may later change or be deleted without this branch
            return Turn(continued)
        return Turn(continued, previous, before=encode_json(items), own=input_json(raw))

    async def _within(self, raw: Raw, id: str, tenant: str) -> Turn:
        """The request preceded by the conversation's items. Raises NotFound."""
        try:
            place, known = await self.conversations.snapshot(id, tenant)
        except NotFound as fault:
            fault.param = "conversation"
            raise
        raw = {**_with_input(raw), **to_raw({"conversation": {"id": id}})}
        raw = await self.recalled(raw, tenant, lambda: {one.id: msgspec.json.decode(one.item) for one in known})
        items = [one.item for one in known]
        self._fits(sum(len(memoryview(item)) for item in items) + _sent(raw))
        continued = self._bounded(responses_input(items, raw), len(items), "conversation")
        return Turn(continued, place, id, encode_json(items), input_json(raw))

    def _bounded(self, continued: Raw, before: int, param: str) -> Raw:
        """The request `continued`. Raises CallerError where it has more items than a request may have."""
        most = self._server.max_messages
        if before >= most and len(_decode_items(continued["input"])) > most:
            raise CallerError(
                f"With the turns before it the conversation has more than {most} items, the most that a request may "
                "have. Begin a new one: send the items that are still needed as 'input'.",
                param=param, code="array_above_max_length",
            )  # fmt: skip
        return continued

    async def input_of(self, id: str, tenant: str) -> list[dict[str, object]]:
        """A response's input, including the turns before it. Raises NotFound."""
        record, before = await self._whole(id, tenant)
        return [*msgspec.json.decode(before), *map(msgspec.json.decode, turn_items(record.input))]

    async def _whole(self, id: str, tenant: str, *, param: str | None = None) -> tuple[ResponseRecord, bytes]:
        """A response, and the items of the turns before it as JSON. Raises NotFound, and CallerError where a turn
        before it is no longer stored.
        """
        recent = self.recent.recall(tenant, id)
        if recent is not None and recent.before is not None:
            return as_it_stands(recent.record, self.worker, self._clock()), recent.before
        chain = await self._journal.response_chain(id, tenant)
        if not chain:
            raise _not_found(id, param)
        record, items = chain[0], list[msgspec.Raw]()
        if MARK in (name := chain[-1].previous_response_id):
            items = await self.conversations.items_at(name)
            chain[-1] = msgspec.structs.replace(chain[-1], previous_response_id="")
        for one in reversed(_unbroken(chain, param)[1:]):
            items += [*turn_items(one.input), *msgspec.json.decode(one.output, type=_Output).output]
        before = encode_json(items)
        if mark_of(record) is None:  # the worker that makes a response under way tells nobody of its end
            self.recent.remember(record, before)
        return as_it_stands(record, self.worker, self._clock()), before

    async def recalled(self, raw: Raw, tenant: str, known: Callable[[], Items] = dict) -> Raw:
        """The request with each item reference replaced by its item. Raises NotFound for an item that isn't stored.
        `known` returns the items of the request's own conversation, which take precedence over others of the same id.
        """
        if b'"%b"' % REFERENCE.encode() not in memoryview(raw.get("input", NOTHING)).tobytes():
            return raw
        kept, items = known(), input_items(raw)
        named = [str(item.get("id")) for item in items if item.get("type") == REFERENCE]
        owners = {_record_id(id, tenant) for id in named if id not in kept}
        if len(owners) > MOST_OWNERS:
            raise CallerError(f"'input' refers to items of more than {MOST_OWNERS} responses.", param="input")
        for owner in owners:
            kept |= await self.output_of(owner, tenant)
        sizes = {id: len(msgspec.json.encode(item)) for id, item in kept.items()}
        self._fits(sum(sizes.get(id, 0) for id in named))
        return {**raw, **to_raw({"input": [_resolved(item, kept) for item in items]})}

    def _fits(self, size: int) -> None:
        """Raise TooLarge for a request that, with what it refers to, has more bytes than a request may have."""
        if size > self._server.max_body_bytes:
            raise TooLarge(f"with what it refers to, the request is over {self._server.max_body_bytes} bytes")

    async def output_of(self, id: str, tenant: str) -> dict[str, dict[str, object]]:
        """A response's output items by id; empty where the response isn't stored."""
        try:
            record = await self.find(id, tenant)
        except NotFound:
            return {}
        return {item["id"]: item for item in msgspec.json.decode(record.output)["output"]}

    async def find(self, id: str, tenant: str) -> ResponseRecord:
        """The stored response. Raises NotFound."""
        recent = self.recent.recall(tenant, id)
        found = recent.record if recent is not None else await self._journal.response(id, tenant)
        if found is None or found.deleted:
            raise _not_found(id, None)
        return as_it_stands(found, self.worker, self._clock())

    async def is_streamed(self, id: str, tenant: str) -> bool:
        """Whether `events_from` has the response's events, so that a client can resume its stream. Raises NotFound."""
        if (job := self.running.get(id)) is not None and job.tenant == tenant:
            return job.stream is not None
        found = await self._journal.response(id, tenant)
        if found is None:
            raise _not_found(id, None)
        mark = mark_of(found)
        if mark is not None:
            return mark.streamed
        _, are_all = await self.kept.ask(lambda kept: kept.known(id, tenant))
        return are_all

    async def events_from(self, id: str, tenant: str, place: int) -> AsyncIterator[bytes]:
        """The response's events from number `place` on, as they come, and the last one once the response has ended."""
        job = self.running.get(id)
        if job is not None and job.stream is not None and job.task is not None and job.tenant == tenant:
            async for piece in job.stream.since(place):
                yield piece
            await asyncio.wait({job.task})
            number = len(job.stream.events)
        else:
            async for piece in self.kept.events_elsewhere(id, tenant, place, lambda: self._is_under_way(id, tenant)):
                yield piece
            while await self._is_under_way(id, tenant):  # noqa: ASYNC110  its worker sends no notice of the end
                await asyncio.sleep(LOOK_EVERY_S)
            number, are_all = await self.kept.ask(lambda kept: kept.known(id, tenant))
            number = number if are_all else max(number, place)  # its worker ended before it had stored all it had sent
        if number >= place:
            yield last_event(await self._end_of(id, tenant), number)

    async def _end_of(self, id: str, tenant: str) -> bytes:
        try:
            return (await self.find(id, tenant)).output
        except NotFound as error:
            return msgspec.json.encode({"id": id, "object": "response", "output": [], **failed(error.message)})

    async def _is_under_way(self, id: str, tenant: str) -> bool:
        try:
            return msgspec.json.decode((await self.find(id, tenant)).output, type=_Output).status in STATES
        except NotFound:
            return False

    async def cancel(self, id: str, tenant: str) -> ResponseRecord:
        """Cancel a background response and return it; one that has ended stays as it is. Raises NotFound, and
        CallerError for a response that isn't made in the background.
        """
        record = await self.find(id, tenant)
        response = msgspec.json.decode(record.output)
        if not response.get("background"):
            raise CallerError("Cannot cancel a synchronous response.", code="cannot_cancel")
        if response["status"] not in STATES:
            return record
        if (job := self.running.get(id)) is not None:
            await job.end()
            return await self.find(id, tenant)
        output = msgspec.json.encode({**response, "status": "cancelled"})
        record = msgspec.structs.replace(record, time_s=self._clock(), output=output)
        await append_durably(self._spool, record)  # the worker that makes it will read this and stop
        return record

    async def delete(self, id: str, tenant: str) -> None:
        """Delete a response durably, with its events and items; one under way is ended. Raises NotFound."""
        if (job := self.running.get(id)) is not None and job.tenant == tenant:
            await job.end()
        record = await self.find(id, tenant)
        if b'"background":true' in record.output:
            with suppress(HeadgateError):  # otherwise its events are deleted with those that are too old
                await self.forget_events(id, tenant)
        deleted = [id]
        for name in _named(msgspec.json.decode(record.output)["output"], tenant):
            with suppress(NotFound):  # a later response may have an item of the same id, which stays
                deleted += [name] if (await self.find(name, tenant)).decision_id == record.decision_id else []
        for one in deleted:
            await append_durably(self._spool, ResponseRecord(id=one, time_s=self._clock(), tenant=tenant, deleted=True))
        self.recent.note_deleted()

    async def forget_events(self, id: str, tenant: str) -> None:
        """Delete the response's events. Raises HeadgateError 503 while the database is away."""
        await self.kept.ask(lambda kept: kept.remove(id, tenant))

    async def keep(self, exchange: Exchange) -> None:
        """Store the answer of a /v1/responses call, unless the request has `store: false`, and add it to its
        conversation. Raises HeadgateError where that can't be done.
        """
        call, body = exchange.call, exchange.answer_body
        if not body:
            return
        if call.background:
            exchange.response_id = call.background
            return
        turn = call.turn or Turn(call.raw)
        await self.add_to_conversation(turn, exchange.caller.tenant, body)
        answer = msgspec.json.decode(body, type=_Answer)
        exchange.response_id = answer.id
        if not is_kept(call.raw):
            return
        record = ResponseRecord(
            id=answer.id,
            time_s=self._clock(),
            decision_id=exchange.decision_id,
            tenant=exchange.caller.tenant,
            model=exchange.answered_by,
            previous_response_id=turn.previous,
            input=turn.stored,
            output=body,
        )
        self._spool.append(record)
        self.recent.follow(record, turn.before)
        self.keep_items(record, answer.output)

    async def add_to_conversation(self, turn: Turn, tenant: str, response: bytes) -> None:
        """Add a turn's input and output to its conversation, if it has one. Raises NotFound, and HeadgateError (503)
        where it can't be stored.
        """
        if turn.conversation:
            output = msgspec.json.decode(response, type=_Output).output
            await self.conversations.append_turn(turn.conversation, tenant, [*_decode_items(turn.own), *output])

    def keep_items(self, record: ResponseRecord, output: list[dict[str, object]]) -> None:
        """Store the output items that have an upstream's own ids, so that requests may refer to them."""
        for name, item in _named(output, record.tenant).items():
            self._spool.append(one := _record_of(record, name, item))
            self.recent.remember(one)

def _with_input(raw: Raw) -> Raw:
    """The request with an empty input where it has none, since a turn need not add anything to those before it."""
    return raw if is_set(raw, "input") else {**raw, **to_raw({"input": []})}


def _sent(raw: Raw) -> int:
    return len(memoryview(raw.get("input", NOTHING)))


def _not_found(id: str, param: str | None) -> NotFound:
    if param is None:
        return NotFound(f"Response with id '{id}' not found.")
    message = f"Previous response with id '{id}' not found."
    return NotFound(message, param=param, code="previous_response_not_found", status=400)


def _unbroken(chain: list[ResponseRecord], param: str | None) -> list[ResponseRecord]:
    """The chain, if it goes from a response back to the first of its conversation. Raises CallerError where it doesn't.
    """
    last = chain[-1]
    if last in chain[:-1]:
        raise CallerError(f"The conversation of response '{chain[0].id}' goes in a circle: '{last.id}' follows itself.",
                          param=param, code="conversation_broken")  # fmt: skip
    if not last.input:
        missing = last.id
    elif last.previous_response_id:
        missing = last.previous_response_id
    else:
        return chain
    raise CallerError(f"The conversation of response '{chain[0].id}' is not whole: '{missing}', which it continues, is "
                      "no longer stored. Begin a new one: send the items that are still needed as 'input'.",
                      param=param, code="conversation_broken")  # fmt: skip


def _resolved(item: dict[str, object], kept: dict[str, dict[str, object]]) -> dict[str, object]:
    """The item, or the item in `kept` that it refers to. Raises NotFound."""
    if item.get("type") != REFERENCE:
        return item
    found = kept.get(str(item.get("id")))
    if found is None:
        message = f"Item with id '{item.get('id')}' not found. Items are not kept when `store` is false."
        raise NotFound(message, param="input")
    return found


class _Output(msgspec.Struct):
    status: str = ""
    output: list[msgspec.Raw] = []


class _Answer(msgspec.Struct):
    id: str
    output: list[dict[str, object]] = []


def _record_id(item_id: str, tenant: str) -> str:
    """Id of the record that holds an item: that of its response where the item's id names it, and otherwise one made
    from the tenant and the item's id, because upstreams may use one id for several tenants. No tenant's name has a line
    break.
    """
    return owner_of(item_id) or f"item:{tenant}\n{item_id}"


def _named(output: list[dict[str, object]], tenant: str) -> Items:
    """The items whose ids don't name their response, as an upstream's own ids don't, by the id of their record."""
    ids = ((item.get("id"), item) for item in output)
    return {_record_id(id, tenant): item for id, item in ids if isinstance(id, str) and id and not owner_of(id)}


def _by_id(items: Sequence[msgspec.Raw]) -> Items:
    """Items by id; of several with one id the last."""
    decoded = map(msgspec.json.decode, items)
    return {item["id"]: item for item in decoded if item.get("id")}


def _record_of(response: ResponseRecord, name: str, item: dict[str, object]) -> ResponseRecord:
    """The record of a single item of a response."""
    own = {"id": name, "previous_response_id": "", "input": b"[]"}
    return msgspec.structs.replace(response, **own, output=msgspec.json.encode({"output": [item]}))
