"""Breakers of all workers and replicas tell each other, through Redis, which deployments to leave alone.

What an upstream itself has said (a rate limit and when it ends, a refused credential) holds for everybody and is taken
as it is. What one worker merely saw fail may be its own trouble: the others leave that deployment alone for a moment
and then find out for themselves. A hint opens a breaker, it never closes one; and no breaker, however it was opened,
takes away the last deployment of a model.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from redis.exceptions import RedisError

from gateway.breaker import AT_ONCE, COOL_S
from gateway.config import Config
from gateway.fleet import Deployment, Fleet
from gateway.redis_wire import RedisWire

EVERY_S = 0.5
KEY = "{headgate}:breakers"
KEPT_MS = 3_600_000
LEAST_S = 0.1
"""An opening that ends sooner is not worth a word."""


class Hints:
    """One worker's part."""

    def __init__(self, wire: RedisWire, fleet: Fleet, now: Callable[[], float]) -> None:
        self._wire = wire
        self._fleet = fleet
        self._now = now
        self._me = secrets.token_hex(6)
        self._known: dict[str, float] = {}
        """By deployment, the opening (monotonic) told or taken over already; and until when one was told us."""

    async def run(self) -> None:
        """Until cancelled. While Redis is away every worker goes by what it sees."""
        try:
            while True:
                try:
                    await self.exchange()
                except (RedisError, OSError, ValueError):  # somebody else wrote there
                    pass
                await asyncio.sleep(EVERY_S)
        finally:
            await self._wire.close()

    async def exchange(self) -> None:
        """Tell what opened here, take over what opened elsewhere."""
        seconds, micros = await self._wire.ask("TIME")
        ahead_s = int(seconds) + int(micros) / 1e6 - self._now()
        deployments = {f"{one.model}\n{one.id}": one for one in self._fleet.all()}
        for name, one in deployments.items():
            await self._tell(name, one, ahead_s)
        told = await self._wire.ask("HGETALL", KEY)
        for name, words in zip(told[::2], told[1::2], strict=True):
            deployment = deployments.get(name.decode())
            until, reason, sender = words.decode().split(" ")
            if deployment is not None and sender != self._me:
                self._take_over(name.decode(), deployment, float(until), reason, ahead_s)

    async def _tell(self, name: str, one: Deployment, ahead_s: float) -> None:
        opens_s = one.breaker.opens_s
        if opens_s - self._now() < LEAST_S or self._known.get(name) == opens_s:
            return
        self._known[name] = opens_s
        words = f"{opens_s + ahead_s:.3f} {one.breaker.reason or 'unknown'} {self._me}"
        await self._wire.ask("HSET", KEY, name, words)
        await self._wire.ask("PEXPIRE", KEY, KEPT_MS)

    def _take_over(self, name: str, one: Deployment, until_s: float, reason: str, ahead_s: float) -> None:
        now, breaker = self._now(), one.breaker
        for_s = until_s - ahead_s - now
        if reason not in AT_ONCE:
            for_s = min(for_s, COOL_S)
        if for_s < LEAST_S or self._known.get(f"{name}\nuntil", 0.0) >= until_s:
            return
        self._known[f"{name}\nuntil"] = until_s
        breaker.open(reason, now, for_s)
        self._known[name] = breaker.opens_s


def open_hints(config: Config, fleet: Fleet, now: Callable[[], float]) -> Hints:
    """Of a worker whose configuration names a Redis."""
    return Hints(RedisWire(str(config.storage.redis_url), timeout_s=EVERY_S), fleet, now)
