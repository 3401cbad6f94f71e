"""What holds for every test: hypothesis draws the same examples on each run, and a busy machine may take its time."""

from __future__ import annotations

import dataclasses
import functools
import gc
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, settings

from tests.gateway.redis_server import redis_server
from tests.postgres_server import postgres_server
from tests.until import PATIENCE_S

__all__ = ["postgres_server", "redis_server"]

HERE = Path(__file__).parent
LONGEST = ("chaos", "soak", "test_readme.py")
"""Tests that take the longest each: were they the last, one process would still run them when the others are done."""

gc.disable()  # until all is imported, which stays: see pytest_collection_finish

settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

_unless_said = httpx._config.DEFAULT_TIMEOUT_CONFIG  # 5 s, and no public way to say otherwise for all clients
_unless_said.connect = _unless_said.read = _unless_said.write = _unless_said.pool = PATIENCE_S
# each client would read the machine's certificates again, which takes longer than most requests
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first. Tests of one group run in one process: pytest-xdist 3.8 notes the group where pytest 9.2 no
    longer looks.
    """
    items.sort(key=lambda item: item.path.relative_to(HERE).parts[0] not in LONGEST)
    for item in items:
        named = getattr(item, "_nodeid", item.nodeid)
        if named != item.nodeid:
            item._id = dataclasses.replace(item._id)
            object.__setattr__(item._id, "_str_cache", named)


def pytest_collection_finish() -> None:
    """No collection walks through what was imported for all tests: that alone would take longer than most of them."""
    gc.enable()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
