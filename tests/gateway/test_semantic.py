"""The semantic cache while serving: it learns what may be served, stays within its error bound, and never crosses
tenants.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import httpx
import numpy as np
import pytest
import uvicorn

from cache.acceptance import NEVER, Fitted
from cache.memory import MemoryStore
from cache.neighbours import FEATURES
from gateway import answer_cache
from gateway.answer_cache import AnswerCache
from gateway.embedders import EmbeddingFailed
from gateway.journal.view import miss_told
from gateway.money.ledger import MemoryLedger
from tests.live import Live, listening, live

TOPICS = ("refund", "invoice", "password", "shipping", "warranty", "holiday", "battery", "login", "discount",
          "delivery")  # fmt: skip
WORDINGS = (
    "how do i get my {topic} sorted out please",
    "please tell me how to get my {topic} sorted out",
    "i want to get my {topic} sorted out how do i do that",
    "what do i do to get my {topic} sorted out",
)
FILLERS = ("thanks", "now", "today", "soon", "dear", "hello", "again", "kindly", "cheers", "friend", "quickly", "well",
           "folks", "team", "regards", "greetings", "really", "just", "simply", "also")  # fmt: skip


@asynccontextmanager
async def upstream(answer: Callable[[str], object]) -> AsyncIterator[str]:
    """A chat API whose answer, its text or all of its choices, is a function of the question."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        said = answer(body["messages"][-1]["content"] if "messages" in body else body["prompt"][-1])
        message = {"role": "assistant", "content": said}
        choices = said if isinstance(said, list) else [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
        reply = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": body["model"],
                            "choices": choices, "usage": usage}).encode()  # fmt: skip
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": reply})

    async with listening(uvicorn.Config(app, log_config=None, lifespan="off")) as (port, _):
        yield f"http://127.0.0.1:{port}/v1"


@asynccontextmanager
async def gateway_over(
    tmp_path: Path, answer: Callable[[str], object], of_route: Mapping[str, Any] = MappingProxyType({}), **extra: Any
) -> AsyncIterator[Live]:
    route: dict[str, Any] = {
        "name": "auto", "models": ["talker"], "router": "cheapest", "cache": "semantic", "cache_eps": 0.1, **of_route,
    }  # fmt: skip
    async with upstream(answer) as url:
        providers = [{"name": "topics", "kind": "openai", "base_url": url}]
        model = {"name": "talker", "provider": "topics", "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 1.0}
        models = [model, {**model, "name": "judge"}]
        async with live(tmp_path, models=models, routes=[route], providers=providers, **extra) as gateway:
            yield gateway


async def ask(gateway: Live, client: httpx.AsyncClient, text: str, key: str = "", **more: str) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "temperature": 0}
    headers = {**({"authorization": f"Bearer {key}"} if key else {}), **more}
    answer = await client.post(gateway.url + "/v1/chat/completions", json=body, headers=headers)
    await gateway.app.answering.auditor.drain()
    return answer


def by_topic(text: str) -> str:
    return f"This is what to do about your {next(topic for topic in TOPICS if topic in text)}."


async def test_other_words_are_served_once_the_rule_is_learnt(tmp_path: Path) -> None:
    """Nothing is served before the first fit; then paraphrases hit rightly, and audits are charged to no key."""
    rng = random.Random(5)
    keys = [{"name": "a", "key": "hg-a", "tenant": "a"}, {"name": "b", "key": "hg-b", "tenant": "b"}]
    async with gateway_over(tmp_path, by_topic, auth={"keys": keys}) as gateway, httpx.AsyncClient() as client:
        states, wrong = [], 0
        for turn in range(700):
            topic = rng.choice(TOPICS)
            text = f"{rng.choice(WORDINGS).format(topic=topic)} {' '.join(rng.sample(FILLERS, 2))}"
            answer = await ask(gateway, client, text, "hg-a")
            state = answer.headers["x-headgate-cache"]
            states.append(state)
            if state == "semantic":
                wrong += topic not in answer.json()["choices"][0]["message"]["content"]
                last, asked = answer.headers["x-headgate-decision-id"], text
            if turn == 650:
                other = await ask(gateway, client, text, "hg-b")
                assert other.headers["x-headgate-cache"] == "miss"
        record = await gateway.decision(last)
        again = await ask(gateway, client, asked, "hg-a")
        old = await ask(gateway, client, asked, "hg-a", **{"x-headgate-cache": "max-age=0"})
        deleted = await client.delete(
            f"{gateway.url}/v1/cache/entries/{record.cache_why['entry']}", headers={"authorization": "Bearer hg-a"}
        )
        await gateway.rest()
    assert [one.headers["x-headgate-cache"] for one in (again, old)] == ["semantic", "miss"]
    assert deleted.status_code == 200, "who found a hit wrong can't say which entry it was"
    assert "semantic" not in states[:300]
    hits = states.count("semantic")
    assert hits > 20 and wrong <= 0.1 * hits
    assert record.cache == "semantic" and record.cost_nanousd == 0
    assert record.cache_why["similarity"] > 0.5  # type: ignore[operator]
    assert record.saved_nanousd > 0


async def test_a_miss_says_why_nothing_was_served(tmp_path: Path) -> None:
    """The decision and the metrics have a bounded reason and the similarity, but no text."""
    wording = WORDINGS[0].format(topic="refund")
    questions = {
        "empty": wording, "unlearnt": f"{wording} thanks", "number": f"{wording} for 3 items",
        "far": "zebras gallop over moonlit savannah", "text": "?",
    }  # fmt: skip
    asked_for = iter(range(100))
    async with gateway_over(tmp_path, lambda _: f"{next(asked_for)}") as gateway, httpx.AsyncClient() as client:
        said = {}
        for why, text in questions.items():
            asked = await ask(gateway, client, text)
            told = await client.get(f"{gateway.url}/v1/decisions/{asked.headers['x-headgate-decision-id']}")
            said[why] = told.json()["cache_why"]
        hot = {"model": "auto", "messages": [{"role": "user", "content": wording}], "temperature": 0.9}
        answer = await client.post(f"{gateway.url}/v1/chat/completions", json=hot)
        said["refused:temperature"] = (await gateway.decision(answer.headers["x-headgate-decision-id"])).cache_why
        plain = await ask(gateway, client, f"{wording} folks", **{"x-headgate-cache": "exact"})
        assert (await gateway.decision(plain.headers["x-headgate-decision-id"])).cache_why == {}
        cache = gateway.services.cache.semantic["auto"]
        for fitted, why in ((NEVER, "bound"), (0.999999, "score")):
            cache.acceptance.fitted = replace(flat_rule(), threshold=fitted)
            asked = await ask(gateway, client, f"{wording} {why}")
            said[why] = (await gateway.decision(asked.headers["x-headgate-decision-id"])).cache_why
        cache.acceptance.fitted = replace(flat_rule(), threshold=0.1, unproven=NEVER)
        asked = await ask(gateway, client, f"{wording} well")
        said["unproven"] = (await gateway.decision(asked.headers["x-headgate-decision-id"])).cache_why
        counted = (await client.get(f"{gateway.url}/metrics")).text
    assert [why.get("why") for why in said.values()] == list(said), said
    assert 0 < said["far"]["similarity"] < 0.5 < said["unlearnt"]["similarity"] <= 1.0
    assert said["score"]["score"] == pytest.approx(0.5) and said["score"]["threshold"] == 0.999999
    assert all(isinstance(value, float) for why in said.values() for name, value in why.items() if name != "why")
    assert all(miss_told(why) for why in said.values())
    rows = [line for line in counted.splitlines() if line.startswith("headgate_semantic_misses_total{")]
    assert sorted(row.split('reason="')[1].split('"')[0] for row in rows) == sorted(said), rows


def flat_rule() -> Fitted:
    """A pair rule that gives every pair the same score."""
    none = np.zeros(FEATURES)
    return Fitted(none, none + 1, np.zeros(FEATURES + 1))


async def test_a_deleted_entry_is_never_proposed_again(tmp_path: Path) -> None:
    """DELETE takes effect before the next request, in the exact and the semantic cache."""
    async with gateway_over(tmp_path, by_topic) as gateway, httpx.AsyncClient() as client:
        text = WORDINGS[0].format(topic="refund")
        await ask(gateway, client, text)
        hit = await ask(gateway, client, text)
        entry = (await gateway.decision(hit.headers["x-headgate-decision-id"])).cache_why["entry"]
        deleted = await client.delete(f"{gateway.url}/v1/cache/entries/{entry}")
        again = await ask(gateway, client, text)
    assert hit.headers["x-headgate-cache"] == "hit" and deleted.status_code == 200
    assert again.headers["x-headgate-cache"] == "miss"


@pytest.mark.parametrize(
    ("verdict", "learnt"), [("Yes.", True), ("**No**, they differ", True), ("As a language model", False), ("", False)]
)
async def test_a_judge_that_gives_no_verdict_teaches_nothing(tmp_path: Path, verdict: str, learnt: bool) -> None:
    """An unclear or failed judgement doesn't count against the cache; the route pays for it."""
    asked = iter(range(1000))

    def answer(text: str) -> str:
        return verdict if "First answer:" in text else f"{by_topic(text)} ({next(asked)})"

    judged = {"cache_judge": "judge", "budget_usd_per_day": 10.0}
    async with gateway_over(tmp_path, answer, judged) as gateway, httpx.AsyncClient() as client:
        for wording in WORDINGS:
            await ask(gateway, client, wording.format(topic="refund"))
        cache = gateway.services.cache.semantic["auto"]
        rows = list(cache.acceptance._rows)
        (account,) = gateway.services.book.routes["auto"].accounts
        spent, _ = cast(MemoryLedger, gateway.services.ledger).balance(account)
        await gateway.rest()
    assert bool(rows) == learnt and all(row.right == (verdict == "Yes.") for row in rows)
    assert spent > len(WORDINGS) * 20_000


def choice(text: str | None, finish: str | None = "stop", index: int = 0, **more: object) -> dict[str, object]:
    message = {"role": "assistant", "content": text, **more}
    return {"index": index, "message": message, "text": text, "finish_reason": finish}


@pytest.mark.parametrize("surface", ["chat", "responses", "messages", "completions"])
@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ([choice("whole")], ""),
        ([choice(None, refusal="I can't help with that.")], "refusal"),
        ([choice("")], "empty"),
        ([choice("who knows", None)], "finish_reason"),
        ([choice("cut", "length")], "finish_reason"),
        ([choice("whole"), choice("cut", "length", 1)], "finish_reason"),
    ],
)
async def test_only_a_good_answer_is_given_again(
    tmp_path: Path, surface: str, choices: list[dict[str, object]], why: str
) -> None:
    """Refusals, empty answers and choices without a known end are not cached, on any surface."""
    if (surface == "completions" and why == "refusal") or (surface != "completions" and len(choices) > 1):
        return
    turns = [{"role": "user", "content": "hello"}]
    asks: dict[str, tuple[str, dict[str, Any]]] = {
        "chat": ("chat/completions", {"messages": turns}),
        "responses": ("responses", {"input": turns}),
        "messages": ("messages", {"messages": turns, "max_tokens": 9}),
        "completions": ("completions", {"prompt": ["one", "two"][: len(choices)]}),
    }
    path, body = asks[surface]
    async with gateway_over(tmp_path, lambda _: choices) as gateway, httpx.AsyncClient() as client:
        url = f"{gateway.url}/v1/{path}"
        states = [(await client.post(url, json={"model": "auto", **body})).headers["x-headgate-cache"] for _ in "ab"]
    assert states == ([f"refused:{why}"] * 2 if why else ["miss", "hit"])


async def test_vectors_are_given_again(tmp_path: Path) -> None:
    """An answer of numbers has no text and no known end, and is cached all the same."""
    routes = [{"name": "auto", "models": ["echo"], "cache": "exact"}]
    async with live(tmp_path, routes=routes) as gateway, httpx.AsyncClient() as client:
        ask = {"model": "auto", "input": "hello"}
        first, again = [await client.post(f"{gateway.url}/v1/embeddings", json=ask) for _ in "ab"]
    assert [one.headers["x-headgate-cache"] for one in (first, again)] == ["miss", "hit"]
    assert again.json() == first.json() and first.json()["data"][0]["embedding"]


class Slow:
    """An embedder that is slow, or never returns."""

    version = "slow@1"

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        self.threads: set[str] = set()

    def embed(self, text: str) -> np.ndarray:
        self.threads.add(threading.current_thread().name)
        if self.wait_s < 0:
            raise EmbeddingFailed("away")
        time.sleep(self.wait_s)
        return np.ones(8, np.float32)


@pytest.mark.parametrize(
    ("wait_s", "within_s", "why"), [(0.0, 60.0, ""), (1.5, 0.05, "embedder_late"), (-1.0, 60.0, "embedder_failed")]
)
async def test_a_slow_embedder_never_holds_the_loop(
    wait_s: float, within_s: float, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors are computed in threads; one that is late or fails makes a miss."""
    monkeypatch.setattr(answer_cache, "EMBED_WITHIN_S", within_s)
    slow = Slow(wait_s)
    cache = AnswerCache(MemoryStore(1 << 20), lambda: pytest.fail("the shipped table is not asked"), slow)  # type: ignore
    vector = await cache._vector(slow, "question")  # type: ignore[arg-type]
    assert vector == why if why else isinstance(vector, np.ndarray)
    assert slow.threads and all(name.startswith("embed") for name in slow.threads)
    await cache.close()


async def test_nobody_waits_for_an_embedder_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While all its threads are busy, a question is a miss at once; the outage and its end are logged once each."""
    monkeypatch.setattr(answer_cache, "EMBED_WITHIN_S", 0.02)
    slow = Slow(1.0)
    cache = AnswerCache(MemoryStore(1 << 20), lambda: pytest.fail("the shipped table is not asked"), slow)  # type: ignore
    for _ in range(2):
        assert await cache._vector(slow, "question") == "embedder_late"  # type: ignore[arg-type]
    begun = time.monotonic()
    for _ in range(50):
        assert await cache._vector(slow, "question") == "embedder_busy"  # type: ignore[arg-type]
    assert time.monotonic() - begun < 0.5
    slow.wait_s = -1.0
    await asyncio.to_thread(concurrent.futures.wait, cache._late)
    for _ in range(20):
        await cache._vector(slow, "question")  # type: ignore[arg-type]
    slow.wait_s = 0.0
    monkeypatch.setattr(answer_cache, "EMBED_WITHIN_S", 60.0)
    assert isinstance(await cache._vector(slow, "question"), np.ndarray)  # type: ignore[arg-type]
    told = [record.message for record in caplog.records]
    assert told == ["the semantic cache finds nothing: away", "the semantic cache has its vectors again"]
    await cache.close()
