"""One connection to an upstream, and the response that is being read from it.

A `Connection` serves one exchange at a time and returns to its pool when the message has ended, which may be before
its reader has taken the last bytes. A `Response` outlives that, since it holds what was received. So a late `cancel()`
can never affect the connection's next exchange.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from gateway.errors import UpstreamError

if TYPE_CHECKING:
    from gateway.upstream.pool import Pool

MAX_HEAD_BYTES = 64 * 1024
"""Most bytes of the status line and headers of one answer, including informational (1xx) answers before it."""
HIGH_WATER_BYTES = 256 * 1024
"""Unread bytes of one answer above which reading from the socket is paused."""
WRITE_SLICE_BYTES = 128 * 1024
"""Larger request bodies are written in slices of this size, each once the transport has room."""

_now = time.monotonic


class Stale(Exception):
    """A kept-alive connection closed before a byte of the answer came: the request may be sent again."""


class Response:
    """An answer whose head has come. Exactly one of `read`, `chunk` or `pour` to the end, or `cancel`, must follow."""

    __slots__ = ("_complete", "_connection", "_error", "_take_part", "_waiter", "headers", "parts", "status",
                 "unread", "whole_limit")  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self._connection: Connection | None = connection
        self.parts: list[bytes] = []
        self.unread = 0
        """Bytes of the body that were received and not yet read."""
        self._complete = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._take_part: Callable[[bytes], bool] | None = None
        """Takes body bytes as they are received, while `pour` waits; None: they are kept in `parts`."""
        self.whole_limit = 0
        """Most bytes of a body that is read whole; 0: it is read in parts."""

    async def read(self, limit: int, *, timeout_s: float = 600.0) -> bytes:
        """The whole body. Raises UpstreamError where it is over `limit` bytes or doesn't end within `timeout_s`."""
        if not self._complete and self._error is None:
            await self._receive_all(limit, _now() + timeout_s)
        elif self._error is None and self.unread > limit:
            raise _too_long(limit)
        if self._error is not None:
            raise self._error
        return self._take()

    async def chunk(self, stall_s: float) -> bytes:
        """The next bytes of the body, which must come within `stall_s` seconds; b"" once the message is complete."""
        if not self.parts and not self._complete and self._error is None:
            deadline = _now() + stall_s
            while not self.parts and not self._complete and self._error is None:
                await self.wait(deadline)
        if self.parts:
            return self._take()
        if self._error is not None:
            raise self._error
        return b""

    async def pour(self, take: Callable[[bytes], bool], stall_s: float) -> bool:
        """Call `take` with each part of the body straight from the socket, without waking this task in between.

        True: the message is complete. False: `take` returned false, and wants no more for now. The next part must
        come within `stall_s` seconds, and later ones by what was last given to `grant`.
        """
        deadline = _now() + stall_s
        while True:
            if self.parts:
                if not take(self._take()):
                    return False
            elif self._error is not None:
                raise self._error
            elif self._complete:
                return True
            else:
                self._take_part = take
                await self.wait(deadline)
                has_enough, self._take_part = self._take_part is None, None
                if has_enough:
                    return False

    def grant(self, deadline: float) -> None:
        """Replace the monotonic time by which the next part must come."""
        if self._connection is not None:
            self._connection.watch(deadline)

    def cancel(self) -> None:
        """Give up the answer; a connection that still carries it is aborted."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self.fail(UpstreamError("cancelled", "the exchange was given up"))
            connection.drop()

    async def wait(self, deadline: float) -> None:
        """Wait until something happens to this exchange; at `deadline` (monotonic time) the pool's timer fails it."""
        connection = self._connection
        assert connection is not None
        waiter = connection.loop.create_future()
        self._waiter = waiter
        connection.watch(deadline)
        try:
            await waiter
        except asyncio.CancelledError:
            self.cancel()
            raise

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def fail(self, error: Exception) -> None:
        """End this answer with `error`; what was received before it can still be read."""
        if not self._complete and self._error is None:
            self._error = error
        self.wake()

    async def _receive_all(self, limit: int, deadline: float) -> None:
        if int(self.headers.get(b"content-length", b"0")) > limit or self.unread > limit:
            self.cancel()
            raise _too_long(limit)
        self.whole_limit = limit
        if self._connection is not None:
            self._connection.resume()
        while not self._complete and self._error is None:
            await self.wait(deadline)

    def _take(self) -> bytes:
        parts = self.parts
        taken = parts[0] if len(parts) == 1 else b"".join(parts)
        self.parts = []
        self.unread = 0
        if self._connection is not None and self._connection.paused:
            self._connection.resume()
        return taken

    def end(self) -> None:
        self._complete = True
        self._connection = None
        self.wake()

    def deliver(self) -> None:
        """Hand what was received to the waiting reader."""
        if self._waiter is None:
            return
        take = self._take_part
        if take is not None and self.parts:
            if take(self._take()):
                return
            self._take_part = None
        self.wake()

    @property
    def is_awaited(self) -> bool:
        return self._waiter is not None

    @property
    def error(self) -> Exception | None:
        return self._error


class Connection(asyncio.Protocol):
    """The asyncio protocol, and the callbacks (`on_...`) of its parser. Holds a slot of its pool until it is closed."""

    __slots__ = ("_body_until_eof", "_ended", "_head_bytes", "_headers", "_interim", "_keep_alive", "_parser",
                 "_transport", "_unsent", "_write_paused", "deadline", "holds_slot", "idle_since", "loop", "paused",
                 "pool", "response", "served")  # fmt: skip

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self.pool = pool
        self.loop = loop
        self.response: Response | None = None
        self.holds_slot = True
        self.served = 0
        self.deadline = 0.0
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._write_paused = False
        self._reset()

    def _reset(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._ended = False
        self._keep_alive = False
        self._interim = False
        self._body_until_eof = False
        self._unsent = False
        self.paused = False

    # ---- the pool's side

    def is_usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, head: bytes, body: bytes) -> Response:
        """Write a request whose body fits one slice."""
        response = self.response = Response(self)
        self._reset()
        assert self._transport is not None
        self._transport.write(head + body)
        return response

    async def begin_large(self, head: bytes, body: bytes, deadline: float) -> Response:
        """Write a large request no faster than the upstream reads it; the answer may begin before it is all written."""
        response = self.response = Response(self)
        self._reset()
        self._unsent = True
        assert self._transport is not None
        self._transport.write(head)
        view = memoryview(body)
        for start in range(0, len(view), WRITE_SLICE_BYTES):
            while self._write_paused and self.response is response and not response.status:
                await response.wait(deadline)
            if self.response is not response or response.status:
                return response
            self._transport.write(view[start : start + WRITE_SLICE_BYTES])
        self._unsent = False
        return response

    def watch(self, deadline: float) -> None:
        self.deadline = deadline
        if deadline < self.pool.checks_at:
            self.pool.check_by(deadline)

    def expire(self) -> None:
        """The deadline of the current exchange has passed: fail it."""
        response = self.response
        if response is None:
            return
        if response.status and not response.whole_limit:
            self._break("stream_stalled", "the upstream stopped sending in the middle of its answer")
        else:
            action = "finish its answer" if response.status else "answer"
            self._break("timeout", f"the upstream did not {action} in time", status=504)

    def drop(self) -> None:
        """Abort at once; nothing more is read or sent."""
        self.response = None
        self.pool.leaves(self)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            if self.is_usable():
                cast(asyncio.Transport, self._transport).resume_reading()

    # ---- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        response = self.response
        if response is None or self._parser is None:
            self.drop()
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self._ended:
                cause = error.__context__ or error
                self._break("bad_response", f"the upstream's answer can't be used: {cause}")
                return
            self._keep_alive = False
        if self._ended:
            self._end(response)
        elif not response.status:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._break("bad_response", f"the upstream's headers are over {MAX_HEAD_BYTES} bytes")
        elif response.whole_limit:  # its reader is woken at the end
            if response.unread > response.whole_limit:
                self._break("bad_response", "the upstream's answer is longer than allowed")
        else:
            if response.unread > HIGH_WATER_BYTES:
                self._pause()
            try:
                response.deliver()
            except Exception as error:  # raised by `take` of `pour`: it is raised again in the reader's task
                self.drop()
                response.fail(error)

    def connection_lost(self, exc: Exception | None) -> None:
        response, self.response = self.response, None
        self._parser = None
        if response is not None:
            if response.status and self._body_until_eof and exc is None:
                response.end()
            elif self.served and not self._head_bytes:
                response.fail(Stale())
            else:
                response.fail(UpstreamError("reset", "the upstream closed the connection inside its answer"))
        self.pool.leaves(self)
        self.pool.gone(self)

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        if self._unsent and self.response is not None:
            self.response.wake()

    # ---- the parser's side

    def on_message_begin(self) -> None:
        if self._ended:  # bytes behind the answer: this connection can't be trusted with another exchange
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        parser, response = self._parser, self.response
        if self._ended or parser is None or response is None:
            return
        status = cast(int, parser.get_status_code())
        if status < 200:
            self._interim = True
            return
        headers = self._headers
        if b"transfer-encoding" in headers:
            if headers[b"transfer-encoding"].lower() != b"chunked":
                raise ValueError("its transfer encoding is not chunked")
        elif b"content-length" not in headers and status not in (204, 304):
            self._body_until_eof = True
        if headers.get(b"content-encoding", b"").lower() not in (b"", b"identity"):
            raise ValueError("it is compressed, which was not asked for")
        response.headers = headers
        response.status = status

    def on_body(self, body: bytes) -> None:
        response = self.response
        if response is not None and not self._ended:
            response.parts.append(body)
            response.unread += len(body)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            self._headers = {}
        elif not self._ended and self._parser is not None:
            self._ended = True
            # Read here because the parser forgets it when this callback has returned.
            self._keep_alive = self._parser.should_keep_alive() and not self._unsent

    # ---- ends

    def _end(self, response: Response) -> None:
        self.response = None
        self.served += 1
        if self._keep_alive:
            self.resume()
            self.pool.returns(self)
        else:
            self.pool.leaves(self)
            if self._transport is not None:
                self._transport.abort()
        response.end()

    def _break(self, failure: str, message: str, *, status: int = 502) -> None:
        response = self.response
        self.drop()
        if response is not None:
            response.fail(UpstreamError(failure, message, status=status))

    def _pause(self) -> None:
        if not self.paused and self.is_usable():
            self.paused = True
            cast(asyncio.Transport, self._transport).pause_reading()


def _too_long(limit: int) -> UpstreamError:
    return UpstreamError("bad_response", f"the upstream's answer is longer than {limit} bytes")
