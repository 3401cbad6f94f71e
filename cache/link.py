"""A connection to Redis that never makes a request wait longer than it may, nor fail.

Each call has one deadline over connecting, sending and reading. After a few failures in a row calls are not
even tried for a moment (only one at a time looks whether Redis is back), so a dead server costs its timeout
a few times and not once a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import sha1
from typing import Any, TypeVar

from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError

log = logging.getLogger(__name__)
T = TypeVar("T")

_PATIENCE = 3
"""Consecutive failures after which calls are refused without trying."""


class RedisLink:
    """One Redis, reached within `timeout_s` or not at all."""

    def __init__(self, url: str, *, timeout_s: float = 0.02, rest_s: float = 0.25, connections: int = 64) -> None:
        if not 0 < timeout_s <= 10:
            raise ValueError(f"timeout_s must be in (0, 10], not {timeout_s}")
        self.client: aioredis.Redis = aioredis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            max_connections=connections,
            retry=Retry(NoBackoff(), 0),
        )
        self.tried = 0
        self.failures = 0
        self._timeout_s = timeout_s
        self._rest_s = rest_s
        self._failed_in_a_row = 0
        self._closed_until_s = 0.0

    async def run(self, work: Callable[[aioredis.Redis], Awaitable[T]], failed: T) -> T:
        """Return what `work` returns, or `failed` when Redis fails, is late or has just failed often."""
        if self._resting():
            self.failures += 1
            return failed
        self.tried += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                found = await work(self.client)
        except Exception as error:  # a cache's trouble of any kind is a miss, never the caller's
            self._fail(error)
            if isinstance(error, ReadOnlyError | MasterDownError):
                await self._leave_replica()
            return failed
        self._failed_in_a_row = 0
        return found

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def _leave_replica(self) -> None:
        """Drop the connections to a server that is no longer the primary; its name may lead to the new one."""
        with suppress(Exception):
            await self.client.connection_pool.disconnect(inuse_connections=False)

    def _resting(self) -> bool:
        if self._failed_in_a_row < _PATIENCE:
            return False
        now_s = time.monotonic()
        if now_s < self._closed_until_s:
            return True
        self._closed_until_s = now_s + self._rest_s
        return False

    def _fail(self, error: Exception) -> None:
        self.failures += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row == _PATIENCE:
            self._closed_until_s = time.monotonic() + self._rest_s
            log.warning("Redis does not answer, going on without it: %s: %s", type(error).__name__, error)


class Script:
    """A Lua script, run by its hash, or by its text where the hash is unknown or refused."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._hash = sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: aioredis.Redis, key: str, args: Sequence[Any]) -> Any:
        """Run with one key."""
        try:
            return await client.evalsha(self._hash, 1, key, *args)
        except ResponseError:  # NOSCRIPT after a restart, or a proxy that lets only EVAL through
            return await client.eval(self._text, 1, key, *args)
