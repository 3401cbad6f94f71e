"""The closed loop: from a router that knows nothing, past a gate that refuses what is worse, to the recovery from a
model that turned bad.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gateway.app import open_route_router, reload
from gateway.config.load import parse
from gateway.config.settings import read_settings
from gateway.config.types import Config
from gateway.journal.record import FeedbackRecord
from gateway.journal.ship import Shipper
from gateway.journal.store import Store, open_store
from gateway.journal.write import write_records
from gateway.learn import loop as turns
from gateway.learn.dataset import log_of, read_log, training_data
from gateway.learn.gate import GateVerdict, failed
from gateway.learn.loop import Loop, LoopThresholds, StepReport
from gateway.learn.shadow import begin_canary, gated, mark
from routers.artifact import Card
from routers.features import shipped_featurizer
from routers.fit import fit_learned
from routers.intervals import Interval
from routers.plugin import PluginRouter
from routers.registry import estimator_named, save_router
from routers.simple import Weighted
from routers.types import Knobs, Router
from tests.bench.loop import gate_verdict
from tests.gateway.learn.world import PRICE, TRUTH, Town, candidates, described
from tests.live import live

KNOBS = Knobs(cost_weight=0.5)
REFERENCE_USD = PRICE["large"] * 425 / 1e6
TERMS = LoopThresholds(min_scored=100, retrain_after=200, shadow_rounds=40, canary_share=0.3, canary_rounds=25)


def configured(folder: Path) -> Config:
    table = {
        "server": {"run_dir": str(folder / "run")},
        "storage": {"url": f"sqlite:///{folder}/journal.db"},
        "providers": [{"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:1/v1"}],
        "models": [
            {"name": name, "provider": "up", "input_usd_per_mtok": usd, "output_usd_per_mtok": 4 * usd}
            for name, usd in PRICE.items()
        ],
        "routes": [{"name": "auto", "models": list(PRICE), "router": "linear", "cost_weight": 0.5, "explore": 0.2}],
    }
    config, problems = parse(table, {})
    assert config is not None, problems
    return config


class Street:
    """A town whose journal is written into a real store; its requests are decided by the router that serves the route.
    """

    def __init__(self, folder: Path, seed: int = 3) -> None:
        self.config = configured(folder)
        self.store: Store = open_store(self.config.storage.url)
        self.town = Town(seed)
        self.loop = Loop(self.config, self.store, "auto", TERMS)

    def router(self) -> Router:
        return open_route_router(self.config.routes[0], read_settings(self.config.server.run_dir))

    def round(self, n: int = 100, heard: Callable[[float], bool] = lambda _: True, ahead_s: float = 0.0) -> StepReport:
        """One round of requests. `heard` selects the scores that are given; `ahead_s` is the error of the clock."""
        rows = self.town.decisions(self.router(), n, knobs=KNOBS)
        rows = [(msgspec.structs.replace(record, time_s=record.time_s + ahead_s), score) for record, score in rows]
        said = [
            FeedbackRecord(id="fb_" + record.id, time_s=record.time_s, decision_id=record.id, tenant="t", score=score)
            for record, score in rows
            if score is not None and heard(score)
        ]
        with self.store.engine.begin() as connection:
            write_records(connection, [*(record for record, _ in rows), *said])
        return self.loop.step(rows[-1][0].time_s + 1.0)

    def until(self, action: str, rounds: int = 14) -> list[StepReport]:
        told = []
        for _ in range(rounds):
            told.append(self.round())
            if told[-1].action == action:
                return told
        raise AssertionError(f"never {action}: " + "; ".join(map(str, told)))

    def worth(self, router: Router) -> float:
        quality, cost = self.town.worth(router, certain(KNOBS), 200)
        return quality - 0.2 * cost / REFERENCE_USD


def certain(knobs: Knobs) -> Knobs:
    """The same knobs without exploration, which show the router's best choice."""
    return Knobs(cost_weight=knobs.cost_weight, explore=False)


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    made = Street(tmp_path)
    yield made
    made.store.close()


def best_worth(truth: dict[str, dict[str, float]]) -> float:
    """The worth of the optimal policy, which knows each kind's best model."""
    total = 0.0
    for scores in truth.values():
        total += max(scores[model] - 0.2 * PRICE[model] / PRICE["large"] for model in scores) / len(truth)
    return total


def test_the_loop_learns_refuses_and_recovers(street: Street, tmp_path: Path) -> None:
    """It reaches 95 % of the optimum by way of shadow and canary, refuses a bad candidate, and routes around a model
    that turns bad.
    """
    start = street.worth(street.router())
    told = street.until(turns.PROMOTED)
    actions = [one.action for one in told]
    assert actions.index(turns.SHADOW) < actions.index(turns.CANARY) < actions.index(turns.PROMOTED)
    possible = best_worth({kind: dict(scores) for kind, scores in TRUTH.items()})
    assert start < 0.9 * possible
    assert street.worth(street.router()) >= 0.95 * possible
    states = {one.state for one in street.loop.versions.list("auto")}
    assert states == {"live"}

    (live,) = street.loop.versions.list("auto")
    log = read_log(street.store.engine, route="auto")
    judged = street.loop.unseen(log)
    trained_until_s: Any = (live.metrics or {})["trained_until_s"]
    assert 0 < len(judged) < len(log), "what a router was trained on says nothing of its worth"
    assert all(record.time_s > trained_until_s for record in judged.records)

    bad = spoilt_artifact(street, tmp_path)
    verdict = gate_verdict(street.loop, bad)
    assert not verdict.passed and "difference at least -" in verdict.reason

    street.town.truth = {"sum": {**TRUTH["sum"], favourite(street): 0.15}, "poem": dict(TRUTH["poem"])}
    fallen = street.worth(street.router())
    told = street.until(turns.PROMOTED, 20)
    assert any(alarm.kind == "model drift" for alarm in told[1].alarms), "noticed within 200 requests"
    recovered = street.worth(street.router())
    assert fallen < 0.8 * recovered
    assert recovered >= 0.95 * best_worth({kind: dict(scores) for kind, scores in street.town.truth.items()})


def favourite(street: Street) -> str:
    """The model that answers most sums now."""
    router, picks = street.router(), Counter[str]()
    for i in range(60):
        query = described(f"What is {1234 + 97 * i} + {8765 - 31 * i}? Answer with the number only.")
        picks[router.choose(query, candidates(), certain(KNOBS), 0.0).model] += 1
    return picks.most_common(1)[0][0]


def spoilt_artifact(street: Street, folder: Path) -> Path:
    """A router trained on inverted scores."""
    data, x = training_data(log_of(street.town.decisions(Weighted(), 300)))
    spoilt = replace(data, scores=1.0 - data.scores)
    learned = fit_learned(estimator_named("linear"), spoilt, x, shipped_featurizer().layout)
    router = PluginRouter("linear", "bad", shipped_featurizer().version, learned)
    path = folder / "bad.safetensors"
    save_router(path, router, Card(router.name, "bad", router.features_version, data.models))
    return path


def test_a_bad_canary_is_rolled_back(street: Street, tmp_path: Path) -> None:
    """It decides a share of the traffic for a short time only."""
    street.round()
    version = street.loop.versions.add("auto", spoilt_artifact(street, tmp_path), actor="somebody")
    mark(street.store, version, "canary", 1e9, label="linear@bad")
    begin_canary(str(street.config.server.run_dir), "auto", version, 0.5)
    told = street.until(turns.ROLLED_BACK)
    assert len(told) <= 4
    assert read_settings(street.config.server.run_dir).canaries == {}
    assert street.loop.versions.find("auto", version.version).state == "rolled_back"


def around(value: float, half_width: float) -> Interval:
    return Interval(value, value - half_width, value + half_width)


@pytest.mark.parametrize(
    "canary, gate, settled, gone",
    [
        (around(-0.2, 0.1), around(0.2, 0.05), False, True),
        (around(-0.02, 0.1), around(0.1, 0.05), False, False),
        (around(-0.02, 0.1), around(0.1, 0.05), True, False),
        (around(-0.02, 0.1), None, True, True),
        (around(-0.02, 0.05), around(0.03, 0.1), True, True),
        (around(-0.06, 0.1), around(0.9, 0.05), True, True),
        (around(0.01, 0.1), None, True, False),
    ],
    ids=["beyond doubt", "early", "the gate saw more", "no gate", "the gate saw less", "by the margin", "no worse"],
)
def test_a_canary_in_doubt_is_judged_with_the_gates_result(
    canary: Interval, gate: Interval | None, settled: bool, gone: bool
) -> None:
    """That result counts by its precision, but never for a canary that is certainly worse, or worse by the margin."""
    assert failed(canary, gate, 0.05, settled=settled) is gone


def test_the_gates_result_stays_with_the_version(street: Street, tmp_path: Path) -> None:
    """It survives every later change of state; a version that was added by hand has none."""
    version = street.loop.versions.add("auto", spoilt_artifact(street, tmp_path), actor="somebody")
    assert gated(version) is None
    verdict = GateVerdict(True, "", around(0.1, 0.05))
    noted = mark(street.store, version, "shadow", 1.0, gate=verdict.as_dict())
    noted = mark(street.store, noted, "canary", 2.0, label="x")
    assert gated(noted) == around(0.1, 0.05)
    assert gated(street.loop.versions.find("auto", version.version)) == around(0.1, 0.05)


@pytest.mark.parametrize("refused", [True, False])
def test_after_a_refusal_the_gate_is_asked_again_soon(street: Street, refused: bool) -> None:
    """60 new rounds are enough for the gate, though a new training needs 200."""
    since_s = 1e9 + 200.0 * 140
    street.store.save_setting("learn.auto", {"trained_until_s": since_s, "refused": refused}, "test")
    assert (street.round(200).action == turns.WAITS) is not refused


@pytest.mark.parametrize(
    ("heard", "told"),
    [
        (lambda score: False, "0 scored rounds"),
        (lambda score: score == 0.0, "every scored answer has the score 0"),
        (lambda score: score == 1.0, "every scored answer has the score 1"),
    ],
    ids=["none", "bad answers only", "good answers only"],
)
def test_nothing_is_promoted_without_scores_of_both_kinds(
    street: Street, heard: Callable[[float], bool], told: str
) -> None:
    """Otherwise the cheapest model would look as good as any."""
    reports = [street.round(heard=heard) for _ in range(9)]
    assert not street.loop.versions.list("auto")
    assert told in reports[-1].reason
    silent = any(alarm.kind == "unlabelled" for alarm in reports[-1].alarms)
    assert silent is told.startswith("0 scored")


def test_a_clock_that_was_ahead_stops_no_learning(street: Street) -> None:
    """What was recorded three days ahead counts from the moment that the clock is right again."""
    street.until(turns.SHADOW)
    ahead_s = 3 * 86400.0
    assert street.round(ahead_s=ahead_s).action == turns.CANARY
    street.until(turns.PROMOTED, 8)
    noted = street.store.setting("learn.auto") or {}
    street.store.save_setting("learn.auto", {**noted, "trained_until_s": 1e9 + 9e6}, "test")
    assert any(street.round().action != turns.WAITS for _ in range(4))


def test_late_scores_count_as_new_rounds(street: Street) -> None:
    """The training ended with the latest scored round, so earlier unscored rounds are new once they are scored."""
    for _ in range(6):
        told = street.round()
        if told.action == turns.SHADOW:
            break
    silent = street.round(heard=lambda _: False)
    noted = street.store.setting("learn.auto")
    assert noted is not None and told.action == turns.SHADOW and silent.action == turns.WAITS
    street.store.save_setting("learn.auto", {}, "test")
    for version in street.loop.versions.list("auto"):
        mark(street.store, version, "refused", 1e9)
    told = street.round(heard=lambda _: False)
    assert told.action in {turns.SHADOW, turns.REFUSED}
    assert street.store.setting("learn.auto") == {**noted, "refused": told.action == turns.REFUSED}


def test_a_canary_begun_by_hand_is_judged_too(street: Street, tmp_path: Path) -> None:
    """Its label isn't recorded, and is read from its artefact."""
    street.round()
    version = street.loop.versions.add("auto", spoilt_artifact(street, tmp_path), actor="somebody")
    mark(street.store, version, "canary", 1e9)
    begin_canary(str(street.config.server.run_dir), "auto", version, 0.5)
    assert len(street.until(turns.ROLLED_BACK)) <= 4


def test_a_canary_with_the_incumbents_label_ends(street: Street, tmp_path: Path) -> None:
    """Their answers can't be told apart, so it would never be judged."""
    street.round()
    (tmp_path / "other").mkdir()
    serving, tried = (
        street.loop.versions.add("auto", spoilt_artifact(street, folder), actor="somebody")
        for folder in (tmp_path, tmp_path / "other")
    )
    street.loop.versions.promote("auto", serving.version, actor="somebody")
    mark(street.store, tried, "canary", 1e9)
    begin_canary(str(street.config.server.run_dir), "auto", tried, 0.5)
    told = street.round()
    assert told.action == turns.REFUSED and "linear@bad too" in told.reason
    assert read_settings(street.config.server.run_dir).canaries == {}


def test_a_busy_keys_scores_count_up_to_its_share(street: Street) -> None:
    """Four of five scores are one key's; with a share of at most half it keeps as many as the other key gave."""
    rows = [
        (msgspec.structs.replace(record, key_id="busy" if i % 5 else "other"), score)
        for i, (record, score) in enumerate(street.town.decisions(Weighted(), 50))
    ]
    said = [
        FeedbackRecord(id="fb_" + record.id, time_s=record.time_s, decision_id=record.id, tenant="t", score=score)
        for record, score in rows
    ]
    with street.store.engine.begin() as connection:
        write_records(connection, [*(record for record, _ in rows), *said])
    assert int(street.loop.heard().labelled.sum()) == 50
    route = msgspec.structs.replace(street.config.routes[0], max_key_share=0.5)
    street.loop.config = msgspec.structs.replace(street.config, routes=[route])
    assert int(street.loop.heard().labelled.sum()) == 20


def test_an_empty_journal_only_waits(street: Street) -> None:
    """Without decisions nothing is done."""
    assert street.loop.step(1e9).action == turns.WAITS


async def test_feedback_over_http_reaches_the_router(tmp_path: Path) -> None:
    """With the loop running beside the requests, the promoted version serves the running gateway."""
    route = {"name": "auto", "models": list(PRICE), "router": "linear", "cost_weight": 0.5, "explore": 0.4}
    models = [{"name": name, "input_usd_per_mtok": usd, "output_usd_per_mtok": 4 * usd} for name, usd in PRICE.items()]
    terms = LoopThresholds(min_scored=150, shadow_rounds=30, canary_share=0.5, canary_rounds=25, patience=60)
    town = Town(5)
    scripts = {name: [{"text": "word " * 40}] for name in PRICE}
    async with live(tmp_path, scripts=scripts, models=models, routes=[route]) as gate:
        services = gate.services
        services.draws = iter(random.Random(4).random, None)
        store = open_store(services.config.storage.url)
        loop = Loop(services.config, store, "auto", terms)
        shipper = Shipper(services.spool_dir, store.engine)
        actions: list[str] = []
        async with httpx.AsyncClient(base_url=gate.url) as client:
            for _ in range(16):
                for _ in range(50):
                    await ask(client, town)
                shipper.ship_all()
                actions.append(loop.step(services.clock()).action)
                if services.current.refresh():
                    reload(services)
                if actions[-1] == turns.PROMOTED:
                    break
            answer = await client.post("/v1/chat/completions", json=body(town.question()[1]))
        shipper.close()
        served = (loop.versions.list("auto")[0].metrics or {})["label"]
        store.close()
        assert actions[-1] == turns.PROMOTED, actions
        record = await gate.decision(answer.headers["x-headgate-decision-id"])
        assert record.router == served


def body(text: str) -> dict[str, object]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 40}


async def ask(client: httpx.AsyncClient, town: Town) -> None:
    """Sends one question; returns what its answer was worth."""
    kind, text = town.question()
    answer = await client.post("/v1/chat/completions", json=body(text))
    assert answer.status_code == 200, answer.text
    right = town.rng.random() < town.truth[kind][answer.headers["x-headgate-model"]]
    said = {"decision_id": answer.headers["x-headgate-decision-id"], "score": float(right)}
    assert (await client.post("/v1/feedback", content=msgspec.json.encode(said))).status_code == 200
