"""Single flight: of many identical requests at once, one asks and the others wait for its answer.

The leader's answer goes to every follower. A leader that fails or is cancelled hands over to one follower, so
an upstream in trouble meets one caller after another and not a herd. Nobody waits for ever: a follower whose
patience ends goes alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import Literal

from cache.entry import Entry

Outcome = Entry | Literal["lead", "alone"]


class Flight:
    """The requests under way in this process, by exact key."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, deque[asyncio.Future[Outcome]]] = {}

    def join(self, key: bytes) -> Ticket:
        """Join the request under way for `key`, or lead a new one. Use the ticket as a context manager."""
        waiting = self._waiting.get(key)
        if waiting is None:
            self._waiting[key] = deque()
            return Ticket(self, key, None)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        waiting.append(future)
        return Ticket(self, key, future)

    def __len__(self) -> int:
        return len(self._waiting)

    def _land(self, key: bytes, outcome: Entry | Literal["alone"]) -> None:
        for future in self._waiting.pop(key):
            if not future.done():
                future.set_result(outcome)

    def _hand_over(self, key: bytes) -> None:
        waiting = self._waiting[key]
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result("lead")
                return
        del self._waiting[key]


class Ticket:
    """One request's part in a flight.

    `leader` true: ask upstream, then `land(entry)`, or `land(None)` when the answer is whole but not to be
    shared. Leaving the `with` block without landing hands the lead to one follower.
    """

    __slots__ = ("_flight", "_future", "_key", "leader")

    def __init__(self, flight: Flight, key: bytes, future: asyncio.Future[Outcome] | None) -> None:
        self._flight = flight
        self._key = key
        self._future = future
        self.leader = future is None

    async def wait(self, timeout_s: float) -> Entry | None:
        """The leader's entry. None: ask upstream, as the new leader (`leader` turned true) or alone."""
        future = self._future
        if future is None:
            return None
        if not future.done():
            await asyncio.wait((future,), timeout=timeout_s)
        if not future.done():
            future.cancel()
            return None
        self._future = None
        outcome = future.result()
        if isinstance(outcome, Entry):
            return outcome
        self.leader = outcome == "lead"
        return None

    def land(self, entry: Entry | None) -> None:
        """End the flight: every follower gets `entry`, or goes alone when there is none to share."""
        if self.leader:
            self.leader = False
            self._flight._land(self._key, "alone" if entry is None else entry)

    def leave(self) -> None:
        """Give the lead, or the place in the queue, to the others; safe at any time and more than once."""
        future, self._future = self._future, None
        if future is not None and not future.cancel() and not future.cancelled():
            self.leader = future.result() == "lead"
        if self.leader:
            self.leader = False
            self._flight._hand_over(self._key)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
