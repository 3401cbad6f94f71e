"""Deployments that share a model's requests by delay or by cached prompts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from gateway.config.load import parse
from gateway.config.types import ModelConfig
from gateway.fleet import Fleet
from routers.replicas import Job
from tests.live import live, table

A = ModelConfig(name="m", provider="a", upstream_name="m-1", balance="delay", parallel=2)
B = ModelConfig(name="m", provider="b", upstream_name="m-2", balance="delay", parallel=2)


def test_the_least_delayed_deployment_takes_a_request() -> None:
    """An idle deployment takes the request, whatever the draw. Among idle ones the draw decides; one of weight 0 gets
    none.
    """
    fleet = Fleet([A, B, ModelConfig(name="m", provider="c", weight=0.0, balance="delay")])
    first, second, _ = fleet.deployments("m")
    short = (20.0, 50.0)
    assert {fleet.pick("m", draw / 10, 0.0, tokens=lambda: short) for draw in range(10)} == {first, second}
    assert first.load is not None
    job = first.load.begin(Job(20.0, 500.0, 0.0))
    assert {fleet.pick("m", draw / 10, 0.0, tokens=lambda: short) for draw in range(10)} == {second}
    fleet.succeeded(first, 1.0, 0.1, 1.0, job, 500)
    assert not first.load.jobs


def test_weights_share_by_default() -> None:
    """Without `balance = "delay"`, or with one deployment, no load is tracked."""
    fleet = Fleet([ModelConfig(name="m", provider="a"), ModelConfig(name="m", provider="b")])
    assert all(one.load is None for one in fleet.all())
    alone = Fleet([A])
    assert alone.all()[0].load is None
    alone.update([A, B])
    assert all(one.load is not None for one in alone.all())


def test_deployments_of_a_model_agree_on_how_to_share(tmp_path: Path) -> None:
    """A deployment with another `balance` than the model's first one is refused with its path."""
    models = [{"name": "m", "balance": "delay"}, {"name": "m", "provider": "claude", "balance": "weight"}]
    config, problems = parse(table("http://127.0.0.1:9/v1", tmp_path, models, {}), {"UP_KEY": "k"})
    assert config is None
    assert any(problem.startswith("models[1].balance") for problem in problems)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_slow_deployment_gets_little(tmp_path: Path, stream: bool) -> None:
    """The faster of two deployments takes nearly all requests over HTTP, whole and streamed, and no load is left
    afterwards.
    """
    scripts = {"slow": [{"text": "well", "delay_s": 2.0}] * 12, "quick": [{"text": "well"}] * 12}
    models = [
        {"name": "m", "upstream_name": "slow", "balance": "delay"},
        {"name": "m", "upstream_name": "quick", "balance": "delay"},
    ]
    async with live(tmp_path, scripts=scripts, models=models) as gateway, httpx.AsyncClient(timeout=120) as client:
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": stream}
        for _ in range(10):
            answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
        await gateway.rest()
        asked = {one.upstream_name: one.requests for one in gateway.services.fleet.deployments("m")}
        assert asked["quick"] >= 7, asked
        assert not any(one.load.jobs for one in gateway.services.fleet.all() if one.load is not None)


async def test_a_failed_attempt_leaves_no_load(tmp_path: Path) -> None:
    """Failed attempts are removed from the load of their deployment."""
    scripts = {"down": [{"status": 503}] * 40, "up": [{"text": "ok"}] * 40}
    models = [
        {"name": "m", "upstream_name": "down", "balance": "delay"},
        {"name": "m", "upstream_name": "up", "balance": "delay"},
    ]
    routes = [{"name": "r", "models": ["m"], "retries": 3, "max_attempts": 4}]
    async with (
        live(tmp_path, scripts=scripts, models=models, routes=routes) as gateway,
        httpx.AsyncClient(timeout=120) as client,
    ):
        body = {"model": "r", "messages": [{"role": "user", "content": "hello"}]}
        for _ in range(6):
            assert (await client.post(f"{gateway.url}/v1/chat/completions", json=body)).status_code == 200
        await gateway.rest()
        assert not any(one.load.jobs for one in gateway.services.fleet.all() if one.load is not None)


async def test_a_retry_goes_to_the_other_deployment(tmp_path: Path) -> None:
    """Of two deployments, the one that just failed this request is not asked again."""
    scripts = {"down": [{"status": 503}] * 40, "up": [{"text": "ok"}] * 40}
    models = [{"name": "m", "upstream_name": name} for name in ("down", "up")]
    routes = [{"name": "r", "models": ["m"], "retries": 3, "max_attempts": 4}]
    async with (
        live(tmp_path, scripts=scripts, models=models, routes=routes) as gateway,
        httpx.AsyncClient(timeout=120) as client,
    ):
        tries = set()
        for number in range(16):
            body = {"model": "r", "messages": [{"role": "user", "content": f"hello {number}"}]}
            answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body)
            assert answer.status_code == 200
            decision = await gateway.decision(answer.headers["x-headgate-decision-id"])
            tries.add(tuple(attempt.deployment for attempt in decision.attempts))
        assert tries <= {("up/down", "up/up"), ("up/up",)} and len(tries) == 2, tries


def talks_of(fleet: Fleet, warm: Sequence[float], tokens: float, count: int) -> Counter[str]:
    """Counts which provider takes each of `count` prompts, of which each deployment has the share `warm` cached."""
    rng = random.Random(0)
    took = Counter[str]()
    for n in range(count):
        picked = fleet.pick("m", rng.random(), n / 10, tokens=lambda: (tokens, 50.0), warm=lambda _: warm)
        assert picked is not None
        took[picked.provider] += 1
    return took


def test_a_warm_deployment_is_preferred_unless_it_is_far_busier() -> None:
    """New prompts go to the least busy deployment, by weight. A cached prompt goes to its deployment until that is far
    busier.
    """
    fleet = Fleet([ModelConfig(name="m", provider="a", weight=3.0), ModelConfig(name="m", provider="b")])
    took = talks_of(fleet, [0.0, 0.0], 2000.0, 400)
    assert took["a"] == pytest.approx(300, abs=5)
    took = talks_of(Fleet([ModelConfig(name="m", provider=name) for name in "abc"]), [0.3, 0.0, 0.0], 2000.0, 300)
    assert took["a"] > 110 and min(took["b"], took["c"]) > 70
    took = talks_of(Fleet([ModelConfig(name="m", provider=name) for name in "ab"]), [0.9, 0.0], 2000.0, 300)
    assert took["a"] > 220


def test_a_cached_prompt_counts_as_less_work() -> None:
    """Balanced by delay, a busier deployment that has the prompt cached is picked before an idle one."""
    fleet = Fleet([A, B])
    first, second = fleet.deployments("m")
    assert first.load is not None
    first.load.begin(Job(20.0, 50.0, 0.0))
    for warm, taker in (([0.0, 0.0], second), ([0.95, 0.0], first), (None, second)):
        picked = fleet.pick("m", 0.5, 0.1, tokens=lambda: (20_000.0, 50.0), warm=lambda _: warm)
        assert picked is taker


async def test_a_conversation_stays_with_its_deployment(tmp_path: Path) -> None:
    """With two gateways that share no state and take turns, each of twelve conversations is answered by one deployment
    of three, and every deployment gets some.
    """
    names = ["one", "two", "three"]
    scripts = {name: [{"text": "well", "cached_tokens": 2900}] for name in names}
    models = [{"name": "m", "upstream_name": name} for name in names]
    async with (
        live(tmp_path / "a", scripts=scripts, models=models) as one,
        live(tmp_path / "b", scripts=scripts, models=models) as other,
        httpx.AsyncClient(timeout=120) as client,
    ):
        talks: list[list[dict[str, str]]] = [
            [{"role": "system", "content": f"You are clerk {n}. " * 300}] for n in range(12)
        ]
        where: list[set[str]] = [set() for _ in talks]
        for turn in range(4):
            gateway = (one, other)[turn % 2]
            for talk, seen in zip(talks, where, strict=True):
                talk.append({"role": "user", "content": f"and then {turn}?"})
                answer = await client.post(f"{gateway.url}/v1/chat/completions", json={"model": "m", "messages": talk})
                record = await gateway.decision(answer.headers["x-headgate-decision-id"])
                seen.add(record.attempts[-1].deployment)
                talk.append({"role": "assistant", "content": "well"})
    assert all(len(seen) == 1 for seen in where)
    assert set().union(*where) == {f"up/{name}" for name in names}
