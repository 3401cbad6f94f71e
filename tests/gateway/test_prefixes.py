"""A conversation continues on a deployment that has its beginning in a cache, if that is cheaper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live import Live, live

PRICE = {"input_usd_per_mtok": 3.0, "output_usd_per_mtok": 3.0, "cache_read_usd_per_mtok": 0.3, "provider": "up"}
ROUTE = {"name": "auto", "models": ["a", "b"], "router": "linear", "cost_weight": 1.0}
LONG = {"role": "system", "content": "You are a patient clerk. " * 400}


async def ask(client: httpx.AsyncClient, gateway: Live, turns: list[dict[str, str]], **headers: str) -> str:
    body: dict[str, Any] = {"model": "auto", "messages": [LONG, *turns], "max_tokens": 20}
    answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.headers["x-headgate-model"]


@pytest.mark.parametrize("cached", [True, False])
async def test_the_next_turn_stays_with_the_model_that_has_the_beginning(tmp_path: Path, cached: bool) -> None:
    """Of two models at one price the first is taken, unless the other has the conversation in its cache and charges
    less for that.
    """
    price = PRICE if cached else {**PRICE, "cache_read_usd_per_mtok": None}
    models = [{k: v for k, v in {"name": name, **price}.items() if v is not None} for name in "ab"]
    async with live(tmp_path, models=models, routes=[ROUTE]) as gateway, httpx.AsyncClient() as client:
        turns = [{"role": "user", "content": "good morning"}]
        assert await ask(client, gateway, turns) == "a"
        other = [{"role": "user", "content": "another thing"}]
        assert await ask(client, gateway, other, **{"x-headgate-models": "b"}) == "b"
        turns += [{"role": "assistant", "content": "good morning"}, {"role": "user", "content": "and now?"}]
        assert await ask(client, gateway, turns) == "a"
        gateway.services.prefixes._map.forget("a")
        assert await ask(client, gateway, turns) == ("b" if cached else "a")


async def test_a_short_prompt_pays_nothing(tmp_path: Path) -> None:
    """A prompt too short for providers to cache is not remembered."""
    models = [{"name": name, **PRICE} for name in "ab"]
    async with live(tmp_path, models=models, routes=[ROUTE]) as gateway, httpx.AsyncClient() as client:
        body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
        await client.post(f"{gateway.url}/v1/chat/completions", json=body)
        assert len(gateway.services.prefixes._map) == 0
