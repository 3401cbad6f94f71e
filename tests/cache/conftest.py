"""A real Redis server for the tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.redis_server import RedisServer, running_redis


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One Redis server, shared by all tests that don't stop it."""
    yield from running_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis server of the test's own, which it may stop, freeze or fill with garbage."""
    yield from running_redis(tmp_path)
