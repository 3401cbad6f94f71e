"""Redis 8's vector sets in place of an index in every replica: one set a partition, which all replicas search.

The set only proposes, like any index here: what it names is served when the replica knows the entry's words and the
store still has the answer. Elements have no life time of their own; the set ends with its newest entry, and who finds
an element's entry gone takes it out. Redis that is away or late proposes nothing.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
from redis import asyncio as aioredis
from redis.exceptions import ResponseError

from cache.index import Vector
from cache.link import RedisLink


async def has_vector_sets(link: RedisLink) -> bool:
    """Whether this Redis knows them: version 8 does."""
    return await link.run(_probe, False)


async def _probe(client: aioredis.Redis) -> bool:
    try:
        await _command(client, "VCARD", "hg:v:probe")
    except ResponseError:
        return False
    return True


class VectorSets:
    """One route's sets, of one embedder's vectors."""

    def __init__(self, link: RedisLink, *, route: str, embedder: str) -> None:
        self._link = link
        self._name = "hg:v:" + blake2b(f"{route}\0{embedder}".encode(), digest_size=10).hexdigest()

    async def near(self, partition: bytes, vector: Vector, k: int) -> list[tuple[str, float]]:
        """The entry ids and cosines of the `k` nearest, nearest first."""
        words = ("VSIM", self._key(partition), "FP32", _blob(vector), "WITHSCORES", "COUNT", k)
        reply = await self._link.run(lambda client: _command(client, *words), None)
        return sorted(_pairs(reply), key=lambda pair: -pair[1])

    async def add(self, partition: bytes, entry_id: str, vector: Vector, *, ttl_s: float) -> bool:
        """Propose an entry from now on; the set lives as long as its newest entry at least."""
        key = self._key(partition)

        async def add(client: aioredis.Redis) -> bool:
            await _command(client, "VADD", key, "FP32", _blob(vector), entry_id, "Q8")
            left_ms = await client.pttl(key)
            if left_ms < ttl_s * 1000:
                await client.pexpire(key, max(1, int(ttl_s * 1000)))
            return True

        return await self._link.run(add, False)

    async def remove(self, partition: bytes, entry_id: str) -> bool:
        """Stop proposing an entry; False: it was not there, or Redis is away."""
        words = ("VREM", self._key(partition), entry_id)
        return bool(await self._link.run(lambda client: _command(client, *words), 0))

    def _key(self, partition: bytes) -> str:
        return f"{self._name}:{{{partition.hex()}}}"


async def _command(client: aioredis.Redis, *words: object) -> Any:
    send: Any = client.execute_command
    return await send(*words)


def _blob(vector: Vector) -> bytes:
    return np.ascontiguousarray(vector, "<f4").tobytes()


def _pairs(reply: Any) -> list[tuple[str, float]]:
    """VSIM's answer; its score is (1 + cosine) / 2. Anything that is not whole is left out."""
    if isinstance(reply, dict):
        reply = [part for pair in reply.items() for part in pair]
    if not isinstance(reply, list):
        return []
    found = []
    for name, score in zip(reply[::2], reply[1::2], strict=False):
        try:
            cosine = 2.0 * float(score) - 1.0
            entry_id = name.decode() if isinstance(name, bytes) else str(name)
        except (TypeError, ValueError):
            continue
        if -1.001 <= cosine <= 1.001:
            found.append((entry_id, min(1.0, cosine)))
    return found
