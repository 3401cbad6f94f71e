"""Limits on the size of request bodies at the admin port. The framework reads a body before it authenticates."""

from __future__ import annotations

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.admin.guard import is_known

MAX_BYTES = 1 << 20
UPLOADS = frozenset({"/admin/plans", "/batch/plans"})
"""Paths that take files of prompts."""


class Bounds:
    """ASGI middleware that refuses bodies of over `MAX_BYTES` with 413. A signed-in client may send up to
    `max_upload_bytes` to the paths in `UPLOADS`.
    """

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self.app = app
        self.max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit, size = MAX_BYTES, 0
        if scope["type"] == "http" and scope["path"] in UPLOADS and await run_in_threadpool(is_known, Request(scope)):
            limit = self.max_upload_bytes

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413, f"the request body is over {limit} bytes")
            return message

        await self.app(scope, bounded, send)
