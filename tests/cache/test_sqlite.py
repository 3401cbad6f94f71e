"""The durable store outlives its process, shares its file with others, and survives a broken file."""

from __future__ import annotations

import asyncio
import fcntl
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cache.sqlite import ROW_BYTES, SqliteStore
from tests.cache.entries import entry
from tests.until import until


async def test_entries_outlive_the_process(tmp_path: Path) -> None:
    """A stored entry is found by the next process, and by another one at the same time."""
    first = SqliteStore(tmp_path / "c.db", max_bytes=1 << 20, timeout_s=10)
    await first.put(b"k", entry())
    second = SqliteStore(tmp_path / "c.db", max_bytes=1 << 20, timeout_s=10)
    assert await second.get(b"k", tenant="t", now_s=101) == entry()
    assert await second.delete_tenant("t")
    assert await first.get(b"k", tenant="t", now_s=101) is None
    await first.close()
    await second.put(b"k", entry("e2"))
    await second.close()
    third = SqliteStore(tmp_path / "c.db", max_bytes=1 << 20, timeout_s=10)
    assert await third.get(b"k", tenant="t", now_s=101) == entry("e2")
    assert third.stats().entries == 1
    await third.close()


async def test_the_file_stays_within_its_bytes(tmp_path: Path) -> None:
    """Expensive and frequently requested entries stay, and the others are evicted; what can't fit is refused."""
    store = SqliteStore(tmp_path / "c.db", max_bytes=10 * (1000 + ROW_BYTES), timeout_s=10)
    for n in range(60):
        await store.put(b"%d" % n, entry(f"e{n}", body=b"x" * 1000, cost_usd=9 if n < 2 else 0.1))
        await store.get(b"5", tenant="t", now_s=101)
    assert store.stats().used_bytes <= 10 * (1000 + ROW_BYTES) and store.stats().evicted == 50
    for n in (0, 1, 5, 59):
        assert await store.get(b"%d" % n, tenant="t", now_s=101) is not None
    assert not await store.put(b"big", entry("big", body=b"x" * 99_999))
    await store.close()


async def test_broken_rows_are_misses(tmp_path: Path) -> None:
    """A truncated, swapped or mistyped value is a miss and is deleted."""
    store = SqliteStore(tmp_path / "c.db", max_bytes=1 << 20, timeout_s=10)
    for n in range(3):
        await store.put(b"%d" % n, entry(f"e{n}"))
    with sqlite3.connect(tmp_path / "c.db") as other:
        other.execute("UPDATE entries SET blob = substr(blob, 1, 40) WHERE key = ?", (b"0",))
        other.execute("UPDATE entries SET blob = (SELECT blob FROM entries WHERE id = 'e2') WHERE id = 'e1'")
        other.execute("UPDATE entries SET blob = 7 WHERE key = ?", (b"2",))
    for n in range(3):
        assert await store.get(b"%d" % n, tenant="t", now_s=101) is None
    assert (store.stats().corrupt, store.stats().entries) == (3, 0)
    await store.close()


async def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    """A broken file is renamed and a new one begun, at the start and during use."""
    path = tmp_path / "c.db"
    path.write_bytes(b"not a database at all " * 500)
    store = SqliteStore(path, max_bytes=1 << 20, timeout_s=10)
    assert (tmp_path / "c.db.broken").exists()
    assert await store.put(b"k", entry())
    await store.close()
    path.write_bytes(path.read_bytes()[:100] + b"\x55" * 40_000)
    store = SqliteStore(path, max_bytes=1 << 20, timeout_s=10)
    await store.get(b"k", tenant="t", now_s=101)
    await store.put(b"k", entry())
    await store.put(b"k", entry())
    assert await store.get(b"k", tenant="t", now_s=101) == entry()
    await store.close()


async def test_workers_that_find_the_same_broken_file_share_the_new_one(tmp_path: Path) -> None:
    """Of several workers one begins a broken file anew. The others take the new file, also those that had the old one
    open without noticing.
    """
    path = tmp_path / "c.db"
    first = SqliteStore(path, max_bytes=1 << 20, timeout_s=10)
    assert await first.put(b"old", entry())
    with (tmp_path / "c.db.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for file in tmp_path.glob("c.db*"):
            if file.suffix != ".lock":
                file.unlink()
        path.write_bytes(b"not a database at all " * 500)
        opening = asyncio.create_task(asyncio.to_thread(SqliteStore, path, max_bytes=1 << 20, timeout_s=10))
        done, _ = await asyncio.wait((opening,), timeout=0.2)
        assert not done and path.exists()
    second = await opening
    assert (tmp_path / "c.db.broken").exists()
    assert await second.put(b"k", entry()) and await first.get(b"old", tenant="t", now_s=101) is None
    assert await first.get(b"k", tenant="t", now_s=101) == entry()
    assert await second.delete_tenant("t") and await first.get(b"k", tenant="t", now_s=101) is None
    await first.close()
    await second.close()


async def test_a_file_that_breaks_in_use_is_a_miss_until_it_can_be_begun_anew(tmp_path: Path) -> None:
    """A file that turns out corrupt, in a folder that has gone away, fails no request; once the folder is back it is
    begun anew.
    """
    folder, away = tmp_path / "run", tmp_path / "away"
    folder.mkdir()
    store = SqliteStore(folder / "c.db", max_bytes=1 << 20, timeout_s=10)
    for n in range(9):
        await store.put(b"%d" % n, entry(f"e{n}", body=b"x" * 5000))
    with closing(sqlite3.connect(folder / "c.db")) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (folder / "c.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\x55" * 40_000)
    folder.rename(away)
    for _ in range(2):
        assert await store.get(b"1", tenant="t", now_s=101) is None and not await store.put(b"k", entry())
    away.rename(folder)
    await until(lambda: store.put(b"k", entry()))
    assert await store.get(b"k", tenant="t", now_s=101) == entry() and store.stats().entries == 1
    assert (folder / "c.db.broken").exists()
    await store.close()


async def test_a_file_that_another_worker_has_locked_is_waited_for(tmp_path: Path) -> None:
    """A worker that starts while another one writes shares its file, and does not set it aside as broken."""
    first = SqliteStore(tmp_path / "c.db", max_bytes=1 << 20, timeout_s=10)
    await first.put(b"k", entry())
    other = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    opening = asyncio.create_task(asyncio.to_thread(SqliteStore, tmp_path / "c.db", max_bytes=1 << 20, timeout_s=0.01))
    done, _ = await asyncio.wait((opening,), timeout=0.2)
    other.execute("ROLLBACK")
    other.close()
    second = await opening
    assert not done and not (tmp_path / "c.db.broken").exists()
    await until(lambda: second.delete_tenant("t"))
    assert await first.get(b"k", tenant="t", now_s=101) is None
    await first.close()
    await second.close()


async def test_a_failed_write_says_why_and_keeps_no_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where a file may not grow, the put fails with the system's reason, and the next one that fits succeeds."""
    store = SqliteStore(tmp_path / "c.db", max_bytes=1 << 24, timeout_s=10)
    assert await store.put(b"k", entry())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        assert not await store.put(b"l", entry("e2", body=b"x" * (1 << 22)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "disk" in caplog.text and "transaction" not in caplog.text
    second = SqliteStore(tmp_path / "c.db", max_bytes=1 << 24, timeout_s=10)
    assert await second.put(b"m", entry("e3")) and await store.put(b"l", entry("e2"))
    await store.close()
    await second.close()


async def test_a_locked_file_delays_nobody(tmp_path: Path) -> None:
    """While another process holds the write lock, writes are skipped and reads continue."""
    store = SqliteStore(tmp_path / "c.db", max_bytes=1 << 20, timeout_s=0.05)
    await until(lambda: store.put(b"k", entry()))
    other = sqlite3.connect(tmp_path / "c.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert not await store.put(b"l", entry("e2"))
    other.execute("ROLLBACK")
    other.close()
    assert store.stats().failures > 0
    await until(lambda: store.put(b"l", entry("e2")))
    await store.close()


def test_a_file_needs_room(tmp_path: Path) -> None:
    """A bound of zero bytes is refused when the store is made."""
    with pytest.raises(ValueError, match="max_bytes"):
        SqliteStore(tmp_path / "c.db", max_bytes=0)
