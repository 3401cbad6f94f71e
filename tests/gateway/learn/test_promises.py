"""A quality floor on a live gateway: measured, certified, kept, monitored, withdrawn."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from gateway.app import reload
from gateway.config.load import parse
from gateway.config.settings import read_settings
from gateway.config.types import Config
from gateway.journal.record import AttemptRecord, DecisionRecord, EvidenceRecord, FeedbackRecord
from gateway.journal.ship import Shipper
from gateway.journal.store import Store, open_store
from gateway.journal.write import write_records
from gateway.learn import promises as module
from gateway.learn.promises import Promises, standings
from tests.live import Live, live, table

module_decode = module._decode
ROUTE = {"name": "auto", "models": ["small", "large"], "router": "cheapest", "cascade": "certified",
         "min_quality": 0.9, "measured_share": 0.5}  # fmt: skip
MODELS = [
    {"name": "small", "logprobs": True, "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.1},
    {"name": "large", "logprobs": True},
]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    found, problems = parse(table("http://127.0.0.1:1/v1", tmp_path, MODELS, {"routes": [ROUTE]}), {"UP_KEY": "x"})
    assert found is not None, problems
    return found


@pytest.fixture
def store(config: Config) -> Iterator[Store]:
    opened = open_store(config.storage.url)
    yield opened
    opened.close()


def rounds(n: int, at_s: float, *, right: float = 1.0, seed: int = 0, router: str = "cheapest@1") -> list[Any]:
    """Measured decisions a second apart; confident first answers equal the reference's with probability `right`."""
    rng = np.random.default_rng(seed)
    made: list[Any] = []
    for i in range(n):
        sure = rng.random() < 0.7
        same = rng.random() < (right if sure else 0.4)
        id = f"dec_{seed}_{at_s:.0f}_{i}"
        evidence = EvidenceRecord(confidence=0.95 if sure else 0.3)
        first = AttemptRecord(model="small", cost_nanousd=1000, evidence=evidence)
        last = AttemptRecord(model="large", cost_nanousd=10_000)
        made.append(
            DecisionRecord(
                id=id, time_s=at_s + i, route="auto", model="small", router=router, plan=("small", "large"),
                attempts=(first, last), answered_model="large", status=200, cost_nanousd=11_000,
            )
        )
        label = "same" if same else "different"
        said_s = at_s + i + 0.1
        made.append(FeedbackRecord(id=f"fb_{id}", time_s=said_s, decision_id=id, label=label, source="reference"))
    return made


def put(store: Store, records: list[Any]) -> None:
    with store.engine.begin() as connection:
        write_records(connection, records)


def stepped(promises: Promises, now_s: float) -> dict[str, Any]:
    """The state of the only route's floor after a step."""
    promises.step(now_s)
    return promises.keepers[0].told()


def test_enough_measurements_become_a_certificate(config: Config, store: Store) -> None:
    """First there is a refusal with the number of missing rows, then a threshold in the workers' settings, which is
    stored.
    """
    put(store, rounds(30, 1000.0))
    promises = Promises(config, store)
    first = stepped(promises, 2000.0)
    assert first["state"] == "collecting" and first["rows_needed"] > 30 and first["accept_at"] is None
    put(store, rounds(400, 3000.0, seed=1))
    told = stepped(promises, 4000.0)
    assert told["state"] == "valid" and 0.3 < told["accept_at"] <= 0.95
    assert told["certificate"]["quality_share"] >= 0.9 and told["certificate"]["reference"] == "large"
    assert told["certificate"]["cost_usd"] < told["certificate"]["reference_cost_usd"]
    assert read_settings(config.server.run_dir).floors["auto"].accept_at == told["accept_at"]
    again = standings(config, store)[0]
    assert (again["state"], again["accept_at"]) == ("valid", told["accept_at"])
    json.dumps(again)


def test_a_model_that_turned_bad_withdraws_the_certificate(config: Config, store: Store) -> None:
    """Audits contradict it: workers lose the threshold, and only new measurements count."""
    put(store, rounds(400, 1000.0))
    promises = Promises(config, store)
    assert stepped(promises, 2000.0)["state"] == "valid"
    put(store, rounds(300, 2000.0, right=0.5, seed=2))
    told = stepped(promises, 3000.0)
    assert told["state"] == "withdrawn" and told["accept_at"] is None and "below the floor" in told["why"]
    assert read_settings(config.server.run_dir).floors == {}
    assert stepped(promises, 3100.0)["state"] == "withdrawn"
    put(store, rounds(400, 4000.0, seed=3))
    assert stepped(promises, 5000.0)["state"] == "valid"


def test_a_comparison_is_read_once(config: Config, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step counts all comparisons, of which there may be 20,000, but reads the records of new ones only."""
    read: list[Any] = []

    def decode(payload: bytes) -> Any:
        read.append(module_decode(payload))
        return read[-1]

    monkeypatch.setattr(module, "_decode", decode)
    keeper = Promises(config, store).keepers[0]
    keeper.router = "cheapest@1"
    put(store, rounds(10, 1000.0))
    whole = keeper.measured(0.0, 2000.0)
    assert len(whole) == len(read) == 10
    again = keeper.measured(0.0, 2000.0)
    assert len(read) == 10 and np.array_equal(again.confidence, whole.confidence)
    put(store, [*rounds(5, 3000.0, seed=1), *rounds(5, 3000.0, seed=2, router="cheapest@2")])
    assert (len(keeper.measured(0.0, 4000.0)), len(read)) == (15, 15)


def test_comparisons_are_found_by_an_index(config: Config, store: Store) -> None:
    """Few of a route's requests are compared, and the others aren't read at every step."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if "feedback.label" in statement:
            asked.append((statement, parameters))

    sa.event.listen(store.engine, "before_cursor_execute", note)
    Promises(config, store).keepers[0].measured(1000.0, 2000.0)
    ((statement, parameters),) = asked
    with store.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    assert plan[0][3].startswith("SEARCH feedback USING INDEX feedback_time")


def test_another_router_needs_another_certificate(config: Config, store: Store) -> None:
    """Another router sends other questions to the small model."""
    put(store, rounds(400, 1000.0))
    promises = Promises(config, store)
    promises.step(2000.0)
    put(store, rounds(5, 2500.0, seed=4, router="cheapest@2"))
    told = stepped(promises, 3000.0)
    assert told["state"] == "withdrawn" and "router changed" in told["why"]


def test_coverage_counts_kept_answers_since_the_certificate(
    config: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has requests, comparisons and an interval, and survives a restart. A request without an answer doesn't count
    as kept. If only the latest are counted, the report says since when.
    """
    put(store, rounds(400, 1000.0))
    Promises(config, store).step(2000.0)
    kept = [
        DecisionRecord(
            id=f"k{i}", time_s=2100.0 + i, route="auto", model="small", router="cheapest@1", plan=("small", "large"),
            attempts=(AttemptRecord(model="small", cost_nanousd=1000, evidence=EvidenceRecord(confidence=0.95)),),
            answered_model="small", status=200, cost_nanousd=1000,
        )
        for i in range(10)
    ]  # fmt: skip
    failed = replace(
        kept[0], id="f", time_s=2150.0, answered_model="", status=503,
        attempts=(AttemptRecord(model="small", failure="timeout"),),
    )  # fmt: skip
    compared = rounds(50, 2200.0, right=0.93, seed=5)
    wrong = sum(
        record.attempts[0].evidence.confidence > 0.9 and said.label == "different"
        for record, said in zip(compared[::2], compared[1::2], strict=True)
    )
    put(store, [*kept, failed, *compared])
    found = stepped(Promises(config, store), 3000.0)["coverage"]
    assert wrong > 0 and found["quality_share"] == pytest.approx(1 - wrong / 50)
    assert found["cost_usd"] == pytest.approx((11 * 1000 + 50 * 11_000) / 1e9)
    assert found["reference_usd"] == pytest.approx(61 * 10_000 / 1e9)
    assert found["requests"] == 61 and found["kept"] == 10 and found["measured"] == 50
    assert found["quality_low"] <= found["quality_share"] <= found["quality_high"]
    assert found["cost_usd"] < found["reference_usd"] and found["counted_since_s"] == 2000.0
    monkeypatch.setattr("gateway.learn.promises.MOST_ROWS", 20)
    found = standings(config, store)[0]["coverage"]
    assert (found["requests"], found["counted_since_s"]) == (20, 2230.0)


async def ask(gateway: Live, n: int) -> list[httpx.Response]:
    async with httpx.AsyncClient(timeout=30) as client:
        return [
            await client.post(
                gateway.url + "/v1/chat/completions",
                json={"model": "auto", "messages": [{"role": "user", "content": f"question {i}"}]},
            )
            for i in range(n)
        ]


async def test_a_live_route_measures_certifies_and_keeps_small_answers(tmp_path: Path) -> None:
    """At first the reference answers everything; after enough comparisons the small model's confident answers are kept.
    """
    scripts = {"small": [{"text": "Seven.", "logprob": -0.01}], "large": [{"text": "seven"}]}
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[{**ROUTE, "measured_share": 0.9}]) as gateway:
        services = gateway.services
        answers = await ask(gateway, 120)
        assert {answer.headers["x-headgate-model"] for answer in answers} == {"large"}
        await gateway.app.answering.auditor.drain()
        told = keep(services, time.time() + 10)
        assert told["state"] == "valid" and told["certificate"]["quality_share"] == 1.0
        assert services.current.refresh()
        reload(services)
        answers = await ask(gateway, 150)
        await gateway.rest()
        record = await gateway.decision(answers[-1].headers["x-headgate-decision-id"])
    assert "small" in {answer.headers["x-headgate-model"] for answer in answers}
    assert record.cost_nanousd == sum(attempt.cost_nanousd for attempt in record.attempts) <= record.held_nanousd


def keep(services: Any, now_s: float) -> dict[str, Any]:
    """Does the control process's work: ships the spool and runs one step."""
    store = open_store(services.config.storage.url)
    shipper = Shipper(services.spool_dir, store.engine)
    shipper.ship_all()
    shipper.close()
    told = stepped(Promises(services.config, store), now_s)
    store.close()
    return told
