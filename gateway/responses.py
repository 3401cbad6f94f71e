"""Stored /v1/responses objects: what `previous_response_id` continues, what `item_reference` means and what
`GET /v1/responses/{id}` returns.

A stored response is a record in the journal like any other; a small memory of the newest spares the next turn
of a conversation the way to the database. `store: false` keeps nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from gateway.config import Server
from gateway.errors import CallerError, NotFound, TooLarge
from gateway.exchange import Exchange
from gateway.journal.durable import append_durably
from gateway.journal.reader import Reader
from gateway.journal.record import ResponseRecord
from gateway.journal.spool import Spool
from gateway.under_way import STATES, Making, Worker, as_it_stands
from gateway.wire.body import read
from gateway.wire.request import Raw, responses_input, to_raw
from gateway.wire.responses import REFERENCE, input_items, owner_of
from gateway.wire.to_responses import is_kept

REMEMBERED = 512
REMEMBERED_BYTES = 32 * 1024 * 1024
"""Of all of them together."""
LARGE_BYTES = 64 * 1024
"""A longer conversation is remembered once, not with each of its turns."""
MOST_OWNERS = 512
"""Responses that one request may refer to the items of."""
NOTHING = msgspec.Raw()
_decode_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Responses:
    """One per worker."""

    def __init__(self, spool: Spool, journal: Reader, clock: Callable[[], float], server: Server) -> None:
        self._spool = spool
        self._journal = journal
        self._clock = clock
        self._server = server
        self.worker = Worker(server.run_dir)
        self.running: dict[str, Making] = {}
        """By their ids."""
        self._recent: OrderedDict[tuple[str, str], ResponseRecord] = OrderedDict()
        self._recent_bytes = 0

    async def continued(self, raw: Raw, tenant: str) -> Raw:
        """The request with the turns before it; raises NotFound where `previous_response_id` names nothing."""
        raw = await self.recalled(raw, tenant)
        previous = read(raw, "previous_response_id", str, "")
        if not previous:
            return raw
        record = await self.find(previous, tenant, param="previous_response_id")
        told = msgspec.json.decode(record.output, type=_Output)
        if told.status in STATES:
            raise CallerError(f"Previous response '{previous}' has not ended.", param="previous_response_id",
                              code="previous_response_in_progress")  # fmt: skip
        self._fits(len(record.input) + len(record.output) + len(memoryview(raw.get("input", NOTHING))))
        items = [*_decode_items(record.input), *told.output]
        continued = responses_input(items, raw)
        most = self._server.max_messages
        if len(items) >= most and len(_decode_items(continued["input"])) > most:
            raise CallerError(
                f"With the turns before it the conversation has more than {most} items, which is the most of one "
                "request. Begin a new one: send what of it is still needed as 'input'.",
                param="previous_response_id", code="array_above_max_length",
            )  # fmt: skip
        return continued

    async def recalled(self, raw: Raw, tenant: str) -> Raw:
        """The request with the items that it refers to in their places; raises NotFound for one that isn't kept."""
        if b'"%b"' % REFERENCE.encode() not in memoryview(raw.get("input", NOTHING)).tobytes():
            return raw
        kept: dict[str, dict[str, object]] = {}
        items = input_items(raw)
        owners = {_keeper(str(item.get("id"))) for item in items if item.get("type") == REFERENCE}
        if len(owners) > MOST_OWNERS:
            raise CallerError(f"'input' refers to items of more than {MOST_OWNERS} responses.", param="input")
        for owner in owners:
            kept |= await self.output_of(owner, tenant)
        sizes = {id: len(msgspec.json.encode(item)) for id, item in kept.items()}
        named = (str(item.get("id")) for item in items if item.get("type") == REFERENCE)
        self._fits(sum(sizes.get(id, 0) for id in named))
        return {**raw, **to_raw({"input": [_meant(item, kept) for item in items]})}

    def _fits(self, size: int) -> None:
        """Raises TooLarge for a request that, with what it refers to, is longer than any may be."""
        if size > self._server.max_body_bytes:
            raise TooLarge(f"with what it refers to, the request is over {self._server.max_body_bytes} bytes")

    async def output_of(self, id: str, tenant: str) -> dict[str, dict[str, object]]:
        """A response's items by their ids; none where it isn't kept."""
        try:
            record = await self.find(id, tenant)
        except NotFound:
            return {}
        return {item["id"]: item for item in msgspec.json.decode(record.output)["output"]}

    async def find(self, id: str, tenant: str, *, param: str | None = None) -> ResponseRecord:
        """Raises NotFound."""
        found = self._recent.get((tenant, id)) or await self._journal.response(id, tenant)
        if found is None or found.deleted:
            kind = "Previous response" if param else "Response"
            raise NotFound(f"{kind} with id '{id}' not found.", param=param,
                           code="previous_response_not_found" if param else "not_found", status=400 if param else 404)
        return as_it_stands(found, self.worker, self._clock())

    async def cancel(self, id: str, tenant: str) -> ResponseRecord:
        """The response as it is then: one that has ended stays as it is. Raises NotFound, and CallerError for one whose
        client waits for it.
        """
        record = await self.find(id, tenant)
        response = msgspec.json.decode(record.output)
        if not response.get("background"):
            raise CallerError("Cannot cancel a synchronous response.", code="cannot_cancel")
        if response["status"] not in STATES:
            return record
        if (making := self.running.get(id)) is not None:
            await making.end()
            return await self.find(id, tenant)
        output = msgspec.json.encode({**response, "status": "cancelled"})
        record = msgspec.structs.replace(record, time_s=self._clock(), output=output)
        await append_durably(self._spool, record)  # whoever makes it looks
        return record

    async def delete(self, id: str, tenant: str) -> None:
        """Gone for good once this returns; raises NotFound where there is none."""
        record = await self.find(id, tenant)
        for one in (*_named(msgspec.json.decode(record.output)["output"]), id):
            self.forget(tenant, one)
            await append_durably(self._spool, ResponseRecord(id=one, time_s=self._clock(), tenant=tenant, deleted=True))

    def keep(self, exchange: Exchange) -> None:
        """Store the answer of a /v1/responses call, unless the caller said not to."""
        call, body = exchange.call, exchange.answer_body
        if call.surface != "responses" or not body or not is_kept(call.raw):
            return
        if call.background:
            exchange.response_id = call.background
            return
        answer = msgspec.json.decode(body, type=_Answer)
        exchange.response_id = answer.id
        record = ResponseRecord(
            id=answer.id,
            time_s=self._clock(),
            decision_id=exchange.decision_id,
            tenant=exchange.caller.tenant,
            model=exchange.answered_by,
            input=_input_of(call.raw),
            output=body,
        )
        before = self._recent.get((record.tenant, read(call.raw, "previous_response_id", str, "")))
        if before is not None and _size(before) > LARGE_BYTES:
            self.forget(before.tenant, before.id)  # the next turn follows this one, which holds all of that
        self._spool.append(record)
        self.remember(record)
        self.keep_items(record, answer.output)

    def keep_items(self, record: ResponseRecord, output: list[dict[str, object]]) -> None:
        """What may be referred to by an upstream's own ids."""
        for name, item in _named(output).items():
            self._spool.append(one := _record_of(record, name, item))
            self.remember(one)

    def remember(self, record: ResponseRecord) -> None:
        self.forget(record.tenant, record.id)
        self._recent[record.tenant, record.id] = record
        self._recent_bytes += _size(record)
        while len(self._recent) > REMEMBERED or self._recent_bytes > REMEMBERED_BYTES:
            self.forget(*next(iter(self._recent)))

    def forget(self, tenant: str, id: str) -> None:
        known = self._recent.pop((tenant, id), None)
        self._recent_bytes -= _size(known) if known is not None else 0


def _size(record: ResponseRecord) -> int:
    return len(record.input) + len(record.output)


def _input_of(raw: Raw) -> bytes:
    """A request's items as JSON, as they came where they came as such."""
    told = bytes(raw["input"])
    return told if told.lstrip().startswith(b"[") else msgspec.json.encode(input_items(raw))


def _meant(item: dict[str, object], kept: dict[str, dict[str, object]]) -> dict[str, object]:
    if item.get("type") != REFERENCE:
        return item
    found = kept.get(str(item.get("id")))
    if found is None:
        said = f"Item with id '{item.get('id')}' not found. Items are not kept when `store` is false."
        raise NotFound(said, param="input")
    return found


class _Output(msgspec.Struct):
    status: str = ""
    output: list[msgspec.Raw] = []


class _Answer(msgspec.Struct):
    id: str
    output: list[dict[str, object]] = []


def _keeper(item_id: str) -> str:
    """Under what an item is kept: its response, where its id tells that; else a name of its own."""
    return owner_of(item_id) or f"item:{item_id}"


def _named(output: list[dict[str, object]]) -> dict[str, dict[str, object]]:
    """Items whose id doesn't tell their response, as an upstream's don't, by what they are kept under."""
    return {_keeper(id): item for item in output if isinstance(id := item.get("id"), str) and id and not owner_of(id)}


def _record_of(response: ResponseRecord, name: str, item: dict[str, object]) -> ResponseRecord:
    return msgspec.structs.replace(response, id=name, input=b"[]", output=msgspec.json.encode({"output": [item]}))
