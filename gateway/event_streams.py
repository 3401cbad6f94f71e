"""Streams of responses that are made in the background: told to whoever listens, from wherever they listen.

The worker that makes one remembers its events and writes them to the journal's database a few times a second; readers
there hear them at once, readers at other workers and later ones from the database. The last event, which tells the
whole, is made of the response as it is kept: nobody hears that it has ended before it has.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gateway.errors import HeadgateError
from gateway.journal.reader import Reader
from gateway.reply import Headers, Reply
from gateway.wire.body import Raw, encode_json
from gateway.wire.sse import COMMENT, Splitter, data_of, frame

if TYPE_CHECKING:
    from gateway.journal.events import Events

log = logging.getLogger("headgate.event_streams")
WRITTEN_EVERY_S = 0.25
LOOK_EVERY_S = 0.25
STILL_HERE_AFTER_S = 15.0
MOST_EVENT_BYTES = 64 * 1024 * 1024
OURS = re.compile(r"resp_[0-9a-f]{32}")
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled", "error"})
T = TypeVar("T")


class EventStream(Reply):
    """What a response's stream has told: a reply that nobody need wait for."""

    def __init__(self, response: dict[str, Any]) -> None:
        """`response`: as it begins, which is its first event."""
        super().__init__()
        self.status = 0
        self.body = b""
        """What was answered in place of a stream."""
        self.final: dict[str, Any] | None = None
        """The response as its stream's end tells it."""
        self.events: list[bytes] = []
        self.ended = False
        self._response = response
        self._theirs = ""
        self._splitter = Splitter(MOST_EVENT_BYTES)
        self._changed = asyncio.Event()
        self._tell({"type": "response.created", "response": response})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        await self.begin(status, headers)
        self.body = body

    async def begin(self, status: int, headers: Headers) -> None:
        self.committed, self.status = True, status

    def push(self, data: bytes) -> bool:
        for event in self._splitter.feed(data):
            if (payload := data_of(event)) is not None:
                self._take(payload)
        return True

    async def room(self) -> None:
        pass

    async def end(self, data: bytes = b"") -> None:
        self.push(data)

    def close(self) -> None:
        """No more will come."""
        self.ended = True
        self._changed.set()

    async def changed(self) -> None:
        """Returns when there is more than there was, or nothing more to come."""
        if not self.ended:
            await self._changed.wait()

    async def since(self, place: int) -> AsyncIterator[bytes]:
        """The events from that place on, as they come, until the last."""
        while True:
            if place < len(self.events):
                told = self.events[place:]
                place += len(told)
                yield b"".join(told)
            elif self.ended:
                return
            else:
                await self.changed()

    def _take(self, payload: bytes) -> None:
        event = msgspec.json.decode(payload)
        kind, response = event.get("type", ""), event.get("response")
        if isinstance(response, dict):
            self._theirs = self._theirs or str(response.get("id", ""))
        if kind in ("response.created", "response.queued"):
            return
        if OURS.fullmatch(self._theirs):  # ids of its items tell their response
            ours = self._response["id"].removeprefix("resp_").encode()
            event = msgspec.json.decode(payload.replace(self._theirs.removeprefix("resp_").encode(), ours))
        if isinstance(event.get("response"), dict):
            named = {name: self._response[name] for name in ("id", "created_at", "background")}
            event["response"] |= named
        if kind in _ENDS:
            self.final = event.get("response") or {"status": "failed", "error": event.get("error")}
            return
        self._tell(event)

    def _tell(self, event: dict[str, Any]) -> None:
        self.events.append(numbered(event, len(self.events)))
        self._changed.set()
        self._changed = asyncio.Event()


def numbered(event: dict[str, Any], number: int) -> bytes:
    return frame(encode_json({**event, "sequence_number": number}), event["type"])


def last_event(response: bytes, number: int) -> bytes:
    """That a response has ended, and how. One that was cancelled has failed, says its type: the API has none for it."""
    told = msgspec.json.decode(response, type=Raw)
    status = msgspec.json.decode(told["status"])
    kind = status if status in ("completed", "incomplete") else "failed"
    return numbered({"type": f"response.{kind}", "response": told}, number)


async def with_signs(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same, and comments where nothing comes for long: proxies cut a connection that is silent."""
    coming: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(pieces, None))
            while not (await asyncio.wait({coming}, timeout=STILL_HERE_AFTER_S))[0]:
                yield COMMENT
            if (piece := coming.result()) is None:
                return
            yield piece
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.wait({coming})


class StoredEventStreams:
    """Where streams of the background are kept. One per worker."""

    def __init__(self, journal: Reader, clock: Callable[[], float]) -> None:
        self._journal, self._clock = journal, clock

    async def ask(self, question: Callable[[Events], T]) -> T:
        """Raises HeadgateError 503 where the database is away."""
        from gateway.journal.events import Events

        return await self._journal.ask(lambda: question(Events(self._journal.store.engine)))

    async def write(self, told: EventStream, id: str, tenant: str) -> None:
        """Until no more will come. While the database is away they wait in memory."""
        written = 0
        while True:
            if written == len(told.events):
                await told.changed()
            if not told.ended:
                await asyncio.sleep(WRITTEN_EVERY_S)
            fresh, last = told.events[written:], told.ended
            try:
                if fresh or last:
                    await self._add(id, tenant, written, fresh, last)
                    written += len(fresh)
            except HeadgateError as error:
                if last:
                    log.warning("the stream of the background response %s is not kept: %s", id, error.message)
            if last:
                return

    async def told_elsewhere(
        self, id: str, tenant: str, place: int, stands: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        """The events from that place on, as another worker writes them, until its last or until nobody makes it more.
        `stands`: whether it is still made.
        """
        made = True
        while True:
            found, more = await self._since(id, tenant, place)
            place += len(found)
            if found:
                yield b"".join(found)
            elif not (more and made):
                return
            else:
                made = await stands()
                await asyncio.sleep(LOOK_EVERY_S if made else WRITTEN_EVERY_S)

    async def _since(self, id: str, tenant: str, place: int) -> tuple[list[bytes], bool]:
        return await self.ask(lambda kept: kept.since(id, tenant, place))

    async def _add(self, id: str, tenant: str, place: int, events: list[bytes], last: bool) -> None:
        await self.ask(lambda kept: kept.add(id, tenant, place, events, self._clock(), last=last))
