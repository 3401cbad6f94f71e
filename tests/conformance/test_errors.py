"""Errors in the official clients: their class, their fields, and whether and when they are retried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.conformance.clients import MODES, Sdk
from tests.conformance.house import House, house
from tests.conformance.test_surfaces import TURNS
from tests.until import until

BOTH = {"openai": openai, "anthropic": anthropic}
ASK: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat.completions.create", {"messages": TURNS}),
    "completions": ("completions.create", {"prompt": "x"}),
    "embeddings": ("embeddings.create", {"input": "x"}),
    "responses": ("responses.create", {"input": "x"}),
    "messages": ("messages.create", {"messages": TURNS, "max_tokens": 9}),
}
REFUSALS = {  # what an upstream answers: what the client is told, and its exception
    400: (400, "BadRequestError"),
    401: (502, "InternalServerError"),
    402: (502, "InternalServerError"),
    403: (502, "InternalServerError"),
    404: (502, "InternalServerError"),
    422: (422, "UnprocessableEntityError"),
    429: (429, "RateLimitError"),
    500: (502, "InternalServerError"),
    503: (503, "InternalServerError"),
    529: (503, "InternalServerError"),
}
SCRIPTS = {str(status): [{"status": status, "error": f"sorry {status}"}] for status in REFUSALS}


def sdk_for(home: House, surface: str, mode: str = "async", **options: Any) -> Sdk:
    return home.sdk("anthropic" if surface == "messages" else "openai", mode, **options)


async def upstream_left(home: House) -> None:
    """Waits until the gateway has closed the connection of an incomplete answer."""
    await until(lambda: home.gateway.upstream.seen.disconnects >= 1)


def check_shape(error: Any, surface: str) -> None:
    """Checks the error's body in the client's API's form, and the id under which it is recorded."""
    if surface == "messages":
        assert set(error.body) == {"type", "error", "request_id"} and error.body["type"] == "error"
        assert set(error.body["error"]) == {"type", "message"}
        assert error.request_id == error.response.headers["request-id"] == error.body["request_id"]
    else:
        assert set(error.response.json()) == {"error"}
        assert set(error.body) == {"message", "type", "param", "code"}
        assert error.request_id == error.response.headers["x-request-id"]
    assert error.request_id.startswith("req")


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("surface", ASK)
async def test_refusals(tmp_path: Path, surface: str, status: int) -> None:
    """Each SDK raises the right class for an upstream's refusal; a provider's 401 never looks like the client's."""
    told, name = REFUSALS[status]
    path, body = ASK[surface]
    kinds = ("openai",) if surface == "embeddings" else ("openai", "anthropic")
    async with house(tmp_path, SCRIPTS, kinds=kinds, routes=[]) as home:
        for kind in kinds:
            for mode in MODES if status in (400, 429) else MODES[:1]:
                sdk = sdk_for(home, surface, mode)
                with pytest.raises(BOTH["anthropic" if surface == "messages" else "openai"].APIStatusError) as caught:
                    await sdk.do(path, model=f"{kind}/{status}", **body)
                error = caught.value
                if status == 529 and surface == "messages":
                    assert (error.status_code, type(error)) == (529, anthropic.OverloadedError)
                else:
                    assert error.status_code == told
                classes = [one.__name__ for one in type(error).__mro__]
                assert name in classes, classes
                if status in (401, 402, 403):  # what a provider says of our credential may repeat it
                    ours = "account" if status == 402 else "credential"
                    assert f"the provider refused the gateway's own {ours}" in error.message
                    assert "sorry" not in error.message
                else:
                    assert f"sorry {status}" in error.message
                check_shape(error, surface)


@pytest.mark.parametrize("surface", ASK)
async def test_keys_and_names(tmp_path: Path, surface: str) -> None:
    """A wrong key is an AuthenticationError, an unknown model a NotFoundError, a missing one a BadRequestError."""
    path, body = ASK[surface]
    async with house(tmp_path, kinds=("openai",), auth={"keys": [{"name": "k", "key": "hg-right"}]}) as home:
        package: Any = BOTH["anthropic" if surface == "messages" else "openai"]
        cases = (
            ("hg-wrong", "openai/echo", package.AuthenticationError),
            ("hg-right", "no/such", package.NotFoundError),
            ("hg-right", "", package.BadRequestError),
        )
        for key, model, expected in cases:
            with pytest.raises(expected) as caught:
                await sdk_for(home, surface, api_key=key).do(path, model=model, **body)
            check_shape(caught.value, surface)
            assert key not in caught.value.message
        assert home.requests == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("surface", ["chat", "messages"])
async def test_our_retries_are_not_multiplied(tmp_path: Path, surface: str, mode: str) -> None:
    """Once the gateway's own attempts are used up, an SDK doesn't retry: the upstream gets two requests."""
    path, body = ASK[surface]
    async with house(tmp_path, SCRIPTS) as home:
        sdk = sdk_for(home, surface, mode, max_retries=2)
        with pytest.raises(Exception, match="sorry 503"):
            await sdk.do(path, model="openai/503", **body)
        assert home.requests == 2


@pytest.mark.parametrize("surface", ["chat", "messages"])
async def test_an_upstreams_wait_is_passed_on(tmp_path: Path, surface: str) -> None:
    """`retry-after` reaches the client in both forms, with the header that tells it not to retry."""
    path, body = ASK[surface]
    scripts = {"wait": [{"status": 429, "retry_after_s": 120}]}
    async with house(tmp_path, scripts, kinds=("openai",), server={"request_timeout_s": 5.0}) as home:
        with pytest.raises(Exception, match="429") as caught:
            await sdk_for(home, surface).do(path, model="openai/wait", **body)
        headers = caught.value.response.headers  # type: ignore[attr-defined]
        assert (headers["retry-after"], headers["retry-after-ms"]) == ("120", "120000")
        assert headers["x-should-retry"] == "false" and home.requests == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("surface", ["chat", "messages"])
async def test_our_own_limit_may_be_tried_again(tmp_path: Path, surface: str, mode: str) -> None:
    """After the gateway's own rate limit the SDK waits as long as it is told, retries and succeeds."""
    path, body = ASK[surface]
    scripts = {"much": [{"text": "ok", "input_tokens": 62_000, "output_tokens": 0}]}
    auth = {"keys": [{"name": "k", "key": "hg-k", "tpm": 60_000}]}
    async with house(tmp_path, scripts, kinds=("openai",), auth=auth) as home:
        sdk = sdk_for(home, surface, mode, api_key="hg-k", max_retries=0)
        await sdk.do(path, model="openai/much", **body)
        with pytest.raises(Exception, match="Rate limit of key") as caught:
            await sdk.do(path, model="openai/much", **{**body, "messages": [TURNS[0]] * 20})
        headers = caught.value.response.headers  # type: ignore[attr-defined]
        assert 0 < int(headers["retry-after-ms"]) < 3000 and "x-should-retry" not in headers
        patient = sdk_for(home, surface, mode, api_key="hg-k", max_retries=3)
        await patient.do(path, model="openai/much", **body)
        assert home.requests == 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("fault", ["cut", "cut_rst", "malformed", "late_error", "no_finish"])
async def test_a_fault_inside_a_stream_is_an_exception(tmp_path: Path, kind: str, fault: str, mode: str) -> None:
    """An answer that fails in the middle raises in both SDKs, and never looks complete."""
    scripts = {"bad": [{"text": "one two three four", "fault": fault, "after": 2, "gap_s": 0.03}]}
    async with house(tmp_path, scripts, kinds=(kind,)) as home:
        with pytest.raises(openai.APIError) as caught:
            await home.sdk("openai", mode).events(
                "chat.completions.create", model=f"{kind}/bad", messages=TURNS, stream=True
            )
        assert type(caught.value) is openai.APIError and caught.value.code
        with pytest.raises(openai.APIError):
            await home.sdk("openai", mode).events("completions.create", model=f"{kind}/bad", prompt="x", stream=True)
        with pytest.raises(anthropic.APIStatusError) as also:
            await home.sdk("anthropic", mode).events(
                "messages.create", model=f"{kind}/bad", messages=TURNS, max_tokens=99, stream=True
            )
        assert set(also.value.body["error"]) == {"type", "message"}  # type: ignore[index]
        events = await home.sdk("openai", mode).events("responses.create", model=f"{kind}/bad", input="x", stream=True)
        assert events[-1].type == "response.failed" and events[-1].response.error.code
        with pytest.raises(openai.NotFoundError):
            await home.sdk("openai", mode).do("responses.retrieve", events[-1].response.id)


@pytest.mark.parametrize("surface", [name for name in ASK if name != "embeddings"])
async def test_a_stream_that_never_began_is_a_plain_error(tmp_path: Path, surface: str) -> None:
    """An error before the first event has its own status, and not 200."""
    path, body = ASK[surface]
    scripts = {"bad": [{"fault": "late_error", "after": -1, "error": "too late"}]}
    async with house(tmp_path, scripts, kinds=("openai", "anthropic")) as home:
        for kind in ("openai", "anthropic"):
            package: Any = BOTH["anthropic" if surface == "messages" else "openai"]
            with pytest.raises(package.RateLimitError) as caught:
                await sdk_for(home, surface).events(path, model=f"{kind}/bad", **body, stream=True)
            check_shape(caught.value, surface)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("surface", ["chat", "messages"])
async def test_the_clients_patience_is_the_deadline(tmp_path: Path, surface: str, streamed: bool, mode: str) -> None:
    """With `timeout=1` and a silent upstream, the upstream is cancelled, and nothing is left."""
    path, body = ASK[surface]
    async with house(tmp_path, {"slow": [{"fault": "silent"}]}, kinds=("openai",)) as home:
        with pytest.raises((openai.APITimeoutError, openai.InternalServerError, anthropic.APITimeoutError,
                            anthropic.InternalServerError)):  # fmt: skip
            await sdk_for(home, surface, mode, timeout=1.0).do(path, model="openai/slow", stream=streamed, **body)
        await home.gateway.rest()
        await upstream_left(home)
        assert home.requests == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_stated_read_timeout_alone(tmp_path: Path, streamed: bool) -> None:
    """`x-stainless-read-timeout` ends the request with a 504 although the client would wait longer."""
    body = {"model": "openai/slow", "messages": TURNS, "stream": streamed}
    async with house(tmp_path, {"slow": [{"fault": "silent"}]}, kinds=("openai",)) as home:
        async with httpx.AsyncClient(timeout=30) as client:
            answer = await client.post(
                home.url + "/v1/chat/completions", json=body, headers={"x-stainless-read-timeout": "0.2"}
            )
        assert answer.status_code == 504 and answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["code"] == "timeout"


async def test_a_client_that_leaves_stops_the_upstream(tmp_path: Path) -> None:
    """Closing a stream in the middle closes the upstream's."""
    scripts = {"slow": [{"text": "one two three", "fault": "stall", "after": 1}]}
    async with house(tmp_path, scripts, kinds=("openai",)) as home:
        client = home.sdk("openai").client
        stream = await client.chat.completions.create(model="openai/slow", messages=TURNS, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await upstream_left(home)


async def test_over_budget_is_a_quota_error(tmp_path: Path) -> None:
    """A key whose budget is used up gets OpenAI's `insufficient_quota`."""
    auth = {"keys": [{"name": "k", "key": "hg-k", "budget_usd": 0.000001}]}
    async with house(tmp_path, kinds=("openai",), auth=auth) as home:
        for surface in ("chat", "messages"):
            path, body = ASK[surface]
            package: Any = BOTH["anthropic" if surface == "messages" else "openai"]
            with pytest.raises(package.RateLimitError, match="budget") as caught:
                await sdk_for(home, surface, api_key="hg-k").do(path, model="openai/echo", **body)
            check_shape(caught.value, surface)
        assert home.requests == 0
