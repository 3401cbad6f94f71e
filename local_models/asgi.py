"""The few words of ASGI that the server speaks: read a JSON body, send one, send events, notice a client that
left."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from local_models.errors import RequestRefused

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Body = dict[str, Any]
Headers = Sequence[tuple[bytes, bytes]]

_MOST_BODY_BYTES = 32 * 1024 * 1024


class ClientGone(Exception):
    """The client has disconnected."""


class Started:
    """Passes messages on and knows whether a response has begun: after that an error can only be a last
    event."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False

    async def __call__(self, message: dict[str, Any]) -> None:
        self._begun = True
        await self._send(message)

    async def fail(self, status: int, body: Body, headers: Headers = ()) -> None:
        if not self._begun:
            await send_json(self._send, status, body, headers)
            return
        await send_event(self._send, body)
        await self._send({"type": "http.response.body", "body": b""})


async def read_json(receive: Receive) -> Body:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _MOST_BODY_BYTES:
            raise RequestRefused("the body is too large")
        if not message.get("more_body", False):
            break
    try:
        body = json.loads(b"".join(parts))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(body, dict):
        raise RequestRefused("the body must be a JSON object", code="invalid_json")
    return body


async def wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_body(send: Send, status: int, content_type: bytes, body: bytes, more: Headers = ()) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, body: Body, headers: Headers = ()) -> None:
    await send_body(send, status, b"application/json", json.dumps(body, ensure_ascii=False).encode(), headers)


async def start_stream(send: Send) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_event(send: Send, body: Body) -> None:
    data = b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})
