"""Responses in the background: made without a waiting client, polled until they end, and never left unfinished."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.journal.events import Events
from gateway.journal.record import ResponseRecord
from gateway.providers.scripted import ScriptedServer
from gateway.stored.background import LOOK_EVERY_S
from gateway.stored.background_state import MARK, Worker, as_it_stands
from tests.conformance.clients import Sdk
from tests.conformance.house import House, house
from tests.conformance.test_surfaces import RESPONSES_TOOLS
from tests.gateway.batch.test_kill import configuration
from tests.live import Live, live, served, workers_of
from tests.ports import free_port
from tests.until import until

SLOW = {"slow": [{"text": "at last", "delay_s": 30.0}], "soon": [{"text": "done", "delay_s": 0.3}],
        "broken": [{"status": 500, "error": "it broke"}]}  # fmt: skip
WORDS = " ".join(str(number) for number in range(40))
TOLD = {"words": [{"text": WORDS, "gap_s": 0.05}],
        "breaks": [{"text": WORDS, "gap_s": 0.01, "fault": "cut", "after": 5}]}  # fmt: skip
UNDER_WAY = ("queued", "in_progress")


@asynccontextmanager
async def homes(folder: Path, **extra: Any) -> AsyncIterator[House]:
    async with house(folder, SLOW, kinds=("openai", "anthropic", "native"), **extra) as built:
        yield built


async def ended(sdk: Sdk, id: str, within_s: float = 20.0) -> Any:
    """Poll a response until it ends, as OpenAI's guide does."""
    async with asyncio.timeout(within_s):
        while (response := await sdk.do("responses.retrieve", id)).status in UNDER_WAY:
            await asyncio.sleep(0.05)
    return response


@pytest.mark.parametrize("kind", ["openai", "anthropic", "native"])
async def test_a_response_in_the_background(tmp_path: Path, kind: str) -> None:
    """It is acknowledged at once and completed later under the same id, and the next turn can continue it."""
    async with homes(tmp_path) as home:
        sdk = home.sdk("openai")
        body: dict[str, Any] = {"model": f"{kind}/soon", "input": "one", "metadata": {"a": "b"}}
        waits = {"x-stainless-read-timeout": "0.1"}  # of the client, which is told of the response at once
        made = await sdk.do("responses.create", **body, background=True, extra_headers=waits)
        assert made.status in UNDER_WAY and made.background is True and made.output == []
        assert home.gateway.services.ledger.outstanding > 0
        response = await ended(sdk, made.id)
        assert (response.id, response.status, response.background) == (made.id, "completed", True)
        assert response.created_at == made.created_at
        assert response.output_text == "done" and response.metadata == {"a": "b"} and response.usage.total_tokens > 0
        record = await home.gateway.decision(made.id)
        assert record.status == 200 and record.response_id == made.id and record.cost_nanousd > 0
        after = await sdk.do("responses.create", model=f"{kind}/echo", input="two", previous_response_id=made.id)
        items = await sdk.do("responses.input_items.list", after.id, order="asc")
        assert [item.role for item in items.data] == ["user", "assistant", "user"]
        named = {"type": "item_reference", "id": response.output[0].id}
        await sdk.do("responses.create", model=f"{kind}/echo", input=[named, {"role": "user", "content": "three"}])
        assert "done" in home.last["body"]
        events = await sdk.events("responses.retrieve", response_id=made.id, stream=True)
        assert events[-1].response.output_text == "done" and events[-1].response.background is True


async def test_options_of_the_background_stay_here(tmp_path: Path) -> None:
    """Options that need `background` are not forwarded to the upstream, which would refuse them."""
    async with homes(tmp_path) as home:
        sdk, options = home.sdk("openai"), {"completion_window": "8h"}
        ask: dict[str, Any] = {"model": "native/echo", "input": "x", "background_options": options}
        made = await sdk.do("responses.create", **ask, background=True)
        assert (await ended(sdk, made.id)).output_text == "x"
        assert "background" not in home.last["body"]


async def test_calls_in_the_background_are_answered(tmp_path: Path) -> None:
    """The next turn can answer a call that was made in the background."""
    async with homes(tmp_path) as home:
        sdk = home.sdk("openai")
        ask: dict[str, Any] = {"model": "openai/tools", "tools": RESPONSES_TOOLS, "background": True}
        first = await ended(sdk, (await sdk.do("responses.create", **ask, input="x")).id)
        outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "ok"} for call in first.output]
        second = await sdk.do("responses.create", **ask, input=outputs, previous_response_id=first.id)
        assert len((await ended(sdk, second.id)).output) == 2


async def test_what_fails_in_the_background_is_failed(tmp_path: Path) -> None:
    """A failed response has the error that a waiting client would have got, and nothing stays held."""
    async with homes(tmp_path) as home:
        sdk = home.sdk("openai")
        made = await sdk.do("responses.create", model="openai/broken", input="x", background=True)
        response = await ended(sdk, made.id)
        assert response.status == "failed" and "it broke" in response.error.message
        assert response.error.code == "server_error"
        with pytest.raises(openai.BadRequestError):
            await sdk.events("responses.retrieve", response_id=made.id, stream=True)


async def test_a_response_is_cancelled(tmp_path: Path) -> None:
    """Its upstream is cancelled and its cost settled. Cancelling it again, or after its end, changes nothing. Deleting
    it cancels it as well.
    """
    async with homes(tmp_path) as home:
        sdk = home.sdk("openai")
        made = await sdk.do("responses.create", model="openai/slow", input="x", background=True)
        await until(lambda: home.requests)
        for _ in range(2):
            assert (await sdk.do("responses.cancel", made.id)).status == "cancelled"
        await home.gateway.rest(5.0)
        assert (await sdk.do("responses.retrieve", made.id)).status == "cancelled"
        await until(lambda: home.gateway.upstream.seen.disconnects == 1)
        done = await ended(sdk, (await sdk.do("responses.create", model="openai/soon", input="x", background=True)).id)
        assert (await sdk.do("responses.cancel", done.id)).status == "completed"
        made = await sdk.do("responses.create", model="openai/slow", input="x", background=True)
        await sdk.do("responses.delete", made.id)
        assert not home.gateway.services.responses.running
        with pytest.raises(openai.NotFoundError):
            await sdk.do("responses.retrieve", made.id)


async def test_another_worker_sees_the_end_of_what_it_read_before(tmp_path: Path) -> None:
    """A worker that has read an unfinished response, to list its input or to continue it, shows its end all the same.
    """
    async with homes(tmp_path) as home, live(tmp_path) as other:
        sdk, there = home.sdk("openai"), Sdk("openai", "async", other.url)
        made = await sdk.do("responses.create", model="openai/slow", input="x", background=True)
        assert len((await there.do("responses.input_items.list", made.id)).data) == 1
        with pytest.raises(openai.BadRequestError, match="has not ended"):
            await there.do("responses.create", model="openai/echo", input="y", previous_response_id=made.id)
        await sdk.do("responses.cancel", made.id)
        assert (await there.do("responses.retrieve", made.id)).status == "cancelled"
        await there.close()


@pytest.mark.parametrize("act", ["cancel", "delete"])
async def test_another_worker_ends_it(tmp_path: Path, act: str) -> None:
    """A response can be cancelled or deleted at any worker; the one that makes it is notified."""
    async with homes(tmp_path) as home, live(tmp_path, models=["other"]) as other:
        sdk, there = home.sdk("openai"), Sdk("openai", "async", other.url)
        made = await sdk.do("responses.create", model="openai/slow", input="x", background=True)
        assert (await there.do("responses.retrieve", made.id)).status == "in_progress"
        await there.do(f"responses.{act}", made.id)
        await home.gateway.rest(5 * LOOK_EVERY_S)
        for client in (sdk, there):
            if act == "cancel":
                assert (await client.do("responses.retrieve", made.id)).status == "cancelled"
            else:
                with pytest.raises(openai.NotFoundError):
                    await client.do("responses.retrieve", made.id)
        await there.close()


@pytest.mark.parametrize(
    ("more", "param"),
    [({"store": False}, "store"), ({"background": "yes"}, "background")],
)
async def test_what_the_background_can_not_do(tmp_path: Path, more: dict[str, Any], param: str) -> None:
    """Unsupported options are refused by their names."""
    async with homes(tmp_path) as home:
        with pytest.raises(openai.BadRequestError) as caught:
            await home.sdk("openai").do(
                "responses.create", **{"model": "openai/echo", "input": "x", "background": True, **more}
            )
        assert caught.value.param == param


async def test_no_turn_follows_one_that_has_not_ended(tmp_path: Path) -> None:
    """An unfinished response can't be continued or replayed, and other tenants don't see it."""
    keys = [{"name": name, "key": f"hg-{name}", "tenant": name} for name in ("a", "b")]
    async with homes(tmp_path, auth={"keys": keys}) as home:
        sdk, other = home.sdk("openai", api_key="hg-a"), home.sdk("openai", api_key="hg-b")
        made = await sdk.do("responses.create", model="openai/slow", input="x", background=True)
        with pytest.raises(openai.BadRequestError, match="has not ended"):
            await sdk.do("responses.create", model="openai/echo", input="y", previous_response_id=made.id)
        with pytest.raises(openai.BadRequestError):
            await sdk.events("responses.retrieve", response_id=made.id, stream=True)
        for way in ("retrieve", "cancel", "delete"):
            with pytest.raises(openai.NotFoundError):
                await other.do(f"responses.{way}", made.id)
        await sdk.do("responses.cancel", made.id)


async def test_a_budget_is_held_and_refuses_at_once(tmp_path: Path) -> None:
    """Running responses hold their budget, so a second one that the rest doesn't cover is refused at once."""
    keys = [{"name": "a", "key": "hg-a", "tenant": "a", "budget_usd": 0.001}]
    async with homes(tmp_path, auth={"keys": keys}) as home:
        sdk = home.sdk("openai", api_key="hg-a")
        ask: dict[str, Any] = {"model": "openai/slow", "input": "x", "background": True, "max_output_tokens": 100}
        made = await sdk.do("responses.create", **ask)
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.do("responses.create", **ask)
        assert caught.value.status_code in (402, 403, 429) and home.gateway.services.metrics.in_flight == 1
        await sdk.do("responses.cancel", made.id)


class FullSpool:
    """A spool on a full disk."""

    alarm = "the disk is full"

    def append(self, record: object) -> bool:
        return False


async def test_what_can_not_be_stored_is_not_begun(tmp_path: Path) -> None:
    """A background response is refused where it can't be acknowledged durably; nothing is held or asked for it."""
    async with homes(tmp_path) as home:
        services = home.gateway.services
        spool, services.spool = services.spool, FullSpool()  # type: ignore[assignment]
        with pytest.raises(openai.APIStatusError) as caught:
            await home.sdk("openai").do("responses.create", model="openai/soon", input="x", background=True)
        services.spool = spool
        assert caught.value.status_code == 503 and "the disk is full" in caught.value.message
        await home.gateway.rest()
        assert not services.responses.running and home.gateway.upstream.seen.requests == 0


async def resumed(sdk: Sdk, id: str, after: int | None = None) -> list[Any]:
    more = {} if after is None else {"starting_after": after}
    return await sdk.events("responses.retrieve", response_id=id, stream=True, **more)


@pytest.mark.parametrize("kind", ["openai", "anthropic", "native"])
async def test_a_background_response_is_streamed(tmp_path: Path, kind: str) -> None:
    """Told as it comes, with its own ids and numbers; whoever leaves takes it up where they were, at any worker, while
    it is made and afterwards.
    """
    async with house(tmp_path, {**SLOW, **TOLD}, kinds=(kind,)) as home, live(tmp_path) as other:
        sdk, there = home.sdk("openai"), Sdk("openai", "async", other.url)
        ask: dict[str, Any] = {"model": f"{kind}/words", "input": "one", "background": True, "stream": True}
        seen = []
        stream = await sdk.client.responses.create(**ask)
        async for event in stream:
            seen.append(event)
            if len(seen) == 12:
                break
        await stream.close()
        id = seen[0].response.id
        assert seen[0].type == "response.created" and seen[0].response.status == "in_progress"
        assert (await there.do("responses.retrieve", id)).status == "in_progress"
        rests = await asyncio.gather(resumed(sdk, id, 11), resumed(there, id, 11), resumed(there, id), resumed(sdk, id))
        assert home.requests == 1
        for rest, begin in ((rests[0], 12), (rests[1], 12), (rests[2], 0), (rests[3], 0)):
            events = [*seen[:begin], *rest]
            assert [event.sequence_number for event in events] == list(range(len(events)))
            deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            assert deltas == WORDS and events[-1].type == "response.completed"
            last = events[-1].response
            assert last.id == id and last.background is True and last.output_text == WORDS
            states = [event.response for event in events if hasattr(event, "response")]
            assert {(one.id, one.created_at, one.background) for one in states} == {(id, last.created_at, True)}
            (item,) = last.output
            assert {event.item_id for event in events if hasattr(event, "item_id")} == {item.id}
        named = [{"type": "item_reference", "id": item.id}, {"role": "user", "content": "and?"}]
        await there.do("responses.create", model="echo", input=named)
        assert WORDS in other.upstream.seen.recent[-1]["body"]
        whole = await sdk.do("responses.retrieve", id)
        assert whole.to_dict() == rests[0][-1].response.to_dict()
        number = rests[0][-1].sequence_number
        for client in (sdk, there):
            assert [event.to_dict() for event in await resumed(client, id)] == [one.to_dict() for one in rests[3]]
            assert len(await resumed(client, id, number - 1)) == 1 and not await resumed(client, id, number)
        after = await sdk.do("responses.create", model=f"{kind}/echo", input="two", previous_response_id=id)
        assert after.output_text == "two"
        await sdk.do("responses.delete", id)
        with pytest.raises(openai.NotFoundError):
            await resumed(there, id)
        await there.close()


async def test_how_a_background_stream_may_end(tmp_path: Path) -> None:
    """If the upstream refuses or breaks off, or the response is cancelled, no listener takes it for complete."""
    async with house(tmp_path, {**SLOW, **TOLD}, kinds=("openai",)) as home:
        sdk = home.sdk("openai")
        ask: dict[str, Any] = {"input": "x", "background": True, "stream": True}
        refused = await sdk.events("responses.create", model="openai/broken", **ask)
        assert [event.type for event in refused] == ["response.created", "response.failed"]
        assert "it broke" in refused[-1].response.error.message
        broken = await sdk.events("responses.create", model="openai/breaks", **ask)
        assert broken[-1].type == "response.failed" and len(broken) > 4
        assert (await sdk.do("responses.retrieve", broken[0].response.id)).status == "failed"
        telling = asyncio.create_task(sdk.events("responses.create", model="openai/words", **ask))
        (id,) = await until(lambda: home.gateway.services.responses.running)
        listening = asyncio.create_task(resumed(sdk, id))
        await asyncio.sleep(0.3)
        await sdk.do("responses.cancel", id)
        for events in (await telling, await listening, await resumed(sdk, id)):
            assert (events[-1].type, events[-1].response.status) == ("response.failed", "cancelled")
        plain = await sdk.do("responses.create", model="openai/soon", input="x", background=True)
        await ended(sdk, plain.id)
        assert (await resumed(sdk, plain.id))[-1].response.output_text == "done"
        for after in (1, "x"):
            with pytest.raises(openai.BadRequestError) as caught:
                await resumed(sdk, plain.id, after)  # type: ignore[arg-type]
            assert caught.value.param == "starting_after"


async def test_a_silent_background_stream_gives_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep-alive comments go to the client that began the stream and to those that resume it, at any worker."""
    monkeypatch.setattr("gateway.stored.event_streams.STILL_HERE_AFTER_S", 0.02)
    scripts = {"late": [{"text": "at last", "delay_s": 2.0}], "slow": SLOW["slow"]}
    async with (
        house(tmp_path, scripts, kinds=("openai",)) as home,
        live(tmp_path) as other,
        httpx.AsyncClient(base_url=f"{home.url}/v1") as client,
    ):
        ask: dict[str, Any] = {"model": "openai/late", "input": "x", "background": True, "stream": True}

        async def lines(method: str, url: str, **more: Any) -> list[str]:
            async with client.stream(method, url, **more) as answer:
                return [line async for line in answer.aiter_lines()]

        beginning = asyncio.create_task(lines("POST", "/responses", json=ask))
        (id,) = await until(lambda: home.gateway.services.responses.running)
        path = f"/responses/{id}?stream=true&starting_after=0"
        rests = await asyncio.gather(*(lines("GET", f"{url}/v1{path}") for url in (home.url, other.url)))
        for told in (await beginning, *rests):
            assert told.count(": still here") >= 3 and "event: response.completed" in told
            assert told.index(": still here") < told.index("event: response.output_text.delta")
        assert (await resumed(home.sdk("openai"), id))[-1].response.output_text == "at last"
        stream = await home.sdk("openai").client.responses.create(**{**ask, "model": "openai/slow"})
        async with asyncio.timeout(5.0):
            made = await anext(aiter(stream))
            await stream.close()
        await home.sdk("openai").do("responses.cancel", made.response.id)


async def test_a_deleted_stream_leaves_no_events(tmp_path: Path) -> None:
    """The worker that makes it stores none after it was deleted at another worker, or deletes them when it notices."""
    async with house(tmp_path, TOLD, kinds=("openai",)) as home, live(tmp_path) as other:
        sdk, there = home.sdk("openai"), Sdk("openai", "async", other.url)
        stream = await sdk.client.responses.create(model="openai/words", input="x", background=True, stream=True)
        id = (await anext(aiter(stream))).response.id
        running, stored = home.gateway.services.responses.running, Events(home.gateway.services.journal.store.engine)
        tenant = running[id].tenant
        await until(lambda: stored.known(id, tenant)[0])
        await there.do("responses.delete", id)
        await until(lambda: not running)
        assert stored.known(id, tenant) == (0, False)
        await stream.close()
        await there.close()


async def test_a_worker_makes_only_so_many_at_once(tmp_path: Path) -> None:
    """As many as it may have requests in flight; the next one is to be tried again elsewhere."""
    async with homes(tmp_path, server={"max_concurrency": 1}) as home:
        sdk = home.sdk("openai")
        made = await sdk.do("responses.create", model="openai/slow", input="x", background=True)
        with pytest.raises(openai.APIStatusError) as caught:
            await sdk.do("responses.create", model="openai/soon", input="x", background=True)
        assert caught.value.status_code == 503 and "retry-after" in caught.value.response.headers
        await sdk.do("responses.cancel", made.id)


async def test_no_tenant_hears_anothers_stream(tmp_path: Path) -> None:
    """A stream is hidden from other tenants, while it is made and afterwards."""
    keys = [{"name": name, "key": f"hg-{name}", "tenant": name} for name in ("a", "b")]
    async with house(tmp_path, TOLD, kinds=("openai",), auth={"keys": keys}) as home:
        sdk, other = home.sdk("openai", api_key="hg-a"), home.sdk("openai", api_key="hg-b")
        stream = await sdk.client.responses.create(model="openai/words", input="x", background=True, stream=True)
        id = (await anext(aiter(stream))).response.id
        for _ in range(2):
            with pytest.raises(openai.NotFoundError):
                await resumed(other, id)
            await ended(sdk, id)
        await stream.close()


def configured(folder: Path, url: str) -> tuple[Path, str]:
    config, port, admin_port = configuration(folder, url), free_port(), free_port()
    config.write_text(config.read_text().replace("[server]", f"[server]\nport = {port}\nadmin_port = {admin_port}"))
    return config, f"http://127.0.0.1:{port}"


async def test_a_worker_that_is_killed_leaves_a_failed_response(tmp_path: Path) -> None:
    """As soon as another worker serves, the response is failed, and waiting clients are told."""
    async with ScriptedServer({"small": [{"text": "at last", "delay_s": 60.0}]}) as upstream:
        config, url = configured(tmp_path, upstream.url)
        async with served(config) as process:
            sdk = Sdk("openai", "async", url, max_retries=20)
            made = await sdk.do("responses.create", model="small", input="x", background=True)
            stream = await sdk.client.responses.create(model="small", input="x", background=True, stream=True)
            events = aiter(stream)
            told = [await anext(events)]
            await until(lambda: upstream.seen.requests)
            assert (await sdk.do("responses.retrieve", made.id)).status == "in_progress"
            (pid,) = workers_of(process.pid)
            os.kill(pid, signal.SIGKILL)
            response = await ended(sdk, made.id, 60.0)
            assert response.status == "failed" and response.error.message
            assert (await sdk.do("responses.cancel", made.id)).status == "failed"
            await stream.close()
            told += await resumed(sdk, told[0].response.id, 0)
            assert [event.type for event in told] == ["response.created", "response.failed"]
            await sdk.close()


async def test_a_stopped_gateway_lets_it_end(tmp_path: Path) -> None:
    """A stopping gateway completes responses within a request's time limit, and fails those that are cut off."""
    scripts = {"small": [{"text": "done", "delay_s": 2.0}, {"text": "never", "delay_s": 60.0}]}
    async with ScriptedServer(scripts) as upstream:
        config, url = configured(tmp_path, upstream.url)
        ids = []
        async with served(config), httpx.AsyncClient(base_url=url) as client:
            for number in range(2):
                body = {"model": "small", "input": f"x {number}", "background": True}
                ids.append((await client.post("/v1/responses", json=body)).json()["id"])
                await until(lambda: upstream.seen.requests > number)
        async with served(config), httpx.AsyncClient(base_url=url) as client:
            found = [(await client.get(f"/v1/responses/{id}")).json() for id in ids]
        assert [one["status"] for one in found] == ["completed", "failed"], found


def test_nobody_waits_beyond_the_time_that_a_request_may_take(tmp_path: Path) -> None:
    """A response fails once its worker is dead, or, for a worker on another machine, once its time limit has passed."""
    here, dead = Worker(str(tmp_path)), Worker(str(tmp_path))
    here.begin()
    dead.begin()
    assert dead._lock is not None
    dead._lock.close()  # as the system does it

    def seen(worker: str, now_s: float) -> bytes:
        output = b'{"status":"in_progress","%b":{"worker":"%b","until_s":100.0}}' % (MARK.encode(), worker.encode())
        return as_it_stands(ResponseRecord(id="resp_1", time_s=0.0, output=output), here, now_s).output

    for worker, now_s, status in ((here.name, 99, b"in_progress"), ("elsewhere", 99, b"in_progress"),
                                  ("elsewhere", 101, b"failed"), (dead.name, 99, b"failed")):  # fmt: skip
        assert b'"status":"%b"' % status in seen(worker, now_s) and MARK.encode() not in seen(worker, now_s)
    here.end()


async def test_a_gateway_in_one_process_leaves_nothing_open(tmp_path: Path) -> None:
    """If the gateway is closed meanwhile, the response is failed and settled, and its lock removed."""
    ids: list[str] = []

    async def begin(gateway: Live) -> None:
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            body = {"model": "slow", "input": "x", "background": True}
            ids.append((await client.post("/v1/responses", json=body)).json()["id"])

    async with live(tmp_path, scripts=SLOW, models=["slow"]) as gateway:
        await begin(gateway)
    assert gateway.services.ledger.outstanding == 0 and not list((tmp_path / "run" / "background").iterdir())
    async with live(tmp_path, models=["slow"]) as again, httpx.AsyncClient(base_url=again.url) as client:
        assert (await client.get(f"/v1/responses/{ids[0]}")).json()["status"] == "failed"
