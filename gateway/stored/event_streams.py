"""Event streams of background responses, for readers at any worker.

The worker that generates a response keeps its events in memory and writes them to the journal's database a few times a
second. Readers at that worker get them at once; readers at other workers, and later ones, get them from the database.
The last event, which holds the whole response, is made from its stored record, so no reader sees the end before the
response is stored.
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
OWN_RESPONSE_ID = re.compile(r"resp_[0-9a-f]{32}")
"""Ids that the gateway gives to responses; an upstream's look different."""
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled", "error"})
T = TypeVar("T")


class EventStream(Reply):
    """A reply that collects the events of a response's stream, for any number of readers."""

    def __init__(self, response: dict[str, Any]) -> None:
        """`response`: its initial state, which makes the first event."""
        super().__init__()
        self.status = 0
        self.body = b""
        """The answer, if it wasn't a stream (an error)."""
        self.final: dict[str, Any] | None = None
        """The response in the stream's last event; None before it."""
        self.events: list[bytes] = []
        self.ended = False
        self._response = response
        self._upstream_id = ""
        self._splitter = Splitter(MOST_EVENT_BYTES)
        self._changed = asyncio.Event()
        self._append({"type": "response.created", "response": response})

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
        """Note that no more events will come."""
        self.ended = True
        self._changed.set()

    async def changed(self) -> None:
        """Return when there is a new event, or no more will come."""
        if not self.ended:
            await self._changed.wait()

    async def since(self, place: int) -> AsyncIterator[bytes]:
        """The events from number `place` (from 0) on, as they come, until the last."""
        while True:
            if place < len(self.events):
                events = self.events[place:]
                place += len(events)
                yield b"".join(events)
            elif self.ended:
                return
            else:
                await self.changed()

    def _take(self, payload: bytes) -> None:
        """Append an upstream event, under the response's own id. The first and the last event are not appended."""
        event = msgspec.json.decode(payload)
        kind, response = event.get("type", ""), event.get("response")
        if isinstance(response, dict):
            self._upstream_id = self._upstream_id or str(response.get("id", ""))
        if kind in ("response.created", "response.queued"):
            return
        if OWN_RESPONSE_ID.fullmatch(self._upstream_id):  # then the ids of its items contain it too
            own_id = self._response["id"].removeprefix("resp_").encode()
            event = msgspec.json.decode(payload.replace(self._upstream_id.removeprefix("resp_").encode(), own_id))
        if isinstance(event.get("response"), dict):
            event["response"] |= {name: self._response[name] for name in ("id", "created_at", "background")}
        if kind in _ENDS:
            self.final = event.get("response") or {"status": "failed", "error": event.get("error")}
            return
        self._append(event)

    def _append(self, event: dict[str, Any]) -> None:
        self.events.append(numbered(event, len(self.events)))
        self._changed.set()
        self._changed = asyncio.Event()


def numbered(event: dict[str, Any], number: int) -> bytes:
    """The event as it is sent, with its sequence number."""
    return frame(encode_json({**event, "sequence_number": number}), event["type"])


def last_event(response: bytes, number: int) -> bytes:
    """The event that ends a response's stream. For a cancelled one it is "response.failed": the API has none for it."""
    fields = msgspec.json.decode(response, type=Raw)
    status = msgspec.json.decode(fields["status"])
    kind = status if status in ("completed", "incomplete") else "failed"
    return numbered({"type": f"response.{kind}", "response": fields}, number)


async def with_keepalives(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces, and comments while none comes for long, because proxies cut silent connections."""
    upcoming: asyncio.Future[bytes | None] | None = None
    try:
        while True:
            upcoming = asyncio.ensure_future(anext(pieces, None))
            while not (await asyncio.wait({upcoming}, timeout=STILL_HERE_AFTER_S))[0]:
                yield COMMENT
            if (piece := upcoming.result()) is None:
                return
            yield piece
    finally:
        if upcoming is not None and not upcoming.done():
            upcoming.cancel()
            await asyncio.wait({upcoming})


class StoredEventStreams:
    """Stores event streams in the journal's database and reads them. There is one per worker."""

    def __init__(self, journal: Reader, clock: Callable[[], float]) -> None:
        self._journal, self._clock = journal, clock

    async def ask(self, question: Callable[[Events], T]) -> T:
        """Ask the stored events. Raises HeadgateError 503 while the database is away."""
        from gateway.journal.events import Events

        return await self._journal.ask(lambda: question(Events(self._journal.store.engine)))

    async def write(self, stream: EventStream, id: str, tenant: str) -> None:
        """Store the stream's events until no more will come. They wait in memory while the database is away."""
        written = 0
        while True:
            if written == len(stream.events):
                await stream.changed()
            if not stream.ended:
                await asyncio.sleep(WRITTEN_EVERY_S)
            fresh, last = stream.events[written:], stream.ended
            try:
                if fresh or last:
                    await self._add(id, tenant, written, fresh, last)
                    written += len(fresh)
            except HeadgateError as error:
                if last:
                    log.warning("the stream of the background response %s is not stored: %s", id, error.message)
            if last:
                return

    async def events_elsewhere(
        self, id: str, tenant: str, place: int, is_under_way: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        """The events from number `place` on, as another worker stores them, until the last or until the response is no
        longer generated, which `is_under_way` tells.
        """
        running = True
        while True:
            events, more = await self._since(id, tenant, place)
            place += len(events)
            if events:
                yield b"".join(events)
            elif not (more and running):
                return
            else:
                running = await is_under_way()
                await asyncio.sleep(LOOK_EVERY_S if running else WRITTEN_EVERY_S)

    async def _since(self, id: str, tenant: str, place: int) -> tuple[list[bytes], bool]:
        return await self.ask(lambda stored: stored.since(id, tenant, place))

    async def _add(self, id: str, tenant: str, place: int, events: list[bytes], last: bool) -> None:
        await self.ask(lambda stored: stored.add(id, tenant, place, events, self._clock(), last=last))
