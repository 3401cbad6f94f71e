"""Two replicas behind nginx act as one gateway: limits, spending, cache, settings and what was learned are shared."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import psycopg
import pytest

from gateway.config.settings import change_settings
from tests.deploy.cluster import (
    ANSWER,
    BUDGET_ANSWERS,
    OUTPUT_TOKENS,
    PROMPT,
    RPM,
    SECRETS,
    Cluster,
    auth,
    chat,
    cluster,
    missing,
)

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.xdist_group("cluster"),
    pytest.mark.timeout(600),
]
PATH = "/v1/chat/completions"
CLIENT = httpx.Client(timeout=60, limits=httpx.Limits(max_keepalive_connections=0))
"""Each request has a connection of its own, so any worker may answer."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def ask(url: str, body: dict[str, object], key: str = "FREE", **headers: str) -> httpx.Response:
    """A request that any worker may answer."""
    return CLIENT.post(url + PATH, json=body, headers={**auth(key), **headers})


async def flood(url: str, count: int, body: dict[str, object], key: str) -> list[httpx.Response]:
    """Sends this many requests at once, each on a connection of its own."""
    limits = httpx.Limits(max_connections=24, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=60, limits=limits, headers=auth(key)) as client:
        return list(await asyncio.gather(*(client.post(url + PATH, json=body) for _ in range(count))))


def until(what: str, done: Callable[[], Any], within_s: float = 120.0) -> float:
    """Polls until `done` returns true; returns the seconds that it took."""
    began_s = time.monotonic()
    while not done():
        assert time.monotonic() - began_s < within_s, what
        time.sleep(0.02)
    return time.monotonic() - began_s


async def test_a_budget_holds_globally_to_the_cent(world: Cluster) -> None:
    """A budget for twenty answers buys exactly twenty, wherever they are requested."""
    body, answered, more = chat("bought", max_tokens=OUTPUT_TOKENS), 0, 1
    while more:
        found = await flood(world.url, BUDGET_ANSWERS, body, "BUDGETED")
        more = sum(answer.status_code == 200 for answer in found)
        answered += more
        assert {answer.status_code for answer in found} <= {200, 429}, [answer.text for answer in found]
    assert answered == world.bought("paid") == BUDGET_ANSWERS


async def test_a_rate_limit_holds_globally(world: Cluster) -> None:
    """Four workers admit what one would: the minute's requests, and those that were refilled meanwhile."""
    began_s = time.monotonic()
    found = await flood(world.url, 3 * RPM, chat("echo"), "LIMITED")
    passed = sum(answer.status_code == 200 for answer in found)
    assert RPM <= passed <= RPM + 1 + (time.monotonic() - began_s) * RPM / 60
    refused = next(answer for answer in found if answer.status_code == 429)
    assert float(refused.headers["retry-after"]) > 0
    assert all(ask(replica.url, chat("echo"), "LIMITED").status_code == 429 for replica in world.replicas)


def test_the_cache_is_shared_and_a_deletion_holds_at_once(world: Cluster) -> None:
    """Every worker serves what one replica has answered; once it is deleted at any replica, no worker serves it."""
    one, two = world.replicas
    assert ask(one.url, chat("auto")).headers["x-headgate-cache"] == "miss"
    hits = [ask(replica.url, chat("auto")) for replica in (one, two) for _ in range(4)]
    assert {hit.headers["x-headgate-cache"] for hit in hits} == {"hit"}
    decision = CLIENT.get(f"{two.url}/v1/decisions/{hits[-1].headers['x-headgate-decision-id']}", headers=auth("FREE"))
    entry = decision.json()["cache_why"]["entry"]
    assert CLIENT.delete(f"{two.url}/v1/cache/entries/{entry}", headers=auth("FREE")).status_code == 200
    after = [ask(replica.url, chat("auto")) for replica in (one, two) for _ in range(4)]
    assert {answer.json()["choices"][0]["message"]["content"] for answer in after} == {"2nd"}
    assert CLIENT.delete(f"{one.url}/v1/cache/entries", headers=auth("FREE")).status_code == 200
    after = [ask(replica.url, chat("auto")) for replica in (two, one) for _ in range(4)]
    assert {answer.json()["choices"][0]["message"]["content"] for answer in after} == {"3rd"}
    assert world.bought("cached") == 3


async def test_identical_requests_at_all_replicas_call_upstream_once(world: Cluster) -> None:
    """All workers share one lease: eleven of twelve requests wait for the first one's answer."""
    found = await flood(world.url, 12, chat("once"), "FREE")
    assert {answer.status_code for answer in found} == {200}
    assert world.bought("slow") == 1


def test_a_key_made_or_revoked_at_one_replica_counts_at_the_other(world: Cluster) -> None:
    """Keys and settings are in force everywhere within two seconds."""
    one, two = world.replicas
    made = CLIENT.post(f"{one.admin_url}/admin/keys", json={"name": "new"}, headers=auth("MASTER"))
    assert made.status_code == 201, made.text
    bearer = {"authorization": f"Bearer {made.json()['key']}"}
    id_ = made.json()["record"]["id"]

    def known() -> bool:
        found = [CLIENT.post(two.url + PATH, json=chat("echo"), headers=bearer) for _ in range(6)]
        return {answer.status_code for answer in found} == {200}

    def unknown() -> bool:
        found = [CLIENT.post(two.url + PATH, json=chat("echo"), headers=bearer) for _ in range(6)]
        return {answer.status_code for answer in found} == {401}

    made_s = until("the key is known", known)
    earlier, turn = dict(bearer), {"grace_s": 4}
    turned = CLIENT.post(f"{one.admin_url}/admin/keys/{id_}/rotate", json=turn, headers=auth("MASTER"))
    bearer["authorization"] = f"Bearer {turned.json()['key']}"
    until("its new secret is known", known)
    bearer, fresh = earlier, bearer
    until("its earlier secret has ended", unknown)
    assert time.time() >= turned.json()["record"]["earlier_until_s"]
    bearer = fresh
    gone = CLIENT.delete(f"{one.admin_url}/admin/keys/{id_}", headers=auth("MASTER"))
    assert gone.is_success, gone.text
    print(f"key in force after {made_s:.2f} s, revoked after {until('it is unknown', unknown):.2f} s")
    until("it is unknown where it was revoked", lambda: CLIENT.post(one.url + PATH, json=chat("echo"),
                                                                    headers=bearer).status_code == 401)  # fmt: skip


def test_a_promotion_at_one_replica_serves_at_the_other(world: Cluster) -> None:
    """A route's router is the same at every replica within two seconds."""
    one, two = world.replicas

    def router() -> set[str]:
        found = [ask(two.url, chat("learning")).headers["x-headgate-decision-id"] for _ in range(4)]
        return {CLIENT.get(f"{two.url}/v1/decisions/{id}", headers=auth("FREE")).json()["router"] for id in found}

    before = router()
    change_settings(
        one.config.parent / "run",
        lambda settings: msgspec.structs.replace(settings, routers={"learning": "weighted"}),
    )
    took_s = until("the promotion has arrived", lambda: not router() & before)
    print(f"promotion in force after {took_s:.2f} s")
    assert not router() & before


def test_a_rate_limit_that_one_worker_met_holds_for_all(world: Cluster) -> None:
    """No other worker asks the upstream before its retry-after."""
    one, two = world.replicas
    until("the deployment was tried", lambda: ask(one.url, chat("two")) and world.bought("busy"))

    def quiet() -> bool:
        before = world.bought("busy")
        found = [ask(replica.url, chat("two")) for replica in (one, two) for _ in range(8)]
        assert {answer.status_code for answer in found} == {200}
        return world.bought("busy") == before

    until("all workers leave it alone", quiet)
    assert world.bought("busy") <= 8


def test_one_replica_leads(world: Cluster) -> None:
    """Of two control processes one does the work that is done once."""
    with psycopg.connect(world.database) as connection:
        held = connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted").fetchone()
    assert held == (1,)


@pytest.mark.slow
async def test_a_replica_reloads_behind_nginx_without_a_failed_request(world: Cluster) -> None:
    """After SIGHUP to one replica and then to the other, under load, every request is answered and every stream
    complete.
    """
    failures: list[str] = []
    count, stop = 0, False

    async def load() -> None:
        nonlocal count
        async with httpx.AsyncClient(timeout=60, headers=auth("FREE")) as client:
            while not stop:
                answer = await client.post(world.url + PATH, json=chat("echo"))
                count += 1
                await asyncio.sleep(0.03)
                if answer.status_code != 200:
                    failures.append(f"{answer.status_code} {answer.text[:200]}")

    async def stream() -> str:
        body = chat("long", stream=True)
        async with (
            httpx.AsyncClient(timeout=60, headers=auth("FREE")) as client,
            client.stream("POST", world.url + PATH, json=body) as answer,
        ):
            return "".join([text async for text in answer.aiter_text()])

    loads = [asyncio.create_task(load()) for _ in range(6)]
    for replica in world.replicas:
        streams = [asyncio.create_task(stream()) for _ in range(4)]
        reloads = replica.log.read_text().count("configuration reloaded")
        os.kill(replica.process.pid, signal.SIGHUP)
        async with asyncio.timeout(90):
            while replica.log.read_text().count("configuration reloaded") == reloads:
                await asyncio.sleep(0.05)
        for text in await asyncio.gather(*streams):
            assert "six" in text and text.endswith("data: [DONE]\n\n")
    stop = True
    await asyncio.gather(*loads)
    assert failures == []
    print(f"{count} requests during two rolling reloads, 0 failed")


def test_every_decision_of_both_replicas_is_in_the_journal(world: Cluster) -> None:
    """A decision can be requested at any replica, wherever it was made."""
    ids = [ask(replica.url, chat("echo")).headers["x-headgate-decision-id"] for replica in world.replicas]

    def stored() -> bool:
        with psycopg.connect(world.database) as connection:
            found = connection.execute("SELECT count(*) FROM decisions WHERE id = ANY(%s)", [ids]).fetchone()
        return found == (2,)

    until("both are stored", stored)
    crossed = [CLIENT.get(f"{replica.url}/v1/decisions/{id}", headers=auth("FREE"))
               for replica, id in zip(reversed(world.replicas), ids, strict=True)]  # fmt: skip
    assert [answer.status_code for answer in crossed] == [200, 200]


def test_a_killed_workers_spending_is_counted(world: Cluster) -> None:
    """The leader restores what Redis lacks from the journal."""
    with psycopg.connect(world.database) as connection:
        found = connection.execute(
            "SELECT sum(cost_nanousd) FROM decisions WHERE key_id = 'file:budgeted'"
        ).fetchone()
    assert found is not None and int(found[0]) == BUDGET_ANSWERS * OUTPUT_TOKENS * 4000
    import redis

    url = next(line.split('"')[1] for line in world.replicas[0].config.read_text().splitlines() if "redis_url" in line)
    with redis.Redis.from_url(url) as client:
        account = "{headgate}:ledger:key:file:budgeted"
        client.hset(account, "spent", "0")  # as if no settlement had arrived
        until("it is righted", lambda: int(client.hget(account, "spent") or 0) == int(found[0]))
    assert ask(world.url, chat("bought", max_tokens=OUTPUT_TOKENS), "BUDGETED").status_code == 429


def test_no_secret_and_no_prompt_is_in_any_log_or_answer(world: Cluster) -> None:
    """At log level debug, after all tests above and some errors, there is no key, password or text of a request."""
    bodies = [
        ask(world.url, chat("leaky")).text,
        ask(world.url, chat("nonsense")).text,
        CLIENT.post(world.url + PATH, content=b"{" + PROMPT.encode(), headers=auth("FREE")).text,
        CLIENT.post(world.url + PATH, json=chat("echo"), headers={"authorization": "Bearer wrong-key-9f8e7d"}).text,
        CLIENT.get(f"{world.replicas[0].admin_url}/admin/keys", headers=auth("MASTER")).text,
        CLIENT.get(f"{world.replicas[0].admin_url}/admin/models", headers=auth("MASTER")).text,
        CLIENT.get(f"{world.replicas[0].admin_url}/metrics").text,
    ]
    for name, secret in SECRETS.items():
        assert all(secret not in body for body in bodies), f"{name} is echoed: {[b for b in bodies if secret in b]}"
    said = world.logs()
    assert "headgate." in said
    for name, secret in {**SECRETS, "wrong": "wrong-key-9f8e7d", "prompt": PROMPT, "answer": ANSWER}.items():
        found = [line for line in said.splitlines() if secret in line]
        assert not found, f"{name}: {found[:3]}"


def test_metrics_are_internal(world: Cluster) -> None:
    """nginx doesn't forward them; each replica's admin port serves them to Prometheus."""
    assert CLIENT.get(f"{world.url}/metrics").status_code == 403
    for replica in world.replicas:
        assert "headgate_requests_total" in CLIENT.get(f"{replica.admin_url}/metrics").text
