"""The headers of every answer, and the knobs that a request may set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conformance.clients import MODES
from tests.conformance.house import House, house
from tests.conformance.test_errors import ASK, sdk_for
from tests.conformance.test_surfaces import TURNS

EVERY_ANSWER = ("x-request-id", "x-headgate-decision-id", "x-headgate-model", "x-headgate-reason",
                "x-headgate-cost-usd", "x-headgate-cache", "x-headgate-overhead-ms")  # fmt: skip
ROUTES = [{"name": "auto", "models": ["openai/echo", "anthropic/long"], "router": "cheapest", "cache": "exact"}]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("surface", ASK)
async def test_headers_of_every_answer(home: House, surface: str, streamed: bool) -> None:
    """All seven headers are there, and lead to the decision's record."""
    path, body = ASK[surface]
    body = body if not streamed or surface == "embeddings" else {**body, "stream": True}
    sdk = sdk_for(home, surface)
    raw = await sdk.do(path.replace("create", "with_raw_response.create"), model="openai/echo", **body)
    headers = raw.headers
    assert [name for name in EVERY_ANSWER if name not in headers] == []
    assert headers["x-headgate-model"] == "openai/echo" and headers["x-headgate-cache"] == "off"
    assert float(headers["x-headgate-cost-usd"]) >= 0 and float(headers["x-headgate-overhead-ms"]) >= 0
    if streamed and surface != "embeddings":
        assert [event async for event in await sdk.parsed(raw)]
    record = await home.gateway.decision(headers["x-headgate-decision-id"])
    assert record.request_id == headers["x-request-id"] and record.answered_model == "openai/echo"


@pytest.mark.parametrize("surface", ASK)
async def test_headers_of_an_upstreams_error(tmp_path: Path, surface: str) -> None:
    """An answer that failed after its decision carries them too."""
    path, body = ASK[surface]
    async with house(tmp_path, {"bad": [{"status": 400}]}, kinds=("openai",)) as home:
        with pytest.raises(Exception, match="400") as caught:
            await sdk_for(home, surface).do(path, model="openai/bad", **body)
        headers = caught.value.response.headers  # type: ignore[attr-defined]
        assert [name for name in EVERY_ANSWER if name not in headers] == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("surface", ["chat", "completions", "responses", "messages"])
async def test_knobs_in_the_body(tmp_path: Path, surface: str, mode: str) -> None:
    """`extra_body={"headgate": ...}` takes effect and is never sent upstream."""
    path, body = ASK[surface]
    async with house(tmp_path, routes=ROUTES) as home:
        sdk = sdk_for(home, surface, mode)
        for models, served in ((["anthropic/long"], "anthropic/long"), (["openai/echo"], "openai/echo")):
            raw = await sdk.do(
                path.replace("create", "with_raw_response.create"), model="auto", **body,
                extra_body={"headgate": {"models": models, "cache": "no-store", "cost_weight": 0.5}},
            )  # fmt: skip
            assert raw.headers["x-headgate-model"] == served
            assert "headgate" not in json.loads(home.last["body"])


async def test_knobs_in_headers(tmp_path: Path) -> None:
    """Headers set the same knobs, the body's value wins, and a route may be named in addition to the model."""
    async with house(tmp_path, routes=ROUTES) as home:
        create = home.sdk("openai").client.chat.completions.with_raw_response.create
        asked = {"x-headgate-models": "anthropic/long", "x-headgate-cache": "no-cache"}
        raw = await create(model="auto", messages=TURNS, extra_headers=asked)
        assert raw.headers["x-headgate-model"] == "anthropic/long"
        chosen = {"headgate": {"models": ["openai/echo"]}}
        raw = await create(model="auto", messages=TURNS, extra_headers=asked, extra_body=chosen)
        assert raw.headers["x-headgate-model"] == "openai/echo"
        raw = await create(model="gpt-whatever", messages=TURNS, extra_headers={"x-headgate-route": "auto"})
        assert raw.headers["x-headgate-model"] in ("openai/echo", "anthropic/long")


@pytest.mark.parametrize(
    ("knobs", "param"),
    [({"nope": 1}, "headgate.nope"), ({"cost_weight": 2}, "headgate.cost_weight"),
     ({"min_quality": "high"}, "headgate.min_quality"), ({"models": ["no/such"]}, "headgate.models"),
     ({"cache": "perhaps"}, "headgate.cache"), ({"max_cost_usd": -1}, "headgate.max_cost_usd"),
     ({"models": 7}, "headgate.models"), ({"models": []}, "headgate.models"),
     ({"models": ["openai/echo", "openai/eco"]}, "headgate.models"),
     ({"route": 7}, "headgate.route"), ([], "headgate"), ("x", "headgate")],
)  # fmt: skip
async def test_bad_knobs(tmp_path: Path, knobs: Any, param: str) -> None:
    """An unknown knob or an invalid value is refused by its name in both APIs."""
    async with house(tmp_path, routes=ROUTES) as home:
        for surface in ("chat", "messages"):
            path, body = ASK[surface]
            with pytest.raises(Exception, match=r"headgate|none of these models|no model here") as caught:
                await sdk_for(home, surface).do(path, model="auto", **body, extra_body={"headgate": knobs})
            assert caught.value.status_code == 400  # type: ignore[attr-defined]
            if surface == "chat":
                assert caught.value.param == param  # type: ignore[attr-defined]
        assert home.requests == 0


async def test_a_key_without_knobs(tmp_path: Path) -> None:
    """A key that may not set knobs is refused with them, and served without."""
    auth = {"keys": [{"name": "k", "key": "hg-k", "knobs": False}]}
    async with house(tmp_path, routes=ROUTES, auth=auth) as home:
        sdk = home.sdk("openai", api_key="hg-k")
        with pytest.raises(openai.PermissionDeniedError):
            await sdk.do(
                "chat.completions.create", model="auto", messages=TURNS, extra_body={"headgate": {"route": "auto"}}
            )
        with pytest.raises(openai.PermissionDeniedError):
            await sdk.do("chat.completions.create", model="auto", messages=TURNS,
                         extra_headers={"x-headgate-cost-weight": "0.5"})  # fmt: skip
        await sdk.do("chat.completions.create", model="auto", messages=TURNS)
        assert home.requests == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("surface", ["chat", "completions", "responses", "messages"])
async def test_a_cached_answer_is_the_same(tmp_path: Path, surface: str, mode: str) -> None:
    """The second answer comes from the cache, equal and free of charge; streamed, it has the same text."""
    path, body = ASK[surface]
    async with house(tmp_path, routes=ROUTES) as home:
        sdk, raw = sdk_for(home, surface, mode), path.replace("create", "with_raw_response.create")
        first, second = [await sdk.do(raw, model="auto", **body) for _ in range(2)]
        states = [answer.headers["x-headgate-cache"] for answer in (first, second)]
        assert states == ["miss", "hit"] and float(second.headers["x-headgate-cost-usd"]) == 0
        assert (await sdk.parsed(first)).to_dict() == (await sdk.parsed(second)).to_dict()
        events = await sdk.events(path, model="auto", **body, stream=True)
        assert len(events) > 1 and home.requests == 1


async def test_rate_limit_headers(tmp_path: Path) -> None:
    """A limited key sees what is left, in OpenAI's headers."""
    auth = {"keys": [{"name": "k", "key": "hg-k", "rpm": 60, "tpm": 10_000}]}
    async with house(tmp_path, kinds=("openai",), auth=auth) as home:
        create = home.sdk("openai", api_key="hg-k").client.chat.completions.with_raw_response.create
        raw = await create(model="openai/echo", messages=TURNS)
        assert raw.headers["x-ratelimit-limit-requests"] == "60"
        assert raw.headers["x-ratelimit-remaining-requests"] == "59"
        assert raw.headers["x-ratelimit-limit-tokens"] == "10000"
        assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
