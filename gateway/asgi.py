"""The data plane's ASGI application: passes each request to the request path or to its handler, and nothing else.

The path of a request to a model is found by one dictionary look-up. There is no web framework here: its routing and
validation would cost more than all of the gateway's own work.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote

from gateway.answer import Answering
from gateway.call import PATHS, Arrival, read_call, read_passed, read_raw
from gateway.errors import CallerError, Draining, HeadgateError, NotFound, TooLarge
from gateway.file_inputs import call_with_files, with_files
from gateway.headers import refusal_headers, request_ids
from gateway.http_protocol import FRONT, HttpProtocol
from gateway.keys import Caller
from gateway.reply import AsgiReply, Headers, Reply, Send, give
from gateway.serve.listen import OUT_OF_FILES
from gateway.services import Services
from gateway.stored.background import Background, is_background
from gateway.wire.body import encode
from gateway.wire.errors import render_error, status_of
from gateway.wire.pass_through import COMPACT, PASSED
from gateway.wire.to_responses import to_compact

log = logging.getLogger("headgate.asgi")

Receive = Callable[[], Awaitable[dict[str, Any]]]
Scope = Mapping[str, Any]

AZURE = re.compile(
    r"/openai(?:/deployments/(.+?)(?=(?:/chat/completions|/completions|/embeddings|/audio/\w+|/images/\w+)\Z)|/v1)?(/.+)\Z"
)
"""Azure's paths: the deployment's name, if any, and OpenAI's path without /v1."""
UPLOADS = frozenset({"/v1/files", "/v1/messages/batches"})
"""Paths whose handlers read the body piece by piece."""


class WrongMethod(CallerError):
    """The path exists, but not for this method; `methods` are those that it has."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, methods: str) -> None:
        super().__init__(message)
        self.methods = methods


@dataclass(slots=True)
class Request:
    """A request to a handler, that is, to anything but a model."""

    services: Services
    method: str
    path: str
    query: Mapping[str, list[str]]
    arrival: Arrival
    body: bytes
    """Empty for the paths in UPLOADS."""
    receive: Receive

    def pieces(self, limit: int) -> AsyncIterator[bytes]:
        """The body of an upload, in pieces. Raises TooLarge as soon as it exceeds `limit` bytes."""
        return read_pieces(self.receive, self.arrival.headers, limit)

    def caller(self) -> Caller:
        """The caller whose key the request carries. Raises Unauthorized."""
        return self.services.caller_of(self.arrival.headers, self.arrival.host)

    @property
    def is_anthropic(self) -> bool:
        """True if the request comes from a client of Anthropic's API."""
        return is_anthropic(self.arrival.headers)


Answer = tuple[int, Headers, bytes | AsyncIterator[bytes]]
"""Status, headers and body. For a body in pieces the headers must include the content length."""
Handler = Callable[[Request, str], Awaitable[Answer]]
"""Takes the request and the groups that the path's pattern captured, joined by `/`."""


class App:
    """The ASGI application of one worker. `handlers`: (method, path pattern, handler); the first match is used."""

    def __init__(self, services: Services, handlers: list[tuple[str, re.Pattern[str], Handler]]) -> None:
        self.services = services
        self.answering = Answering(services)
        self.background = Background(services, self.answering)
        self.handlers = handlers
        self.in_flight = 0
        self.draining = False
        self.for_pages = _for_pages(self.take, services.config.server.cors_origins)
        """The same application with CORS, for requests from web pages; None if no web page may send any."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await (self.for_pages or self.take)(scope, receive, send)

    async def take(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request outside the fast path (gateway/http_protocol.py)."""
        path, model = scope["path"], ""
        if path.startswith("/openai/"):
            path, model = _azure(path)
        surface = PATHS.get(path) if scope["method"] == "POST" else None
        client = scope.get("client")
        headers, host = dict(scope["headers"]), client[0] if client else ""
        reply = AsgiReply(send)
        if surface is None:
            await self.serve(scope, path, receive, reply, self.arrive(headers, host))
        else:
            await self.read_and_infer(surface, scope, receive, reply, headers, host, model)

    def arrive(self, headers: dict[bytes, bytes], host: str, model: str = "") -> Arrival:
        services = self.services
        return Arrival(headers, host, services.ids.new("req"), services.now(), model)

    @property
    def max_body_bytes(self) -> int:
        return self.services.config.server.max_body_bytes

    async def read_and_infer(
        self,
        surface: str,
        scope: Scope,
        receive: Receive,
        reply: Reply,
        headers: dict[bytes, bytes],
        host: str,
        model: str,
    ) -> None:
        """Read the body of a request to a model that came outside the fast path, then answer it."""
        front: HttpProtocol | None = scope.get(FRONT)
        body: bytes | HeadgateError
        try:
            body = await read_body(receive, headers, self.max_body_bytes)
        except HeadgateError as error:
            body = error
        reply.task = asyncio.current_task()
        if front is not None:
            front.watch(reply)
        try:
            await self.infer(surface, body, reply, headers, host, model)
        finally:
            if front is not None:
                front.unwatch()

    async def infer(
        self,
        surface: str,
        body: bytes | HeadgateError,
        reply: Reply,
        headers: dict[bytes, bytes],
        host: str,
        model: str = "",
    ) -> None:
        """Answer a request to a model. `body`: the error if it couldn't be read. `model`: the one that the path names;
        empty if the body names it.
        """
        services, server = self.services, self.services.config.server
        arrival = self.arrive(headers, host, model)
        self.in_flight += 1
        try:
            if self.in_flight > server.max_concurrency:
                raise Draining("too many requests in flight on this worker", retry_after_s=1.0)
            if isinstance(body, HeadgateError):
                raise body
            if surface in PASSED:
                if surface == COMPACT:
                    body = await self.with_turns(body, arrival)
                call = read_passed(surface, body, arrival, timeout_s=server.request_timeout_s)
                await self.answering.answer(call, reply)
                return
            raw = turn = None
            if surface == "responses":
                tenant = services.caller_of(arrival.headers, arrival.host).tenant
                turn = await services.responses.continued(read_raw(body, arrival.headers), tenant)
                raw = turn.raw
            call = read_call(
                surface,
                body,
                arrival,
                max_messages=server.max_messages,
                timeout_s=server.request_timeout_s,
                raw=raw,
            )
            call.turn = turn
            if call.described.attached:
                call = await call_with_files(services, call, services.caller_of(headers, host).tenant)
            if raw is not None and is_background(raw):
                await self.background.begin(call, reply)
            else:
                await self.answering.answer(call, reply)
        except HeadgateError as error:
            services.metrics.refused(surface, error.code or error.kind)
            await self.refuse(error, surface, reply, arrival)
        except asyncio.CancelledError:
            if not reply.left:
                raise
        except Exception as error:
            await self.fail(error, surface, reply, arrival)
        finally:
            self.in_flight -= 1

    async def with_turns(self, body: bytes, arrival: Arrival) -> bytes:
        """The body of a request to compact a conversation, with its stored earlier turns and files put in."""
        raw, services = read_raw(body, arrival.headers), self.services
        tenant = services.caller_of(arrival.headers, arrival.host).tenant
        turn = await services.responses.continued(raw, tenant)
        return encode(to_compact(await with_files(services, turn.raw, "responses", tenant)))

    async def serve(
        self, scope: Scope, path: str, receive: Receive, reply: Reply, arrival: Arrival
    ) -> None:
        """Answer every other request: models, decisions, feedback, stored responses, health."""
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        anthropic = is_anthropic(arrival.headers) or path.startswith("/v1/messages")
        surface = "messages" if anthropic else "chat"
        try:
            handler, groups = self.find(method, path)
            is_upload = method == "POST" and path in UPLOADS
            body = b"" if is_upload else await read_body(receive, arrival.headers, self.max_body_bytes)
            query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
            request = Request(self.services, method, path, query, arrival, body, receive)
            status, headers, answer = await handler(request, groups)
        except HeadgateError as error:
            await self.refuse(error, surface, reply, arrival)
        except Exception as error:
            await self.fail(error, surface, reply, arrival)
        else:
            await give(reply, status, [*request_ids(arrival.request_id, surface), *headers], answer)

    def find(self, method: str, path: str) -> tuple[Handler, str]:
        """The handler of a path, and the groups that its pattern captured. Raises NotFound or WrongMethod."""
        allowed = []
        for known, pattern, handler in self.handlers:
            match = pattern.fullmatch(path)
            if match and known == method:
                return handler, "/".join(map(unquote, match.groups()))
            if match:
                allowed.append(known)
        if allowed or path in PATHS:
            methods = ", ".join(sorted({*allowed, *(["POST"] if path in PATHS else [])}))
            raise WrongMethod(f"{path} answers {methods}, not {method}", methods)
        raise NotFound(f"Unknown request URL: {method} {path[:200]}{self._suggestion(path)}", code="unknown_url")

    def _suggestion(self, path: str) -> str:
        """Suggests the path that was probably meant, where only the client's base URL is wrong; else empty."""
        meant = "/v1/" + path.rpartition("/v1/")[2].strip("/")
        is_known = meant in PATHS or any(pattern.fullmatch(meant) for _, pattern, _ in self.handlers)
        if not is_known or len(meant) > 200:
            return ""
        return f"; did you mean {meant}? The base URL of OpenAI's clients ends with /v1, of Anthropic's it has no path."

    async def fail(self, error: Exception, surface: str, reply: Reply, arrival: Arrival) -> None:
        """Answer with an internal error: the client gets its type, the log its traceback. A lack of file descriptors is
        answered 503 and not logged here: it is no fault of the code, and is logged where it is noticed.
        """
        if isinstance(error, OSError) and error.errno in OUT_OF_FILES and not reply.committed:
            busy = HeadgateError(
                "no file descriptor is left here", code="out_of_files", status=503, retry_after_s=1.0
            )
            await self.refuse(busy, surface, reply, arrival)
            return
        log.error("request %s failed inside the gateway", arrival.request_id, exc_info=error)
        if reply.committed:
            raise error
        wrapped = HeadgateError(f"internal error ({type(error).__name__})", code="internal_error")
        await self.refuse(wrapped, surface, reply, arrival)

    async def refuse(self, error: HeadgateError, surface: str, reply: Reply, arrival: Arrival) -> None:
        request_id = arrival.request_id
        headers = refusal_headers(request_id, surface, error)
        if isinstance(error, WrongMethod):
            headers.append((b"allow", error.methods.encode()))
        body = render_error(error, surface, request_id=request_id)
        await reply.whole(status_of(error, surface), headers, body)


def is_anthropic(headers: Mapping[bytes, bytes]) -> bool:
    """True if the request is meant for Anthropic's API, on paths that both APIs have."""
    return b"anthropic-version" in headers


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> bytes:
    """The whole body. Raises TooLarge as soon as it is over `limit` bytes, CallerError (499) if the client leaves."""
    pieces = [piece async for piece in read_pieces(receive, headers, limit)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def read_pieces(receive: Receive, headers: Mapping[bytes, bytes], limit: int) -> AsyncIterator[bytes]:
    stated = headers.get(b"content-length", b"")
    if stated.isdigit() and int(stated) > limit:
        raise TooLarge(f"the request body is over {limit} bytes")
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerError("the client left while sending", status=499, code="cancelled")
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > limit:
            raise TooLarge(f"the request body is over {limit} bytes")
        yield piece


def _azure(path: str) -> tuple[str, str]:
    """The OpenAI path and the model of an Azure path: /openai/deployments/NAME/..., /openai/v1/... or /openai/..."""
    match = AZURE.match(path)
    return ("/v1" + match.group(2), match.group(1) or "") if match else (path, "")


def _for_pages(app: Any, origins: Sequence[str]) -> Any:
    """The app with CORS, without cookies, for web pages of these origins; None if there are none."""
    if not origins:
        return None
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=["GET", "POST", "DELETE"], allow_headers=["*"], expose_headers=["*"]
    )


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
