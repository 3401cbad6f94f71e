"""Connections of clients: uvicorn's HTTP protocol with a fast path for requests to models.

On the fast path a POST to one of the surfaces costs one task and one write, without ASGI messages, and a client's
disconnect is a callback instead of a waiting task. Anything unusual (another path, HTTP/1.0, a pipelined request, a
request from a web page) reaches the same application through uvicorn's ASGI cycle.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.call import SURFACES
from gateway.errors import HeadgateError, TooLarge
from gateway.reply import Headers, Reply

FRONT = "headgate.front"
"""Key of the connection in the ASGI scope of a request outside the fast path."""
FAST_PATHS = {path.encode(): surface for path, surface in SURFACES.items()}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
MAX_HEAD_BYTES = 64 * 1024
"""Greatest size of request line and headers, or of trailers; more is answered 431."""
NO_HTTP = "Invalid HTTP request received."
HEAD_TIMEOUT_S = 30.0
"""A connection is closed after this time in which its request's head stays incomplete or no byte of its body arrives.
It is checked at this interval, so closing may take up to twice as long.
"""

log = logging.getLogger("headgate.http_protocol")


class Application(Protocol):
    """What the fast path needs of gateway/asgi.py's `App`."""

    draining: bool
    """True if each connection is to be closed after the answer under way."""
    for_pages: object
    """None if no web page may send requests (no CORS)."""

    @property
    def max_body_bytes(self) -> int: ...

    async def infer(
        self, surface: str, body: bytes | HeadgateError, reply: Reply, headers: dict[bytes, bytes], host: str
    ) -> None:
        """Answer a request. `body`: the error if it was refused unread."""
        ...


class HttpProtocol(HttpToolsProtocol):
    """A client's connection, whose requests are answered one after the other."""

    fast_paths: ClassVar[Mapping[bytes, str]] = FAST_PATHS
    _fast: FastPath | None = None
    """The request being read, if it is on the fast path."""
    _watched: Reply | None = None
    """The reply to tell of a disconnect."""
    _unread_bytes = 0
    """Bytes received since the last request was read whole."""
    _head_from: float = 0
    """Value of `_unread_bytes` where the headers (or trailers) being read began; infinite while none are read."""
    _timer: asyncio.TimerHandle | None = None
    _too_large = False
    _idle_from_s = math.inf
    """When the last answer ended, by the loop's clock; infinite while there is a request."""

    # ---- limits of size and time

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.application = cast(Application, self.app)
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._check_progress, None)

    def data_received(self, data: bytes) -> None:
        self._unread_bytes += len(data)
        self._idle_from_s = math.inf
        while data:
            try:
                self.parser.feed_data(data)
                data = b""
            except HttpParserUpgrade as upgrade:
                data = self._ignore_upgrade(data[upgrade.args[0] :])
            except HttpParserError:
                self._refuse_malformed()
                data = b""
        if self._unread_bytes - self._head_from > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()

    def _check_progress(self, before: int | None) -> None:
        """Close a connection whose head never began or was incomplete at two checks, or whose body stands still.

        `before`: progress at the last check, None if no request was being read: the bytes received of a body, and 0 for
        a head however much of it arrived.
        """
        progress: int | None = None
        if not self._is_answering and not self.pipeline and (self._unread_bytes or self.cycle is None):
            progress = self._unread_bytes if self._head_from else 0
        if progress is not None and (progress == before or self.cycle is None):
            self.transport.close()
        elif not self.transport.is_closing():
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._check_progress, progress)

    @property
    def _is_answering(self) -> bool:
        """True if a request was read whole and not answered yet: bytes that arrive now belong to the next one."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _refuse_malformed(self) -> None:
        if self._is_answering:
            self.cycle.keep_alive = False  # the connection ends after that answer
        else:
            log.warning(NO_HTTP)
            self.send_400_response(NO_HTTP)

    def _refuse_head(self) -> None:
        if self._is_answering:
            self.transport.close()
            return
        body = b'{"error":{"message":"the headers are over %d bytes","type":"invalid_request_error",' % MAX_HEAD_BYTES
        body += b'"param":null,"code":"headers_too_large"}}'
        head = STATUS_LINE[431] + b"content-type: application/json\r\nconnection: close\r\n"
        self.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        if self._too_large:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    # ---- callbacks of the parser

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self._fast = None
            if self.parser.get_method() == b"CONNECT":
                raise ValueError("CONNECT is not supported: this is no proxy")
            return
        self._head_from = math.inf
        if self._unread_bytes > MAX_HEAD_BYTES and _head_bytes(self.headers) + len(self.url) > MAX_HEAD_BYTES:
            self._too_large = True
            raise ValueError("the headers are too large")
        surface = self.fast_paths.get(self.url)
        if surface is None or not self._is_free() or not self._is_plain_post() or self._is_from_page():
            self._leave_to_uvicorn()
            return
        keep_alive = self.parser.should_keep_alive() and not self.application.draining
        fast = FastPath(self, surface, keep_alive=keep_alive)
        self._fast = fast
        self.cycle = cast(RequestResponseCycle, fast)  # it has what uvicorn's protocol reads of a cycle
        fast.check_length()
        if self.expect_100_continue and not fast.task:
            self.transport.write(CONTINUE)

    def on_chunk_header(self) -> None:
        self._head_from = self._unread_bytes

    def on_body(self, body: bytes) -> None:
        self._head_from = math.inf
        if self._fast is not None:
            self._fast.received(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._head_from = self._unread_bytes = 0
        if self._fast is not None:
            self._fast.start()
        elif not self.parser.should_upgrade():
            super().on_message_complete()

    def _is_free(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _is_plain_post(self) -> bool:
        parser = self.parser
        is_plain: bool = parser.get_method() == b"POST" and parser.get_http_version() == "1.1"
        return is_plain

    def _is_from_page(self) -> bool:
        pages = self.application.for_pages
        return pages is not None and any(name == b"origin" for name, _ in self.headers)

    def _ignore_upgrade(self, rest: bytes) -> bytes:
        """Ignore a request to upgrade the protocol (RFC 9110, 7.8), which Java's client sends first. Returns the bytes
        for a new parser: the head without the upgrade, then the `rest`, which the old parser took for the new protocol.
        """
        parser, headers = self.parser, [header for header in self.headers if header[0] != b"upgrade"]
        line = b"%b %b HTTP/%b\r\n" % (parser.get_method(), self.url, parser.get_http_version().encode())
        self.parser = HttpRequestParser(self)
        return b"%b%b\r\n%b" % (line, b"".join(b"%b: %b\r\n" % header for header in headers), rest)

    def _leave_to_uvicorn(self) -> None:
        """Do what uvicorn's `on_message_begin` would have done, then let it handle the request."""
        self._fast = None
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        is_old = self.parser.get_http_version() == "1.0"
        super().on_message_begin()
        self.url, self.headers, self.expect_100_continue = url, headers, expects and not is_old
        self.scope["headers"] = headers.copy()  # the parser appends trailers to `headers`
        self.scope[FRONT] = self  # type: ignore[literal-required]
        super().on_headers_complete()
        if is_old:
            self.cycle.send = partial(_send_unchunked, self.cycle)  # type: ignore[method-assign]

    # ---- between two requests

    def on_response_complete(self) -> None:
        """As uvicorn's, except that the timer that closes an idle connection runs on from one answer to the next, since
        to set and cancel it for each takes microseconds.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_from_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._close_idle_in(self.timeout_keep_alive)

    def _close_idle_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for the whole time; look again when it will have been."""
        self.timeout_keep_alive_task = None
        left_s = self._idle_from_s + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0:
            super().timeout_keep_alive_handler()
        elif left_s < math.inf:  # else the end of the answer sets the timer
            self._close_idle_in(left_s)

    # ---- disconnects

    def watch(self, reply: Reply) -> None:
        """Tell `reply` when the client disconnects. To notice that, the socket must be read."""
        self._watched = reply
        if not self.pipeline:
            self.flow.resume_reading()

    def unwatch(self) -> None:
        self._watched = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        watched, self._watched = self._watched, None
        if watched is not None:
            watched.leave()


class PlainHttpProtocol(HttpProtocol):
    """The admin port's protocol: the same limits and deadlines, without the fast path."""

    fast_paths: ClassVar[Mapping[bytes, str]] = {}


async def _send_unchunked(cycle: RequestResponseCycle, message: ASGISendEvent) -> None:
    """Send without chunks, which HTTP/1.0 lacks: a body without a stated length ends with the connection."""
    if message["type"] == "http.response.start":
        cycle.chunked_encoding = False
    elif message["type"] == "http.response.body":
        cycle.expected_content_length = len(message.get("body", b""))
    await RequestResponseCycle.send(cycle, message)


def _head_bytes(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) for name, value in headers)


class FastPath(Reply):
    """One request on the fast path, and its reply."""

    __slots__ = (
        "_chunks", "_front", "_headers", "_size", "_start", "_surface", "disconnected", "keep_alive",
        "response_complete",
    )  # fmt: skip

    def __init__(self, front: HttpProtocol, surface: str, *, keep_alive: bool) -> None:
        super().__init__()
        self._front = front
        self._surface = surface
        self._headers = dict(front.headers)
        self._chunks: list[bytes] = []
        self._size = 0
        self._start = b""
        """The head of a stream that has begun, until it is sent with the first bytes."""
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False

    @property
    def more_body(self) -> bool:
        """Part of uvicorn's cycle: True until the request has been read whole."""
        return self.task is None

    @property
    def message_event(self) -> FastPath:
        """Part of uvicorn's cycle: the event that it sets when a message arrives. Nothing here waits for one."""
        return self

    def set(self) -> None:
        pass

    # ---- the request

    def check_length(self) -> None:
        """Refuse at once a body whose stated length is too large."""
        stated = self._headers.get(b"content-length", b"")
        if stated.isdigit() and int(stated) > self._front.application.max_body_bytes:
            self._refuse_body()

    def received(self, body: bytes) -> None:
        """Take a part of the body. A body that becomes too large is refused."""
        self._size += len(body)
        if self.task is None:
            self._chunks.append(body)
            if self._size > self._front.application.max_body_bytes:
                self._refuse_body()

    def start(self) -> None:
        """Answer the request, which has been read whole."""
        if self.task is None:
            chunks = self._chunks
            self._begin(chunks[0] if len(chunks) == 1 else b"".join(chunks))

    def _refuse_body(self) -> None:
        self._begin(TooLarge(f"the request body is over {self._front.application.max_body_bytes} bytes"))

    def _begin(self, body: bytes | HeadgateError) -> None:
        front, self._chunks = self._front, []
        host = front.client[0] if front.client else ""
        answering = front.application.infer(self._surface, body, self, self._headers, host)
        self.task = task = front.loop.create_task(answering)
        front.watch(self)
        front.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._front.tasks.discard(task)
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            log.error("an answer broke off", exc_info=fault)
        if not self.response_complete and not self.disconnected:
            self._front.transport.close()

    def leave(self) -> None:
        self.disconnected = True
        super().leave()

    # ---- the answer

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.committed = True
        if self._flow.write_paused:
            await self._flow.drain()
        if not self.disconnected:
            head = self._head(status, headers)
            self._front.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
            self._complete()

    async def begin(self, status: int, headers: Headers) -> None:
        self.committed = True
        self._start = self._head(status, headers) + b"transfer-encoding: chunked\r\n\r\n"

    def push(self, data: bytes) -> bool:
        if data and not self.disconnected:
            start, self._start = self._start, b""
            self._front.transport.write(b"%b%x\r\n%b\r\n" % (start, len(data), data))
        return not self._front.flow.write_paused

    def sign(self, data: bytes) -> None:
        if not self._flow.write_paused:
            self.push(data)

    async def room(self) -> None:
        if self._start and not self.disconnected:
            start, self._start = self._start, b""
            self._front.transport.write(start)
        if self._flow.write_paused:
            await self._flow.drain()

    async def end(self, data: bytes = b"") -> None:
        if self._flow.write_paused:
            await self._flow.drain()
        if not self.disconnected:
            last = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
            self._front.transport.write(self._start + last)
            self._complete()

    @property
    def _flow(self) -> FlowControl:
        return self._front.flow

    def _head(self, status: int, headers: Headers) -> bytes:
        """Status line and headers. Values are not escaped here: they come from the gateway, not from a request."""
        if not self.keep_alive:
            headers = [*headers, (b"connection", b"close")]
        return b"%b%b\r\n" % (STATUS_LINE[status], b"\r\n".join(map(b": ".join, headers)))

    def _complete(self) -> None:
        self.response_complete = True
        self._front.unwatch()
        if not self.keep_alive:
            self._front.transport.close()
        self._front.on_response_complete()
