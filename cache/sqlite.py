"""The durable store of one machine: a SQLite file that several workers may share.

Every call runs on one thread of its own with a deadline, so a slow disk or another worker's lock is a miss
and never a stalled event loop. A file that is corrupt is renamed and begun anew; one that is locked, full or away
is not, because the other workers may go on with it. Workers open the file one at a time, and follow one that begins it
anew, so all of them have the same file.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cache.codec import pack, unpack
from cache.entry import Entry
from cache.store import StoreStats, alive

log = logging.getLogger(__name__)
T = TypeVar("T")

ROW_BYTES = 300
"""What a row weighs beside its value."""
_TOUCHES = 256
"""How many hits are gathered before their scores are written."""
OPENS_WITHIN_S = 5.0
"""Longest wait at the start for a file that other workers, which may be starting as well, have locked."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, id TEXT NOT NULL, tenant TEXT NOT NULL, expires_s REAL NOT NULL,
    size_bytes INTEGER NOT NULL, value REAL NOT NULL, score REAL NOT NULL, blob BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_id ON entries (id);
CREATE INDEX IF NOT EXISTS entries_tenant ON entries (tenant);
CREATE INDEX IF NOT EXISTS entries_score ON entries (score);
CREATE INDEX IF NOT EXISTS entries_expires ON entries (expires_s);
CREATE TABLE IF NOT EXISTS state (
    one INTEGER PRIMARY KEY CHECK (one = 1), entries INTEGER, used_bytes INTEGER, floor REAL
);
INSERT OR IGNORE INTO state VALUES (1, 0, 0, 0.0);
CREATE TRIGGER IF NOT EXISTS entries_in AFTER INSERT ON entries
    BEGIN UPDATE state SET entries = entries + 1, used_bytes = used_bytes + NEW.size_bytes; END;
CREATE TRIGGER IF NOT EXISTS entries_out AFTER DELETE ON entries
    BEGIN UPDATE state SET entries = entries - 1, used_bytes = used_bytes - OLD.size_bytes; END;
"""


class SqliteStore:
    """Keeps entries in `path` within `max_bytes`, giving up by greedy dual size frequency."""

    def __init__(self, path: str | Path, *, max_bytes: int, timeout_s: float = 0.05) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be positive, not {max_bytes}")
        self._path = Path(path)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._stats = StoreStats()
        self._touched: dict[bytes, int] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache-sqlite")
        self._file = 0, 0
        """Identity of the open file: device and inode."""
        self._db = self._thread.submit(self._open_first).result()

    async def get(self, key: bytes, *, tenant: str, now_s: float) -> Entry | None:
        """Return the living entry of this tenant under `key`."""
        entry = await self._run(lambda: self._get(key), None)
        if entry is None or not alive(entry, tenant=tenant, now_s=now_s):
            self._stats.misses += 1
            return None
        self._stats.hits += 1
        self._touched[key] = self._touched.get(key, 0) + 1
        return entry

    async def put(self, key: bytes, entry: Entry) -> bool:
        """Keep an entry under `key`."""
        size_bytes = len(entry.body) + ROW_BYTES
        if size_bytes > self._max_bytes:
            self._stats.refused += 1
            return False
        touched, self._touched = self._touched, {}
        return await self._run(lambda: self._put(key, entry, size_bytes, touched), False)

    async def delete(self, entry_id: str, *, tenant: str | None = None) -> bool:
        """Forget one entry; with `tenant`, only if it is that tenant's."""
        where = "id = ?1 AND (?2 IS NULL OR tenant = ?2)"
        return await self._run(lambda: self._delete(where, entry_id, tenant) > 0, False)

    async def delete_tenant(self, tenant: str) -> bool:
        """Forget all of a tenant's entries."""
        return await self._run(lambda: self._delete("tenant = ?1", tenant) >= 0, False)

    def entries(self, most: int) -> list[Entry]:
        """The entries that live longest, `most` at most. Blocks, on a connection of its own that holds nobody up."""
        try:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=1.0)) as db:
                rows = db.execute("SELECT key, blob FROM entries ORDER BY expires_s DESC LIMIT ?", (most,)).fetchall()
        except sqlite3.Error as error:
            log.warning("cache file %s: %s", self._path, error)
            return []
        found = [unpack(bytes(blob), key=bytes(key)) for key, blob in rows if isinstance(blob, bytes)]
        return [one[1] for one in found if one is not None]

    def stats(self) -> StoreStats:
        """Return the counts; a copy."""
        return replace(self._stats)

    async def close(self) -> None:
        """Close the file and end the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
        self._thread.shutdown(wait=False)

    async def _run(self, work: Callable[[], T], failed: T) -> T:
        """Run `work` on the store's thread, or `failed` when it raises or is late (it may still be done)."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._guarded, work, failed)
        done, _ = await asyncio.wait((future,), timeout=self._timeout_s)
        if done:
            return future.result()
        self._stats.failures += 1
        return failed

    def _guarded(self, work: Callable[[], T], failed: T) -> T:
        if self._file != self._file_there():
            self._reopen()
        try:
            return work()
        except sqlite3.Error as error:
            self._stats.failures += 1
            log.warning("cache file %s: %s", self._path, error)
            if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
                self._reopen()
            return failed

    def _reopen(self) -> None:
        """Where this fails, the connection stays closed, so that the next call tries again."""
        self._db.close()
        try:
            self._db = self._open()
        except (sqlite3.Error, OSError) as error:
            log.warning("cache file %s: %s", self._path, error)

    def _open_first(self) -> sqlite3.Connection:
        ends_s = time.monotonic() + OPENS_WITHIN_S
        while True:
            try:
                return self._open()
            except sqlite3.OperationalError:
                if time.monotonic() > ends_s:
                    raise
            time.sleep(self._timeout_s)

    def _open(self) -> sqlite3.Connection:
        """The file, begun anew if it is corrupt. Raises sqlite3.OperationalError where it is locked or full, OSError
        where its folder is away.
        """
        with Path(f"{self._path}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                db = self._connect()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                broken = self._path.with_suffix(self._path.suffix + ".broken")
                log.warning("cache file %s: %s; begun anew, the old one is %s", self._path, error, broken.name)
                self._path.replace(broken)
                for suffix in ("-wal", "-shm"):
                    Path(f"{self._path}{suffix}").unlink(missing_ok=True)
                db = self._connect()
            self._file = self._file_there()
            return db

    def _file_there(self) -> tuple[int, int]:
        """Identity of the file that now has the name."""
        try:
            found = os.stat(self._path)
        except OSError:
            return 0, 0
        return found.st_dev, found.st_ino

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
        except sqlite3.Error:
            db.close()
            raise
        self._count(db)
        return db

    def _get(self, key: bytes) -> Entry | None:
        row = self._db.execute("SELECT blob FROM entries WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        found = unpack(bytes(row[0]), key=key) if isinstance(row[0], bytes) else None
        if found is None:
            self._stats.corrupt += 1
            self._delete("key = ?1", key)
            return None
        return found[1]

    def _delete(self, where: str, *values: object) -> int:
        deleted = self._db.execute(f"DELETE FROM entries WHERE {where}", values).rowcount  # noqa: S608
        self._count(self._db)
        return deleted

    def _put(self, key: bytes, entry: Entry, size_bytes: int, touched: dict[bytes, int]) -> bool:
        db, value = self._db, entry.cost_usd / size_bytes
        with _transaction(db):
            self._write_touches(touched)
            db.execute("DELETE FROM entries WHERE key = ?", (key,))
            db.execute("DELETE FROM entries WHERE expires_s <= ?", (entry.created_s,))
            self._make_room(size_bytes)
            floor = db.execute("SELECT floor FROM state").fetchone()[0]
            expires_s, blob = entry.created_s + entry.ttl_s, pack(key, "", entry)
            row = (key, entry.id, entry.tenant, expires_s, size_bytes, value, floor + value, blob)
            db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        self._stats.puts += 1
        self._count(db)
        return True

    def _write_touches(self, touched: dict[bytes, int]) -> None:
        floor = self._db.execute("SELECT floor FROM state").fetchone()[0]
        rows = [(hits, floor, key) for key, hits in list(touched.items())[:_TOUCHES]]
        sql = "UPDATE entries SET score = max(score, ?2) + ?1 * value WHERE key = ?3"
        self._db.executemany(sql, rows)

    def _make_room(self, size_bytes: int) -> None:
        db = self._db
        while db.execute("SELECT used_bytes FROM state").fetchone()[0] + size_bytes > self._max_bytes:
            least = db.execute("SELECT key, score FROM entries ORDER BY score LIMIT 1").fetchone()
            if least is None:
                break
            key, score = least
            db.execute("UPDATE state SET floor = max(floor, ?)", (score,))
            db.execute("DELETE FROM entries WHERE key = ?", (key,))
            self._stats.evicted += 1

    def _count(self, db: sqlite3.Connection) -> None:
        row = db.execute("SELECT entries, used_bytes FROM state").fetchone()
        self._stats.entries, self._stats.used_bytes = row


class _transaction:
    """All or nothing, with the write lock from the start."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:  # not where an error, such as a full disk, has already rolled it back
                self._db.execute("ROLLBACK")
