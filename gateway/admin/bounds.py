"""How much the admin port reads of a request. The framework reads a body before it asks who sent it."""

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
    """What is behind it reads no body of over `MAX_BYTES`, nor an upload of over `max_upload_bytes`: 413. To upload one
    must be signed in.
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
