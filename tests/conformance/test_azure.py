"""Azure's clients and paths: clients of Azure OpenAI work with the gateway."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from tests.conformance import told
from tests.conformance.clients import MODES
from tests.conformance.house import House
from tests.conformance.test_surfaces import TURNS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["openai", "azure", "anthropic"])
async def test_azure_client(home: House, kind: str, mode: str) -> None:
    """AzureOpenAI puts the deployment into the path, even with a slash; streamed and not."""
    sdk = home.sdk("azure", mode)
    body: dict[str, Any] = {"model": f"{kind}/echo", "messages": TURNS}
    answer = await sdk.do("chat.completions.create", **body)
    assert told.of_chat(answer).text == TURNS[0]["content"]
    events = await sdk.events("chat.completions.create", **body, stream=True,
                              stream_options={"include_usage": True})  # fmt: skip
    assert told.of_chat_events(events) == told.of_chat(answer)
    completion = await sdk.do("completions.create", model=f"{kind}/echo", prompt="hello")
    assert completion.choices[0].text == "hello"
    response = await sdk.do("responses.create", model=f"{kind}/echo", input="hello")
    assert (await sdk.do("responses.retrieve", response.id)).output_text == "hello"


@pytest.mark.parametrize("mode", MODES)
async def test_azure_client_with_a_deployment(home: House, mode: str) -> None:
    """The deployment of the client wins over the model in the body, as on Azure."""
    sdk = home.sdk("azure", mode, azure_deployment="openai/echo")
    answer = await sdk.do("chat.completions.create", model="whatever", messages=TURNS)
    assert told.of_chat(answer).text == TURNS[0]["content"] and '"model":"echo"' in home.last["body"]
    vectors = await sdk.do("embeddings.create", model="whatever", input="x", dimensions=4)
    assert len(vectors.data[0].embedding) == 4
    assert "openai/echo" in [model.id for model in (await sdk.do("models.list")).data]


async def test_azure_client_is_refused_in_its_shape(home: House) -> None:
    """An unknown deployment raises NotFoundError, with the four fields of OpenAI's errors."""
    with pytest.raises(openai.NotFoundError) as caught:
        await home.sdk("azure").do("chat.completions.create", model="nope", messages=TURNS)
    assert set(caught.value.body) == {"message", "type", "param", "code"}  # type: ignore[call-overload]


@pytest.mark.parametrize("mode", MODES)
async def test_the_newer_surface(home: House, mode: str) -> None:
    """Every path under `/v1` is also served under `/openai/v1`."""
    sdk = home.sdk("openai", mode, base_url=home.url + "/openai/v1")
    assert told.of_chat(await sdk.do("chat.completions.create", model="azure-v1/echo", messages=TURNS)).text
    made = await sdk.do("responses.create", model="openai/echo", input="hello")
    assert (await sdk.do("responses.retrieve", made.id)).output_text == "hello"
    await sdk.do("responses.delete", made.id)
    assert (await sdk.do("models.retrieve", "openai/echo")).id == "openai/echo"
    assert len((await sdk.do("embeddings.create", model="openai/echo", input="x")).data) == 1


async def test_a_key_in_azures_header(home: House) -> None:
    """The key may be in Azure's header, and the body may omit the model where the path names the deployment."""
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            home.url + "/openai/deployments/openai%2Fecho/chat/completions?api-version=2024-10-21",
            json={"messages": TURNS},
            headers={"api-key": "k"},
        )
    assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == TURNS[0]["content"]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("azure", "/v1/azure/openai/deployments/echo/chat/completions?api-version=2024-10-21"),
        ("azure-v1", "/v1/openai/v1/chat/completions"),
    ],
)
async def test_azure_outbound(home: House, kind: str, path: str) -> None:
    """Requests to Azure have its paths, its header and its bodies."""
    await home.sdk("openai").do("chat.completions.create", model=f"{kind}/echo", messages=TURNS)
    assert home.last["path"] == path and home.last["headers"]["api-key"] == "sk-upstream-secret"
    assert "authorization" not in home.last["headers"]
