"""Strategies that feedback teaches, over HTTP: drawn, recorded, learnt, and kept over a reload."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.app import open_book
from gateway.config.load import parse
from gateway.config.settings import Settings
from tests.live import Live, live, table

MODELS: tuple[dict[str, Any], ...] = (
    {"name": "small", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.4},
    {"name": "large", "input_usd_per_mtok": 2.0, "output_usd_per_mtok": 8.0},
)
ROUTE = {
    "name": "auto", "models": ["small", "large"], "router": "cheapest", "cascade": "learned",
    "strategies": ["none", "verify"], "step_price": 0.1, "max_attempts": 8, "explore": 0.3,
}  # fmt: skip
SCRIPTS = {"default": [{"text": "yes"}]}


async def ask(client: httpx.AsyncClient, gateway: Live, text: str) -> httpx.Response:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 20}
    answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def question(i: int) -> tuple[bool, str]:
    """Whether the question is hard, and its text."""
    if i % 2:
        return True, f"Question: what is {i} * {i + 3} + {i + 8} in base {i % 7 + 3}?\nAnswer:"
    return False, f"Write a tender poem about garden number {i} at night"


async def teach(client: httpx.AsyncClient, gateway: Live, rounds: int) -> None:
    """Ask questions and give feedback by which sums are right only when verified, and poems always."""
    for i in range(rounds):
        hard, text = question(i)
        answer = await ask(client, gateway, text)
        id = answer.headers["x-headgate-decision-id"]
        verified = (await gateway.decision(id)).strategy == "verify"
        score = {"decision_id": id, "score": 1.0 if verified or not hard else 0.0}
        assert (await client.post(f"{gateway.url}/v1/feedback", json=score)).status_code == 200


async def test_a_strategy_is_drawn_recorded_and_learnt(tmp_path: Path) -> None:
    """Each decision has the strategy and the probability of each; after feedback hard queries are verified and easy
    ones are not; a new book of the same configuration keeps what was learnt.
    """
    async with (
        live(tmp_path, scripts=SCRIPTS, models=MODELS, routes=[ROUTE]) as gateway,
        httpx.AsyncClient(timeout=120) as client,
    ):
        services = gateway.services
        services.draws = iter(random.Random(2).random, None)
        await teach(client, gateway, 120)
        record = await gateway.decision((await ask(client, gateway, question(1)[1])).headers["x-headgate-decision-id"])
        assert set(record.strategies) == {"none", "verify"}
        assert sum(record.strategies.values()) == pytest.approx(1.0)
        assert len(record.attempts) > 1 if record.strategy == "verify" else len(record.attempts) == 1
        book = open_book(services.config, Settings())
        services.online.adopt(book)
        bandit = book.find("auto").strategy_bandit
        assert bandit is not None
        for i in range(201, 207):
            hard, text = question(i)
            vector = services.featurizer().describe(text, input_tokens=20, max_output_tokens=20).vector
            assert bandit.choose(vector, 0.5, explore=False).arm == ("verify" if hard else "none"), text


def test_a_learned_cascade_needs_strategies_to_choose_among(tmp_path: Path) -> None:
    """No strategy, a single one, an unknown one and a repeated one are refused with their paths."""

    def problems(**changed: object) -> list[str]:
        routes = [{**ROUTE, **changed}]
        _, found = parse(table("http://127.0.0.1:9/v1", tmp_path, MODELS, {"routes": routes}), {"UP_KEY": "k"})
        return [problem.partition(":")[0] for problem in found]

    assert problems() == []
    assert problems(strategies=[]) == ["routes[0].strategies"]
    assert problems(strategies=["none", "guess"]) == ["routes[0].strategies[1]"]
    assert problems(strategies=["none", "verify", "none"]) == ["routes[0].strategies[2]"]
    assert problems(strategies=["none", "stepwise"]) == ["routes[0].max_attempts"]
