"""A lease in Redis that decides which of several replicas asks upstream.

It expires by itself, so a replica that dies delays the others for `hold_s` at most. Where Redis does not answer, every
replica may ask: two calls for one answer are better than none.
"""

from __future__ import annotations

import secrets

from redis import asyncio as aioredis

from cache.link import RedisLink, Script

_GIVE_BACK = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class RedisLease:
    """Leases by exact key, held in this process's name."""

    def __init__(self, link: RedisLink, *, hold_s: float = 15.0, prefix: str = "hg:l:") -> None:
        self._link = link
        self._hold_ms = max(1, int(hold_s * 1000))
        self._prefix = prefix
        self._name = secrets.token_hex(8)
        self._give_back = Script(_GIVE_BACK)

    async def take(self, key: bytes) -> bool:
        """Whether this process may ask; True also when Redis does not say."""
        name = self._prefix + key.hex()
        return await self._link.run(lambda client: self._take(client, name), True)

    async def _take(self, client: aioredis.Redis, name: str) -> bool:
        return await client.set(name, self._name, nx=True, px=self._hold_ms) is not None

    async def give_back(self, key: bytes) -> None:
        """Let another replica ask, if the lease is still this process's."""
        name = self._prefix + key.hex()
        await self._link.run(lambda client: self._give_back.run(client, name, (self._name,)), None)
