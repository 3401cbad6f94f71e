"""Parts of a job at a provider's batch endpoint: they cost half, are found again after a crash, and are taken back when
late.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from gateway.batch import endpoint
from gateway.batch.endpoint import ProviderEndpoints
from gateway.batch.execute import LocalFiles, execute, shipping
from gateway.batch.jobs import Jobs, Part, owner_name
from gateway.batch.lease import RunnerOptions
from gateway.batch.types import Arm, Plan
from gateway.errors import HeadgateError
from tests.gateway.batch.made import ME, carried, chat, estimates, new_job, open_jobs, plan
from tests.live import live
from tests.until import until

CHEAP: dict[str, Any] = {
    "providers": [{"name": "slow", "kind": "openai", "base_url": "UPSTREAM", "batch_discount": 0.5}],
    "routes": [{"name": "auto", "models": ["small"]}],
}
MODELS: list[Any] = [{"name": "small", "provider": "slow"}]
LIVE, AWAY = Arm("small"), Arm("small", via="batch", window_s=3600.0)
QUALITY = {LIVE.label: 0.6, AWAY.label: 0.6}
COST = {LIVE.label: 4e-5, AWAY.label: 2e-5}


def asked(folder: Path, count: int, **more: Any) -> Any:
    bodies = [chat("auto", f"say {number}", max_tokens=8) for number in range(count)]
    table = estimates([LIVE, AWAY], count, QUALITY, COST)
    table.cost_usd[:, 0] = 1e-3  # so that the plan sends every prompt there
    return plan(folder / "plan", bodies, table, **{"budget_usd": 0.01, **more})


async def test_a_batch_endpoint_answers_at_its_discount(tmp_path: Path) -> None:
    """Every answer comes from one uploaded file, costs half the live price, and is in the journal like any other."""
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        done = await carried(gateway.services, asked(tmp_path, 30), tmp_path, endpoints=endpoints)
        paid = [await gateway.decision(item.decision_id) for item in done.jobs.items(done.job.id)]
        made = list(gateway.upstream.batches.batches.values())
        await gateway.rest()
    assert done.job.state == "completed" and len(done.output) == 30 and done.errors == []
    assert len(made) == 1 and made[0]["completion_window"] == "1h"
    said = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in done.output}
    assert said == {f"row-{n + 1}": f"say {n}" for n in range(30)}
    usage = [one.attempts[0].usage for one in paid]
    full = sum(1000 * one["input"] + 4000 * one["output"] for one in usage)
    assert sum(one.cost_nanousd for one in paid) == round(done.spent_usd * 1e9) == full // 2


async def test_lines_that_the_endpoint_fails_are_asked_one_by_one(tmp_path: Path) -> None:
    """Lines with a 500 get live answers; none is lost, and none is answered twice."""
    scripts = {"small": [*[{"status": 500}] * 4, {}]}
    async with live(tmp_path, scripts=scripts, models=MODELS, **CHEAP) as gateway:
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        done = await carried(gateway.services, asked(tmp_path, 10), tmp_path, endpoints=endpoints)
    assert done.job.state == "completed" and len(done.output) == 10 and done.errors == []
    assert gateway.upstream.seen.requests == 10 + 4


def naming(*ids: str) -> bytes:
    """A prompt that names files."""
    files = [{"type": "file", "file": {"file_id": id}} for id in ids]
    turns = [{"role": "user", "content": [{"type": "text", "text": "read"}, *files]}]
    return chat("auto", "read", max_tokens=8, messages=turns)


def naming_job(folder: Path, *bodies: bytes, **more: Any) -> Plan:
    """A job that goes to the provider's batch endpoint completely."""
    table = estimates([LIVE, AWAY], len(bodies), QUALITY, COST)
    table.cost_usd[:, 0] = 1e-3
    return plan(folder / "plan", bodies, table, budget_usd=1.0, **more)


async def test_a_prompts_file_is_sent_to_the_endpoint(tmp_path: Path) -> None:
    """It is billed at the discount that the plan assumed, within the hold; a prompt whose file is gone fails for that
    reason.
    """
    text = b"what it says " * 500
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        files = gateway.services.batches.files
        file, gone = [await asyncio.to_thread(files.add, ME.tenant, "user_data", "a.txt", [text], 0.0) for _ in "ab"]
        await asyncio.to_thread(files.delete, gone.id, ME.tenant)
        job = naming_job(tmp_path, chat("auto", "one", max_tokens=8), naming(file.id, file.id), naming(gone.id))
        done = await carried(gateway.services, job, tmp_path, endpoints=ProviderEndpoints(gateway.services, 0.01))
        (sent,) = gateway.upstream.batches.batches.values()
        lines = [json.loads(one) for one in gateway.upstream.batches.files[sent["input_file_id"]].splitlines()]
        paid = [await gateway.decision(item.decision_id) for item in done.jobs.items(done.job.id)]
        await gateway.rest()
        ledger = gateway.services.ledger
        assert ledger.outstanding == ledger.overrun_nanousd == 0
    assert done.job.state == "completed" and len(done.output) == 2
    (refused,) = done.errors
    assert refused["custom_id"] == "row-3" and refused["response"]["body"]["error"]["code"] == "file_not_found"
    assert len(lines) == 2 and not any(b"file_id" in json.dumps(line).encode() for line in lines)
    _, *parts = lines[1]["body"]["messages"][0]["content"]
    told = {"filename": "a.txt", "file_data": "data:text/plain;base64," + base64.b64encode(text).decode()}
    assert [part["file"] for part in parts] == [told, told]
    usage = [one.attempts[0].usage for one in paid if one.attempts]
    assert len(usage) == 2
    assert round(done.spent_usd * 1e9) == sum(1000 * one["input"] + 4000 * one["output"] for one in usage) // 2


async def test_the_size_of_a_part_includes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part and what is in memory at once stay within the provider's limit; a line that is too large alone is asked
    live.
    """
    monkeypatch.setattr(endpoint, "MOST_BYTES", 30_000)
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        files = gateway.services.batches.files
        sizes = (20_000, 9_000, 9_000, 9_000, 30_000)
        added = [await asyncio.to_thread(files.add, ME.tenant, "user_data", "a.txt", [b"a" * n], 0.0) for n in sizes]
        job = naming_job(tmp_path, *(naming(file.id) for file in added))
        done = await carried(gateway.services, job, tmp_path, endpoints=ProviderEndpoints(gateway.services, 0.01))
        made = gateway.upstream.batches
        sent = [made.files[one["input_file_id"]] for one in made.batches.values()]
    assert done.job.state == "completed" and len(done.output) == 5
    assert sorted(len(one.splitlines()) for one in sent) == [1, 1, 2] and max(map(len, sent)) <= 30_000


async def test_a_hold_covers_the_files_of_a_part(tmp_path: Path) -> None:
    """Whatever number of tokens the pages of a PDF have, the hold is at most the model's whole context."""
    scripts = {"small": [{"input_tokens": 90_000}]}
    models = [{**MODELS[0], "context_tokens": 100_000}]
    async with live(tmp_path, scripts=scripts, models=models, **CHEAP) as gateway:
        files = gateway.services.batches.files
        file = await asyncio.to_thread(files.add, ME.tenant, "user_data", "a.pdf", [b"%PDF-1.7 ..."], 0.0)
        done = await carried(
            gateway.services, naming_job(tmp_path, naming(file.id)), tmp_path,
            endpoints=ProviderEndpoints(gateway.services, 0.01),
        )  # fmt: skip
        await gateway.rest()
        ledger = gateway.services.ledger
        assert ledger.outstanding == ledger.overrun_nanousd == 0
        assert len(gateway.upstream.batches.batches) == 1
        (part,) = done.jobs.parts(done.job.id)
    assert len(done.output) == 1 and 45_000_000 < round(done.spent_usd * 1e9) <= part.worst_nanousd


async def test_a_database_outage_only_delays_a_part(tmp_path: Path) -> None:
    """Its files are read once the database is back."""
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        store = gateway.services.batches
        file = await asyncio.to_thread(store.files.add, ME.tenant, "user_data", "a.txt", [b"what it says"], 0.0)
        job, waiting = naming_job(tmp_path, naming(file.id)), [True, True, False]
        of_files = type(store).of_files

        async def away(self: Any, ask: Any) -> Any:
            if waiting and waiting.pop():
                raise HeadgateError("the database is away", status=503)
            return await of_files(self, ask)

        type(store).of_files = away  # type: ignore[method-assign]
        try:
            done = await carried(gateway.services, job, tmp_path, endpoints=ProviderEndpoints(gateway.services, 0.01))
        finally:
            type(store).of_files = of_files  # type: ignore[method-assign]
        assert len(gateway.upstream.batches.batches) == 1
    assert done.job.state == "completed" and len(done.output) == 1 and not waiting


class Faults:
    """A proxy in front of a scripted upstream's batch endpoint that answers with the given faults until they are used
    up.
    """

    def __init__(self, batches: Any, *faults: tuple[str, str, int, bool]) -> None:
        """Each fault: the method, the end of the path, the status, and whether the request was passed on all the same.
        """
        self.faults, self._answer = list(faults), batches.answer
        batches.answer = self.answer

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Any:
        bare = path.partition("?")[0]
        fault = next((one for one in self.faults if one[0] == method and bare.endswith(one[1])), None)
        if fault is None:
            return self._answer(method, path, headers, body)
        self.faults.remove(fault)
        if fault[3]:
            self._answer(method, path, headers, body)
        return fault[2], {"error": {"message": "not now"}} if fault[2] > 200 else b"<html>"


WAITED_FOR = {
    "the upload fails": [("POST", "/files", 503, False)],
    "the batch is not made": [("POST", "/batches", 500, False)],
    "the batch is made unheard": [("POST", "/batches", 502, True)],
    "the batch is made in other words": [("POST", "/batches", 200, True), ("GET", "/batches", 200, False)],
    "nobody can say how it stands": [("GET", "/batch_scripted_0", 503, False)] * 12,
    "it answers no JSON": [("GET", "/batch_scripted_0", 200, False)] * 2,
    "its output can't be had": [("GET", "/content", 429, False), ("GET", "/content", 500, False)],
}


@pytest.mark.parametrize("faults", WAITED_FOR.values(), ids=WAITED_FOR.keys())
async def test_a_provider_with_errors_is_waited_for(tmp_path: Path, faults: Any, monkeypatch: Any) -> None:
    """Its batch continues and is billed: it is found again, and nothing is sent twice."""
    monkeypatch.setattr("gateway.batch.endpoint.LONGEST_POLL_S", 0.01)
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        broken = Faults(gateway.upstream.batches, *faults)
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        done = await carried(gateway.services, asked(tmp_path, 10), tmp_path, endpoints=endpoints)
        await gateway.rest()
    assert broken.faults == [] and len(gateway.upstream.batches.batches) == 1
    assert done.job.state == "completed" and len(done.output) == 10 and gateway.upstream.seen.requests == 10


def one_of_its_own(line: dict[str, Any]) -> None:
    line["custom_id"] = "9" * 6000


def status_as_text(line: dict[str, Any]) -> None:
    line["response"]["status_code"] = "200"


def no_status(line: dict[str, Any]) -> None:
    line["response"]["status_code"] = None


def no_object(line: dict[str, Any]) -> None:
    line["response"]["body"] = "oops"


def empty(line: dict[str, Any]) -> None:
    line["response"]["body"] = None


@pytest.mark.parametrize(
    ("spoil", "again"), [(one_of_its_own, 1), (status_as_text, 0), (no_status, 1), (no_object, 1), (empty, 1)]
)
async def test_an_unreadable_line_of_the_output_is_asked_live(tmp_path: Path, spoil: Any, again: int) -> None:
    """Only that line is asked again, and every line is answered."""
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        batches = gateway.upstream.batches
        finish = batches._finish

        def finish_spoilt(batch: Any) -> None:
            finish(batch)
            lines = [json.loads(line) for line in batches.files[batch["output_file_id"]].splitlines()]
            spoil(lines[3])
            batches.files[batch["output_file_id"]] = b"".join(json.dumps(line).encode() + b"\n" for line in lines)

        batches._finish = finish_spoilt  # type: ignore[method-assign]
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        async with asyncio.timeout(30):
            done = await carried(gateway.services, asked(tmp_path, 10), tmp_path, endpoints=endpoints)
        await gateway.rest()
    said = [line["response"]["body"]["choices"][0]["message"]["content"] for line in done.output]
    assert said == [f"say {n}" for n in range(10)] and gateway.upstream.seen.requests == 10 + again


@pytest.mark.parametrize("gone", ["/content", "/batch_scripted_0"])
async def test_paid_results_that_are_gone_are_not_paid_again(tmp_path: Path, gone: str, monkeypatch: Any) -> None:
    """If the output has expired, or the provider no longer knows the batch, the lines fail with the reason, and the
    journal has the cost that the plan expected.
    """
    monkeypatch.setattr("gateway.batch.endpoint.LONGEST_POLL_S", 0.01)
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        gateway.upstream.batches.polls = 2
        Faults(gateway.upstream.batches, *[("GET", gone, 404, True)] * 20)
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        done = await carried(gateway.services, asked(tmp_path, 10), tmp_path, endpoints=endpoints)
        paid = [await gateway.decision(item.decision_id) for item in done.jobs.items(done.job.id)]
        await gateway.rest()
    assert len(gateway.upstream.batches.batches) == 1 and gateway.upstream.seen.requests == 10
    assert done.output == [] and len(done.errors) == 10
    told = [line["response"]["body"]["error"] for line in done.errors]
    assert {one["code"] for one in told} == {"batch_output_lost"} and "was not asked again" in told[0]["message"]
    assert {one.cost_nanousd for one in paid} == {20_000} and done.spent_usd == pytest.approx(10 * 2e-5)


async def test_a_batch_that_is_not_found_at_once_is_waited_for(tmp_path: Path, monkeypatch: Any) -> None:
    """Some endpoints know a batch only a moment after they have made it."""
    monkeypatch.setattr("gateway.batch.endpoint.LONGEST_POLL_S", 0.01)
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        Faults(gateway.upstream.batches, *[("GET", "/batch_scripted_0", 404, False)] * 2)
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        done = await carried(gateway.services, asked(tmp_path, 10), tmp_path, endpoints=endpoints)
    (batch,) = gateway.upstream.batches.batches.values()
    assert batch["status"] == "completed" and len(done.output) == 10 and gateway.upstream.seen.requests == 10


async def test_an_error_in_a_part_releases_its_prompts(tmp_path: Path, monkeypatch: Any) -> None:
    """They are asked one by one; otherwise the job would wait for ever."""
    monkeypatch.setattr("gateway.batch.endpoint.peek", lambda *given: 1 / 0)
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        async with asyncio.timeout(30):
            done = await carried(gateway.services, asked(tmp_path, 4), tmp_path, endpoints=endpoints)
        await gateway.rest()
    assert done.job.state == "completed" and len(done.output) == 4


@pytest.mark.parametrize("fault", [("POST", "/files", 404, False), ("POST", "/files", 200, False)])
async def test_without_an_endpoint_prompts_are_asked_one_by_one(tmp_path: Path, fault: Any, monkeypatch: Any) -> None:
    """It doesn't answer, so nothing was handed over."""
    monkeypatch.setattr("gateway.batch.endpoint.LONGEST_POLL_S", 0.01)
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        Faults(gateway.upstream.batches, *[fault] * 10)
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        done = await carried(gateway.services, asked(tmp_path, 10), tmp_path, endpoints=endpoints)
    assert gateway.upstream.batches.batches == {} and done.job.state == "completed" and len(done.output) == 10


async def test_a_batch_that_ends_before_its_cancellation_keeps_its_answers(tmp_path: Path) -> None:
    """The provider refuses to cancel it; its results are read and paid for, and not asked again."""
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        batches = gateway.upstream.batches
        batches.polls = 2
        Faults(batches, ("POST", "/cancel", 409, False))
        done = await carried(
            gateway.services, asked(tmp_path, 10), tmp_path, endpoints=ProviderEndpoints(gateway.services, 0.01, 100.0),
            deadline_s=time.time() + 60,
        )  # fmt: skip
    assert done.job.state == "completed" and len(done.output) == 10 and gateway.upstream.seen.requests == 10


async def test_a_part_is_sent_after_it_is_stored(tmp_path: Path, monkeypatch: Any) -> None:
    """While the database is away nothing goes to the provider; afterwards the job continues."""
    monkeypatch.setattr("gateway.batch.endpoint.STORE_RETRY_S", 0.01)
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        put, times = Jobs.put_part, iter(range(5))

        def away(self: Jobs, part: Part, now_s: float) -> None:
            if next(times, None) is not None:
                assert gateway.upstream.batches.batches == {}
                raise OperationalError("INSERT", {}, Exception("database is away"))
            put(self, part, now_s)

        monkeypatch.setattr(Jobs, "put_part", away)
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        done = await carried(gateway.services, asked(tmp_path, 10), tmp_path, endpoints=endpoints)
    assert done.job.state == "completed" and len(done.output) == 10 and gateway.upstream.seen.requests == 10


async def test_a_cancelled_job_sends_nothing_to_a_provider(tmp_path: Path) -> None:
    """It is taken over after its runner died, and its prompts are not asked in any way."""
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        services, made = gateway.services, asked(tmp_path, 10)
        jobs = open_jobs(services)
        job = jobs.find(new_job(jobs, made, tmp_path).id)
        job.wish = jobs.ask(job.id, "cancel", time.time()).wish
        async with shipping(services.spool_dir, jobs.engine):
            endpoints = ProviderEndpoints(services, 0.01)
            over = await execute(services, jobs, job, made, ME, LocalFiles(), RunnerOptions(), endpoints)
        assert over.state == "cancelled" and gateway.upstream.batches.batches == {}
        assert gateway.upstream.seen.requests == 0


async def test_a_late_part_is_taken_back(tmp_path: Path) -> None:
    """Before the deadline the slow provider's batch is cancelled and its prompts are asked live."""
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        gateway.upstream.batches.polls = 10**6
        done = await carried(
            gateway.services, asked(tmp_path, 10), tmp_path, endpoints=ProviderEndpoints(gateway.services, 0.01, 10.0),
            deadline_s=time.time() + 12,
        )  # fmt: skip
        (made,) = gateway.upstream.batches.batches.values()
    assert made["status"] == "cancelled" and done.job.state == "completed" and len(done.output) == 10


@pytest.mark.parametrize("forget", [False, True], ids=["known", "not yet written down"])
async def test_a_new_runner_finds_its_predecessors_batch(tmp_path: Path, forget: bool) -> None:
    """It waits for that batch, which it finds by id or by the part's name, instead of paying for another."""
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        services = gateway.services
        gateway.upstream.batches.polls = 10**6
        made = asked(tmp_path, 10)
        jobs = open_jobs(services)
        job = new_job(jobs, made, tmp_path)
        async with shipping(services.spool_dir, jobs.engine):
            dying = asyncio.create_task(
                execute(services, jobs, job, made, ME, LocalFiles(), RunnerOptions(), ProviderEndpoints(services, 0.01))
            )
            await until(lambda: any(part.upstream for part in jobs.parts(job.id)))
            dying.cancel()
            await asyncio.gather(dying, return_exceptions=True)
            if forget:
                (part,) = jobs.parts(job.id)
                part.upstream = ""
                jobs.put_part(part, time.time())
            gateway.upstream.batches.polls = 1
            again = jobs.claim(job.id, owner_name(), time.time() + 60)
            assert again is not None
            endpoints = ProviderEndpoints(services, 0.01)
            over = await execute(services, jobs, again, made, ME, LocalFiles(), RunnerOptions(), endpoints)
    assert over.state == "completed" and over.progress.done == 10
    assert len(gateway.upstream.batches.batches) == 1 and gateway.upstream.seen.requests == 10
