"""A real PostgreSQL server for the session, on a free port; where none is installed its tests are skipped.

As root the server runs as user `postgres` (it refuses root); fsync is off, since nothing here outlives the
session.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import pytest

from tests.ports import free_port


@dataclass
class PostgresServer:
    """A running server; `new_database` gives each test its own."""

    binaries: Path
    folder: Path
    port: int = field(default=0)

    def new_database(self) -> str:
        """URL of a fresh, empty database."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(f"{self._url}/postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"{self._url}/{name}"

    def start(self) -> None:
        """Start the server, again on the same port."""
        if not self.port:
            self.port = free_port()
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        options += " -c fsync=off -c full_page_writes=off -c shared_buffers=16MB"
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", self._log, "-w", "start")

    def stop(self) -> None:
        """Stop it as a crash does: connections break."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def create(self) -> None:
        """Create the cluster's files."""
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        self._run(
            "initdb", "-D", str(self.folder / "data"), "-U", "headgate", "-A", "trust", "-N", "-E", "UTF8"
        )

    @property
    def pid(self) -> int:
        """The process id of the postmaster."""
        return int((self.folder / "data" / "postmaster.pid").read_text().split()[0])

    @property
    def _url(self) -> str:
        return f"postgresql://headgate@127.0.0.1:{self.port}"

    @property
    def _log(self) -> str:
        return str(self.folder / "log")

    def _run(self, program: str, *arguments: str) -> None:
        as_user = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
        )
        command = [*as_user, str(self.binaries / program), *arguments]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False, timeout=150)
        if done.returncode:
            log = Path(self._log)
            raise RuntimeError(f"{program}: {done.stderr} {log.read_text() if log.exists() else ''}")


def binaries() -> Path | None:
    """The folder with the server's programs: from PATH, or Debian's newest version. None if there is none."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server per test process."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with running_postgres(programs) as server:
        yield server


@contextmanager
def running_postgres(programs: Path) -> Iterator[PostgresServer]:
    """A new cluster, deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="hgpg", dir="/tmp"))
    server = PostgresServer(programs, folder)
    try:
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
