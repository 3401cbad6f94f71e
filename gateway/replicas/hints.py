"""Shares open breakers between all workers and replicas through Redis.

What an upstream itself said (a rate limit and when it ends, a refused credential) holds for everybody and is taken over
as it is. Failures that one worker counted may be that worker's own trouble: the others open their breaker only for
`COOL_S` seconds and then find out for themselves. A hint opens a breaker and never closes one; a model's last
deployment is used even with an open breaker.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from redis.exceptions import RedisError

from gateway.breaker import COOL_S, OPENS_AT_ONCE
from gateway.config.types import Config
from gateway.fleet import Deployment, Fleet
from gateway.redis_wire import RedisWire

EVERY_S = 0.5
KEY = "{headgate}:breakers"
KEPT_MS = 3_600_000
LEAST_S = 0.1
"""A breaker that closes sooner than this is not shared."""


class Hints:
    """Shares one worker's breakers, and takes over the others'."""

    def __init__(self, wire: RedisWire, fleet: Fleet, now: Callable[[], float]) -> None:
        self._wire = wire
        self._fleet = fleet
        self._now = now
        self._me = secrets.token_hex(6)
        self._known: dict[str, float] = {}
        """By deployment, the `opens_s` (monotonic) last shared or taken over; under its name and `until`, the time (of
        Redis) last taken over.
        """

    async def run(self) -> None:
        """Run until cancelled. While Redis is away every worker relies on its own breakers."""
        try:
            while True:
                try:
                    await self.exchange()
                except (RedisError, OSError, ValueError):  # Redis is away, or the key holds what no gateway wrote
                    pass
                await asyncio.sleep(EVERY_S)
        finally:
            await self._wire.close()

    async def exchange(self) -> None:
        """Publish the breakers that opened here, and take over those that opened elsewhere."""
        seconds, micros = await self._wire.ask("TIME")
        ahead_s = int(seconds) + int(micros) / 1e6 - self._now()
        deployments = {f"{one.model}\n{one.id}": one for one in self._fleet.all()}
        for name, one in deployments.items():
            await self._publish(name, one, ahead_s)
        fields = await self._wire.ask("HGETALL", KEY)
        for field, value in zip(fields[::2], fields[1::2], strict=True):
            name = field.decode()
            deployment = deployments.get(name)
            until, reason, sender = value.decode().split(" ")
            if deployment is not None and sender != self._me:
                self._take_over(name, deployment, float(until), reason, ahead_s)

    async def _publish(self, name: str, deployment: Deployment, ahead_s: float) -> None:
        """`ahead_s`: Redis's time less this process's monotonic time."""
        opens_s = deployment.breaker.opens_s
        if opens_s - self._now() < LEAST_S or self._known.get(name) == opens_s:
            return
        self._known[name] = opens_s
        value = f"{opens_s + ahead_s:.3f} {deployment.breaker.reason or 'unknown'} {self._me}"
        await self._wire.ask("HSET", KEY, name, value)
        await self._wire.ask("PEXPIRE", KEY, KEPT_MS)

    def _take_over(self, name: str, deployment: Deployment, until_s: float, reason: str, ahead_s: float) -> None:
        now, breaker = self._now(), deployment.breaker
        for_s = until_s - ahead_s - now
        if reason not in OPENS_AT_ONCE:
            for_s = min(for_s, COOL_S)
        if for_s < LEAST_S or self._known.get(f"{name}\nuntil", 0.0) >= until_s:
            return
        self._known[f"{name}\nuntil"] = until_s
        breaker.open(reason, now, for_s)
        self._known[name] = breaker.opens_s


def open_hints(config: Config, fleet: Fleet, now: Callable[[], float]) -> Hints:
    """The hints of a worker whose configuration names a Redis."""
    return Hints(RedisWire(str(config.storage.redis_url), timeout_s=EVERY_S), fleet, now)
