"""Stored /v1/responses objects: what `previous_response_id` continues, what `item_reference` means and what
`GET /v1/responses/{id}` returns.

A stored response is a record in the journal like any other; a small memory of the newest spares the next turn
of a conversation the way to the database. `store: false` keeps nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from gateway.errors import CallerError, NotFound, TooLarge
from gateway.exchange import Exchange
from gateway.journal.durable import append_durably
from gateway.journal.reader import Reader
from gateway.journal.record import ResponseRecord
from gateway.journal.spool import Spool
from gateway.wire.body import read
from gateway.wire.request import Raw, responses_input, to_raw
from gateway.wire.responses import REFERENCE, input_items, owner_of
from gateway.wire.to_responses import is_kept

REMEMBERED = 512
MOST_OWNERS = 512
"""Responses that one request may refer to the items of."""
MAX_REMEMBERED_BYTES = 64 * 1024
NOTHING = msgspec.Raw()


class Responses:
    """One per worker."""

    def __init__(self, spool: Spool, journal: Reader, clock: Callable[[], float], max_body_bytes: int) -> None:
        self._spool = spool
        self._journal = journal
        self._clock = clock
        self._max_body_bytes = max_body_bytes
        self._recent: OrderedDict[tuple[str, str], ResponseRecord] = OrderedDict()

    async def continued(self, raw: Raw, tenant: str) -> Raw:
        """The request with the turns before it; raises NotFound where `previous_response_id` names nothing."""
        raw = await self.recalled(raw, tenant)
        previous = read(raw, "previous_response_id", str, "")
        if not previous:
            return raw
        record = await self.find(previous, tenant, param="previous_response_id")
        self._fits(len(record.input) + len(record.output) + len(memoryview(raw.get("input", NOTHING))))
        items = msgspec.json.decode(record.input) + msgspec.json.decode(record.output)["output"]
        return responses_input(items, raw)

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
        if size > self._max_body_bytes:
            raise TooLarge(f"with what it refers to, the request is over {self._max_body_bytes} bytes")

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
        return found

    async def delete(self, id: str, tenant: str) -> None:
        """Gone for good once this returns; raises NotFound where there is none."""
        record = await self.find(id, tenant)
        for one in (*_named(msgspec.json.decode(record.output)["output"]), id):
            self._recent.pop((tenant, one), None)
            await append_durably(self._spool, ResponseRecord(id=one, time_s=self._clock(), tenant=tenant, deleted=True))

    def keep(self, exchange: Exchange) -> None:
        """Store the answer of a /v1/responses call, unless the caller said not to."""
        call, body = exchange.call, exchange.answer_body
        if call.surface != "responses" or not body or not is_kept(call.raw):
            return
        answer = msgspec.json.decode(body, type=_Answer)
        exchange.response_id = answer.id
        record = ResponseRecord(
            id=answer.id,
            time_s=self._clock(),
            decision_id=exchange.decision_id,
            tenant=exchange.caller.tenant,
            model=exchange.answered_by,
            input=msgspec.json.encode(input_items(call.raw)),
            output=body,
        )
        items = _named(answer.output)
        for one in (record, *(_record_of(record, name, item) for name, item in items.items())):
            self._spool.append(one)
            self._remember(one)

    def _remember(self, record: ResponseRecord) -> None:
        if len(record.input) + len(record.output) <= MAX_REMEMBERED_BYTES:
            self._recent[record.tenant, record.id] = record
            if len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)


def _meant(item: dict[str, object], kept: dict[str, dict[str, object]]) -> dict[str, object]:
    if item.get("type") != REFERENCE:
        return item
    found = kept.get(str(item.get("id")))
    if found is None:
        said = f"Item with id '{item.get('id')}' not found. Items are not kept when `store` is false."
        raise NotFound(said, param="input")
    return found


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
