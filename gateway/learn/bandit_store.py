"""Stores in which workers and replicas share what their bandits have learnt.

Every writer only overwrites its own entry, and readers add up all entries. So no lock is needed, late or repeated
writes do no harm, and the entry of a writer that has ended still counts: a process takes a new name at its start, so
its former entry is one of the others'. Entries are files of the run directory, or fields of a Redis hash where several
machines share one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from gateway.config.types import Config

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from cache.link import RedisLink

PREFIX = "headgate:bandit:"


class BanditStore(Protocol):
    """One writer's access to the serialised `BanditState`s of all writers, by key."""

    async def publish(self, key: str, mine: bytes) -> bool:
        """Replace this writer's entry; False where it could not be written now."""
        ...

    async def others(self, key: str) -> list[bytes] | None:
        """The entries of all other writers; None where they have not changed since the last call, or can't be read now.
        """
        ...

    async def close(self) -> None: ...


class FolderBanditStore:
    """Files under `<run_dir>/bandit/<key>/`, one per writer."""

    def __init__(self, run_dir: str | Path, writer: str) -> None:
        self._folder, self._writer = Path(run_dir) / "bandit", writer
        self._seen: dict[str, list[tuple[str, int]]] = {}

    async def publish(self, key: str, mine: bytes) -> bool:
        await asyncio.to_thread(self._write, key, mine)
        return True

    async def others(self, key: str) -> list[bytes] | None:
        return await asyncio.to_thread(self._read, key)

    async def close(self) -> None:
        pass

    def _path(self, key: str, writer: str) -> Path:
        return self._folder / key / f"{writer}.sums"

    def _write(self, key: str, mine: bytes) -> None:
        path = self._path(key, self._writer)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.write_bytes(mine)
        os.replace(draft, path)

    def _read(self, key: str) -> list[bytes] | None:
        mine = self._path(key, self._writer)
        paths = sorted(path for path in mine.parent.glob("*.sums") if path != mine)
        stamps = [(path.name, path.stat().st_mtime_ns) for path in paths]
        if stamps == self._seen.get(key, []):
            return None
        self._seen[key] = stamps
        return [path.read_bytes() for path in paths]


class RedisBanditStore:
    """Fields of the Redis hash `headgate:bandit:<key>`, one per writer. While Redis can't be reached, workers learn on
    but don't share. If Redis has lost its data, the next reader restores the entries, also those of writers that have
    ended.
    """

    def __init__(self, link: RedisLink, writer: str) -> None:
        self._link, self._writer = link, writer
        self._seen: dict[str, dict[bytes, bytes]] = {}
        self._published: dict[str, bytes] = {}

    async def publish(self, key: str, mine: bytes) -> bool:
        self._published[key] = mine
        sent = await self._link.run(lambda redis: redis.hset(PREFIX + key, self._writer, mine), None)
        return sent is not None

    async def others(self, key: str) -> list[bytes] | None:
        found = await self._link.run(lambda redis: _all(redis, key), None)
        if found is None:
            return None
        own, seen = found.pop(self._writer.encode(), None), self._seen.get(key, {})
        if key in self._published and own != self._published[key]:
            await self.publish(key, self._published[key])
        lost = {writer: sums for writer, sums in seen.items() if writer not in found}
        for writer, sums in lost.items():
            await self._publish_again(key, writer, sums)
        found |= lost
        if found == seen:
            return None
        self._seen[key] = found
        return list(found.values())

    async def _publish_again(self, key: str, writer: bytes, sums: bytes) -> None:
        await self._link.run(lambda redis: redis.hsetnx(PREFIX + key, writer, sums), None)

    async def close(self) -> None:
        await self._link.close()


def _all(redis: Redis, key: str) -> Awaitable[dict[bytes, bytes]]:
    return cast(Awaitable[dict[bytes, bytes]], redis.hgetall(PREFIX + key))


def read_states(config: Config, key: str) -> list[bytes]:
    """The entries of all writers, read once from outside the workers. Raises OSError where they can't be read."""
    if not config.storage.redis_url:
        return [path.read_bytes() for path in sorted((Path(config.server.run_dir) / "bandit" / key).glob("*.sums"))]
    import redis

    try:
        with redis.Redis.from_url(str(config.storage.redis_url), socket_timeout=2.0) as client:
            found = cast(dict[bytes, bytes], client.hgetall(PREFIX + key))
    except redis.RedisError as error:
        raise OSError(f"Redis does not answer: {error}") from error
    return list(found.values())
