"""A full disk under the run folder: answers continue, and both ports report what isn't stored."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from gateway.metrics import Metrics
from gateway.serve.worker_counters import publish, snapshot_of
from tests.chaos.faults import BALLAST, fill
from tests.chaos.stage import small_disk
from tests.gateway.serve.test_serve import CHAT, eventually, write_config
from tests.live import served
from tests.until import until

MASTER = {"authorization": "Bearer hg-master"}


def figure(text: str, name: str) -> float:
    (found,) = re.findall(rf"^{name} (\S+)$", text, re.M)
    return float(found)


async def test_the_admin_port_reports_dropped_records(tmp_path: Path) -> None:
    """It stays ready but degraded, and reports how many workers drop records and how many they dropped. Counters
    continue, and it recovers by itself.
    """
    async with AsyncExitStack() as stack:
        if (disk := small_disk(stack, tmp_path / "disk")) is None:
            pytest.skip("this user can't mount a disk")
        path, port, admin_port = write_config(tmp_path)
        path.write_text(path.read_text().replace(f"{tmp_path}/run", f"{disk}/run"))
        await stack.enter_async_context(served(path))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}"))
        admin = f"http://127.0.0.1:{admin_port}"
        await eventually(client, MASTER, 200)
        (published_by,), published = (disk / "run").glob("worker-*.metrics"), list[int]()

        def is_published_again() -> bool:
            if (file := published_by.stat().st_ino) not in published[-1:]:
                published.append(file)
            return len(published) > 2

        await until(is_published_again)
        assert httpx.get(f"{admin}/readyz").json()["journal"] == "ok"
        fill(disk)
        while (await client.get("/readyz")).json()["journal"] == "ok":  # what is left of the last page
            assert (await client.post("/v1/chat/completions", json=CHAT, headers=MASTER)).status_code == 200
        asked = figure(httpx.get(f"{admin}/metrics").text, "headgate_journal_dropped_total")
        for _ in range(20):
            assert (await client.post("/v1/chat/completions", json=CHAT, headers=MASTER)).status_code == 200
        await until(lambda: httpx.get(f"{admin}/readyz").json()["dropped"] >= asked + 20)
        told = httpx.get(f"{admin}/readyz")
        assert (told.status_code, told.json()["status"], told.json()["database"]) == (200, "degraded", "ok")
        assert told.json()["journal"] == "workers that drop records: 1"
        text = httpx.get(f"{admin}/metrics").text
        assert figure(text, "headgate_journal_dropping") == 1
        assert figure(text, "headgate_journal_dropped_total") == told.json()["dropped"]
        (disk / BALLAST).unlink()
        await eventually(client, MASTER, 200)
        await until(lambda: httpx.get(f"{admin}/readyz").json()["status"] == "ready")
        assert httpx.get(f"{admin}/readyz").json()["dropped"] == told.json()["dropped"]


async def test_a_snapshot_is_left_on_a_full_disk_as_long_as_it_has_its_place(tmp_path: Path) -> None:
    """A snapshot overwrites the one before the last, so readers always find a whole one. One that grew finds no room.
    """
    async with AsyncExitStack() as stack:
        if (disk := small_disk(stack, tmp_path / "disk")) is None:
            pytest.skip("this user can't mount a disk")
        path = snapshot_of(disk, 0)
        for _ in range(2):
            publish(path, Metrics().snapshot())
        fill(disk)
        for number in range(3):
            publish(path, b'{"number": %d}' % number)
            assert path.read_bytes().rstrip() == b'{"number": %d}' % number
        with pytest.raises(OSError, match="space"):
            publish(path, b" " * 1_000_000)
        assert path.read_bytes().rstrip() == b'{"number": 2}'
