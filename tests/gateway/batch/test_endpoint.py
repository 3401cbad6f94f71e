"""Parts of a job at a provider's batch endpoint: half the price, found again after a crash, given back when late."""

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

CHEAP = {
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
    table.cost_usd[:, 0] = 1e-3  # so that the plan sends all of it away
    return plan(folder / "plan", bodies, table, **{"budget_usd": 0.01, **more})


async def test_a_providers_batch_endpoint_answers_at_its_discount(tmp_path: Path) -> None:
    """Every answer from one uploaded file, the money half of the live price, in the journal like any other."""
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


async def test_what_the_endpoint_fails_is_asked_one_by_one(tmp_path: Path) -> None:
    """Lines it answers 500 come back and get live answers; none is lost, none twice."""
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
    """All of it for the provider's batch endpoint."""
    table = estimates([LIVE, AWAY], len(bodies), QUALITY, COST)
    table.cost_usd[:, 0] = 1e-3
    return plan(folder / "plan", bodies, table, budget_usd=1.0, **more)


async def test_a_prompt_that_names_a_file_goes_to_the_endpoint_with_it(tmp_path: Path) -> None:
    """At the discount that the plan counted with, within what was held; one whose file is gone is refused for that."""
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


async def test_parts_are_as_large_with_their_files_as_the_provider_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is in memory at once is no larger; a line that is too large alone is asked by itself."""
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


async def test_a_part_is_held_for_what_its_files_may_come_to(tmp_path: Path) -> None:
    """However many tokens the pages of a PDF have: up to what the model reads at all."""
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


async def test_a_database_away_holds_a_part_up_and_no_more(tmp_path: Path) -> None:
    """Its files are read once it is back."""
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
    """Before a scripted upstream's batch endpoint: what the given faults say, until they are used up."""

    def __init__(self, batches: Any, *faults: tuple[str, str, int, bool]) -> None:
        """Of each: the method, the end of the path, the status, and whether it was heard all the same."""
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
async def test_a_provider_in_trouble_is_waited_for(tmp_path: Path, faults: Any, monkeypatch: Any) -> None:
    """Its batch goes on and is billed: it is found again, and nothing is asked or made a second time."""
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
async def test_a_line_that_nobody_foresaw_holds_up_no_job(tmp_path: Path, spoil: Any, again: int) -> None:
    """What can't be read is asked of the model itself: that line alone, and every line is answered."""
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
async def test_what_was_paid_and_is_gone_is_not_paid_again(tmp_path: Path, gone: str, monkeypatch: Any) -> None:
    """The output has expired, or the provider knows the batch no more: the lines have failed, each says why, and the
    journal counts what the plan expected them to cost.
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


async def test_a_batch_that_is_not_known_at_once_is_waited_for(tmp_path: Path, monkeypatch: Any) -> None:
    """Some endpoints tell of a batch only a moment after they have made it."""
    monkeypatch.setattr("gateway.batch.endpoint.LONGEST_POLL_S", 0.01)
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        Faults(gateway.upstream.batches, *[("GET", "/batch_scripted_0", 404, False)] * 2)
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        done = await carried(gateway.services, asked(tmp_path, 10), tmp_path, endpoints=endpoints)
    (batch,) = gateway.upstream.batches.batches.values()
    assert batch["status"] == "completed" and len(done.output) == 10 and gateway.upstream.seen.requests == 10


async def test_a_fault_of_ours_in_a_part_gives_its_prompts_back(tmp_path: Path, monkeypatch: Any) -> None:
    """They are asked one by one: a job that waits for a part that nobody carries would never end."""
    monkeypatch.setattr("gateway.batch.endpoint.peek", lambda *given: 1 / 0)
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        async with asyncio.timeout(30):
            done = await carried(gateway.services, asked(tmp_path, 4), tmp_path, endpoints=endpoints)
        await gateway.rest()
    assert done.job.state == "completed" and len(done.output) == 4


@pytest.mark.parametrize("fault", [("POST", "/files", 404, False), ("POST", "/files", 200, False)])
async def test_an_endpoint_that_does_not_answer_is_done_without(tmp_path: Path, fault: Any, monkeypatch: Any) -> None:
    """Nothing was handed over: the prompts are asked one by one."""
    monkeypatch.setattr("gateway.batch.endpoint.LONGEST_POLL_S", 0.01)
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        Faults(gateway.upstream.batches, *[fault] * 10)
        endpoints = ProviderEndpoints(gateway.services, 0.01)
        done = await carried(gateway.services, asked(tmp_path, 10), tmp_path, endpoints=endpoints)
    assert gateway.upstream.batches.batches == {} and done.job.state == "completed" and len(done.output) == 10


async def test_a_batch_that_is_over_before_it_is_cancelled_keeps_its_answers(tmp_path: Path) -> None:
    """The provider refuses to cancel it: what it gave is read and paid, not asked again."""
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        batches = gateway.upstream.batches
        batches.polls = 2
        Faults(batches, ("POST", "/cancel", 409, False))
        done = await carried(
            gateway.services, asked(tmp_path, 10), tmp_path, endpoints=ProviderEndpoints(gateway.services, 0.01, 100.0),
            deadline_s=time.time() + 60,
        )  # fmt: skip
    assert done.job.state == "completed" and len(done.output) == 10 and gateway.upstream.seen.requests == 10


async def test_a_database_that_is_away_holds_up_a_part_but_not_for_good(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing goes to the provider before it is written down; once it can be, the job goes on."""
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


async def test_a_cancelled_job_hands_nothing_to_a_provider(tmp_path: Path) -> None:
    """Taken over after its runner died: its prompts are not asked, in no way."""
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


async def test_a_part_that_would_be_late_is_taken_back(tmp_path: Path) -> None:
    """The provider dawdles; before the deadline its batch is cancelled and the prompts are answered live."""
    async with live(tmp_path, models=MODELS, **CHEAP) as gateway:
        gateway.upstream.batches.polls = 10**6
        done = await carried(
            gateway.services, asked(tmp_path, 10), tmp_path, endpoints=ProviderEndpoints(gateway.services, 0.01, 10.0),
            deadline_s=time.time() + 12,
        )  # fmt: skip
        (made,) = gateway.upstream.batches.batches.values()
    assert made["status"] == "cancelled" and done.job.state == "completed" and len(done.output) == 10


@pytest.mark.parametrize("forget", [False, True], ids=["known", "not yet written down"])
async def test_a_runner_that_died_finds_its_batch_again(tmp_path: Path, forget: bool) -> None:
    """The next runner waits for the same batch instead of paying for another, known by its id or by its part's name."""
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
