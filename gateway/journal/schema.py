"""Opens the journal's database, migrates its schema, and checks it at start.

Migrations only expand the schema (new tables, new columns with defaults, new indexes), so that old and new releases can
run side by side. A statement of a migration that drops, renames or retypes is refused, except that an index may be
dropped where another one begins with its columns.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from gateway.config.extras import missing_extra
from gateway.errors import ConfigError

_DESTRUCTIVE = re.compile(
    r"^\s*(drop(?!\s+index\b)|truncate|delete|alter\s+table\s.*\b(drop|rename|type)\b)", re.IGNORECASE | re.DOTALL
)
PAGE_BYTES = 8192
"""Page size of a new SQLite file: three decisions fit into 8,192 bytes; 4,096 would hold one and be nearly half empty.
"""
READ_ONLY = "25006"
"""PostgreSQL's error code of a write in a read-only transaction."""
_MIGRATION_LOCK = 0x68656164
"""PostgreSQL advisory lock, so that replicas that start together migrate one at a time."""
LOCK_TIMEOUT_S = 5
"""Longest wait of a migration for a table of PostgreSQL, because all others who need the table wait behind it."""
LOCK_NOT_AVAILABLE = "55P03"
"""PostgreSQL's error code of a lock that was not granted in time."""


def open_engine(url: str) -> sa.Engine:
    """An engine for `sqlite:///file` or `postgresql://...`, not connected yet. Its error messages contain no values of
    rows. Raises ConfigError where the URL is not valid or the driver is not installed.
    """
    address = _address(url)
    if address.get_backend_name() == "sqlite":
        engine = sa.create_engine(address, connect_args={"timeout": 30.0}, hide_parameters=True)
        sa.event.listen(engine, "connect", _prepare_sqlite)
        return engine
    if fault := missing_extra("storage.url: PostgreSQL needs", "psycopg", "postgres"):
        raise ConfigError([fault])
    engine = sa.create_engine(
        address, pool_pre_ping=True, pool_size=4, max_overflow=4, connect_args={"connect_timeout": 5},
        hide_parameters=True,
    )
    sa.event.listen(engine, "handle_error", _leave_standby)
    return engine


def missing_folder(url: str) -> str:
    """An error message where the folder of an SQLite file doesn't exist, else empty. SQLite creates the file, but not
    its folder.
    """
    address = _address(url)
    if address.get_backend_name() != "sqlite" or not address.database or address.database.startswith("file:"):
        return ""
    folder = Path(address.database).parent
    return "" if folder.is_dir() else f"storage.url: {folder} is no folder"


def migrate(url: str) -> list[str]:
    """Migrate the schema to this release's revision; returns the applied revisions, oldest first. Raises ConfigError,
    and changes nothing, where a table of PostgreSQL is in use for longer than `LOCK_TIMEOUT_S`.
    """
    engine = open_engine(url)
    try:
        with engine.begin() as connection:
            take_lock(connection, _MIGRATION_LOCK)
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'")
            before = _revision(connection)
            if before is not None and before not in _known_revisions():
                return []  # a newer release's schema, which this one runs on
            sa.event.listen(connection, "before_cursor_execute", _refuse_destruction)
            config = _alembic()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
        return _revisions_after(before)
    except sa.exc.OperationalError as fault:
        if getattr(fault.orig, "sqlstate", "") != LOCK_NOT_AVAILABLE:
            raise
        raise ConfigError(
            [f"storage.url: nothing was migrated, because a table was in use for {LOCK_TIMEOUT_S} seconds: "
             "run `headgate migrate` again when long reads, such as a backup, have ended"]
        ) from None  # fmt: skip
    finally:
        engine.dispose()


def check_schema(engine: sa.Engine) -> None:
    """Raise ConfigError where the schema is older than this release's. A newer release's schema is accepted."""
    with engine.connect() as connection:
        revision = _revision(connection)
    if revision in _known_revisions() and _revisions_after(revision) == []:
        return
    if revision is not None and revision not in _known_revisions():
        return
    have = f"at revision {revision}" if revision else "empty"
    raise ConfigError(
        [f"storage.url: the database is {have}, this release needs {_head()}: run `headgate migrate`"]
    )


def _address(url: str) -> sa.URL:
    try:
        address = sa.make_url(url)
    except sa.exc.ArgumentError as fault:
        raise ConfigError([f"storage.url: {fault}"]) from None
    backend = address.get_backend_name()
    if backend not in ("sqlite", "postgresql", "postgres"):
        raise ConfigError([f"storage.url: {backend} is not supported: use sqlite or postgresql"])
    return address if backend == "sqlite" else address.set(drivername="postgresql+psycopg")


def _prepare_sqlite(connection: object, _record: object) -> None:
    """Set up a connection so that readers never wait for the writer, and a commit survives a power loss, because
    segments are deleted after it.
    """
    cursor = connection.cursor()  # type: ignore[attr-defined]
    cursor.execute(f"PRAGMA page_size={PAGE_BYTES}")
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=30000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _leave_standby(context: sa.engine.ExceptionContext) -> None:
    """Drop the connections to a server that has become read-only, which still answers pings, so that new ones can reach
    the present primary.
    """
    if getattr(context.original_exception, "sqlstate", "") == READ_ONLY:
        context.is_disconnect = True


def take_lock(connection: sa.Connection, lock: int) -> None:
    """Let one transaction at a time of all replicas go on, so that what it has read is still true when it writes.
    `lock`: a PostgreSQL advisory lock; SQLite has one lock for everything.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
    else:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _refuse_destruction(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
    if _DESTRUCTIVE.match(statement) and "alembic_version" not in statement:
        raise ConfigError([f"migration refused, it would destroy data: {statement.strip()[:200]}"])


def _alembic() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(resources.files("gateway.journal") / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic())


def _head() -> str:
    return _scripts().get_current_head() or ""


def _known_revisions() -> set[str]:
    return {script.revision for script in _scripts().walk_revisions()}


def _revisions_after(revision: str | None) -> list[str]:
    """The revisions after the given one (None: all), oldest first."""
    newer = [script.revision for script in _scripts().iterate_revisions("head", revision or "base")]
    return newer[::-1]


def _revision(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
