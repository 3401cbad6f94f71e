"""Requests for a local model that is still loading: they wait, fall back, or are refused as such."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from gateway.errors import UpstreamError
from gateway.providers.managed import RETRY_AFTER_S, managed
from tests.live import Live, live
from tests.until import until

CHAT = {"messages": [{"role": "user", "content": "What is 3 plus 4?"}], "max_tokens": 8}
HOME = {"name": "tiny-small", "provider": "mine"}


def room(folder: Path, **routes: Mapping[str, Any]) -> Any:
    """A gateway with one managed engine that has not been started, and the scripted upstream's `echo`."""
    named = [{"name": name, "router": "cheapest", **route} for name, route in routes.items()]
    return live(folder, models=["echo", HOME], routes=named, providers=[{"name": "mine", "kind": "local"}])


async def ask(gateway: Live, model: str, timeout_s: float = 120) -> httpx.Response:
    async with httpx.AsyncClient(timeout=timeout_s) as client:
        return await client.post(f"{gateway.url}/v1/chat/completions", json={**CHAT, "model": model})


async def test_it_is_told_as_loading(tmp_path: Path) -> None:
    """Where nothing else may answer: 503, when to come again, whose fault; and its breaker stays closed. Nothing was
    computed yet, so SDKs are not told to give up.
    """
    async with room(tmp_path, alone={"models": ["tiny-small"], "retries": 0}) as gateway:
        for _ in range(7):
            response = await ask(gateway, "alone")
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (503, "loading")
            assert "mine is still loading" in error["message"]
            assert response.headers["retry-after"] == f"{RETRY_AFTER_S:.0f}"
            assert "x-should-retry" not in response.headers
        gateway.assert_at_rest()


async def test_another_answers_meanwhile(tmp_path: Path) -> None:
    """A route with a fallback doesn't wait for the loading model."""
    async with room(tmp_path, both={"models": ["tiny-small"], "fallback": ["echo"], "retries": 3}) as gateway:
        response = await ask(gateway, "both")
        assert response.status_code == 200
        record = await gateway.decision(response.headers["x-headgate-decision-id"])
        assert [(one.model, one.failure) for one in record.attempts] == [("tiny-small", "loading"), ("echo", "")]


async def test_it_is_waited_for(tmp_path: Path) -> None:
    """A request that waits is answered by a real engine that comes up meanwhile."""
    async with room(tmp_path, alone={"models": ["tiny-small"], "retries": 40, "max_attempts": 40}) as gateway:
        config = gateway.services.config
        child = managed(next(one for one in config.providers if one.name == "mine"), config.server)
        assert child is not None
        child.socket.parent.mkdir(parents=True, exist_ok=True)
        waiting = asyncio.create_task(ask(gateway, "alone"))
        await until(lambda: any(one.failures for one in gateway.services.fleet.all()))
        process = await asyncio.create_subprocess_exec(*child.command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            response = await waiting
        finally:
            process.terminate()
            await process.wait()
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["message"]["content"]


async def test_other_faults_are_told_as_they_are(tmp_path: Path) -> None:
    """A socket that can't be opened for another reason doesn't count as a loading server."""
    async with room(tmp_path) as gateway:
        pool = gateway.services.driver.sender.providers["mine"].pool
        errors = (PermissionError("no"), FileNotFoundError(), ConnectionRefusedError())
        told = [pool.connect_error(error) for error in errors]
        assert all(isinstance(one, UpstreamError) for one in told)
        assert [one.failure for one in told] == ["connect", "loading", "loading"]
