"""Bad input on every surface: a clear error in the client's API's form, nothing held, nothing logged."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio

from tests.conformance.house import House, house
from tests.conformance.test_errors import sdk_for

pytestmark = pytest.mark.asyncio(loop_scope="module")
KEY, PROMPT = "hg-a-key-nobody-may-see", "a prompt nobody may see"
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings",
         "responses": "/v1/responses", "messages": "/v1/messages"}  # fmt: skip
FIELDS = {"chat": "messages", "completions": "prompt", "embeddings": "input", "responses": "input",
          "messages": "messages"}  # fmt: skip
DEEP = b"[" * 100_000 + b"]" * 100_000
CLIENTS = ("httpcore", "httpx", "openai", "anthropic")
"""Loggers of the test's own clients."""
MAX_BODY, MAX_MESSAGES = 1_000_000, 10


def good(surface: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": PROMPT}]
    body: dict[str, Any] = {"model": "openai/echo"}
    body[FIELDS[surface]] = turns if FIELDS[surface] == "messages" else PROMPT
    return body | ({"max_tokens": 9} if surface == "messages" else {})


def bad_bodies(surface: str) -> dict[str, tuple[bytes, int, str | None]]:
    """Body, status and param by name."""
    whole, field = good(surface), FIELDS[surface]
    text = json.dumps(whole)
    deep = DEEP
    many = [whole[field][0] if field == "messages" else {"role": "user", "content": PROMPT}] * (MAX_MESSAGES + 1)

    def changed(**fields: Any) -> bytes:
        return json.dumps({**whole, **fields}).encode()

    return {
        "nothing": (b"", 400, None),
        "half of it": (text[: len(text) // 2].encode(), 400, None),
        "two of it": ((text + text).encode(), 400, None),
        "a list": (b"[]", 400, None),
        "a string": (b'"x"', 400, None),
        "null": (b"null", 400, None),
        "invalid UTF-8": (text.encode().replace(b"nobody", b"\xff\xfe"), 400, None),
        "NaN": (text[:-1].encode() + b',"temperature":NaN}', 400, None),
        "a lone surrogate": (text.replace("nobody", "\\ud800").encode(), 400, None),
        "deep": (deep, 400, None),
        "deep inside": (changed().replace(json.dumps(whole[field]).encode(), deep), 400, None),
        "deep in a field nobody knows": (text[:-1].encode() + b',"x":' + deep + b"}", 400, None),
        "too large": (changed(x="y" * MAX_BODY), 413, None),
        "too many": (changed(**{field: many if field != "prompt" else ["x"] * (MAX_MESSAGES + 1)}), 400, field),
        "no prompt": (json.dumps({"model": "openai/echo", "max_tokens": 9}).encode(), 400, field),
        "a number for a prompt": (changed(**{field: 7}), 400, field),
        "an object for a prompt": (changed(**{field: {"a": 1}}), 400, field),
        "no model": (json.dumps({k: v for k, v in whole.items() if k != "model"}).encode(), 400, "model"),
        "a number for a model": (changed(model=7), 400, "model"),
        "an unknown model": (changed(model="no/such"), 404, "model"),
        "a header for a model": (changed(model="openai/echo\r\nx-evil: 1"), 404, "model"),
        "a word for stream": (changed(stream="yes"), 400, "stream"),
        "a word for temperature": (changed(temperature="hot"), 400, "temperature"),
        "an impossible temperature": (changed(temperature=99), 400, "temperature"),
        "a word for tools": (changed(tools="hammer"), 400, "tools"),
        "another model in capitals": (changed(Model="openai/dear"), 400, "Model"),
        "another limit in long letters": (text[:-1].encode() + b',"max_token\\u017f":9}', 400, "max_token\u017f"),
        "two models": (text[:-1].encode() + b',"model":"openai/dear"}', 400, "model"),
        "two types of a tool": (changed(tools=[{"type": "a", "x": 1}]).replace(b'"x"', b'"type"'), 400, "type"),
        "an unknown knob": (changed(headgate={"nope": 1}), 400, "headgate.nope"),
    }


CASES = [(surface, name) for surface in PATHS for name in bad_bodies(surface)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    auth = {"keys": [{"name": "k", "key": KEY}]}
    server = {"max_body_bytes": MAX_BODY, "max_messages": MAX_MESSAGES}
    folder = tmp_path_factory.mktemp("house")
    async with house(folder, kinds=("openai", "anthropic"), auth=auth, server=server) as built:
        yield built


@pytest_asyncio.fixture(loop_scope="module")
async def strict(shared: House, caplog: pytest.LogCaptureFixture) -> AsyncIterator[House]:
    """A gateway with limits and a key; checks afterwards that nothing is held, sent upstream or logged."""
    caplog.set_level(logging.DEBUG)
    asked = shared.requests
    yield shared
    shared.gateway.assert_at_rest()
    assert shared.requests == asked
    ours = [
        record for record in caplog.records if not record.name.startswith(("httpcore", "httpx", "openai", "anthropic"))
    ]
    told = "\n".join([*(record.getMessage() for record in ours), *(str(record.exc_info) for record in ours)])
    assert KEY not in told and PROMPT not in told and "nobody" not in told
    assert [record for record in ours if record.levelno >= logging.ERROR] == []


def check(answer: httpx.Response, surface: str, status: int, param: str | None = None) -> None:
    """Checks that an error has the form of the surface's API with all its fields, and reveals no internals."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json" and answer.headers["x-request-id"]
    body = answer.json()
    if surface == "messages":
        assert set(body) == {"type", "error", "request_id"} and set(body["error"]) == {"type", "message"}
    else:
        assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["param"] == param or param is None
    message = body["error"]["message"]
    assert message and "Traceback" not in message and KEY not in answer.text and "x-evil" not in answer.headers


@pytest.mark.parametrize(("surface", "name"), CASES)
async def test_bad_bodies(strict: House, surface: str, name: str) -> None:
    """Bad bodies are refused before anything is held, with the right status and the faulty parameter's name."""
    body, status, param = bad_bodies(surface)[name]
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.post(strict.url + PATHS[surface], content=body, headers=headers)
    check(answer, surface, status, param)


@pytest.mark.parametrize("surface", PATHS)
async def test_a_compressed_body(strict: House, surface: str) -> None:
    """The error says that bodies must be uncompressed, and not that the JSON is invalid."""
    body = gzip.compress(json.dumps(good(surface)).encode())
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json", "content-encoding": "gzip"}
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.post(strict.url + PATHS[surface], content=body, headers=headers)
    check(answer, surface, 415)
    assert "gzip" in answer.text


@pytest.mark.parametrize("surface", PATHS)
async def test_a_mistyped_knob_in_a_header(strict: House, surface: str) -> None:
    """An unknown knob is refused, since ignoring it would drop the client's bound."""
    headers = {"authorization": f"Bearer {KEY}", "x-headgate-max-cost": "0.01"}
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.post(strict.url + PATHS[surface], json=good(surface), headers=headers)
    check(answer, surface, 400, "headgate.max_cost")


@pytest.mark.parametrize("surface", PATHS)
@pytest.mark.parametrize("key", ["", "Bearer", "Bearer hg-wrong", "Basic aGk6aGk=", "Bearer \xff\xfe"])
async def test_bad_keys(strict: House, surface: str, key: str) -> None:
    """A missing, partial or wrong key, or one in another scheme, is answered with 401 in the client's API's form."""
    headers = {b"authorization": key.encode("latin-1")} if key else {}
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.post(strict.url + PATHS[surface], json=good(surface), headers=headers)
    check(answer, surface, 401)


@pytest.mark.parametrize("surface", PATHS)
async def test_a_body_without_a_length(strict: House, surface: str) -> None:
    """A chunked body that grows too large is refused when it does."""

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b" " * 50_000

    async with httpx.AsyncClient(verify=False) as client:
        headers = {"authorization": f"Bearer {KEY}"}
        answer = await client.post(strict.url + PATHS[surface], content=pieces(), headers=headers)
    check(answer, surface, 413)


@pytest.mark.parametrize("surface", ["chat", "messages"])
async def test_a_large_body_from_an_sdk(strict: House, surface: str) -> None:
    """A client that sends far more than allowed reads the 413, not a broken connection."""
    path = "messages.create" if surface == "messages" else "chat.completions.create"
    body = good(surface) | {"messages": [{"role": "user", "content": PROMPT * 300_000}]}
    with pytest.raises((openai.APIStatusError, anthropic.APIStatusError)) as caught:
        await sdk_for(strict, surface, api_key=KEY).do(path, **body)
    assert caught.value.status_code == 413  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("surface", PATHS)
async def test_wrong_methods(strict: House, surface: str, method: str) -> None:
    """A path that exists answers 405 to a method that it hasn't, and says which it has."""
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.request(method, strict.url + PATHS[surface])
    check(answer, surface, 405)
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models"])
async def test_only_the_head(strict: House, path: str) -> None:
    """HEAD is GET without the body, as load balancers and uptime checks ask."""
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.head(strict.url + path, headers={"authorization": f"Bearer {KEY}"})
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/nope", "/v1/chat/completions/", "/v1//models", "/openai/nope",
                                  "/v1/models/%0d%0ax-evil:%201", "/v1/decisions/..%2f..%2fetc%2fpasswd",
                                  "/v1/responses/" + "r" * 3000, "/%ff%fe"])  # fmt: skip
async def test_unknown_paths(strict: House, path: str) -> None:
    """Unknown paths are answered with 404 in the API's form."""
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.get(strict.url + path, headers={"authorization": f"Bearer {KEY}"})
    check(answer, "chat", 404)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/feedback", b"{"), ("/v1/feedback", b"[]"), ("/v1/feedback", b'{"score": "x"}'),
     ("/v1/feedback", b'{"nope": 1}'), ("/v1/feedback", b'{"decision_id": "dec_x"}'), ("/v1/feedback", b"\xff"),
     ("/v1/feedback", b'{"score": NaN}'), ("/v1/feedback", b'{"score":' + DEEP),
     ("/v1/batches", b'{"metadata":' + DEEP), ("/v1/batches", DEEP), ("/v1/responses/input_tokens", b"{"),
     ("/v1/responses/input_tokens", b'{"model":"openai/echo"}'), ("/v1/responses/input_tokens", b'{"input":7}')],
)  # fmt: skip
async def test_other_bodies(strict: House, path: str, body: bytes) -> None:
    """Paths off the hot path refuse bad bodies, too."""
    async with httpx.AsyncClient(verify=False) as client:
        answer = await client.post(strict.url + path, content=body, headers={"authorization": f"Bearer {KEY}"})
    check(answer, "chat", 400)


TOO_MANY = json.dumps({**good("messages"), "messages": good("messages")["messages"] * (MAX_MESSAGES + 1)}).encode()


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model":"openai/echo"}', b'{"model":7,"messages":[]}', b"\xff",
                                  b'{"messages":[{"role":"user","content":"x"}]}', TOO_MANY])  # fmt: skip
@pytest.mark.parametrize("version", [{"anthropic-version": "2023-06-01"}, {}])
async def test_bad_counts(strict: House, body: bytes, version: dict[str, str]) -> None:
    """Counting tokens refuses bad bodies in Anthropic's form, whether or not the client names the API's version."""
    async with httpx.AsyncClient(verify=False) as client:
        headers = {"x-api-key": KEY, **version}
        answer = await client.post(strict.url + "/v1/messages/count_tokens", content=body, headers=headers)
    check(answer, "messages", 400)


@pytest.mark.parametrize("previous", [7, [], {}, "resp_x", "x" * 5000, True])
async def test_a_bad_previous_response(strict: House, previous: Any) -> None:
    """An invalid previous response is the client's error, whatever its type."""
    body = good("responses") | {"previous_response_id": previous}
    async with httpx.AsyncClient(verify=False) as client:
        headers = {"authorization": f"Bearer {KEY}"}
        answer = await client.post(strict.url + PATHS["responses"], json=body, headers=headers)
    check(answer, "responses", 400, "previous_response_id")
