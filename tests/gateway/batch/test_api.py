"""/v1/files and /v1/batches as the official client uses them, against real processes."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from gateway.app import reload
from gateway.batch.jobs import Jobs
from gateway.batch.owner import keep_batches
from gateway.batch.types import ARRAYS_FILE
from gateway.config.settings import publish_keys
from gateway.errors import CallerError
from gateway.journal.record import KeyRecord
from gateway.journal.schema import open_engine
from gateway.keys import new_key
from gateway.providers.scripted import ScriptedServer
from gateway.wire.multipart import Form, read_multipart
from tests.gateway.batch.made import open_jobs
from tests.gateway.batch.test_kill import configuration
from tests.live import Live, live, served
from tests.ports import free_port
from tests.until import until

ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, text: str, model: str = "auto", **fields: Any) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


async def over(client: AsyncOpenAI, id: str, within_s: float = 60.0) -> Any:
    deadline = time.monotonic() + within_s
    while (batch := await client.batches.retrieve(id)).status not in ENDED:
        assert time.monotonic() < deadline, batch
        await asyncio.sleep(0.05)
    return batch


async def test_the_official_clients_batch_example_runs_unchanged(tmp_path: Path) -> None:
    """OpenAI's own guide works with `headgate serve`: upload, create, retrieve until completed, read the output."""
    async with ScriptedServer() as upstream:
        config = configuration(tmp_path, upstream.url)
        port, admin_port = free_port(), free_port()
        config.write_text(config.read_text().replace("[server]", f"[server]\nport = {port}\nadmin_port = {admin_port}"))
        source = tmp_path / "batchinput.jsonl"
        source.write_text("".join(line(f"request-{n}", f"Hello world! {n}", max_tokens=16) for n in range(12)))
        async with served(config):
            client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
            with source.open("rb") as file:
                uploaded = await client.files.create(file=file, purpose="batch")
            made = await client.batches.create(
                input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h",
                metadata={"description": "nightly eval job"},
            )  # fmt: skip
            assert made.status == "validating" and made.metadata == {"description": "nightly eval job"}
            batch = await over(client, made.id)
            assert batch.status == "completed" and batch.error_file_id is None
            assert batch.request_counts.model_dump() == {"total": 12, "completed": 12, "failed": 0}
            answers = (await client.files.content(batch.output_file_id)).text.splitlines()
            page = await client.batches.list(limit=10)
            async with httpx.AsyncClient() as admin:
                batches = f"http://127.0.0.1:{admin_port}/admin/batches"
                told = (await admin.get(f"{batches}/{batch.id}")).json()
                refused = await admin.post(f"{batches}/{batch.id}/pause")
                listed = (await admin.get(batches)).json()
    found = {one["custom_id"]: one["response"] for one in map(json.loads, answers)}
    assert set(found) == {f"request-{n}" for n in range(12)}
    assert found["request-7"]["status_code"] == 200
    assert found["request-7"]["body"]["choices"][0]["message"]["content"] == "Hello world! 7"
    assert [one.id for one in page.data] == [batch.id] and not page.has_more
    assert told["state"] == "completed" and told["spent_usd"] > 0 and listed == {"data": [told], "next": None}
    assert refused.status_code == 409, "a job that is over can't be paused"


async def test_a_batch_may_name_models_and_no_route(tmp_path: Path) -> None:
    """The official client names models in its lines. A route that is named must exist."""
    async with owned(tmp_path, routes=[]) as (_, client):
        lines = "".join(line(f"r-{n}", f"word {n}", "small") for n in range(3))
        file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        wanted = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = await over(client, (await client.batches.create(**wanted)).id)
        assert batch.status == "completed" and batch.request_counts.completed == 3, batch.errors
        with pytest.raises(NotFoundError):
            await client.batches.create(**wanted, extra_body={"headgate": {"route": "auto"}})
        plain = await client.files.create(file=("in.jsonl", b'{"prompt": "hello"}'), purpose="batch")
        failed = await over(client, (await client.batches.create(**wanted | {"input_file_id": plain.id})).id)
        assert failed.status == "failed" and "'auto' does not exist" in failed.errors.data[0].message


@pytest.mark.slow
async def test_a_batch_outlives_the_worker_that_runs_it(tmp_path: Path) -> None:
    """After kill -9 another worker takes the job over, and every line is answered and billed once."""
    async with ScriptedServer({"small": [{"delay_s": 0.05}]}) as upstream:
        config = configuration(tmp_path, upstream.url)
        port, admin_port = free_port(), free_port()
        config.write_text(config.read_text().replace("[server]", f"[server]\nport = {port}\nadmin_port = {admin_port}"))
        async with served(config, "--workers", "2"):
            client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=5)
            lines = "".join(line(f"r-{n}", f"word {n}") for n in range(300))
            file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
            made = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            jobs = Jobs(open_engine(f"sqlite:///{tmp_path}/journal.db"))
            for killed in range(1, 4):
                await until(lambda: upstream.seen.requests >= killed * 60)
                os.kill(int(jobs.find(made.id).owner.split("/")[1]), signal.SIGKILL)
            batch = await over(client, made.id, within_s=120)
            answers = (await client.files.content(batch.output_file_id)).text.splitlines()
    assert batch.status == "completed" and batch.request_counts.completed == 300
    assert sorted(json.loads(one)["custom_id"] for one in answers) == sorted(f"r-{n}" for n in range(300))
    assert upstream.seen.requests - upstream.seen.repeated == 300


async def test_a_replica_that_plans_a_job_again_gives_every_line_its_own_answer(tmp_path: Path) -> None:
    """It hasn't the plan of the replica that ended, and by its configuration other lines are duplicates."""
    texts = ["again", "again", *(f"word {n}" for n in range(100))]
    slow = {"small": [{"delay_s": 0.1}]}
    async with owned(tmp_path, run="one", cache="exact", scripts=slow) as (gateway, client):
        content = "".join(line(f"r-{n}", text) for n, text in enumerate(texts)).encode()
        file = await client.files.create(file=("in.jsonl", content), purpose="batch")
        wanted = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = await client.batches.create(**wanted)
        await until(lambda: gateway.upstream.seen.requests >= 20)
    asked = gateway.upstream.seen.requests
    async with owned(tmp_path, run="two", cache="none") as (gateway, client):
        gateway.services.batches.mark()
        done = await over(client, made.id)
        answers = (await client.files.content(done.output_file_id)).text.splitlines()
    said = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"]
            for one in map(json.loads, answers)}  # fmt: skip
    assert said == {f"r-{n}": text for n, text in enumerate(texts)}
    assert asked + gateway.upstream.seen.requests == len(texts), "an answer was paid for twice"


async def test_lines_that_become_invalid_fail_alone(tmp_path: Path) -> None:
    """The plan is lost and one of its models removed: those lines are errors, and the others are answered."""
    lines = "".join(line(f"r-{n}", f"word {n}", "large" if n > 90 else "auto") for n in range(100))
    slow: Any = {"scripts": {"small": [{"delay_s": 0.1}]}}
    async with owned(tmp_path, models=("small", "large"), **slow) as (gateway, client):
        file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        wanted = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        made = await client.batches.create(**wanted)
        await until(lambda: gateway.upstream.seen.requests >= 20)
    (tmp_path / "run" / "plans" / made.id / ARRAYS_FILE).write_bytes(b"spoilt")
    async with owned(tmp_path) as (gateway, client):
        gateway.services.batches.mark()
        done = await over(client, made.id)
        answers = (await client.files.content(done.output_file_id)).text.splitlines()
        errors = (await client.files.content(done.error_file_id)).text.splitlines() if done.error_file_id else []
    found = [json.loads(one)["custom_id"] for one in (*answers, *errors)]
    assert done.status == "completed" and sorted(found) == sorted(f"r-{n}" for n in range(100))
    assert {json.loads(one)["error"]["code"] for one in errors} <= {"model_not_found"}


async def test_a_worker_that_ends_asks_no_line_twice(tmp_path: Path) -> None:
    """It first takes the answers that are on their way, within its drain timeout; its successor asks the rest."""
    async with ScriptedServer({"small": [{"delay_s": 4.0}]}) as upstream:
        config = configuration(tmp_path, upstream.url)
        port, admin_port = free_port(), free_port()
        text = config.read_text().replace("[server]", f"[server]\nport = {port}\nadmin_port = {admin_port}")
        config.write_text(text.replace("drain_timeout_s = 5.0", "drain_timeout_s = 20.0"))
        async with served(config):
            client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=5)
            lines = "".join(line(f"r-{n}", f"word {n}") for n in range(12))
            file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
            made = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            await until(lambda: upstream.seen.requests)
            await client.close()
        under_way = upstream.seen.requests
        async with served(config):
            client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=5)
            batch = await over(client, made.id)
    assert batch.status == "completed" and batch.request_counts.completed == 12
    assert 0 < under_way < 12 == upstream.seen.requests and upstream.seen.repeated == 0


KEYS = {"keys": [{"name": "a", "key": "hg-a", "tenant": "a"}, {"name": "b", "key": "hg-b", "tenant": "b"}]}


@asynccontextmanager
async def owned(
    tmp_path: Path, auth: dict[str, Any] = KEYS, models: Sequence[Any] = ("small",), run: str = "run",
    cache: str = "none", **extra: Any,
) -> AsyncIterator[tuple[Live, Any]]:
    """A gateway in this process that runs jobs and ships its journal, and its AsyncOpenAI. `run`: the replica's own
    folder.
    """
    from gateway.batch.execute import shipping

    routes = extra.pop("routes", [{"name": "auto", "models": ["small"], "cache": cache}])
    server = {"run_dir": str(tmp_path / run), "drain_timeout_s": 2.0}
    async with live(tmp_path, models=models, routes=routes, auth=auth, server=server, **extra) as up:
        jobs = open_jobs(up.services)
        keeping = asyncio.create_task(keep_batches(up.services))
        async with shipping(up.services.spool_dir, jobs.engine):
            try:
                yield up, AsyncOpenAI(base_url=f"{up.url}/v1", api_key="hg-a", max_retries=0)
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
        jobs.engine.dispose()


async def test_no_tenant_sees_anothers_files_or_batches(tmp_path: Path) -> None:
    """Every path answers 404 to another tenant, whose lists are empty."""
    async with owned(tmp_path) as (gateway, client):
        file = await client.files.create(file=("in.jsonl", line("x", "hello").encode()), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        batch = await over(client, batch.id)
        assert batch.output_file_id, batch
        stranger = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="hg-b", max_retries=0)
        for ask in (
            stranger.files.retrieve(file.id), stranger.files.content(file.id), stranger.files.delete(file.id),
            stranger.files.content(batch.output_file_id), stranger.batches.retrieve(batch.id),
            stranger.batches.cancel(batch.id),
            stranger.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"),
        ):  # fmt: skip
            with pytest.raises(NotFoundError):
                await ask
        assert (await stranger.files.list()).data == [] and (await stranger.batches.list()).data == []
        (answer,) = (await client.files.content(batch.output_file_id)).text.splitlines()
        decision = await gateway.decision(json.loads(answer)["response"]["request_id"])
        assert (decision.tenant, decision.key_id) == ("a", "file:a")


@pytest.mark.parametrize("surface", ["chat/completions", "responses", "messages"])
async def test_lines_may_name_their_owners_files(tmp_path: Path, surface: str) -> None:
    """The upstream gets the file itself, and its size is held for. Another tenant's file and a deleted one fail their
    own lines only.
    """
    text = b"a line of a file " * 600

    def line_of(custom_id: str, id: str) -> str:
        parts = {"chat/completions": {"type": "file", "file": {"file_id": id}},
                 "responses": {"type": "input_file", "file_id": id},
                 "messages": {"type": "document", "source": {"type": "file", "file_id": id}}}  # fmt: skip
        turns = [{"role": "user", "content": [parts[surface]]}]
        body: dict[str, Any] = {"model": "small", "input" if surface == "responses" else "messages": turns}
        body |= {"max_tokens": 9} if surface == "messages" else {}
        return json.dumps({"custom_id": custom_id, "method": "POST", "url": f"/v1/{surface}", "body": body}) + "\n"

    async with owned(tmp_path) as (gateway, client):
        stranger = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="hg-b", max_retries=0)
        own, gone = [await client.files.create(file=("a.txt", text), purpose="user_data") for _ in range(2)]
        others = await stranger.files.create(file=("a.txt", text), purpose="user_data")
        await client.files.delete(gone.id)
        lines = line_of("own", own.id) + line_of("others", others.id) + line_of("gone", gone.id)
        file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        wanted: Any = {"input_file_id": file.id, "endpoint": f"/v1/{surface}", "completion_window": "24h"}
        done = await over(client, (await client.batches.create(**wanted)).id)
        (answer,) = map(json.loads, (await client.files.content(done.output_file_id)).text.splitlines())
        refused = list(map(json.loads, (await client.files.content(done.error_file_id)).text.splitlines()))
        decision = await gateway.decision(answer["response"]["request_id"])
        (asked,) = [str(one["body"]) for one in gateway.upstream.seen.recent]
        kept = await gateway.services.journal.response(answer["response"]["body"]["id"], "a")
    assert answer["custom_id"] == "own"
    assert base64.b64encode(text).decode() in asked or text.decode() in asked
    assert {one["custom_id"]: one["response"]["status_code"] for one in refused} == {"others": 404, "gone": 404}
    assert decision.input_tokens > len(text) / 4
    if surface == "responses":
        assert kept is not None and own.id.encode() in kept.input and base64.b64encode(text) not in kept.input


async def test_a_line_without_a_valid_file_is_reported_by_its_number(tmp_path: Path) -> None:
    """It is reported before anything is spent, like any other invalid line."""
    async with owned(tmp_path) as (gateway, client):
        turns = [{"role": "user", "content": [{"type": "file", "file": {"file_id": 7}}]}]
        lines = line("a", "hello") + line("b", "", messages=turns)
        file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        wanted: Any = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        failed = await over(client, (await client.batches.create(**wanted)).id)
    assert failed.status == "failed" and gateway.upstream.seen.requests == 0
    (problem,) = failed.errors.data
    assert problem.line == 2 and "must be a string" in problem.message


async def test_a_line_may_do_no_more_than_its_key(tmp_path: Path) -> None:
    """A model or knob that the key may not use is refused in a line as in a request, and the other lines are answered.
    """
    key = {"name": "a", "key": "hg-a", "models": ["auto"]}
    for knobs, headgate, status in ((True, {"route": "large"}, 404), (False, {"cost_weight": 0.0}, 403)):
        folder = tmp_path / str(status)
        folder.mkdir()
        async with owned(folder, {"keys": [{**key, "knobs": knobs}]}, ("small", "large")) as (gateway, client):
            lines = line("barred", "hello", headgate=headgate) + line("fine", "hello")
            file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
            wanted = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            done = await over(client, (await client.batches.create(**wanted)).id)
            assert gateway.upstream.seen.by_model == {"small": 1}
            (answer,) = (await client.files.content(done.output_file_id)).text.splitlines()
            (refusal,) = (await client.files.content(done.error_file_id)).text.splitlines()
        assert json.loads(answer)["custom_id"] == "fine"
        assert json.loads(refusal)["response"]["status_code"] == status, refusal


async def test_bad_lines_fail_the_batch_before_anything_is_spent(tmp_path: Path) -> None:
    """Each has its number and the reason, and no call is made. With skip_bad the good ones are answered."""
    bad = line("a", "one") + "not json\n" + line("a", "again") + line("c", "two", model="nobody") + line("d", "three")
    async with owned(tmp_path) as (gateway, client):
        file = await client.files.create(file=("in.jsonl", bad.encode()), purpose="batch")
        wanted = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        failed = await over(client, (await client.batches.create(**wanted)).id)
        assert failed.status == "failed" and gateway.upstream.seen.requests == 0
        assert [one.line for one in failed.errors.data] == [2, 3, 4]
        made = await client.batches.create(**wanted, extra_body={"headgate": {"skip_bad": True, "budget_usd": 1.0}})
        done = await over(client, made.id)
        assert done.status == "completed" and done.request_counts.completed == 2
        left_out = (await client.files.content(done.error_file_id)).text.splitlines()
    told = [(json.loads(one)["custom_id"], json.loads(one)["error"]["code"]) for one in left_out]
    assert told == [("", "invalid_json"), ("a", "duplicate_custom_id"), ("c", "model_not_found")]


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "taken over"])
async def test_a_batch_ends_with_its_key(tmp_path: Path, restarted: bool) -> None:
    """After the key is revoked no call is made; what was answered is kept, and the batch has the reason."""
    key, record = new_key("x", time.time())
    lines = "".join(line(f"r-{n}", f"word {n}") for n in range(1000))
    slow: Any = {"auth": {"master_key": "hg-master"}, "scripts": {"small": [{"delay_s": 0.05}]}}
    async with owned(tmp_path, **slow) as (gateway, _):
        keep_key(gateway, record)
        client: Any = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)
        file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        wanted = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        id = (await client.batches.create(**wanted)).id
        jobs, last = gateway.services.batches.jobs, gateway
        await until(lambda: gateway.upstream.seen.requests >= 30)
        if not restarted:
            keep_key(gateway, msgspec.structs.replace(record, revoked_s=time.time()))
            await ended(jobs, id)
    if restarted:
        async with owned(tmp_path, **slow) as (last, _):
            keep_key(last, msgspec.structs.replace(record, revoked_s=time.time()))
            last.services.batches.mark()
            await ended(jobs, id)
            assert last.upstream.seen.requests == 0
    job = jobs.find(id)
    assert (job.state, job.card.errors[0]["code"]) == ("cancelled", "invalid_api_key")
    assert 30 <= job.progress.done == gateway.upstream.seen.requests < 900
    files = last.services.batches.files
    found = [b"".join(files.read(name)).splitlines() for name in (job.card.output_file, job.card.error_file)]
    assert len(found[0]) == job.progress.done and len(found[0]) + len(found[1]) == 1000


async def test_a_lowered_budget_holds_for_running_batches(tmp_path: Path) -> None:
    """It holds from the next call on, as for any request."""
    key, record = new_key("x", time.time())
    record = msgspec.structs.replace(record, budget_usd=1.0)
    slow: Any = {"auth": {"master_key": "hg-master"}, "scripts": {"small": [{"delay_s": 0.05}]}}
    async with owned(tmp_path, **slow) as (gateway, _):
        keep_key(gateway, record)
        client: Any = AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0)
        lines = "".join(line(f"r-{n}", f"word {n}", max_tokens=8) for n in range(1000))
        file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        wanted = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        id = (await client.batches.create(**wanted)).id
        await until(lambda: gateway.upstream.seen.requests >= 30)
        keep_key(gateway, msgspec.structs.replace(record, budget_usd=1e-6))
        done = await over(client, id)
    assert done.status == "completed" and done.request_counts.failed > 100
    assert done.request_counts.completed == gateway.upstream.seen.requests


def keep_key(gateway: Live, record: KeyRecord) -> None:
    """Give a key to the worker as the control process does."""
    services = gateway.services
    publish_keys(services.batches.run_dir, [record])
    services.current.refresh()
    reload(services)


async def ended(jobs: Jobs, id: str) -> None:
    deadline = time.monotonic() + 60
    while jobs.find(id).state not in ENDED:
        assert time.monotonic() < deadline, jobs.find(id)
        await asyncio.sleep(0.05)


async def test_every_line_of_an_output_is_one_line(tmp_path: Path) -> None:
    """That holds, too, for readers that break lines where JSON doesn't, as Python and the official client do. A client
    may set how long its files are kept.
    """
    text = "one\u2028two\u2029three\x85four"
    async with owned(tmp_path) as (_, client):
        file = await client.files.create(file=("in.jsonl", line(text, text).encode()), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
            output_expires_after={"anchor": "created_at", "seconds": 7200},
        )  # fmt: skip
        batch = await over(client, batch.id)
        (found,) = [json.loads(one) for one in (await client.files.content(batch.output_file_id)).iter_lines()]
        assert (found["custom_id"], found["response"]["body"]["choices"][0]["message"]["content"]) == (text, text)
        kept = await client.files.retrieve(batch.output_file_id)
        assert kept.expires_at == kept.created_at + 7200


async def indented(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An upstream that indents its JSON over several lines, as OpenAI does."""
    with suppress(asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(one for one in head.lower().split(b"\r\n") if one.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            message = {"index": 0, "message": {"role": "assistant", "content": "a\nb"}, "finish_reason": "stop"}
            body = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [message],
                               "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}, indent=2)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body.encode()))
    writer.close()


async def test_an_indented_answer_is_one_line_of_the_output(tmp_path: Path) -> None:
    server = await asyncio.start_server(indented, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    own = [{"name": "own", "kind": "openai", "base_url": f"http://127.0.0.1:{port}/v1"}]
    async with server, owned(tmp_path, models=({"name": "small", "provider": "own"},), providers=own) as (_, client):
        lines = "".join(line(f"r-{n}", f"word {n}") for n in range(3))
        file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        wanted = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        done = await over(client, (await client.batches.create(**wanted)).id)
        found = [json.loads(one) for one in (await client.files.content(done.output_file_id)).text.splitlines()]
    assert [one["response"]["body"]["choices"][0]["message"]["content"] for one in found] == ["a\nb"] * 3


async def test_a_batch_can_be_cancelled_and_keeps_what_was_answered(tmp_path: Path) -> None:
    """Cancelled midway, it has the answers so far in its output and the rest in its errors, each line once."""
    lines = "".join(line(f"r-{n}", f"word {n}") for n in range(200))
    async with owned(tmp_path, scripts={"small": [{"delay_s": 0.2}]}) as (gateway, client):
        file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        await until(lambda: gateway.upstream.seen.requests >= 20)
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        done = await over(client, batch.id)
        assert done.status == "cancelled" and done.cancelling_at and done.cancelled_at
        texts = [(await client.files.content(id)).text for id in (done.output_file_id, done.error_file_id)]
    answers, errors = ([json.loads(one) for one in text.splitlines()] for text in texts)
    assert sorted(one["custom_id"] for one in answers + errors) == sorted(f"r-{n}" for n in range(200))
    assert 0 < len(answers) < 200 and {one["error"]["code"] for one in errors} == {"batch_cancelled"}


async def test_a_worker_that_stops_as_its_job_ends_takes_no_other(tmp_path: Path) -> None:
    async with live(tmp_path) as gateway:
        looking = asyncio.create_task(keep_batches(gateway.services))
        await asyncio.sleep(0.05)
        gateway.services.batches.asked.set()
        looking.cancel()
        await asyncio.wait({looking}, timeout=20)
        assert looking.cancelled()


async def test_a_paused_batch_is_released_and_resumed(tmp_path: Path) -> None:
    """While it is paused no worker holds it; resumed, it continues where it was."""
    lines = "".join(line(f"r-{n}", f"word {n}") for n in range(160))
    async with owned(tmp_path, scripts={"small": [{"delay_s": 0.2}]}) as (gateway, client):
        jobs = gateway.services.batches.jobs
        file = await client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        await until(lambda: gateway.upstream.seen.requests >= 5)
        jobs.ask(batch.id, "pause", time.time())
        await until(lambda: not jobs.find(batch.id).owner)
        rests = jobs.find(batch.id)
        assert rests.state == "paused" and 5 <= rests.progress.done < 160
        assert (await client.batches.retrieve(batch.id)).status == "in_progress"
        jobs.ask(batch.id, "", time.time())
        done = await over(client, batch.id)
    assert done.status == "completed" and done.request_counts.completed == 160
    assert gateway.upstream.seen.requests == 160


async def test_invalid_batches_are_refused(tmp_path: Path) -> None:
    """These have an invalid window, endpoint, purpose or form."""
    async with owned(tmp_path) as (gateway, client):
        file = await client.files.create(file=("in.jsonl", b"{}"), purpose="user_data")
        good = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        for change in ({"completion_window": "soon"}, {"endpoint": "/v1/images"}, {}):
            with pytest.raises(BadRequestError):
                await client.batches.create(**{**good, **change})
        headers = {"authorization": "Bearer hg-a"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as http:
            for limit in ("0", "101", "\u00b2", "9" * 5000, "x"):
                assert (await http.get("/v1/batches", params={"limit": limit})).status_code == 400, limit
        empty = await client.files.create(file=("in.jsonl", b""), purpose="batch")
        failed = await over(client, (await client.batches.create(**{**good, "input_file_id": empty.id})).id)
        assert [one.message for one in failed.errors.data] == ["input.jsonl: the file is empty"]
        await client.files.delete(empty.id)
        deleted = await client.files.delete(file.id)
        assert deleted.deleted and (await client.files.list()).data == []


def peak_bytes() -> int:
    """The most memory that this process has used since `forget_peak`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


async def form_of(block: bytes, times: int) -> AsyncIterator[bytes]:
    """An upload of this many blocks, none of which is kept in memory."""
    yield b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\n'
    yield b'content-disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
    for _ in range(times):
        yield block
    yield b"\r\n--x--\r\n"


async def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    """It is uploaded and downloaded byte for byte, and stored in the database only."""
    block, times = os.urandom(1 << 20), 160
    form = {"content-type": "multipart/form-data; boundary=x"}
    async with live(tmp_path) as gateway, httpx.AsyncClient(base_url=gateway.url, timeout=300) as http:
        small = await http.post("/v1/files", content=form_of(block, 1), headers=form)
        assert small.json()["bytes"] == 1 << 20
        forget_peak()
        before = peak_bytes()
        made = await http.post("/v1/files", content=form_of(block, times), headers=form)
        assert made.status_code == 200 and made.json()["bytes"] == times << 20
        async with http.stream("GET", f"/v1/files/{made.json()['id']}/content") as content:
            assert content.headers["content-length"] == str(times << 20)
            whole = hashlib.sha256()
            async for piece in content.aiter_bytes():
                whole.update(piece)
        meant = hashlib.sha256()
        for _ in range(times):
            meant.update(block)
        assert whole.digest() == meant.digest()
        assert peak_bytes() - before < 40 << 20
        assert not list(Path(gateway.services.config.server.run_dir).rglob("tmp*"))


async def test_a_file_over_the_size_limit_is_refused(tmp_path: Path) -> None:
    """That holds with and without a content length; without a key it is refused before a byte is read."""
    form = {"content-type": "multipart/form-data; boundary=x"}
    server = {"max_file_bytes": 3 << 20}
    async with live(tmp_path, server=server) as gateway, httpx.AsyncClient(base_url=gateway.url) as http:
        block = b"a" * (1 << 20)
        assert (await http.post("/v1/files", content=form_of(block, 3), headers=form)).status_code == 200
        for content in (form_of(block, 4), b"".join([piece async for piece in form_of(block, 4)]),
                        form_of(b"a" * ((3 << 20) + 1), 1)):  # fmt: skip
            refused = await http.post("/v1/files", content=content, headers=form)
            assert refused.status_code == 413, refused.text
        assert len((await http.get("/v1/files")).json()["data"]) == 1


@pytest.mark.parametrize("size", [1, 7, 64, 4096])
def test_a_form_may_arrive_in_any_pieces(size: int) -> None:
    """A boundary that is split is found, and text that only resembles one is data."""
    data = b"\r\n--x\r\n--boundary\r\n" * 50
    form = httpx.Request("POST", "http://x", data={"purpose": "batch"}, files={"file": ("a.jsonl", data)})
    body = form.read()
    found = Form(form.headers["content-type"].encode(), BytesIO)
    for at in range(0, len(body), size):
        found.feed(body[at : at + size])
    parts = found.end()
    assert parts["file"].data == data and parts["purpose"].data == b"batch" and parts["file"].bytes == len(data)


@pytest.mark.parametrize("data", [b"", b"a", b"a\r\n--x\r\nb", b"\r\n\r\n--", bytes(range(256))])
def test_an_uploads_bytes_are_unchanged(data: bytes) -> None:
    """They include line breaks, zero bytes and text that resembles a boundary."""
    form = httpx.Request("POST", "http://x", data={"purpose": "batch"}, files={"file": ('q"u.jsonl', data)})
    parts = read_multipart(form.headers["content-type"].encode(), form.read())
    assert parts["file"].data == data and parts["purpose"].data == b"batch"
    for broken in (form.read()[:-4], b"", b"--"):
        with pytest.raises(CallerError):
            read_multipart(form.headers["content-type"].encode(), broken)
