"""/v1/messages/batches as the official client uses it, with real gateways."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import sqlalchemy as sa
from anthropic.types.messages import DeletedMessageBatch, MessageBatch, MessageBatchIndividualResponse
from pydantic import BaseModel, TypeAdapter

from gateway.api import message_batches
from gateway.batch.jobs import Item, Jobs
from gateway.batch.message_results import result_line
from gateway.batch.requests import write_lines
from gateway.batch.results import Result
from gateway.errors import CallerError, TooLarge
from gateway.journal.schema import migrate, open_engine
from gateway.journal.tables import decisions, file_chunks, files, job_items, job_parts, jobs
from gateway.providers.scripted import ScriptedServer
from tests.conformance.clients import MODES, Sdk
from tests.gateway.batch.test_api import forget_peak, owned, peak_bytes
from tests.gateway.batch.test_kill import configuration
from tests.live import Live, live, served
from tests.ports import free_port
from tests.postgres_server import PostgresServer
from tests.until import until

PATH = "/v1/messages/batches"
KEYS = {"keys": [{"name": name, "key": f"hg-{name}", "tenant": "one"} for name in ("a", "b")]}
NONE = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}


class Page(BaseModel):
    data: list[MessageBatch]
    has_more: bool
    first_id: str | None
    last_id: str | None


def request(custom_id: str, text: str, model: str = "small", **fields: Any) -> Any:
    params = {"model": model, "max_tokens": 16, "messages": [{"role": "user", "content": text}], **fields}
    return {"custom_id": custom_id, "params": params}


def requests(count: int) -> list[Any]:
    return [request(f"r-{n}", f"word {n}") for n in range(count)]


async def over(sdk: Sdk, id: str, within_s: float = 60.0) -> MessageBatch:
    deadline = time.monotonic() + within_s
    while (batch := await sdk.do("messages.batches.retrieve", id)).processing_status != "ended":
        assert time.monotonic() < deadline, batch
        await asyncio.sleep(0.05)
    assert isinstance(batch, MessageBatch)
    return batch


async def results(sdk: Sdk, id: str) -> dict[str, Any]:
    """The result of each request; asserts that there is one for each."""
    if sdk.is_async:
        told = [one async for one in await sdk.client.messages.batches.results(id)]
    else:
        told = await asyncio.to_thread(lambda: list(sdk.client.messages.batches.results(id)))
    found = {one.custom_id: one.result for one in told}
    assert len(found) == len(told), "a request is told of twice"
    return found


def texts(found: dict[str, Any]) -> dict[str, str]:
    return {id: one.message.content[0].text for id, one in found.items()}


def client(gateway: Live, mode: str = "async", key: str = "hg-a") -> Sdk:
    return Sdk("anthropic", mode, gateway.url, api_key=key)


def raw(gateway: Live, key: str = "hg-a") -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=gateway.url, headers={"x-api-key": key}, timeout=300)


def check(answer: httpx.Response, kind: Any) -> Any:
    """Checks that a batch conforms to the official package's own type, and has no other fields."""
    assert answer.status_code == 200, answer.text
    found = TypeAdapter(kind).validate_json(answer.content)
    assert not getattr(found, "model_extra", None), found
    return found


@pytest.mark.parametrize("mode", MODES)
async def test_the_official_clients_batch_example_runs_unchanged(tmp_path: Path, mode: str) -> None:
    """Anthropic's own guide works, with its beta client too: create, retrieve until it has ended, read the results."""
    async with owned(tmp_path, auth=KEYS) as (gateway, _):
        sdk = client(gateway, mode)
        made = await sdk.do("messages.batches.create", requests=requests(12))
        assert made.processing_status == "in_progress" and made.id.startswith("msgbatch_")
        assert made.request_counts.model_dump() == NONE | {"processing": 12}
        assert (made.expires_at - made.created_at).total_seconds() == 86400
        assert made.results_url is made.ended_at is made.cancel_initiated_at is made.archived_at is None
        batch = await over(sdk, made.id)
        assert batch.request_counts.model_dump() == NONE | {"succeeded": 12}
        assert batch.ended_at and batch.created_at <= batch.ended_at and batch.results_url
        found = await results(sdk, made.id)
        assert texts(found) == {f"r-{n}": f"word {n}" for n in range(12)}
        assert {(one.type, one.message.type, one.message.stop_reason) for one in found.values()} == {
            ("succeeded", "message", "end_turn")}  # fmt: skip
        decision = await gateway.decision(found["r-0"].message.id)
        assert (decision.tenant, decision.key_id, decision.surface) == ("one", "file:a", "messages")
        assert decision.job == made.id and decision.cost_nanousd > 0
        assert (await sdk.do("beta.messages.batches.retrieve", made.id)).id == made.id
        page = await sdk.do("messages.batches.list")
        assert [one.id for one in page.data] == [made.id] and not page.has_more
        deleted = await sdk.do("messages.batches.delete", made.id)
        assert (deleted.id, deleted.type) == (made.id, "message_batch_deleted")
        with pytest.raises(anthropic.NotFoundError):
            await sdk.do("messages.batches.retrieve", made.id)
        await sdk.close()


async def test_batches_and_results_conform_to_the_official_types(tmp_path: Path) -> None:
    """Every state is checked field by field, and so is each line of the results, whose text contains other line
    separators.
    """
    text = "one\u2028two\x85three\nfour"
    wanted = [request("good", text), request("unknown", "x", model="nobody"), request("bad", "x", max_tokens="many")]
    async with owned(tmp_path, auth=KEYS) as (gateway, _), raw(gateway) as http:
        made = check(await http.post(PATH, json={"requests": wanted}), MessageBatch)
        await over(client(gateway), made.id)
        batch = check(await http.get(f"{PATH}/{made.id}"), MessageBatch)
        assert batch.request_counts.model_dump() == NONE | {"succeeded": 1, "errored": 2}
        check(await http.get(PATH), Page)
        answer = await http.get(batch.results_url)
        assert answer.headers["content-type"] == "application/x-jsonl" and answer.text.endswith("\n")
        told = [TypeAdapter(MessageBatchIndividualResponse).validate_json(line) for line in answer.text.splitlines()]
        found: dict[str, Any] = {one.custom_id: one.result for one in told}
        assert found["good"].message.content[0].text == text
        assert found["unknown"].error.error.type == "not_found_error"
        assert "nobody" in found["unknown"].error.error.message
        assert found["bad"].error.error.type == "invalid_request_error"
        assert "max_tokens" in found["bad"].error.error.message
        check(await http.delete(f"{PATH}/{made.id}"), DeletedMessageBatch)


async def test_requests_that_fail_are_errors_of_their_own(tmp_path: Path) -> None:
    """These are refused by the provider, not allowed for the key, or over the budget, which a client may set."""
    scripts = {"picky": [{"status": 400, "error": "no such thing"}]}
    keys = {"keys": [{"name": "a", "key": "hg-a", "models": ["small", "picky"]}]}
    async with owned(tmp_path, auth=keys, models=("small", "picky", "large"), scripts=scripts) as (gateway, _):
        sdk = client(gateway)
        wanted = [request("good", "x"), request("refused", "x", "picky"), request("forbidden", "x", "large")]
        made = await sdk.do("messages.batches.create", requests=wanted)
        assert (await over(sdk, made.id)).request_counts.model_dump() == NONE | {"succeeded": 1, "errored": 2}
        found = await results(sdk, made.id)
        assert found["good"].type == "succeeded"
        assert found["refused"].error.error.type == "invalid_request_error"
        assert found["forbidden"].error.error.type == "not_found_error"
        poor = await sdk.do(
            "messages.batches.create", requests=requests(3), extra_body={"headgate": {"budget_usd": 1e-9}}
        )
        assert (await over(sdk, poor.id)).request_counts.model_dump() == NONE | {"errored": 3}
        told = {one.error.error.message for one in (await results(sdk, poor.id)).values()}
        assert len(told) == 1 and "possible with a budget of $" in told.pop()


async def test_a_batch_that_cannot_run_at_all_ends_with_an_error_for_each_request(tmp_path: Path) -> None:
    """Anthropic's API has no failed batch, so each request has the error."""
    async with owned(tmp_path, auth=KEYS) as (gateway, _):
        sdk = client(gateway)
        wanted = [request(f"r-{n}", "x", model="nobody") for n in range(3)]
        made = await sdk.do("messages.batches.create", requests=wanted)
        assert (await over(sdk, made.id)).request_counts.model_dump() == NONE | {"errored": 3}
        found = await results(sdk, made.id)
        assert {one.error.error.type for one in found.values()} == {"not_found_error"}
        assert not (gateway.services.batches.run_dir / "plans" / made.id).exists()


async def test_each_of_many_bad_requests_has_its_line(tmp_path: Path) -> None:
    """A plan stores only a limited number of problems."""
    wanted = [request(f"r-{n}", "x", model="nobody") for n in range(10_050)]
    async with owned(tmp_path, auth=KEYS) as (gateway, _):
        sdk = client(gateway)
        made = await sdk.do("messages.batches.create", requests=[*wanted, request("good", "x")])
        batch = await over(sdk, made.id)
        assert batch.request_counts.model_dump() == NONE | {"succeeded": 1, "errored": 10_050}
        found = await results(sdk, made.id)
        assert found.keys() == {"good", *(one["custom_id"] for one in wanted)}


GOOD = request("a", "x")
MISSING: Any = {"custom_id": "a", "params": {"max_tokens": 1}}
BAD_BODIES = {
    b"": "JSON", b"{": "JSON", b"[]": "JSON", b"\xff": "JSON", b'{"requests":[{"custom_id":"a"': "JSON",
    b'{"requests":' + b"[" * 10_000: "ends too early", b'{"requests":[1]}': "requests.0",
    b'{"requests":[{"custom_id":"a","params":}]}': "requests.0",
    **{json.dumps({"requests": wanted}).encode(): told for wanted, told in (
        ([], "at least 1"), ({}, "valid list"), (None, "valid list"), ("x", "valid list"),
        ([{"params": {}}], "custom_id"), ([{"custom_id": "a"}], "params"),
        ([{"custom_id": "a", "params": []}], "requests.0.params"), ([MISSING], "model"),
        ([GOOD, request("a", "y")], "requests.1.custom_id: 'a' is the custom_id of requests.0 already"),
        ([request("", "x")], "requests.0.custom_id"), ([request("a" * 65, "x")], "requests.0.custom_id"),
        ([request("a b", "x")], "requests.0.custom_id"), ([request("\u00e9", "x")], "requests.0.custom_id"),
        ([{**GOOD, "custom_id": 7}], "custom_id"), ([{**GOOD, "more": 1}], "more"),
        ([GOOD, request("b", "x", stream=True)], "requests.1.params.stream"),
    )},
    json.dumps({"requests": [GOOD], "more": 1}).encode(): "more: Extra inputs are not permitted",
    json.dumps({"requests": [GOOD], "headgate": {"budget_usd": "x"}}).encode(): "headgate",
    json.dumps({"requests": [GOOD], "headgate": {"route": "x"}}).encode(): "headgate",
    b'{"requests":[%s],"requests":[]}' % json.dumps(GOOD).encode(): "valid list",
}  # fmt: skip


async def test_an_invalid_batch_is_refused_at_once(tmp_path: Path) -> None:
    """The error is in Anthropic's form and says where the fault is; nothing is stored."""
    server = {"max_file_bytes": 1 << 20, "max_body_bytes": 1 << 16}
    async with live(tmp_path, models=("small",), auth=KEYS, server=server) as gateway, raw(gateway) as http:
        for body, told in BAD_BODIES.items():
            answer = await http.post(PATH, content=body)
            assert answer.status_code == 400, (body[:80], answer.text)
            error = answer.json()
            assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error") and error["request_id"]
            assert told in error["error"]["message"], (body[:80], error)
        long = json.dumps({"requests": [GOOD, request("b", "x" * (1 << 16))]}).encode()
        for body, told in ((long, "requests.1"), (b" " * (1 << 20) + b"{}", "request body")):
            answer = await http.post(PATH, content=body)
            assert answer.status_code == 413 and told in answer.text
            assert answer.json()["error"]["type"] == "request_too_large"
        for query in ("limit=0", "limit=1001", "limit=x", "before_id=a&after_id=b"):
            assert (await http.get(f"{PATH}?{query}")).status_code == 400, query
        assert (await http.get(f"{PATH}?after_id=msgbatch_none")).status_code == 404
        assert (await http.post(PATH, json={"requests": [GOOD]}, headers={"x-api-key": "x"})).status_code == 401
        assert (await http.put(PATH)).status_code == 405
        assert (await http.get(PATH)).json() == {"data": [], "has_more": False, "first_id": None, "last_id": None}
        with gateway.services.batches.files.engine.connect() as connection:
            assert not connection.execute(sa.select(file_chunks)).first()


def test_a_batch_has_at_most_100_000_requests() -> None:
    lines = [json.dumps({"custom_id": f"{n}", "params": {"model": "m"}}) for n in range(100_001)]
    for count in (100_000, 100_001):
        body = f'{{"requests":[{",".join(lines[:count])}]}}'.encode()
        if count > 100_000:
            with pytest.raises(CallerError, match="at most 100000"):
                write_lines([body], BytesIO(), 1000)
        else:
            assert write_lines([body], BytesIO(), 1000) == (count, {})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1 << 20])
def test_a_body_may_arrive_in_any_pieces(size: int) -> None:
    """Escapes, brackets within texts, numbers and multi-byte characters may be split."""
    wanted = [request(f"r-{n}", 'a"\\{[\u00e9\u2028\n ]},:' * n, temperature=0.5, top_k=n) for n in range(20)]
    whole = json.dumps({"headgate": {"x": [1, "}"]}, "requests": wanted, "n": -1.5e3}, indent=1, ensure_ascii=False)
    body, lines = whole.encode(), BytesIO()
    count, others = write_lines(pieces(body, size), lines, 10_000)
    assert count == 20 and {name: json.loads(bytes(value)) for name, value in others.items()} == {
        "headgate": {"x": [1, "}"]}, "n": -1500.0}  # fmt: skip
    found = [json.loads(line) for line in lines.getvalue().split(b"\n")[:-1]]
    line = {"method": "POST", "url": "/v1/messages"}
    assert found == [{"custom_id": one["custom_id"], **line, "body": one["params"]} for one in wanted]
    with pytest.raises(TooLarge, match=r"^requests\.\d+: longer than 400 bytes$"):
        write_lines(pieces(body, size), BytesIO(), 400)
    for end in range(0, len(body) - 1, 97):
        with pytest.raises(CallerError):
            write_lines(pieces(body[:end], size), BytesIO(), 10_000)


def pieces(body: bytes, size: int) -> Iterable[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


async def body_of(text: bytes, count: int) -> AsyncIterator[bytes]:
    yield b'{"requests":['
    for n in range(count):
        yield b"%s" % (b"," if n else b"") + json.dumps(request(f"r-{n}", "")).encode().replace(b'""', b'"%s"' % text)
    yield b"]}"


async def test_a_large_body_is_not_held_in_memory(tmp_path: Path) -> None:
    """Of 160 megabytes only a few are in memory at once, and the event loop isn't blocked meanwhile."""
    text, count = b"word " * 200_000, 160
    longest = [0.0]

    async def tick() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.01)
            longest[0], last = max(longest[0], time.monotonic() - last), time.monotonic()

    async with live(tmp_path, models=("small",), auth=KEYS) as gateway, raw(gateway) as http:
        assert (await http.post(PATH, content=body_of(text, 1))).status_code == 200
        ticking = asyncio.create_task(tick())
        forget_peak()
        before, begun = peak_bytes(), time.monotonic()
        made = await http.post(PATH, content=body_of(text, count))
        took_s = time.monotonic() - begun
        ticking.cancel()
        assert made.status_code == 200 and made.json()["request_counts"]["processing"] == count
        assert peak_bytes() - before < 40 << 20
        assert longest[0] < took_s / 4
        assert not list(gateway.services.batches.run_dir.rglob("tmp*"))


async def test_a_batch_belongs_to_its_key(tmp_path: Path) -> None:
    """Any other key gets 404, even of the same tenant, and doesn't see it in its list."""
    async with owned(tmp_path, auth=KEYS) as (gateway, _), raw(gateway, "hg-b") as stranger:
        sdk = client(gateway)
        made = await sdk.do("messages.batches.create", requests=requests(1))
        await over(sdk, made.id)
        for method, path in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/results")):
            answer = await stranger.request(method, f"{PATH}/{made.id}{path}")
            assert answer.status_code == 404 and answer.json()["error"]["type"] == "not_found_error", method + path
        assert (await stranger.get(PATH)).json()["data"] == []
        assert (await stranger.get(PATH, params={"after_id": made.id})).status_code == 404
        assert len(await results(sdk, made.id)) == 1


async def test_neither_api_sees_the_others_batches(tmp_path: Path) -> None:
    """A batch and its files exist only in the API that made it."""
    async with owned(tmp_path, auth=KEYS) as (gateway, other):
        sdk = client(gateway)
        made = await sdk.do("messages.batches.create", requests=requests(1))
        line = {"custom_id": "x", "method": "POST", "url": "/v1/messages", "body": GOOD["params"]}
        file = await other.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
        wanted: Any = {"endpoint": "/v1/messages", "completion_window": "24h"}
        theirs = await other.batches.create(input_file_id=file.id, **wanted)
        await over(sdk, made.id)
        job = gateway.services.batches.jobs.find(made.id)
        for id in (job.card.input_file, job.card.output_file):
            assert id.startswith("msgbatch_")
            for ask in (other.files.retrieve(id), other.files.content(id), other.files.delete(id),
                        other.batches.create(input_file_id=id, **wanted)):  # fmt: skip
                with pytest.raises(openai.NotFoundError):
                    await ask
        for ask in (other.batches.retrieve(made.id), other.batches.cancel(made.id), other.batches.list(after=made.id)):
            with pytest.raises(openai.NotFoundError):
                await ask
        assert [one.id for one in (await other.batches.list()).data] == [theirs.id]
        assert {one.id for one in (await other.files.list()).data} >= {file.id}
        assert not [one.id for one in (await other.files.list()).data if one.id.startswith("msgbatch_")]
        async with raw(gateway) as http:
            own = [job.card.input_file, job.card.output_file]
            named = await http.get("/v1/files", params={"ids[]": own}, headers={"anthropic-version": "2023-06-01"})
        assert named.status_code == 200 and named.json()["data"] == []
        for what in ("retrieve", "cancel", "delete"):
            with pytest.raises(anthropic.NotFoundError):
                await sdk.do(f"messages.batches.{what}", theirs.id)
        assert [one.id for one in (await sdk.do("messages.batches.list")).data] == [made.id]


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_a_list_is_paged_in_both_directions(
    tmp_path: Path, database: str, postgres_server: PostgresServer
) -> None:
    """It is newest first, and other keys' batches leave no gap in a page."""
    storage = {}
    if database == "postgresql":
        storage["url"] = postgres_server.new_database()
        migrate(storage["url"])
    async with live(tmp_path, models=("small",), auth=KEYS, storage=storage) as gateway, raw(gateway) as http:
        made: list[Any] = []
        for _ in range(5):
            made.insert(0, (await http.post(PATH, json={"requests": [GOOD]})).json()["id"])
            await http.post(PATH, json={"requests": [GOOD]}, headers={"x-api-key": "hg-b"})
        sdk = client(gateway)
        assert [one.id async for one in sdk.client.messages.batches.list(limit=2)] == made
        last = sdk.client.messages.batches.list(limit=2, before_id=made[-1])
        assert [one.id async for one in last] == [made[2], made[3], made[0], made[1]]
        page = check(await http.get(PATH, params={"limit": 2, "after_id": made[1]}), Page)
        assert ([one.id for one in page.data], page.has_more) == (made[2:4], True)
        assert (page.first_id, page.last_id) == (made[2], made[3])
        page = check(await http.get(PATH, params={"limit": 4, "before_id": made[4]}), Page)
        assert ([one.id for one in page.data], page.has_more) == (made[:4], False)
        page = check(await http.get(PATH, params={"limit": 4, "after_id": made[0]}), Page)
        assert ([one.id for one in page.data], page.has_more) == (made[1:], False)
        assert (await http.get("/v1/files")).json()["data"] == []


async def test_a_cancelled_batch_keeps_its_answers(tmp_path: Path) -> None:
    """The other requests are cancelled. Only a batch that has ended can be deleted, with its files; its cost stays in
    the journal.
    """
    async with owned(tmp_path, auth=KEYS, scripts={"small": [{"delay_s": 0.2}]}) as (gateway, _):
        sdk = client(gateway)
        made = await sdk.do("messages.batches.create", requests=requests(200))
        await until(lambda: gateway.upstream.seen.requests >= 20)
        with pytest.raises(anthropic.BadRequestError, match="cancel it first"):
            await sdk.do("messages.batches.delete", made.id)
        async with raw(gateway) as http:
            assert (await http.get(f"{PATH}/{made.id}/results")).status_code == 400
            told = check(await http.post(f"{PATH}/{made.id}/cancel"), MessageBatch)
        assert told.processing_status == "canceling" and told.cancel_initiated_at
        assert told.request_counts.model_dump() == NONE | {"processing": 200}
        assert (await sdk.do("messages.batches.cancel", made.id)).cancel_initiated_at == told.cancel_initiated_at
        batch = await over(sdk, made.id)
        found = await results(sdk, made.id)
        kinds = [one.type for one in found.values()]
        assert found.keys() == {f"r-{n}" for n in range(200)} and set(kinds) == {"succeeded", "canceled"}
        counts = {"succeeded": kinds.count("succeeded"), "canceled": kinds.count("canceled")}
        assert batch.request_counts.model_dump() == NONE | counts
        with pytest.raises(anthropic.BadRequestError, match="has ended"):
            await sdk.do("messages.batches.cancel", made.id)
        await sdk.do("messages.batches.delete", made.id)
        with gateway.services.batches.jobs.engine.connect() as connection:
            for table in (jobs, job_items, job_parts, files, file_chunks):
                assert not connection.execute(sa.select(table)).first(), table.name
            paid = connection.execute(sa.select(sa.func.sum(decisions.c.cost_nanousd))).scalar()
        assert paid and paid > 0


async def test_requests_without_an_answer_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That happens after 24 hours, which are shortened here; once the results are deleted, the batch says so."""
    monkeypatch.setattr(message_batches, "WINDOW_S", 4.0)
    async with owned(tmp_path, auth=KEYS, scripts={"small": [{"delay_s": 2.5}]}) as (gateway, _):
        sdk = client(gateway)
        made = await sdk.do("messages.batches.create", requests=requests(40))
        batch = await over(sdk, made.id)
        found = await results(sdk, made.id)
        kinds = [one.type for one in found.values()]
        assert len(found) == 40 and set(kinds) == {"succeeded", "expired"}
        assert batch.request_counts.expired == kinds.count("expired")
        later = time.time() + 31 * 86400
        monkeypatch.setattr(gateway.services, "clock", lambda: later)
        old = await sdk.do("messages.batches.retrieve", made.id)
        assert old.archived_at and old.archived_at > old.ended_at and old.results_url is None
        async with raw(gateway) as http:
            assert (await http.get(f"{PATH}/{made.id}/results")).status_code == 404


async def test_a_message_batch_outlives_the_worker_that_runs_it(tmp_path: Path) -> None:
    """After kill -9 another worker takes it over, each request is answered and billed once, and operators can see it.
    """
    count = 120
    async with ScriptedServer({"small": [{"delay_s": 0.05}]}) as upstream:
        config = configuration(tmp_path, upstream.url)
        port, admin_port = free_port(), free_port()
        config.write_text(config.read_text().replace("[server]", f"[server]\nport = {port}\nadmin_port = {admin_port}"))
        async with served(config, "--workers", "2"):
            sdk = Sdk("anthropic", "async", f"http://127.0.0.1:{port}", max_retries=5)
            made = await sdk.do("messages.batches.create", requests=requests(count))
            kept = Jobs(open_engine(f"sqlite:///{tmp_path}/journal.db"))
            await until(lambda: upstream.seen.requests >= 30)
            os.kill(int(kept.find(made.id).owner.split("/")[1]), signal.SIGKILL)
            batch = await over(sdk, made.id, within_s=120)
            found = await results(sdk, made.id)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{admin_port}") as admin:
                (told,) = (await admin.get("/admin/batches")).json()["data"]
                saved = (await admin.get(f"/admin/batches/{made.id}/files/answers")).text
    assert batch.request_counts.model_dump() == NONE | {"succeeded": count}
    assert texts(found) == {f"r-{n}": f"word {n}" for n in range(count)}
    assert upstream.seen.requests - upstream.seen.repeated == count
    assert (told["id"], told["state"], told["done"]) == (made.id, "completed", count) and told["spent_usd"] > 0
    assert {json.loads(line)["custom_id"] for line in saved.splitlines()} == found.keys()


@pytest.mark.parametrize(
    ("status", "answer", "kind", "message"),
    [(400, b'{"error":{"message":"big","type":"invalid_request_error","code":null}}', "invalid_request_error", "big"),
     (429, b'{"type":"error","error":{"type":"rate_limit_error","message":"slow"}}', "rate_limit_error", "slow"),
     (502, b'{"error":{"message":"lost","type":"upstream_error"}}', "api_error", "lost"),
     (500, b"<html>", "api_error", "the upstream answered 500"), (200, b"{", "api_error", "the upstream answered 200")],
)  # fmt: skip
def test_every_error_has_anthropics_form(
    status: int, answer: bytes, kind: str, message: str
) -> None:
    """That includes errors of another API's batch endpoint, and of a proxy in front of it."""
    item = Item(1, "done" if status == 200 else "failed", 1, 0, 0, "dec_1", "m", status, answer)
    how, line = result_line(Result(1, "a", "msgbatch_1", item, "completed"))
    told = TypeAdapter(MessageBatchIndividualResponse).validate_json(line)
    assert how == told.result.type == "errored"
    assert (told.result.error.error.type, told.result.error.error.message) == (kind, message)


async def test_a_batch_whose_key_is_removed_ends_with_errors(tmp_path: Path) -> None:
    """Each request has the error of a live request; the results can be read once the key is back."""
    auth = {"keys": [*KEYS["keys"], {"name": "c", "key": "hg-c"}]}
    async with live(tmp_path, models=("small",), auth=auth) as gateway, raw(gateway, "hg-c") as http:
        made = (await http.post(PATH, json={"requests": requests(2)})).json()["id"]
    async with owned(tmp_path, auth=KEYS) as (gateway, _):
        gateway.services.batches.mark()
        await until(lambda: gateway.services.batches.jobs.find(made).state == "failed")
    async with live(tmp_path, models=("small",), auth=auth) as gateway:
        found = await results(client(gateway, key="hg-c"), made)
    assert [one.error.error.type for one in found.values()] == ["authentication_error"] * 2
