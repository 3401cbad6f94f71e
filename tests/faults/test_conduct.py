"""The gateway's behaviour when upstreams fail: attempts, waiting, breakers, hedges, costs, overload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.errors import UpstreamError
from gateway.hedging import _first_answer
from tests.faults.stage import PRICES, decisions, failures, nothing_left
from tests.faults.talk import Heard, ask, question
from tests.live import Live, live
from tests.until import until


def route(*models: str, **more: Any) -> list[dict[str, Any]]:
    return [{"name": "auto", "models": list(models), "router": "cheapest", **more}]


def priced(*names: str) -> list[dict[str, Any]]:
    """Models, each more expensive than the one before."""
    return [{"name": name, "input_usd_per_mtok": 1.0 + at, "output_usd_per_mtok": 4.0} for at, name in enumerate(names)]


async def chat(gateway: Live, model: str = "auto", *, stream: bool = False, **headers: str) -> Heard:
    return await ask(gateway.url, "chat", question("chat", model, stream=stream), **headers)


# ---- retry-after


async def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    """The same model is tried again, and not before its upstream's retry-after."""
    scripts = {"m": [{"status": 429, "retry_after_s": 0.3}, {"text": "now"}]}
    async with live(tmp_path, scripts=scripts, models=priced("m"), routes=route("m")) as gateway:
        heard = await chat(gateway)
        (record,) = decisions(gateway)
    first, second = record.attempts
    assert heard.status == 200
    assert second.started_s - first.started_s >= 0.3


async def test_a_long_retry_after_moves_on_to_the_next_model(tmp_path: Path) -> None:
    """A long retry-after is not waited for while another model could answer at once."""
    scripts = {"m": [{"status": 429, "retry_after_s": 30}], "n": [{"text": "here"}]}
    routes = route("m", fallback=["n"], retries=2)
    async with live(tmp_path, scripts=scripts, models=priced("m", "n"), routes=routes) as gateway:
        heard = await chat(gateway, x_stainless_read_timeout="10")
        (record,) = decisions(gateway)
    assert heard.status == 200
    assert [attempt.model for attempt in record.attempts] == ["m", "n"]


async def test_a_retry_after_beyond_the_deadline_is_passed_on(tmp_path: Path) -> None:
    """The client is told how long to wait, and not to retry until then."""
    scripts = {"m": [{"status": 429, "retry_after_s": 30}]}
    async with live(tmp_path, scripts=scripts, models=priced("m")) as gateway:
        heard = await chat(gateway, "m", x_stainless_read_timeout="5")
    assert heard.status == 429
    assert heard.headers["retry-after"] == "30" and heard.headers["x-should-retry"] == "false"
    assert gateway.upstream.seen.requests == 1


# ---- breakers


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_failures_open_the_breaker_where_operators_look(tmp_path: Path, stream: bool) -> None:
    """After five failures in a row, in whole answers or inside streams, the route leaves the model out."""
    spoilt = {"fault": "cut", "after": 1} if stream else {"status": 500}
    routes = route("m", "n", retries=0)
    async with live(tmp_path, scripts={"m": [spoilt]}, models=priced("m", "n"), routes=routes) as gateway:
        for _ in range(5):
            await chat(gateway, "m", stream=stream)
            if failures(decisions(gateway)[-1])[""]:
                raise AssertionError("it was to fail")
        asked = gateway.upstream.seen.by_model["m"]
        assert await breaker_states(gateway) == {"up/m": "open"}
        assert 'headgate_breaker_state{model="m",provider="up"} 2.0' in await metrics(gateway)
        assert (await chat(gateway, stream=stream)).headers["x-headgate-model"] == "n"
        assert gateway.upstream.seen.by_model["m"] == asked
        await chat(gateway, "m", stream=stream)
        assert gateway.upstream.seen.by_model["m"] > asked, "the last deployment of a model is never taken away"


async def test_a_breaker_half_opens_and_closes(tmp_path: Path) -> None:
    """One 429 opens the breaker for its retry-after; the first answer after that closes it again."""
    scripts = {"m": [{"status": 429, "retry_after_s": 3600}, {"text": "well again"}]}
    routes = route("m", retries=0)
    async with live(tmp_path, scripts=scripts, models=priced("m"), routes=routes) as gateway:
        assert (await chat(gateway)).status == 429
        assert await breaker_states(gateway) == {"up/m": "open"}
        gateway.services.fleet.all()[0].breaker.opens_s = gateway.services.now()  # the hour has passed
        assert await breaker_states(gateway) == {"up/m": "half_open"}
        assert 'headgate_breaker_state{model="m",provider="up"} 1.0' in await metrics(gateway)
        assert (await chat(gateway)).status == 200
        assert await breaker_states(gateway) == {}
        assert 'headgate_breaker_state{model="m",provider="up"} 0.0' in await metrics(gateway)


async def breaker_states(gateway: Live) -> dict[str, str]:
    """The breakers in /readyz, which doesn't list closed ones."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(gateway.url + "/readyz")
    assert answer.status_code == 200
    return {breaker["id"]: breaker["state"] for breaker in answer.json()["breakers"]}


async def metrics(gateway: Live) -> str:
    async with httpx.AsyncClient() as client:
        return (await client.get(gateway.url + "/metrics")).text


# ---- hedging


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_late_first_byte_is_hedged(tmp_path: Path, stream: bool) -> None:
    """The second attempt answers; the first is cancelled, recorded and billed."""
    scripts = {"m": [{"delay_s": 30}, {"text": "quick"}]}
    routes = route("m", hedge_after_s=0.05)
    async with nothing_left(), live(tmp_path, scripts=scripts, models=priced("m"), routes=routes) as gateway:
        heard = await chat(gateway, stream=stream)
        await gateway.rest()
        (record,) = decisions(gateway)
        await until(lambda: gateway.upstream.seen.disconnects == 1)
    assert b"quick" in heard.body
    assert [attempt.failure for attempt in record.attempts] == ["cancelled", ""]
    assert all(attempt.cost_nanousd > 0 for attempt in record.attempts)
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd


async def test_twins_whose_streams_begin_together_answer_once(tmp_path: Path) -> None:
    """The one that isn't used is recorded as cancelled and billed, and its connection and place are given back."""
    both = asyncio.Barrier(2)

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await both.wait()
        writer.write(EVENTS + CHUNK)
        await asyncio.sleep(0.1)
        writer.write(ENDED)

    async with (
        nothing_left(),
        speaking(speak) as more,
        live(tmp_path, **more, routes=route("m", hedge_after_s=0.05, hedge_max_share=1.0)) as gateway,
    ):
        heard = await chat(gateway, stream=True)
        await gateway.rest(within_s=10)
        (record,) = decisions(gateway)
    assert heard.body.count(b"drip") == 1 and b"[DONE]" in heard.body
    assert sorted(attempt.failure for attempt in record.attempts) == ["", "cancelled"]
    assert all(attempt.cost_nanousd > 0 for attempt in record.attempts)


async def test_a_hedge_that_fails_leaves_the_first_its_time(tmp_path: Path) -> None:
    """If the hedge fails, the first attempt may still answer."""
    scripts = {"m": [{"delay_s": 1, "text": "patience"}, {"status": 500}]}
    async with live(tmp_path, scripts=scripts, models=priced("m"), routes=route("m", hedge_after_s=0.05)) as gateway:
        heard = await chat(gateway)
        (record,) = decisions(gateway)
    assert b"patience" in heard.body
    assert [attempt.failure for attempt in record.attempts] == ["", "server_error"]


async def test_twins_that_end_together_count_the_answer() -> None:
    """If one attempt fails and the other answers at the same time, the answer is used, in either order."""
    for failing in range(8):
        twins = {asyncio.ensure_future(_twin(at == failing)) for at in range(8)}
        await asyncio.wait(twins)
        assert await _first_answer(set(twins)) == "answer"  # type: ignore[arg-type, comparison-overlap]


async def _twin(answers: bool) -> str:
    if not answers:
        raise UpstreamError("reset", "broken")
    return "answer"


async def test_a_hedge_counts_against_the_attempts(tmp_path: Path) -> None:
    """A request has at most one hedge, which counts against the route's limit of attempts."""
    scripts = {"m": [{"delay_s": 0.3, "status": 500}], "n": [{"delay_s": 0.3, "status": 500}]}
    routes = route("m", fallback=["n"], retries=3, max_attempts=3, hedge_after_s=0.03, hedge_max_share=1.0)
    async with live(tmp_path, scripts=scripts, models=priced("m", "n"), routes=routes) as gateway:
        heard = await chat(gateway)
        (record,) = decisions(gateway)
    assert heard.status == 502
    assert len(record.attempts) == gateway.upstream.seen.requests == 3


async def test_hedges_stay_within_their_share(tmp_path: Path) -> None:
    """With every first byte late, at most the allowed share of requests is sent twice."""
    scripts = {"m": [{"delay_s": 0.2}]}
    routes = route("m", hedge_after_s=0.02, hedge_max_share=0.1)
    async with live(tmp_path, scripts=scripts, models=priced("m"), routes=routes) as gateway:
        await asyncio.gather(*(chat(gateway) for _ in range(40)))
        hedged = sum(len(record.attempts) - 1 for record in decisions(gateway))
    assert 1 <= hedged <= 4


# ---- deadlines


async def test_a_late_answer_is_not_waited_for_twice(tmp_path: Path) -> None:
    """The deadline holds for headers and body together, not for each."""
    scripts = {"m": [{"delay_s": 3.9, "fault": "stall"}]}
    async with live(tmp_path, scripts=scripts, models=priced("m")) as gateway:
        heard = await chat(gateway, "m", x_stainless_read_timeout="4")
        (record,) = decisions(gateway)
    assert heard.status == 504
    assert record.latency_s is not None and 4 <= record.latency_s < 7.8


async def test_a_stream_that_never_says_anything_ends_with_the_deadline(tmp_path: Path) -> None:
    """Silence up to the client's own deadline is answered with 504, without another attempt."""
    scripts = {"m": [{"fault": "stall", "after": 0}]}
    async with live(tmp_path, scripts=scripts, models=priced("m")) as gateway:
        heard = await chat(gateway, "m", stream=True, x_stainless_read_timeout="1.5")
        (record,) = decisions(gateway)
    assert heard.status == 504
    assert [attempt.failure for attempt in record.attempts] == ["timeout"]


async def test_a_dribbling_stream_is_silence(tmp_path: Path) -> None:
    """Bytes that don't complete an event don't extend the timeout, neither before the first chunk nor after it. What
    was sent is billed as soon as the upstream has begun to answer.
    """
    for before in (True, False):

        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, before: bool = before) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(EVENTS if before else EVENTS + CHUNK)
            await forever(writer, b"d")

        async with (
            speaking(drip) as more, live(tmp_path / str(before), **more, routes=route("m", retries=0)) as gateway
        ):  # fmt: skip
            heard = await chat(gateway, stream=True)
            (record,) = decisions(gateway)
        (attempt,) = record.attempts
        assert (attempt.failure, attempt.status) == ("stream_stalled", 200) and attempt.cost_nanousd > 0
        assert heard.status == (502 if before else 200)
        assert b"[DONE]" not in heard.body and b'"error"' in heard.body


@pytest.mark.parametrize("then", [b"", b": there is more\n\n"], ids=["silent", "talking"])
async def test_a_stream_that_lives_is_waited_for_and_its_connection_is_not(tmp_path: Path, then: bytes) -> None:
    """Before its first chunk, comments show that an upstream is alive. After its last event, the client has its answer
    and the connection is given up, even if the upstream doesn't end its response.
    """

    async def linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS)
        for _ in range(10):
            writer.write(b": alive\n\n")
            await asyncio.sleep(0.2)
        writer.write(CHUNK)
        await asyncio.sleep(0.1)
        writer.write(ENDED)
        await forever(writer, then)

    async with speaking(linger) as more, live(tmp_path, **more, routes=route("m", retries=0)) as gateway:
        heard = await chat(gateway, stream=True)
        await gateway.rest(within_s=10)
        (record,) = decisions(gateway)
    assert heard.body.endswith(b"data: [DONE]\n\n")
    assert [attempt.failure for attempt in record.attempts] == [""]


EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":"drip"},"finish_reason":null}]}\n\n'
)
ENDED = CHUNK.replace(b'{"content":"drip"},"finish_reason":null', b'{},"finish_reason":"stop"') + b"data: [DONE]\n\n"


async def forever(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Send `data` again and again until the gateway has left."""
    with suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(data)
            await writer.drain()
            await asyncio.sleep(0.02)


@asynccontextmanager
async def speaking(
    speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[dict[str, Any]]:
    """The configuration of a gateway whose only upstream is a server that answers as `speak` does. Silence may last
    1.5 seconds.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await speak(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield {
            "server": {"first_byte_timeout_s": 1.5, "stall_timeout_s": 1.5, "request_timeout_s": 60},
            "providers": [{"name": "raw", "kind": "openai", "base_url": url, "api_key": "k"}],
            "models": [{"name": "m", "provider": "raw", **PRICES}],
        }


async def test_a_stream_has_an_end_in_time(tmp_path: Path) -> None:
    """A stream ends at the server's time limit for a request, even while events keep coming."""
    scripts = {"m": [{"text": "on and " * 200, "gap_s": 0.05}]}
    server = {"request_timeout_s": 0.6}
    async with live(tmp_path, scripts=scripts, models=priced("m"), server=server) as gateway:
        heard = await chat(gateway, "m", stream=True)
        (record,) = decisions(gateway)
    assert (record.error, record.status) == ("timeout", 504)
    assert b"[DONE]" not in heard.body
    assert record.latency_s is not None and record.latency_s < 15


# ---- overload, limits and budgets under concurrency


@pytest.mark.parametrize("surface", ["chat", "messages"])
async def test_one_request_too_many_is_refused_at_once(tmp_path: Path, surface: str) -> None:
    """It gets a 503 in its API's form; requests in flight aren't affected, and nothing is held for it."""
    scripts = {"echo": [{"delay_s": 2}]}
    async with live(tmp_path, scripts=scripts, server={"max_concurrency": 2}) as gateway:
        busy = [asyncio.create_task(chat(gateway, "echo")) for _ in range(2)]
        await until(lambda: gateway.app.in_flight == 2)
        heard = await ask(gateway.url, surface, question(surface, "echo"))
        assert (heard.status, heard.headers["retry-after"]) == (503, "1")
        assert ("request_id" in heard.json) == (surface == "messages")
        assert [one.status for one in await asyncio.gather(*busy)] == [200, 200]
        await gateway.rest()
        assert len(decisions(gateway)) == 2


async def test_a_budget_is_never_overspent_by_200_at_once(tmp_path: Path) -> None:
    """Requests are admitted while their worst case fits the budget, and settled at their actual cost."""
    keys = [{"name": "k", "key": "hg-k", "budget_usd": 0.004}]
    scripts = {"m": [{"delay_s": 0.02}, {"fault": "cut"}, {"status": 500}, {"text": "one two three"}]}
    routes = route("m", budget_usd_per_day=0.003)
    async with live(tmp_path, scripts=scripts, models=priced("m"), routes=routes, auth={"keys": keys}) as gateway:
        heards = await asyncio.gather(
            *(chat(gateway, stream=bool(at % 2), authorization="Bearer hg-k") for at in range(200))
        )
        await gateway.rest()
        caller = gateway.services.keyring.identify(b"Bearer hg-k", None, "127.0.0.1", 0)
        accounts = [*caller.accounts, *gateway.services.book.routes["auto"].accounts]
        balances = [gateway.services.ledger.balance(account) for account in accounts]  # type: ignore[attr-defined]
        records = decisions(gateway)
    refused = [heard for heard in heards if heard.status == 429]
    assert len(records) == 200 - len(refused) and refused
    assert {heard.json["error"]["code"] for heard in refused} == {"insufficient_quota"}
    spent = sum(record.cost_nanousd for record in records)
    assert set(balances) == {(spent, 0)}
    assert spent <= 3_000_000 and gateway.services.ledger.overrun_nanousd == 0


async def test_a_rate_limit_holds_for_200_at_once(tmp_path: Path) -> None:
    """Exactly the allowed number of requests is admitted; the others are told how long to wait."""
    keys = [{"name": "k", "key": "hg-k", "rpm": 20}]
    async with live(tmp_path, auth={"keys": keys}) as gateway:
        begun_s = gateway.services.now()
        heards = await asyncio.gather(*(chat(gateway, "echo", authorization="Bearer hg-k") for _ in range(200)))
        took_s = gateway.services.now() - begun_s
        await gateway.rest()
    passed = [heard for heard in heards if heard.status == 200]
    assert 20 <= len(passed) <= 20 + took_s * 20 / 60, "a minute's worth, and what refilled meanwhile"
    assert all("retry-after" in heard.headers for heard in heards if heard.status == 429)
    assert gateway.upstream.seen.requests == len(passed)
