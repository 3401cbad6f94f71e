"""Open breakers of one worker are taken over by the others, as far as they concern them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.breaker import COOL_S
from gateway.config.types import ModelConfig
from gateway.fleet import Fleet
from gateway.redis_wire import RedisWire
from gateway.replicas.hints import Hints
from tests.gateway.redis_server import RedisServer
from tests.until import PATIENCE_S

MODELS = [ModelConfig(name="m", provider="a"), ModelConfig(name="m", provider="b")]


class Worker:
    """A fleet with a clock of its own, because monotonic clocks of two machines are unrelated."""

    def __init__(self, url: str, begun_s: float) -> None:
        self.now_s = begun_s
        self.fleet = Fleet(MODELS)
        self.wire = RedisWire(url, timeout_s=PATIENCE_S)
        self.hints = Hints(self.wire, self.fleet, lambda: self.now_s)

    def state(self, provider: str = "a") -> tuple[Any, float]:
        """State of the provider's deployment, and seconds until it is tried again."""
        one = next(one for one in self.fleet.all() if one.provider == provider)
        return one.breaker.state(self.now_s), max(0.0, one.breaker.opens_s - self.now_s)

    def fail(self, failure: str, retry_after_s: float | None = None) -> None:
        one = self.fleet.all()[0]
        one.begin()
        self.fleet.failed(one, failure, self.now_s, retry_after_s)
        one.end()


@pytest.fixture
async def workers(redis_server: RedisServer) -> AsyncIterator[tuple[Worker, Worker]]:
    pair = Worker(redis_server.url, 1000.0), Worker(redis_server.url, 7.0)
    await pair[0].wire.ask("FLUSHALL")
    yield pair
    for one in pair:
        await one.wire.close()


async def test_a_rate_limit_holds_for_every_worker(workers: tuple[Worker, Worker]) -> None:
    """What the upstream stated is obeyed to its end, by clocks that differ."""
    one, two = workers
    one.fail("rate_limited", 60.0)
    await one.hints.exchange()
    await two.hints.exchange()
    state, left_s = two.state()
    assert state == "open" and left_s == pytest.approx(60.0, abs=2.0)
    assert two.state("b") == ("closed", 0.0)


async def test_what_merely_failed_elsewhere_is_left_alone_for_a_moment(workers: tuple[Worker, Worker]) -> None:
    """Failures that one worker counted close the deployment to the others for COOL_S seconds at most, and only once."""
    one, two = workers
    for _ in range(3):
        one.fleet.all()[0].breaker.open("server_error", one.now_s, 300.0)
    await one.hints.exchange()
    await two.hints.exchange()
    state, left_s = two.state()
    assert state == "open" and left_s == pytest.approx(COOL_S, abs=0.1)
    two.now_s += COOL_S + 1
    await two.hints.exchange()
    assert two.state()[0] == "half_open"


async def test_a_hint_is_not_echoed(workers: tuple[Worker, Worker]) -> None:
    """Workers don't keep a breaker open by repeating each other's hints."""
    one, two = workers
    one.fail("unauthorized")
    for _ in range(3):
        await one.hints.exchange()
        await two.hints.exchange()
    until = one.fleet.all()[0].breaker.opens_s
    assert until == pytest.approx(one.now_s + 60.0)
    told = await one.wire.ask("HGETALL", "{headgate}:breakers")
    assert len(told) == 2 and told[1].split()[-1].decode() == one.hints._me
