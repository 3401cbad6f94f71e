"""The data plane while its database is away: what needs it fails in time, everything else continues."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.journal.schema import migrate
from gateway.journal.ship import Shipper
from gateway.journal.store import open_store
from gateway.journal.write import write_records
from gateway.serve.worker import restore_spending
from tests.gateway.journal.records import decision
from tests.live import Live, live
from tests.postgres_server import PostgresServer
from tests.until import until

ASKED = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
DEAR = {"name": "echo", "input_usd_per_mtok": 10.0, "output_usd_per_mtok": 10.0, "max_output_tokens": 20}
NEED_IT = [
    ("GET", "/v1/batches"), ("GET", "/v1/files"), ("GET", "/v1/decisions/dec_unknown"),
    ("GET", "/v1/responses/resp_unknown"),
    ("GET", "/v1/batches/batch_unknown"), ("DELETE", "/v1/files/file_unknown"),
]  # fmt: skip


@contextmanager
def stopped(server: PostgresServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@pytest.mark.parametrize("asked_before", [False, True])
async def test_what_needs_the_database_says_that_it_is_away(
    tmp_path: Path, postgres_server: PostgresServer, asked_before: bool
) -> None:
    """Such requests get 503 with retry-after, whether or not the database was reached before. Answers, spooled
    decisions and feedback continue, and everything works once it is back.
    """
    url = postgres_server.new_database()
    migrate(url)
    async with live(tmp_path, storage={"url": url}) as gateway, httpx.AsyncClient(
        base_url=gateway.url, timeout=60
    ) as client:
        if asked_before:
            assert (await client.get("/v1/batches")).status_code == 200
        with stopped(postgres_server):
            for method, path in NEED_IT:
                answer = await client.request(method, path)
                assert answer.status_code == 503, (path, answer.text)
                assert answer.json()["error"]["code"] == "journal_unavailable" and "retry-after" in answer.headers, path
            turn = {"model": "echo", "input": "x", "previous_response_id": "resp_unknown"}
            answer = await client.post("/v1/responses", json=turn)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "journal_unavailable")
            answer = await client.post("/v1/chat/completions", json=ASKED)
            assert answer.status_code == 200
            id = answer.headers["x-headgate-decision-id"]
            assert (await client.get(f"/v1/decisions/{id}")).status_code == 200
            assert (await client.post("/v1/feedback", json={"decision_id": id, "score": 1.0})).status_code == 200
        assert (await client.get("/v1/batches")).status_code == 200
        assert (await client.get("/v1/decisions/dec_unknown")).status_code == 404


async def test_a_damaged_database_file_counts_as_away(tmp_path: Path) -> None:
    """A file that was overwritten or damaged is no internal error of the gateway either."""
    (tmp_path / "journal.db").write_bytes(b"no database" * 100)
    async with live(tmp_path) as gateway, httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
        for method, path in NEED_IT:
            answer = await client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "journal_unavailable"), path
        assert (await client.post("/v1/chat/completions", json=ASKED)).status_code == 200


async def test_a_hanging_database_delays_no_other_request(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """A database that hangs delays only the request that needs it."""
    url = postgres_server.new_database()
    migrate(url)
    async with live(tmp_path, storage={"url": url}) as gateway, httpx.AsyncClient(
        base_url=gateway.url, timeout=60
    ) as client:
        os.kill(postgres_server.pid, signal.SIGSTOP)
        try:
            paths = ["/v1/files", "/v1/batches", *["/v1/decisions/x"] * 8]
            waiting = [asyncio.create_task(client.get(path)) for path in paths]
            for _ in range(3):
                answer = await client.post("/v1/chat/completions", json=ASKED)
                assert answer.status_code == 200
                said = {"decision_id": answer.headers["x-headgate-decision-id"], "score": 1.0}
                assert (await client.post("/v1/feedback", json=said)).status_code == 200
            assert not any(task.done() for task in waiting)
        finally:
            os.kill(postgres_server.pid, signal.SIGCONT)
        assert [(await task).status_code for task in waiting] == [200, 200, *[404] * 8]


async def test_a_restart_without_the_database_gives_no_budget_away_twice(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    """Callers with a budget get 503 until the spending is known, callers without one are answered, and then the budget
    continues where it was.
    """
    url = postgres_server.new_database()
    migrate(url)
    keys = [{"name": "poor", "key": "hg-poor", "budget_usd": 0.001}, {"name": "free", "key": "hg-free"}]
    settings: dict[str, Any] = {"storage": {"url": url}, "auth": {"keys": keys}, "models": [DEAR]}
    poor, free = ({"authorization": f"Bearer hg-{name}"} for name in ("poor", "free"))

    async def ask(gateway: Live, headers: dict[str, str]) -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            return await client.post(f"{gateway.url}/v1/chat/completions", json=ASKED, headers=headers)

    async with live(tmp_path, **settings) as gateway:
        while (await ask(gateway, poor)).status_code == 200:
            pass
        store = open_store(url)
        Shipper(gateway.services.spool_dir, store.engine).ship_all()
        store.close()
    with ExitStack() as away:
        away.enter_context(stopped(postgres_server))
        async with live(tmp_path, **settings) as gateway:
            await asyncio.to_thread(restore_spending, gateway.app)
            chore = asyncio.create_task(gateway.services.ledger.run())
            refused = await ask(gateway, poor)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "budget_unavailable")
            assert (await ask(gateway, free)).status_code == 200
            away.close()
            await chore
            spent = await ask(gateway, poor)
            assert (spent.status_code, spent.json()["error"]["code"]) == (429, "insufficient_quota")


async def test_pacing_learns_once_the_database_is_there(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """Until the database answers, a route with a daily budget paces as if it had no history."""
    url = postgres_server.new_database()
    migrate(url)
    store = open_store(url)
    now_s = time.time()
    with store.engine.begin() as connection:
        write_records(connection, [decision(1, time_s=now_s - 60.0, cost_nanousd=30_000_000)])
    store.close()
    routes = [{"name": "auto", "models": ["echo"], "budget_usd_per_day": 1.0}]
    async with live(tmp_path, storage={"url": url}, routes=routes) as gateway, httpx.AsyncClient() as client:
        purses = gateway.services.purses
        with stopped(postgres_server):
            learning = asyncio.create_task(purses.run(gateway.services.journal))
            answer = await client.post(f"{gateway.url}/v1/chat/completions", json={**ASKED, "model": "auto"})
            await asyncio.sleep(0.2)
            assert answer.status_code == 200 and purses.fullness()["auto",] > 0.49
        await until(lambda: purses.fullness()["auto",] < 0.25)
        learning.cancel()
