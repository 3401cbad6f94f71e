"""A route's daily budget is spent evenly: its purse raises the cost weight in time."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.config.types import RouteConfig
from gateway.journal.reader import Reader
from gateway.journal.store import open_store
from gateway.journal.write import write_records
from gateway.money.pacing import Purses
from routers.day_shape import DAY_S, HOUR_S, HOURS
from routers.types import Knobs
from tests.gateway.journal.records import decision
from tests.live import live, served, workers_of
from tests.ports import free_port
from tests.until import PATIENCE_S, until

MODELS = (
    {"name": "small", "provider": "up", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.4},
    {"name": "large", "provider": "up", "input_usd_per_mtok": 20.0, "output_usd_per_mtok": 80.0},
)


def route(budget: float | None, **stated: object) -> RouteConfig:
    return RouteConfig(name="auto", models=["small", "large"], budget_usd_per_day=budget, **stated)  # type: ignore[arg-type]


async def test_a_paced_route_turns_to_the_cheap_model_in_time(tmp_path: Path) -> None:
    """The expensive model answers while the purse is full, and the cheap one once its cost is settled; the record says
    so.
    """
    routes = [{"name": "auto", "models": ["small", "large"], "budget_usd_per_day": 1.0}]
    async with live(tmp_path, models=MODELS, routes=routes) as gateway, httpx.AsyncClient() as client:
        seen = []
        for i in range(30):
            body = {
                "model": "auto",
                "messages": [{"role": "user", "content": f"tell me of {i} " * 40}],
                "max_tokens": 60,
            }
            answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body)
            record = await gateway.decision(answer.headers["x-headgate-decision-id"])
            seen.append((record.model, record.knobs["cost_weight"]))
        models, weights = zip(*seen, strict=True)
        assert models[0] == "large" and models[-1] == "small"
        assert weights[-1] > weights[0]
        assert 0.0 <= gateway.services.purses.fullness()["auto",] < 0.5


def test_a_weight_asked_for_is_never_lowered() -> None:
    """A full purse doesn't lower the cost weight of the route or the request."""
    clock = [0.0]
    purses = Purses(lambda: clock[0])
    purses.adopt([route(1.0)])
    clock[0] = 86_400.0
    assert purses.paced("auto", Knobs(cost_weight=0.9)).cost_weight == 0.9
    assert (purses.paced("auto", Knobs()).cost_weight or 1.0) < 0.2
    assert purses.paced("auto", Knobs(min_quality=0.9)) == Knobs(min_quality=0.9)
    assert purses.paced("other", Knobs()) == Knobs()


def test_a_purse_outlives_a_reload_unless_its_budget_changes() -> None:
    """New settings don't refill a purse, another budget makes a new one, and workers share the budget."""
    clock = [0.0]
    purses = Purses(lambda: clock[0], workers=2)
    purses.adopt([route(1.0), route(None)])
    purses.adopt([route(1.0)])
    purses.spend("auto", 10_000_000)
    before = purses.fullness()
    purses.adopt([route(1.0)])
    assert purses.fullness() == before == {("auto",): pytest.approx((0.025 - 0.01) / 0.05)}
    purses.adopt([route(2.0)])
    assert purses.fullness() == {("auto",): 0.5}


NOON_S = 20_000.5 * DAY_S
PEAK = 22
"""The hour in which all requests of `seeded` days came."""


def seeded(folder: Path, now_s: float, peak: int = PEAK, days: int = 3, **last: Any) -> str:
    """A journal of days whose requests all came in one hour, and of one request an hour ago; its address."""
    url = f"sqlite:///{folder}/journal.db"
    last_s = (now_s - peak * HOUR_S) // DAY_S * DAY_S + peak * HOUR_S
    times = [last_s - day * DAY_S + n for day in range(days) for n in range(300)]
    records = [decision(n, time_s=time_s) for n, time_s in enumerate(times)]
    store = open_store(url)
    with store.engine.begin() as connection:
        write_records(connection, [*records, decision(len(records), time_s=now_s - HOUR_S, **last)])
    store.close()
    return url


def known_purses(url: str, folder: Path, clock: list[float], workers: int = 1) -> tuple[Purses, Reader]:
    purses = Purses(lambda: clock[0], workers)
    purses.adopt([route(1.0)])
    return purses, Reader(url, folder)


async def test_a_new_worker_knows_when_requests_come_and_what_was_spent(tmp_path: Path) -> None:
    """From the journal: since last evening's peak the purse was full, an hour ago 20 % of it was spent, and little is
    due until this evening's peak, which fills it at once.
    """
    clock = [NOON_S]
    purses, journal = known_purses(seeded(tmp_path, NOON_S, cost_nanousd=20_000_000), tmp_path, clock)
    await purses.learn(journal)
    assert purses.fullness()["auto",] == pytest.approx((0.1 - 0.02) / 0.1, abs=0.05)
    await purses.learn(journal)
    clock[0] = NOON_S + 8 * HOUR_S
    purses.paced("auto", Knobs())
    purses.spend("auto", 80_000_000)
    assert purses.fullness()["auto",] < 0.3
    clock[0] = NOON_S + 10.3 * HOUR_S
    purses.paced("auto", Knobs())
    assert purses.fullness()["auto",] == 1.0
    journal.close()


async def test_workers_share_what_was_spent(tmp_path: Path) -> None:
    """Each worker counts its share of past spending, as it does of the budget."""
    purses, journal = known_purses(seeded(tmp_path, NOON_S, cost_nanousd=20_000_000), tmp_path, [NOON_S], workers=2)
    await purses.learn(journal)
    assert purses.fullness()["auto",] == pytest.approx((0.1 - 0.02) / 0.1, abs=0.05)
    journal.close()


async def test_another_budget_still_knows_when_requests_come(tmp_path: Path) -> None:
    """The day's shape is kept; past spending counts once against the new budget."""
    clock = [NOON_S]
    purses, journal = known_purses(seeded(tmp_path, NOON_S, cost_nanousd=20_000_000), tmp_path, clock)
    await purses.learn(journal)
    purses.adopt([route(0.5)])
    assert purses.fullness()["auto",] == 0.5
    for _ in range(2):
        await purses.learn(journal)
        assert purses.fullness()["auto",] == pytest.approx((0.05 - 0.02) / 0.05, abs=0.06)
    purses.spend("auto", 30_000_000)
    clock[0] += 4 * HOUR_S
    purses.paced("auto", Knobs())
    assert purses.fullness()["auto",] < 0.3
    journal.close()


async def test_what_waits_in_the_spool_was_spent_too(tmp_path: Path) -> None:
    """Spending in the spool counts, because a killed gateway has not shipped its last decisions."""
    routes = [{"name": "auto", "models": ["large"], "budget_usd_per_day": 1.0}]
    async with live(tmp_path, models=MODELS, routes=routes) as gateway, httpx.AsyncClient() as client:
        body = {"model": "auto", "messages": [{"role": "user", "content": "tell me of it " * 300}]}
        answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body)
        purses = Purses(time.time)
        purses.adopt([route(1.0)])
        await purses.learn(gateway.services.journal)
        left = gateway.services.purses.fullness()["auto",]
        assert answer.status_code == 200 and left < 0.45
        assert purses.fullness()["auto",] == pytest.approx(left, abs=0.01)


async def test_every_day_is_learnt_once_it_is_over(tmp_path: Path) -> None:
    """Shapes are learnt a few minutes after midnight, also where the clock was days ahead meanwhile."""
    clock = [NOON_S]
    purses, journal = known_purses(seeded(tmp_path, NOON_S), tmp_path, clock)
    purse = purses._purses["auto"]
    shapes = []
    for now_s in (NOON_S, NOON_S + 11.9 * HOUR_S, NOON_S + 12.2 * HOUR_S, NOON_S + 3 * DAY_S, NOON_S + 13 * HOUR_S):
        clock[0] = now_s
        await purses.learn(journal)
        shapes.append(purse.shape)
    first, same, *later = shapes
    assert first is same and len({id(one) for one in (first, *later)}) == 4
    journal.close()


def paced_config(folder: Path) -> tuple[Path, str]:
    """The configuration of a gateway whose only route is paced and has an expensive model."""
    port = free_port()
    path = folder / "headgate.toml"
    path.write_text(f"""
[server]
port = {port}
admin_port = {free_port()}
run_dir = "{folder}/run"
[storage]
url = "sqlite:///{folder}/journal.db"
[[providers]]
name = "script"
kind = "scripted"
[providers.options.scripts]
small = [{{ text = "a small answer" }}]
[[models]]
name = "small"
provider = "script"
output_usd_per_mtok = 500.0
max_output_tokens = 20
[[routes]]
name = "auto"
models = ["small"]
router = "cheapest"
budget_usd_per_day = 1.0
""")
    return path, f"http://127.0.0.1:{port}"


async def fullness(client: httpx.AsyncClient, differs_from: float) -> float:
    """The purse's fullness once it differs from the given one. Raises TimeoutError where it stays."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            lines = (await client.get("/metrics")).text.splitlines()
            told = [float(line.split()[-1]) for line in lines if line.startswith("headgate_purse_fullness{")]
            if told and told != [differs_from]:
                return told[0]
            await asyncio.sleep(0.01)


async def test_pacing_goes_on_through_a_restart_and_a_reload(tmp_path: Path) -> None:
    """Real processes: each new worker knows at once when requests come and what was spent; one that forgot would begin
    half full, one that knew no hours full.
    """
    now_s = time.time()
    seeded(tmp_path, now_s, peak=(int(now_s // HOUR_S) + 12) % HOURS, cost_nanousd=20_000_000)
    config, url = paced_config(tmp_path)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        async with served(config):
            first = await fullness(client, 0.5)
            assert first == pytest.approx(0.85, abs=0.05)
            for _ in range(20):
                body = {"model": "auto", "messages": [{"role": "user", "content": "hello there"}]}
                answer = await client.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200 and float(answer.headers["x-headgate-cost-usd"]) > 0
            spent = await fullness(client, first)
            assert 0.0 < spent < first - 0.1
        async with served(config) as process:
            assert await fullness(client, 0.5) == pytest.approx(spent, abs=0.03)
            (old,) = workers_of(process.pid)
            process.send_signal(signal.SIGHUP)
            await until(lambda: workers_of(process.pid) not in ([], [old]) and old not in workers_of(process.pid))
            assert await fullness(client, 0.5) == pytest.approx(spent, abs=0.03)
