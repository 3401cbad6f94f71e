from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from gateway.errors import ConfigError
from gateway.journal import schema
from gateway.journal.record import DecisionRecord
from gateway.journal.schema import check_schema, migrate, open_engine
from gateway.journal.store import open_store
from gateway.journal.tables import LATENCY_BOUNDS_S, LATENCY_COLUMNS, decisions, latency_bucket, metadata
from gateway.journal.write import _decision_row
from tests.postgres_server import PostgresServer
from tests.until import until


def test_migrations_make_exactly_the_tables(empty_database_url: str) -> None:
    """The migrated schema equals the one in the code; a second run does nothing."""
    assert migrate(empty_database_url) == ["0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008"]
    assert migrate(empty_database_url) == []
    with open_engine(empty_database_url).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_an_unmigrated_server_is_refused_with_the_command(empty_database_url: str) -> None:
    """The message names the key and the command; an embedded file is migrated automatically."""
    with pytest.raises(ConfigError, match="headgate migrate"):
        check_schema(open_engine(empty_database_url))
    if empty_database_url.startswith("sqlite"):
        open_store(empty_database_url).close()
    else:
        with pytest.raises(ConfigError, match=r"storage\.url"):
            open_store(empty_database_url)


def test_the_schema_of_a_newer_release_is_accepted(database_url: str) -> None:
    """Migrations only extend the schema, so an old replica keeps running while a new one has migrated."""
    engine = open_engine(database_url)
    with engine.begin() as connection:
        before = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    try:
        check_schema(engine)
        assert migrate(database_url) == []
    finally:
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE alembic_version SET version_num = :old"), {"old": before})


def test_replicas_that_start_together_migrate_once(empty_database_url: str) -> None:
    """One of three migrates, the others find it done, and none fails."""
    done: list[list[str]] = []
    threads = [threading.Thread(target=lambda: done.append(migrate(empty_database_url))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [[], [], ["0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008"]]


async def test_a_migration_gives_up_before_it_blocks_writers_for_long(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a long read goes on, a migration that needs the table for itself ends with an error and changes nothing;
    writers, who queue up behind it, go on then. After the read it succeeds.
    """
    monkeypatch.setattr(schema, "LOCK_TIMEOUT_S", 1)
    url = postgres_server.new_database()
    migrate(url)
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE INDEX decisions_time ON decisions (time_s, id)"))
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '0007'"))
    with engine.connect() as reader, psycopg.connect(url, autocommit=True) as writer:
        reader.execute(sa.text("SELECT count(*) FROM decisions"))
        writer.execute("SET statement_timeout = '10s'")
        migrating = asyncio.create_task(asyncio.to_thread(migrate, url))
        await until(lambda: writer.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone())
        writer.execute("DELETE FROM decisions")
        with pytest.raises(ConfigError, match=r"nothing was migrated.* again when long reads"):
            await migrating
    assert "decisions_time" in {index["name"] for index in sa.inspect(engine).get_indexes("decisions")}
    assert migrate(url) == ["0008"]
    engine.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE decisions",
        "ALTER TABLE decisions DROP COLUMN payload",
        "alter table decisions rename to x",
        "ALTER TABLE decisions ALTER COLUMN cost TYPE INTEGER",
        "TRUNCATE decisions",
        "DELETE FROM keys",
    ],
)
def test_a_destructive_migration_is_refused(statement: str) -> None:
    """The connection that it runs on refuses any destructive statement."""
    with pytest.raises(ConfigError, match="destroy"):
        schema._refuse_destruction(None, None, statement)


def test_a_destructive_step_leaves_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real migration run the step is refused and rolled back."""
    url = f"sqlite:///{tmp_path}/journal.db"
    migrate(url)

    def drop(_config: object, _revision: str) -> None:
        connection = _config.attributes["connection"]  # type: ignore[attr-defined]
        connection.execute(sa.text("DROP TABLE decisions"))

    monkeypatch.setattr("alembic.command.upgrade", drop)
    with pytest.raises(ConfigError, match="destroy"):
        migrate(url)
    assert "decisions" in sa.inspect(open_engine(url)).get_table_names()


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense"])
def test_other_databases_are_refused(url: str) -> None:
    """Only SQLite and PostgreSQL are accepted; the error has the key's path."""
    with pytest.raises(ConfigError, match=r"storage\.url"):
        open_engine(url)


def test_each_latency_has_its_bucket() -> None:
    """Bounds are inclusive upper bounds; latencies above the last one are in the last column."""
    assert len(LATENCY_COLUMNS) == len(LATENCY_BOUNDS_S) + 1
    assert latency_bucket(0.0) == latency_bucket(0.01) == 0
    assert latency_bucket(0.011) == 1
    assert latency_bucket(1e9) == len(LATENCY_COLUMNS) - 1


def test_a_rows_values_are_in_its_tables_order() -> None:
    """SQLite's driver gets rows as tuples, so another order would store values in other columns."""
    row = _decision_row(DecisionRecord(id="dec_1", time_s=1.0))
    assert list(row) == [column.name for column in decisions.c]
