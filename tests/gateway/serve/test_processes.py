"""Child processes are kept alive, whatever prevents that for a while."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from gateway.serve import processes
from gateway.serve.processes import Child, Keeper, Run
from gateway.serve.worker_counters import GONE, retire, snapshot_of
from tests.until import until


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "FIRST_RESTART_S", 0.01)
    monkeypatch.setattr(processes, "LONGEST_RESTART_S", 0.01)


@asynccontextmanager
async def kept(keeper: Keeper) -> AsyncIterator[None]:
    keeping = asyncio.create_task(keeper.keep())
    try:
        yield
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping


async def test_a_child_that_dies_while_the_disk_is_full_is_started_again(tmp_path: Path) -> None:
    """Its counters can't be added to the others' then, and stay in their own file until they can."""
    counted = msgspec.json.encode({"headgate_requests_total": [[[], [3.0]]]})
    snapshot_of(tmp_path, 0).write_bytes(counted)
    (tmp_path / GONE).with_suffix(".new").mkdir()  # what can't be written, even by root
    keeper = Keeper(Child("a", [sys.executable, "-c", ""]), gone=lambda number: retire(tmp_path, number))
    async with kept(keeper):
        await until(lambda: keeper.restarts >= 3)
    assert snapshot_of(tmp_path, 0).read_bytes() == counted


async def test_a_child_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    """The system may lack memory, processes or files for a while. No attempt leaks a file."""
    program = tmp_path / "program"
    keeper = Keeper(Child("a", [str(program)]))
    async with kept(keeper):
        await asyncio.sleep(0.05)
        before = len(os.listdir("/dev/fd"))
        for _ in range(9):
            assert not await keeper.replace(Child("b", [str(program)], reports_ready=True), 1.0)
        assert len(os.listdir("/dev/fd")) < before + 9
        program.write_text("#!/bin/sh\nsleep 60\n")
        program.chmod(0o755)
        await until(keeper.is_ready.is_set)


async def test_a_child_replaced_while_it_is_started_again_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a worker dies during a reload, no successor with the old configuration stays."""
    began, go = asyncio.Event(), asyncio.Event()
    start, runs = Run.start, list[Run]()

    async def slowly(child: Child, number: int) -> Run:
        runs.append(run := await start(child, number))
        if len(runs) == 2:
            began.set()
            await go.wait()
        return run

    monkeypatch.setattr(Run, "start", slowly)
    keeper = Keeper(Child("a", ["sleep", "60"]))
    async with kept(keeper):
        await until(keeper.is_ready.is_set)
        runs[0].process.kill()
        await began.wait()
        assert await keeper.replace(Child("b", ["sleep", "61"]), 60.0)
        go.set()
        await until(lambda: runs[1].process.returncode is not None)
        assert runs[2].process.returncode is None
    assert runs[2].process.returncode is not None and len(runs) == 3


async def test_whoever_ends_waits_for_what_a_restart_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After SIGTERM during a reload the supervisor waits for the old control process, which may still hold its port."""
    start, runs = Run.start, list[Run]()

    async def noted(child: Child, number: int) -> Run:
        runs.append(run := await start(child, number))
        return run

    monkeypatch.setattr(Run, "start", noted)
    told = tmp_path / "told"
    program = f"trap 'sleep 0.5; exit' TERM; touch {told}; while true; do sleep 0.1; done"
    keeper = Keeper(Child("a", ["sh", "-c", program]))
    async with kept(keeper):
        await until(told.exists)
        restarting = asyncio.create_task(keeper.restart(Child("b", ["sleep", "60"])))
        await until(lambda: len(runs) == 2)
        restarting.cancel()
    assert [run.process.returncode is None for run in runs] == [False, False]


async def test_a_replacement_that_ends_at_once_is_waited_for_once(caplog: pytest.LogCaptureFixture) -> None:
    """Its exit status is left to the event loop, which would otherwise warn of an unknown child process."""
    keeper = Keeper(Child("a", ["sleep", "60"]))
    async with kept(keeper):
        await until(keeper.is_ready.is_set)
        for _ in range(40):
            assert not await keeper.replace(Child("b", ["sh", "-c", "exit 3"], reports_ready=True), 60.0)
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_a_replacement_that_is_given_up_is_not_left_behind(tmp_path: Path) -> None:
    """A replacement is stopped when SIGTERM comes during a reload; otherwise it would log that its supervisor is gone.
    """
    steady = Child("a", [sys.executable, "-c", "import time; time.sleep(60)"])
    written = tmp_path / "pid"
    program = f"import os, time; open({str(written)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    keeper = Keeper(steady)
    async with kept(keeper):
        child = Child("b", [sys.executable, "-c", program], reports_ready=True)
        reloading = asyncio.create_task(keeper.replace(child, 60.0))
        await until(lambda: written.exists() and written.read_text() != "")
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)
        assert not Path(f"/proc/{written.read_text()}").exists()


REAPER = """
import asyncio, ctypes, os, sys
from gateway.serve import processes
from gateway.serve.processes import Child, Keeper, reap_orphans

PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
processes.REAP_EVERY_S = 0.001

def left(): return open(f"/proc/self/task/{os.getpid()}/children").read().split()

async def main():
    reaping = asyncio.create_task(reap_orphans())
    keeper = Keeper(Child("a", ["sh", "-c", "(sleep 0.01 & sleep 0.02 & sleep 60 &); exit 7"]))
    keeping = asyncio.create_task(keeper.keep())
    while keeper.restarts < 20:
        await asyncio.sleep(0.001)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    async with asyncio.timeout(60):
        while any(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z" for pid in left()):
            await asyncio.sleep(0.01)
    print(len(left()), "live")
    for pid in map(int, left()):
        os.kill(pid, 9)
    async with asyncio.timeout(60):
        while left():
            await asyncio.sleep(0.01)
    reaping.cancel()

processes.FIRST_RESTART_S = processes.LONGEST_RESTART_S = 0.01
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="nobody but process 1 inherits orphans here")
async def test_who_inherits_orphans_lets_them_go_when_they_end() -> None:
    """As process 1 of a container it leaves no zombie, ends no living process, and gets the exit status of each child
    of its own.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", REAPER, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    told, log = await asyncio.wait_for(process.communicate(), 120)
    live = int(told.split()[0])
    assert process.returncode == 0 and live >= 20
    assert log.decode().count("a ended with status 7 after") >= 20 and b"Unknown child" not in log
