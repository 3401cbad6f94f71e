"""Every store test runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.journal.schema import migrate
from gateway.journal.store import Store, open_store
from tests.postgres_server import postgres_server

__all__ = ["postgres_server"]


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/journal.db"
    url: str = request.getfixturevalue("postgres_server").new_database()
    return url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """A migrated store."""
    migrate(database_url)
    store = open_store(database_url)
    yield store
    store.close()
