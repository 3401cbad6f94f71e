"""Settings of all tests: hypothesis draws the same examples on each run, and timeouts allow for busy machines."""

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
"""Folders and files with the longest tests. They start first; started last, one process would still run them when the
others are done.
"""

gc.disable()  # until everything is imported: see pytest_collection_finish

settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

_default_timeout = httpx._config.DEFAULT_TIMEOUT_CONFIG  # 5 s; there is no public way to change it for all clients
_default_timeout.connect = _default_timeout.read = _default_timeout.write = _default_timeout.pool = PATIENCE_S
# otherwise each client reads the machine's certificates again, which takes longer than most requests
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)  # type: ignore[attr-defined]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the longest tests first, and keep tests of one xdist group in one process: pytest-xdist 3.8 writes the group
    to `_nodeid`, which pytest 9.2 no longer reads.
    """
    items.sort(key=lambda item: item.path.relative_to(HERE).parts[0] not in LONGEST)
    for item in items:
        id_with_group = getattr(item, "_nodeid", item.nodeid)
        if id_with_group != item.nodeid:
            item._id = dataclasses.replace(item._id)
            object.__setattr__(item._id, "_str_cache", id_with_group)


def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection: walking through them takes longer than most tests."""
    gc.enable()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
