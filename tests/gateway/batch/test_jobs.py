"""The list of jobs: one runner at a time, requests are obeyed, and nothing that may have been paid for is forgotten."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.batch.execute import LocalFiles, execute, shipping
from gateway.batch.files import CHUNK_BYTES, Files
from gateway.batch.jobs import LEASE_S, Card, Job, Jobs, Progress, is_gone, owner_name
from gateway.batch.lease import LostLease, RunnerOptions
from gateway.batch.retention import delete_expired_batches
from gateway.batch.types import Arm
from gateway.errors import CallerError, NotFound
from gateway.journal.record import DecisionRecord, JobStartRecord
from gateway.journal.schema import migrate, open_engine
from gateway.journal.tables import jobs as table
from gateway.journal.write import write_records
from tests.gateway.batch.made import ME, chat, estimates, new_job, open_jobs, plan, read
from tests.live import live
from tests.until import until

NOW = 1_700_000_000.0


@pytest.fixture(params=["sqlite", "postgres"])
def jobs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Jobs]:
    url = f"sqlite:///{tmp_path}/journal.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_server").new_database()
    migrate(url)
    engine = open_engine(url)
    yield Jobs(engine)
    engine.dispose()


def test_a_job_has_one_runner_until_its_lease_expires(jobs: Jobs) -> None:
    """Then another runner gets the job, and the first can't renew its lease."""
    job = jobs.add("t", "api", Card(source="x"), NOW)
    first = jobs.claim(job.id, "elsewhere/1/a", NOW)
    assert first is not None and jobs.claim(job.id, "elsewhere/2/b", NOW + 1) is None
    assert jobs.renew(first, Progress(), NOW + 5) == ""
    assert jobs.claim(job.id, "elsewhere/2/b", NOW + LEASE_S) is None
    second = jobs.claim(job.id, "elsewhere/2/b", NOW + 6 + LEASE_S)
    assert second is not None and jobs.renew(first, Progress(), NOW + 22) is None
    jobs.change(first, "completed", NOW)
    assert jobs.find(job.id).state == "validating", "a runner that lost its lease changed the job"


def test_a_dead_process_of_this_machine_holds_no_lease(jobs: Jobs) -> None:
    """Its lease is free at once; that of a living process or of another machine isn't."""
    dead = f"{socket.gethostname()}/{2**22 + 1}/x"
    assert is_gone(dead) and not is_gone(owner_name()) and not is_gone(f"elsewhere/{2**22 + 1}/x")
    assert not is_gone(f"{socket.gethostname()}/{os.getppid()}/x")
    job = jobs.add("t", "command", Card(source="x"), NOW)
    assert jobs.claim(job.id, dead, NOW) and jobs.claim(job.id, owner_name(), NOW + 1)


def test_requests_to_a_job_that_is_over_are_refused(jobs: Jobs) -> None:
    """They get 409, and the state stays; so does a job that is being cancelled."""
    job = jobs.add("t", "api", Card(source="x"), NOW)
    assert jobs.ask(job.id, "pause", NOW).wish == "pause" and jobs.ask(job.id, "", NOW).wish == ""
    assert jobs.ask(job.id, "cancel", NOW).state == "cancelling"
    with pytest.raises(CallerError, match="being cancelled"):
        jobs.ask(job.id, "", NOW)
    held = jobs.claim(job.id, "elsewhere/1/a", NOW)
    assert held is not None
    jobs.change(held, "cancelled", NOW)
    with pytest.raises(CallerError, match="is cancelled"):
        jobs.ask(job.id, "cancel", NOW)
    with pytest.raises(NotFound):
        jobs.find(job.id, "another tenant")


def test_a_jobs_end_is_written_at_once(jobs: Jobs) -> None:
    """State, counts and release are one write, so no reader sees `completed` with outdated counts."""
    job = jobs.add("t", "api", Card(source="x"), NOW)
    held = jobs.claim(job.id, "elsewhere/1/a", NOW)
    assert held is not None
    seen = []
    sa.event.listen(jobs.engine, "commit", lambda connection: seen.append(connection.execute(sa.select(table)).one()))
    jobs.end(held, "completed", Progress(total=2, done=2), NOW + 5)
    (row,) = seen
    assert (row.state, row.owner, row.lease_s) == ("completed", "", 0.0) and '"done":2' in row.progress
    jobs.end(held, "failed", Progress(), NOW + 6)
    assert jobs.find(job.id).state == "completed", "it is no longer that runner's"


def test_calls_without_a_record_count_as_spent(jobs: Jobs) -> None:
    """A call that began and has no decision counts at its worst case once, and is asked again; one with a decision
    isn't.
    """
    job = jobs.add("t", "api", Card(source="x"), NOW)
    begun = [JobStartRecord(job=job.id, index=n, time_s=NOW, worst_nanousd=100 + n) for n in range(3)]
    paid: dict[str, Any] = {"status": 200, "cost_nanousd": 7}
    ended = DecisionRecord(id="dec_1", time_s=NOW, job=job.id, job_index=1, job_answer=b"{}", **paid)
    with jobs.engine.begin() as connection:
        write_records(connection, [*begun, ended])
    assert jobs.write_off(job) == 202 and jobs.write_off(job) == 202
    assert [item.state for item in jobs.items(job.id)] == ["open", "done", "open"]
    assert jobs.find(job.id).at_risk_nanousd == 202 and jobs.spent(job.id) == 7


def test_pages_of_jobs_and_files_have_each_once(jobs: Jobs) -> None:
    """They are newest first, by tenant; a file's bytes are returned completely."""
    made = [jobs.add("t", "api", Card(source=str(n)), NOW + n // 2).id for n in range(7)]
    jobs.add("other", "api", Card(source="x"), NOW)
    pages, after = [], ""
    while page := jobs.page("t", after=after, limit=3):
        pages += [job.id for job in page]
        after = page[-1].id
    assert sorted(pages) == sorted(made) and len(pages) == 7
    files = Files(jobs.engine)
    content = os.urandom(2 * CHUNK_BYTES + 5)
    file = files.add("t", "batch", "in.jsonl", [content[:10], content[10:]], NOW)
    assert b"".join(files.read(file.id)) == content and file.bytes == len(content)
    again = files.add("t", "batch", "in.jsonl", [b"less"], NOW, id=file.id)
    assert b"".join(files.read(again.id)) == b"less" and len(files.page("t")) == 1


def test_old_jobs_and_expired_files_are_deleted(jobs: Jobs) -> None:
    """After keep_days a job, its answers and its parts are deleted, and a file at its own expiry; running jobs stay."""
    old, running = (jobs.add("t", "api", Card(source="x"), NOW - 40 * 86400) for _ in range(2))
    held = jobs.claim(old.id, "elsewhere/1/a", NOW)
    assert held is not None
    jobs.change(held, "completed", NOW)
    with jobs.engine.begin() as connection:
        write_records(connection, [JobStartRecord(job=old.id, index=0, time_s=NOW)])
    files = Files(jobs.engine)
    files.add("t", "batch_output", "a", [b"x"], NOW, expires_s=NOW - 1)
    kept = files.add("t", "batch", "b", [b"y"], NOW)
    assert delete_expired_batches(jobs.engine, NOW, 30.0) == 2 and delete_expired_batches(jobs.engine, NOW, 30.0) == 0
    assert [job.id for job in jobs.page("t")] == [running.id] and list(jobs.items(old.id)) == []
    assert files.page("t") == [kept]


ROUTES = [{"name": "auto", "models": ["small"]}]


async def test_a_job_is_paused_resumed_and_handed_over(tmp_path: Path) -> None:
    """Paused, it makes no further call; stopped, it is released; a runner that lost the lease stops silently."""
    bodies = [chat("auto", f"say {n}", max_tokens=8) for n in range(60)]
    table = estimates([Arm("small")], 60, {"small": 0.5}, {"small": 4e-5})
    scripts = {"small": [{"delay_s": 0.05}]}
    async with live(tmp_path, scripts=scripts, models=["small"], routes=ROUTES) as gateway:
        made, jobs, runners = plan(tmp_path / "plan", bodies, table), open_jobs(gateway.services), list[Any]()
        job = new_job(jobs, made, tmp_path, concurrency=2)

        def running(job: Job) -> asyncio.Task[Job]:
            return asyncio.create_task(
                execute(gateway.services, jobs, job, made, ME, LocalFiles(), RunnerOptions(), None, runners.append)
            )

        async with shipping(gateway.services.spool_dir, jobs.engine):
            first = running(job)
            await until(lambda: gateway.upstream.seen.requests >= 4)
            jobs.ask(job.id, "pause", time.time())
            await until(lambda: jobs.find(job.id).state == "paused" and not runners[0].tasks)
            asked = gateway.upstream.seen.requests
            await asyncio.sleep(0.2)
            assert gateway.upstream.seen.requests == asked
            jobs.ask(job.id, "", time.time())
            await until(lambda: gateway.upstream.seen.requests > asked + 2)
            runners[0].stop()
            assert (await first).owner == ""
            again = jobs.claim(job.id, owner_name(), time.time())
            assert again is not None
            second = running(again)
            await until(lambda: len(runners) == 2 and runners[1].answered > 2)
            taken = jobs.claim(job.id, owner_name(), time.time() + 2 * LEASE_S)
            assert taken is not None
            with pytest.raises(LostLease):
                await second
            over = await running(taken)
    assert over.state == "completed" and over.progress.done == 60
    lines = read(tmp_path / "out.jsonl")
    assert sorted(line["custom_id"] for line in lines) == sorted(f"row-{n}" for n in range(1, 61))


async def test_a_job_keeps_its_runner_while_it_makes_no_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shipping records and writing long results take longer than a lease lasts; another runner would ask and pay for it
    a second time.
    """
    monkeypatch.setattr("gateway.batch.jobs.LEASE_S", 1.0)
    monkeypatch.setattr("gateway.batch.lease.BEAT_S", 0.1)
    bodies = [chat("auto", f"say {n}", max_tokens=8) for n in range(4)]
    table = estimates([Arm("small")], 4, {"small": 0.5}, {"small": 4e-5})
    async with live(tmp_path, models=["small"], routes=ROUTES) as gateway:
        made, jobs = plan(tmp_path / "plan", bodies, table), open_jobs(gateway.services)
        job = new_job(jobs, made, tmp_path)
        taken: list[object] = []

        def is_taken_in(seconds: float) -> None:
            time.sleep(seconds)
            taken.append(jobs.claim(job.id, owner_name(), time.time()))

        class Slow(LocalFiles):
            def write(self, *given: object) -> None:
                is_taken_in(1.5)
                super().write(*given)  # type: ignore[arg-type]

        gateway.services.spool.append(JobStartRecord(job="another", index=1, time_s=NOW))
        await gateway.services.spool.sync()
        carrying = asyncio.create_task(execute(gateway.services, jobs, job, made, ME, Slow(), RunnerOptions()))
        await asyncio.to_thread(is_taken_in, 1.5)
        async with shipping(gateway.services.spool_dir, jobs.engine):
            over = await carrying
    assert taken == [None, None] and over.state == "completed" and gateway.upstream.seen.requests == 4


async def test_a_job_that_another_runner_took_makes_no_call(tmp_path: Path) -> None:
    """It lost its lease while it waited for its records."""
    table = estimates([Arm("small")], 1, {"small": 0.5}, {"small": 4e-5})
    async with live(tmp_path, models=["small"], routes=ROUTES) as gateway:
        made = plan(tmp_path / "plan", [chat("auto", "say 1", max_tokens=8)], table)
        jobs = open_jobs(gateway.services)
        job = new_job(jobs, made, tmp_path)
        assert jobs.claim(job.id, owner_name(), time.time() + 2 * LEASE_S) is not None
        async with shipping(gateway.services.spool_dir, jobs.engine):
            with pytest.raises(LostLease):
                await execute(gateway.services, jobs, job, made, ME, LocalFiles(), RunnerOptions())
    assert gateway.upstream.seen.requests == 0
