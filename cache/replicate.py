"""What one replica's semantic cache learns, the others know: a Redis stream of entries, deletions and verdicts.

Each replica writes what it records and reads what the others wrote. The local indexes only propose, and a hit is
served when the shared store still has the entry, so a replica that lags misses and never serves what is gone.
A message that is not whole, or of another embedder or version, is skipped.
"""

from __future__ import annotations

import math
import secrets
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from redis import asyncio as aioredis

from cache.entry import Entry
from cache.key import Partition
from cache.link import RedisLink
from cache.neighbours import FEATURES
from cache.semantic import SemanticCache

_VERSION = 1
_BATCH = 64


class Recorded(msgspec.Struct, tag="recorded", array_like=True, frozen=True):
    """An entry that answers a question."""

    partition: bytes
    text: str
    vector: bytes
    """Half precision."""
    key: bytes
    entry_id: str
    tenant: str
    created_s: float
    ttl_s: float


class Deleted(msgspec.Struct, tag="deleted", array_like=True, frozen=True):
    """An entry, or all of a tenant's, not to be proposed any more."""

    entry_id: str = ""
    tenant: str | None = None


class Judged(msgspec.Struct, tag="judged", array_like=True, frozen=True):
    """A row of the learned rule."""

    features: list[float]
    right: bool
    weight: float
    audited: bool


Message = Recorded | Deleted | Judged


class _Envelope(msgspec.Struct, array_like=True, frozen=True):
    version: int
    embedder: str
    sender: str
    message: Message


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Envelope).decode


class Replication:
    """Replicates the semantic cache of one route over a Redis stream."""

    def __init__(
        self, link: RedisLink, cache: SemanticCache, *, route: str, embedder: str, max_length: int = 200_000
    ) -> None:
        self._link = link
        self._cache = cache
        self._stream = f"hg:s:{route}"
        self._embedder = embedder
        self._max_length = max_length
        self._sender = secrets.token_hex(6)
        self._last_id = "0"
        self.skipped = 0
        """Messages that were not whole, or of another version or embedder."""

    async def tell_recorded(
        self, question: Partition, vector: NDArray[np.floating], entry: Entry, *, key: bytes
    ) -> bool:
        """Tell the others of an entry."""
        half = np.asarray(vector, np.float16).tobytes()
        times = (entry.created_s, entry.ttl_s)
        return await self._tell(Recorded(question.key, question.text, half, key, entry.id, entry.tenant, *times))

    async def tell_deleted(self, *, entry_id: str = "", tenant: str | None = None) -> bool:
        """Tell the others that an entry, or a tenant's all, are gone."""
        return await self._tell(Deleted(entry_id, tenant))

    async def tell_judged(self, features: list[float], right: bool, weight: float, audited: bool) -> bool:
        """Tell the others of a verdict."""
        return await self._tell(Judged(features, right, weight, audited))

    async def follow(self) -> int:
        """Take in what the others wrote since the last time; how many messages that was."""
        found = await self._link.run(self._read, None)
        if not found:
            return 0
        for message_id, fields in found:
            self._last_id = message_id.decode() if isinstance(message_id, bytes) else str(message_id)
            blob = fields.get(b"m") if isinstance(fields, dict) else None
            self._take(blob if isinstance(blob, bytes) else b"")
        return len(found)

    async def _tell(self, message: Message) -> bool:
        blob = _encode(_Envelope(_VERSION, self._embedder, self._sender, message))
        return await self._link.run(lambda client: self._write(client, blob), False)

    async def _write(self, client: aioredis.Redis, blob: bytes) -> bool:
        return bool(await client.xadd(self._stream, {"m": blob}, maxlen=self._max_length, approximate=True))

    async def _read(self, client: aioredis.Redis) -> list[tuple[Any, Any]]:
        reply: Any = await client.xread({self._stream: self._last_id}, count=_BATCH)
        if isinstance(reply, dict):
            reply = list(reply.items())
        messages: list[tuple[Any, Any]] = reply[0][1] if reply else []
        return messages[0] if messages and isinstance(messages[0], list) else messages

    def _take(self, blob: bytes) -> None:
        try:
            envelope = _decode(blob)
        except (msgspec.MsgspecError, ValueError):
            self.skipped += 1
            return
        if envelope.sender == self._sender:
            return
        if envelope.version != _VERSION or envelope.embedder != self._embedder:
            self.skipped += 1
            return
        self._apply(envelope.message)

    def _apply(self, message: Message) -> None:
        if isinstance(message, Recorded):
            self._record(message)
        elif isinstance(message, Judged):
            if len(message.features) != FEATURES or not all(map(math.isfinite, message.features)):
                self.skipped += 1
                return
            rule = self._cache.acceptance
            rule.hear(message.features, message.right, message.weight, audited=message.audited)
        elif message.entry_id:
            self._cache.delete(message.entry_id, tenant=message.tenant)
        elif message.tenant is not None:
            self._cache.delete_tenant(message.tenant)

    def _record(self, recorded: Recorded) -> None:
        if len(recorded.vector) % 2:
            self.skipped += 1
            return
        times = (recorded.created_s, recorded.ttl_s)
        entry = Entry(recorded.entry_id, "", b"", "", "", *times, cost_usd=0.0, tenant=recorded.tenant)
        vector = np.frombuffer(recorded.vector, np.float16).astype(np.float32)
        self._cache.record(Partition(recorded.partition, recorded.text), vector, entry, key=recorded.key)
