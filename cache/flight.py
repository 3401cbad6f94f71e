"""Single flight: of many identical requests at once, one asks and the others wait for its answer.

The leader's answer goes to every follower. A leader that fails or is cancelled hands over to one follower, so a failing
upstream gets one request after another and not all at once. A follower waits for a limited time and then asks upstream
by itself. With a lease, the leaders of several replicas agree on one of them; the others look for its entry in the
shared store. Where the lease can't be asked for, nobody waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, Protocol

from cache.entry import Entry

Outcome = Entry | Literal["lead", "alone"]
LookUp = Callable[[], Awaitable[Entry | None]]

_FIRST_LOOK_S = 0.02
_LAST_LOOK_S = 0.2
"""Seconds between two look-ups of another replica's answer: at first, and at most."""


class Lease(Protocol):
    """Decides which of several replicas asks upstream."""

    async def take(self, key: bytes) -> bool:
        """Whether this process may ask upstream; True also where that can't be found out."""
        ...

    async def give_back(self, key: bytes) -> None:
        """Let another replica ask."""
        ...


class Flight:
    """The requests in progress by exact key, in this process or, with a `lease`, in all replicas."""

    def __init__(self, lease: Lease | None = None) -> None:
        self.lease = lease
        self._waiting: dict[bytes, deque[asyncio.Future[Outcome]]] = {}
        self._returns: set[asyncio.Task[None]] = set()

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

    def land(self, key: bytes, outcome: Entry | Literal["alone"]) -> None:
        """Hand every follower `outcome` and end the flight; for tickets."""
        for future in self._waiting.pop(key):
            if not future.done():
                future.set_result(outcome)

    def hand_over(self, key: bytes) -> None:
        """Make one follower the leader, or end the flight when there is none; for tickets."""
        waiting = self._waiting[key]
        while waiting:
            future = waiting.popleft()
            if not future.done():
                future.set_result("lead")
                return
        del self._waiting[key]

    def give_back(self, lease: Lease, key: bytes) -> None:
        """Return a lease without keeping the request waiting for it; for tickets."""
        task = asyncio.ensure_future(lease.give_back(key))
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)


class Ticket:
    """One request's part in a flight.

    Always `await wait(...)` first. `leader` true after it: ask upstream, then `land(entry)`, or `land(None)`
    when the answer is whole but not to be shared. Leaving the `with` block without landing hands the lead to
    one follower.
    """

    __slots__ = ("_flight", "_future", "_key", "_leased", "leader")

    def __init__(self, flight: Flight, key: bytes, future: asyncio.Future[Outcome] | None) -> None:
        self._flight = flight
        self._key = key
        self._future = future
        self._leased = False
        self.leader = future is None

    async def wait(self, timeout_s: float, look_up: LookUp | None = None) -> Entry | None:
        """The entry of whoever leads. None: ask upstream, as the leader (`leader` is true) or alone.

        `look_up` asks the shared store; without it other replicas are not waited for.
        """
        deadline_s = time.monotonic() + timeout_s
        if self._future is not None:
            found = await self._follow(timeout_s)
            if found is not None or not self.leader:
                return found
        lease = self._flight.lease
        if lease is None or look_up is None:
            return None
        found = await self._claim(lease, look_up, deadline_s)
        if found is not None:
            self.land(found)
        return found

    def land(self, entry: Entry | None) -> None:
        """End the flight: every follower gets `entry`, or goes alone when there is none to share."""
        if self.leader:
            self.leader = False
            self._return_lease()
            self._flight.land(self._key, "alone" if entry is None else entry)

    def leave(self) -> None:
        """Give the lead, or the place in the queue, to the others; safe at any time and more than once."""
        future, self._future = self._future, None
        if future is not None and not future.cancel() and not future.cancelled():
            self.leader = future.result() == "lead"
        if self.leader:
            self.leader = False
            self._return_lease()
            self._flight.hand_over(self._key)

    async def _follow(self, timeout_s: float) -> Entry | None:
        future = self._future
        assert future is not None
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

    async def _claim(self, lease: Lease, look_up: LookUp, deadline_s: float) -> Entry | None:
        """Take the lease, or wait for the entry of the replica that has it."""
        pause_s = _FIRST_LOOK_S
        while not await self._take(lease):
            found = await look_up()
            if found is not None:
                return found
            if time.monotonic() + pause_s > deadline_s:
                return None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_LOOK_S)
        return await look_up()  # its last holder may have answered since we looked

    async def _take(self, lease: Lease) -> bool:
        self._leased = True  # a request that is cancelled before it learns of its lease gives it back
        self._leased = await lease.take(self._key)
        return self._leased

    def _return_lease(self) -> None:
        lease = self._flight.lease
        if self._leased and lease is not None:
            self._leased = False
            self._flight.give_back(lease, self._key)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
