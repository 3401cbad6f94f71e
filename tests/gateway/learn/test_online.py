"""Bandits that learn while they serve: over HTTP, across workers and replicas, and across restarts."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from redis import Redis

from gateway.app import reload
from gateway.journal.reader import Reader
from gateway.journal.record import AttemptRecord, CandidateRecord, DecisionRecord, EvidenceRecord, FeedbackRecord
from gateway.journal.store import open_store
from gateway.learn.online import Learner, bandit_of, key_of, query_of
from gateway.learn.policy import route_policy
from gateway.learn.rounds import drawn_of
from routers.artifact import Card
from routers.bandit_state import BanditState
from routers.plugin import PluginRouter
from routers.registry import open_router, save_router
from tests.gateway.redis_server import RedisServer
from tests.live import Live, live
from tests.routers.test_bandit import bandit
from tests.until import until

MODELS = (
    {"name": "small", "provider": "up", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.4},
    {"name": "large", "provider": "up", "input_usd_per_mtok": 2.0, "output_usd_per_mtok": 8.0},
)
ROUTE = {"name": "auto", "models": ["small", "large"], "router": "bandit", "cost_weight": 0.6, "explore": 0.5}
POEMS = ("Write a tender poem about a {} in the garden at night", "Write a song about a {} at the sea")
SUMS = (
    "Question: compute $x^2 + {} x = 12$.\nA) 3\nB) 4\nC) 5\nD) 6\nAnswer:",
    "Question: what is 7 * {} + 5 * 8?\nA) 31\nB) 40\nC) 52\nD) 66\nAnswer:",
)
SCRIPTS = {"default": [{"text": "so"}]}


def question(i: int) -> tuple[str, str]:
    """A poem or a sum: the kind and its text."""
    kind, texts = (("poem", POEMS), ("sum", SUMS))[i % 2]
    word = ("rose", "wolf", "lark", "star", "tree", "rain")[i // 4 % 6]
    return kind, texts[i // 2 % 2].format(word if kind == "poem" else i // 4 % 6 + 3)


def worth(kind: str, model: str) -> float:
    """The small model writes poems and can't do sums; the large one can do both."""
    return 1.0 if model == "large" or kind == "poem" else 0.0


async def ask(client: httpx.AsyncClient, gateway: Live, text: str, **more: Any) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 50, **more}
    answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


async def say(client: httpx.AsyncClient, gateway: Live, answer: httpx.Response, score: float) -> None:
    said = {"decision_id": answer.headers["x-headgate-decision-id"], "score": score}
    assert (await client.post(f"{gateway.url}/v1/feedback", json=said)).status_code == 200


async def teach(gateway: Live, rounds: int) -> None:
    async with httpx.AsyncClient(timeout=30) as client:
        for i in range(rounds):
            kind, text = question(i)
            answer = await ask(client, gateway, text)
            await say(client, gateway, answer, worth(kind, answer.headers["x-headgate-model"]))


async def preferred(gateway: Live, n: int = 24) -> dict[str, float]:
    """The large model's share by kind, without exploration."""
    route = gateway.services.book.find("auto")
    share: dict[str, list[bool]] = {"poem": [], "sum": []}
    for i in range(n):
        kind, text = question(i)
        query = gateway.services.featurizer().describe(text, input_tokens=20, max_output_tokens=50)
        assert route.router is not None
        choice = route.router.choose(query, [m.candidate for m in route.models], route.knobs, 0.5)
        share[kind].append(choice.ranked[0] == "large")
    return {kind: sum(found) / len(found) for kind, found in share.items()}


def expected(gateway: Live, model: str) -> dict[str, float]:
    """The quality that the route's router expects of a model, by kind."""
    route = gateway.services.book.find("auto")
    bandit = bandit_of(route.router)
    assert bandit is not None
    told: dict[str, list[float]] = {"poem": [], "sum": []}
    for i in range(24):
        kind, text = question(i)
        query = gateway.services.featurizer().describe(text, input_tokens=20, max_output_tokens=50)
        forecast = bandit.forecast(query, [m.candidate for m in route.models])
        told[kind].append(forecast.quality[list(forecast.models).index(model)])
    return {kind: float(np.mean(found)) for kind, found in told.items()}


def known(gateway: Live) -> float:
    return gateway.services.online.answers()["auto",]


async def test_a_bandit_learns_from_feedback_over_http(tmp_path: Path) -> None:
    """After some rounds the small model is expected to write poems and to fail at sums; propensities stay exact."""
    async with live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE]) as gateway:
        gateway.services.draws = iter(random.Random(1).random, None)
        await teach(gateway, 240)
        assert known(gateway) == pytest.approx(240)
        found = expected(gateway, "small")
        assert found["poem"] > 0.7 and found["sum"] < 0.3
        assert min(expected(gateway, "large").values()) > 0.85
        async with httpx.AsyncClient() as client:
            answer = await ask(client, gateway, question(1)[1])
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        assert record.router == "bandit@default-1"
        assert sum(one.probability for one in record.candidates) == pytest.approx(1.0)
        chances = {one.model: one.probability for one in record.candidates}
        assert record.propensity == pytest.approx(chances[record.model])
        assert min(chances.values()) >= 0.25 - 1e-9


@pytest.mark.parametrize("shared", ["files", "redis"])
async def test_replicas_share_what_they_learned(tmp_path: Path, shared: str) -> None:
    """Two gateways share a run directory or a Redis, and each adds the other's sums to its own."""
    for url in redis(tmp_path, shared):
        extra = {"storage": {"redis_url": url}} if url else {}
        async with (
            live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE], **extra) as one,
            live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE], **extra) as two,
        ):
            chores = [asyncio.create_task(g.services.online.run()) for g in (one, two)]
            await teach(one, 12)
            await teach(two, 8)
            await until(lambda: known(one) == known(two) == 20)
            assert await preferred(one) == await preferred(two)
            for chore in chores:
                chore.cancel()


async def test_a_redis_that_lost_its_data_loses_no_knowledge(tmp_path: Path) -> None:
    """The replicas publish their sums again, those of ended ones included, so a new replica gets all."""
    for url in redis(tmp_path, "redis"):
        extra: dict[str, Any] = {"storage": {"redis_url": url}}

        def gateway(name: str, extra: dict[str, Any] = extra) -> Any:
            (tmp_path / name).mkdir(exist_ok=True)
            return live(tmp_path / name, scripts=SCRIPTS, models=MODELS, routes=[ROUTE], **extra)

        async with gateway("gone") as gone:
            await teach(gone, 6)
        async with gateway("one") as one, gateway("two") as two:
            chores = [asyncio.create_task(g.services.online.run()) for g in (one, two)]
            await teach(one, 4)
            await until(lambda: known(one) == known(two) == 10)
            with Redis.from_url(url) as client:
                client.flushall()
                await until(lambda: sum(map(client.hlen, client.keys("headgate:bandit:*"))) >= 2)
            await asyncio.sleep(1.5)
            assert known(one) == known(two) == 10
            async with gateway("three") as three:
                chores.append(asyncio.create_task(three.services.online.run()))
                await until(lambda: known(three) == 10)
            for chore in chores:
                chore.cancel()


def redis(folder: Path, shared: str) -> Iterator[str]:
    if shared == "files":
        yield ""
        return
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server here")
    server = RedisServer(folder)
    server.start()
    try:
        yield server.url
    finally:
        server.stop()


async def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    """What was learned before a stop is there afterwards, once."""
    for rounds in (6, 12):
        async with live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE]) as gateway:
            chore = asyncio.create_task(gateway.services.online.run())
            await teach(gateway, 6)
            await until(lambda: known(gateway) >= rounds)
            assert known(gateway) == rounds
            chore.cancel()


async def test_a_reload_forgets_nothing(tmp_path: Path) -> None:
    """New settings make new routers, with the learned sums."""
    async with live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE]) as gateway:
        await teach(gateway, 6)
        reload(gateway.services)
        assert known(gateway) == 6
        await teach(gateway, 2)
        assert known(gateway) == 8


async def test_models_come_and_go(tmp_path: Path) -> None:
    """Feedback on a model that has left the route is accepted and ignored; the other models go on learning, and a new
    one is tried at once.
    """
    async with live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE]) as gateway, httpx.AsyncClient() as client:

        def serve(*models: str) -> None:
            (route,) = gateway.services.config.routes
            served = msgspec.structs.replace(route, models=list(models), max_key_share=0.4)
            gateway.services.current.base = msgspec.structs.replace(gateway.services.config, routes=[served])
            reload(gateway.services)

        gateway.services.draws = iter(random.Random(1).random, None)
        answers = [await ask(client, gateway, question(i)[1]) for i in range(12)]
        small = sum(answer.headers["x-headgate-model"] == "small" for answer in answers)
        assert 0 < small < 12
        serve("small")
        assert [one.key_shares.most for one in gateway.services.online._routes["auto"]] == [0.4]
        for answer in answers:
            await say(client, gateway, answer, 1.0)
        assert known(gateway) == small
        await teach(gateway, 3)
        serve("small", "large")
        record = await gateway.decision((await ask(client, gateway, "a word")).headers["x-headgate-decision-id"])
        assert {one.model: one.probability > 0.2 for one in record.candidates} == {"small": True, "large": True}
        await teach(gateway, 8)
        assert known(gateway) == small + 11


def test_what_was_learned_on_one_training_is_not_used_on_another(tmp_path: Path) -> None:
    """The trainings have the same label; the same training keeps its sums wherever its file is."""
    base = open_router("default")
    assert isinstance(base, PluginRouter)
    keys = []
    for place, checksum in enumerate(("then", "now", "now")):
        path = tmp_path / f"{place}.safetensors"
        save_router(path, base, Card("linear", "1", base.features_version, ("small", "large"), data_checksum=checksum))
        bandit = bandit_of(open_router(str(path), explore=0.1, online=True))
        assert bandit is not None
        keys.append(key_of("auto", bandit))
    assert keys[0] != keys[1] == keys[2]


async def test_later_feedback_replaces_the_earlier(tmp_path: Path) -> None:
    """Feedback given twice counts once, with its last score; another tenant's is ignored."""
    async with live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE]) as gateway:
        async with httpx.AsyncClient() as client:
            answer = await ask(client, gateway, "hello there")
            for score in (0.0, 1.0, 1.0):
                await say(client, gateway, answer, score)
            said = FeedbackRecord(
                id="fb", time_s=0.0, tenant="other", score=0.0,
                decision_id=answer.headers["x-headgate-decision-id"],
            )  # fmt: skip
            gateway.services.online.feedback(said)
        bandit = bandit_of(gateway.services.book.find("auto").router)
        assert bandit is not None and known(gateway) == 1
        record = await gateway.decision(answer.headers["x-headgate-decision-id"])
        once, query = BanditState.empty((), bandit.projection.dims), query_of(record)
        assert query is not None
        expected = bandit.base.forecast(query, [m.candidate for m in gateway.services.book.find("auto").models])
        j = list(expected.models).index(record.model)
        once.learn(bandit.axes(query.vector), record.model, 1.0 - expected.quality[j])
        assert np.allclose(bandit.state.quality, once.quality, atol=1e-3)
        assert bandit.state.squares == pytest.approx(once.squares, abs=1e-3)


async def test_feedback_is_accepted_while_the_database_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If the worker doesn't remember its decision, it is acknowledged at once and learned from when the journal is
    back.
    """
    async with live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE]) as gateway:
        services, online = gateway.services, gateway.services.online
        async with httpx.AsyncClient() as client:
            answer = await ask(client, gateway, "hello there")
            online._recent.clear()
            reader, services.journal = services.journal, Reader("sqlite:////nowhere/j.db", tmp_path / "none")
            online._journal = services.journal
            await say(client, gateway, answer, 0.0)
            chore = asyncio.create_task(online.catch_up())
            await until(lambda: "not learnt from yet" in caplog.text)
            services.journal = online._journal = reader
        (learner,) = online._routes["auto"]
        assert learner.scored == 0
        await until(lambda: learner.scored == 1)
        assert learner.learnt[answer.headers["x-headgate-decision-id"]] == 0.0
        chore.cancel()


JSON = {"type": "json_schema", "json_schema": {"name": "so", "schema": {"type": "object"}}}


async def test_without_feedback_checks_teach(tmp_path: Path) -> None:
    """An answer that conforms to the requested schema counts as good, another one as bad."""
    scripts = {"large": [{"text": "so"}], "small": [{"text": "{}"}]}
    route = {**ROUTE, "cost_weight": 0.0, "explore": 0.5, "retries": 0}
    async with live(tmp_path, scripts=scripts, models=MODELS, routes=[route]) as gateway:
        async with httpx.AsyncClient() as client:
            for i in range(40):
                await ask(client, gateway, question(i)[1], response_format=JSON)
        assert known(gateway) == 40
        found = await preferred(gateway)
        assert max(found.values()) < 0.5


class Heard(Learner):
    """A learner that notes the scores it would learn."""

    def __init__(self) -> None:
        super().__init__(bandit(), ())
        self.scores: list[tuple[str, float]] = []

    def hear(self, record: DecisionRecord, score: float) -> None:
        self.scores.append((record.id, score))


def settled(id: str, *, valid: bool | None = None, status: int = 200) -> DecisionRecord:
    """A settled request; `valid`: whether its answer conforms to the requested schema, None where nothing checked it.
    """
    attempt = AttemptRecord(model="small", evidence=EvidenceRecord(schema_valid=valid))
    chosen = CandidateRecord(model="small", probability=0.5)
    return DecisionRecord(
        id=id, time_s=0.0, model="small", answered_model="small", status=status, attempts=(attempt,),
        candidates=(chosen,),
    )  # fmt: skip


def test_failed_checks_count_as_often_as_answers_are_scored() -> None:
    """Otherwise bad answers would be scored more often than good ones. Answers that passed a check then teach nothing.
    """
    learner = Heard()
    for i in range(400):
        learner.outcome(settled(f"a{i}"))
        if i % 4 == 0:
            learner.feedback(settled(f"a{i}"), 1.0)
    assert [score for _, score in learner.scores] == [1.0] * 100
    learner.scores.clear()
    for i in range(200):
        learner.outcome(settled(f"b{i}", valid=i % 2 > 0))
    expected = [(f"b{i}", 0.0) for i in range(0, 200, 2) if drawn_of(f"b{i}") < 100 / (401 + i)]
    assert learner.scores == expected and 10 < len(expected) < 40


def test_without_feedback_failures_count_as_often_as_answers_are_checked() -> None:
    """A checked answer is always scored. A request without an answer, which nothing checked, is scored by chance."""
    learner = Heard()
    for i in range(100):
        learner.outcome(settled(f"c{i}", valid=i % 3 > 0) if i % 2 else settled(f"c{i}"))
    assert learner.scores == [(f"c{i}", float(i % 3 > 0)) for i in range(1, 100, 2)]
    learner.scores.clear()
    for i in range(100):
        learner.outcome(settled(f"d{i}", status=503))
    assert learner.scores == [(f"d{i}", 0.0) for i in range(100) if drawn_of(f"d{i}") < 50 / (101 + i)]


async def test_without_scores_nothing_is_learned(tmp_path: Path) -> None:
    """Without feedback and checks the estimates stay the base's: the router drifts neither to the cheapest model nor
    away from the one that answers, and explores as before.
    """
    async with live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE]) as gateway:
        before = expected(gateway, "small"), expected(gateway, "large")
        async with httpx.AsyncClient() as client:
            for i in range(40):
                await ask(client, gateway, question(i)[1])
        assert known(gateway) == 0
        assert (expected(gateway, "small"), expected(gateway, "large")) == before


async def test_kept_answers_of_cascades_teach_nothing(tmp_path: Path) -> None:
    """They are a model's better answers only."""
    models = [{**one, "logprobs": True} for one in MODELS]
    route = {**ROUTE, "cascade": "confidence"}
    async with live(tmp_path, scripts=SCRIPTS, models=models, routes=[route]) as gateway:
        gateway.services.draws = iter(random.Random(2).random, None)
        single = 0
        async with httpx.AsyncClient() as client:
            for i in range(12):
                answer = await ask(client, gateway, question(i)[1])
                await say(client, gateway, answer, 1.0)
                record = await gateway.decision(answer.headers["x-headgate-decision-id"])
                single += len(record.plan) == 1
        assert single < 12
        assert known(gateway) == single


@pytest.mark.parametrize("shared", ["files", "redis"])
async def test_a_what_if_uses_what_the_bandit_has_learned(tmp_path: Path, shared: str) -> None:
    """It values the bandit that answers now, and not the one from before its learning."""
    for url in redis(tmp_path, shared):
        extra = {"storage": {"redis_url": url}} if url else {}
        async with live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE], **extra) as gateway:
            await teach(gateway, 10)
            config, serving = gateway.services.config, bandit_of(gateway.services.book.find("auto").router)
        store = open_store(config.storage.url)
        policy = await asyncio.to_thread(route_policy, config, store, "auto")
        store.close()
        asked = bandit_of(policy.router)
        assert asked is not None and serving is not None and asked.seen == 10
        assert np.allclose(asked.posterior.quality, serving.posterior.quality)
