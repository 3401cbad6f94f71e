"""Keep-alive connections to one endpoint: at most N, the last used is used first, further requests wait in line.

A connection holds a slot from before it is opened until after its socket is closed, and `gone` frees it exactly once.
Timeouts cost nothing per request: each connection carries a deadline, and one timer per pool fires at the earliest.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import NamedTuple

from gateway.errors import UpstreamError
from gateway.serve.listen import OUT_OF_FILES, are_files_left
from gateway.upstream.connection import WRITE_SLICE_BYTES, Connection, Response, Stale
from gateway.upstream.endpoint import Endpoint
from gateway.upstream.lookup import Name
from gateway.upstream.reach import refusal

_now = time.monotonic


class PoolStats(NamedTuple):
    open: int
    """Connections that exist, including those being opened."""
    idle: int
    in_use: int
    waiting: int
    """Requests in line for a connection."""
    connects: int
    """Connections opened since the start."""


class Pool:
    def __init__(
        self, endpoint: Endpoint, *, max_connections: int, connect_timeout_s: float, idle_s: float = 55.0
    ) -> None:
        self.endpoint = endpoint
        self.max_connections = max_connections
        self.connect_timeout_s = connect_timeout_s
        self.idle_s = idle_s
        self.connects = 0
        self.checks_at = math.inf
        """Monotonic time in seconds at which the timer fires next."""
        self._name = Name(endpoint.host)
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self._open = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._emptied: asyncio.Future[None] | None = None

    @property
    def stats(self) -> PoolStats:
        return PoolStats(self._open, len(self._idle), len(self._busy), len(self._waiting), self.connects)

    @property
    def in_use(self) -> int:
        return len(self._busy)

    async def send(self, head: bytes, body: bytes, *, timeout_s: float) -> Response:
        """Write a request and return its answer once the answer's status and headers have come.

        `head` is whole header lines; the content length and the empty line are added here. Raises UpstreamError:
        `connect`, `timeout`, `reset` or `bad_response`. A request on a kept-alive connection that closed before the
        first byte of an answer is sent once more.
        """
        deadline = _now() + timeout_s
        head = b"%bcontent-length: %d\r\n\r\n" % (head, len(body))
        try:
            return await self._exchange(self._pop_idle(), head, body, deadline)
        except Stale as stale:
            stale.__traceback__ = None  # its frames hold the connection, and that holds it
        try:
            return await self._exchange(await self._acquire(deadline, first=True), head, body, deadline)
        except Stale:
            raise UpstreamError("reset", f"{self.endpoint} closed the connection twice before it answered") from None

    async def aclose(self) -> None:
        """Abort everything and wait until every socket is closed."""
        self._closing = True
        self._stop_timer()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(self._closed_error())
        for connection in [*self._idle, *self._busy]:
            response = connection.response
            connection.drop()
            if response is not None:
                response.fail(self._closed_error())
        if self._open:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    def connect_error(self, error: Exception) -> UpstreamError:
        """The error to raise where no connection could be opened. Without a free file descriptor it is `out_of_files`,
        which isn't the upstream's fault, and else `connect`.
        """
        if isinstance(error, OSError) and (error.errno in OUT_OF_FILES or not are_files_left()):
            message = f"no file descriptor is left for a connection to {self.endpoint}"
            return UpstreamError("out_of_files", message, status=503, retry_after_s=1.0)
        return UpstreamError("connect", f"no connection to {self.endpoint}: {error}")

    # ---- an exchange

    async def _exchange(
        self, connection: Connection | None, head: bytes, body: bytes, deadline: float
    ) -> Response:
        if connection is None:
            connection = await self._acquire(deadline)
        if len(body) <= WRITE_SLICE_BYTES:
            response = connection.begin(head, body)
        else:
            response = await connection.begin_large(head, body, deadline)
        while not response.status:
            if response.error is not None:
                raise response.error
            await response.wait(deadline)
        return response

    def _pop_idle(self) -> Connection | None:
        idle = self._idle
        while idle:
            connection = idle.pop()
            if connection.is_usable():
                self._busy.add(connection)
                return connection
        return None

    async def _acquire(self, deadline: float, *, first: bool = False) -> Connection:
        """A connection for one request: a new one while there is a free slot, else the next that is released. `first`:
        wait at the head of the line.
        """
        while True:
            if self._closing:
                raise self._closed_error()
            if self._open < self.max_connections:
                self._open += 1
                return await self._dial(deadline)
            connection = await self._queue(deadline, first=first)
            if connection is None:  # a slot, which stays counted in `_open`
                return await self._dial(deadline)
            if connection.is_usable():
                return connection

    async def _queue(self, deadline: float, *, first: bool) -> Connection | None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Connection | None] = loop.create_future()
        if first:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        timer = loop.call_later(max(0.0, deadline - _now()), self._give_up, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            self._hand_back(waiter)
            raise
        finally:
            timer.cancel()

    def _give_up(self, waiter: asyncio.Future[Connection | None]) -> None:
        if not waiter.done():
            self._waiting.remove(waiter)
            message = f"all {self.max_connections} connections to {self.endpoint} stayed busy"
            waiter.set_exception(UpstreamError("timeout", message, status=504))

    def _hand_back(self, waiter: asyncio.Future[Connection | None]) -> None:
        """A request stopped waiting: a connection or slot that it was already given goes to the next."""
        if waiter.cancelled():
            if waiter in self._waiting:
                self._waiting.remove(waiter)
        elif waiter.exception() is None:
            connection = waiter.result()
            if connection is None:
                self._free_slot()
            elif connection.is_usable():  # one that isn't frees its slot when its socket is closed
                self.returns(connection)

    async def _dial(self, deadline: float) -> Connection:
        """Open a connection; its slot is already counted in `_open`."""
        loop = asyncio.get_running_loop()
        connection = Connection(self, loop)
        try:
            async with asyncio.timeout(min(self.connect_timeout_s, deadline - _now())):
                await self._connect(connection, loop)
        except TimeoutError:
            self._abandon(connection)
            why = "was not found by a nameserver" if self._name.is_running else "did not accept a connection"
            raise UpstreamError("connect", f"{self.endpoint} {why} in time") from None
        except (OSError, ValueError) as error:  # TLS and resolver errors are OSErrors too
            self._abandon(connection)
            raise self.connect_error(error) from error
        except BaseException:
            self._abandon(connection)
            raise
        if self._closing:
            connection.drop()
            raise self._closed_error()
        self.connects += 1
        self._busy.add(connection)
        return connection

    async def _connect(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        endpoint = self.endpoint
        if endpoint.uds:
            await loop.create_unix_connection(lambda: connection, endpoint.uds)
        else:
            transport, _ = await self._name.connect(lambda: connection, endpoint.port, endpoint.tls)
            self._check_peer(transport)

    def _check_peer(self, transport: asyncio.BaseTransport) -> None:
        """Refuse an address that `reach` does not allow, before a byte of a request leaves. Raises OSError."""
        why = refusal(transport.get_extra_info("peername")[0], inner=self.endpoint.inner)
        if why:
            transport.close()
            raise OSError(why)

    def _abandon(self, connection: Connection) -> None:
        connection.drop()
        self.gone(connection)

    # ---- called by connections

    def returns(self, connection: Connection) -> None:
        """`connection` is free: it goes to the first request in line, or becomes idle."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._busy.add(connection)
                waiter.set_result(connection)
                return
        self._busy.discard(connection)
        connection.idle_since = now = _now()
        self._idle.append(connection)
        if now + self.idle_s < self.checks_at:
            self.check_by(now + self.idle_s)

    def leaves(self, connection: Connection) -> None:
        """`connection` will not be used again."""
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def gone(self, connection: Connection) -> None:
        """The socket of `connection` is closed: free its slot. A second call does nothing."""
        if connection.holds_slot:
            connection.holds_slot = False
            self._free_slot()

    def _free_slot(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._open -= 1
        if self._open == 0 and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    # ---- time

    def check_by(self, deadline: float) -> None:
        """Make the timer fire no later than `deadline`, in monotonic seconds."""
        if self._closing:
            return
        self._stop_timer()
        self.checks_at = deadline
        delay_s = max(0.001, deadline - _now())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._check)

    def _check(self) -> None:
        self.checks_at = math.inf
        self._timer = None
        now = _now()
        for connection in [c for c in self._busy if c.deadline <= now and _is_awaited(c)]:
            connection.expire()
        while self._idle and self._idle[0].idle_since + self.idle_s <= now:
            self._idle.popleft().close()
        next_check = min((c.deadline for c in self._busy if _is_awaited(c)), default=math.inf)
        if self._idle:
            next_check = min(next_check, self._idle[0].idle_since + self.idle_s)
        if next_check < math.inf:
            self.check_by(next_check)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.checks_at = math.inf

    def _closed_error(self) -> UpstreamError:
        return UpstreamError("connect", f"the pool to {self.endpoint} is closed")


def _is_awaited(connection: Connection) -> bool:
    """Whether a reader waits for the upstream: only then its deadline counts, since a slow reader isn't its fault."""
    return connection.response is not None and connection.response.is_awaited
