"""The floor: a proxy with no features at all, on the same server and the same upstream pool as the gateway.

    python -m tests.bench.reference UPSTREAM_URL PORT

What the gateway costs above it is what its features cost; on a busy machine both rise alike.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

from gateway.upstream import Endpoint, Pool

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: upstream\r\ncontent-type: application/json\r\n"
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Proxy:
    def __init__(self, upstream: str) -> None:
        self.pool = Pool(Endpoint.parse(upstream), max_connections=512, connect_timeout_s=5)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message["more_body"]
        response = await self.pool.send(HEAD, body, timeout_s=60)
        if b"content-length" in response.headers:
            whole = await response.read(1 << 20)
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(whole))]
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": whole})
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        while chunk := await response.chunk(60):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    uvicorn.run(
        Proxy(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), http="httptools", loop="uvloop", ws="none",
        lifespan="off", access_log=False, log_level="warning", server_header=False, date_header=False,
    )  # fmt: skip
