"""Every store test runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from gateway.journal.schema import migrate, open_engine
from gateway.journal.store import Store
from gateway.journal.tables import metadata
from tests.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to copy, because migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "journal.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: PostgresServer) -> str:
    """A database that is emptied before each test."""
    url = postgres_server.new_database()
    migrate(url)
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a table."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/journal.db"
    url: str = request.getfixturevalue("postgres_server").new_database()
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated database without a row."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_sqlite"), tmp_path / "journal.db")
        return f"sqlite:///{tmp_path}/journal.db"
    url: str = request.getfixturevalue("migrated_postgres")
    with psycopg.connect(url) as connection:
        for table in metadata.sorted_tables:
            connection.execute(f'TRUNCATE "{table.name}"'.encode())
    return url


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    """The store on that database."""
    store = Store(open_engine(database_url))
    yield store
    store.close()
