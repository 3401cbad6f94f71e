"""Every surface with every kind of provider, streamed and not, sync and async: the results are the same.

`python -m tests.conformance` runs this file and prints its results as a table.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.conformance import told
from tests.conformance.clients import MODES, Sdk
from tests.conformance.house import KINDS, TIME, WEATHER, House, house
from tests.conformance.told import Told

pytestmark = pytest.mark.asyncio(loop_scope="module")
QUESTION = "What is new under the sun?"
WAYS = ("whole", "stream", "events")
"""Without streaming, with the SDK's stream helper, and with its raw events."""
_SCHEMAS: dict[str, dict[str, Any]] = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city", "days"], "additionalProperties": False},
    "time": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"],
             "additionalProperties": False},
}  # fmt: skip
CHAT_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": name, "parameters": schema, "strict": True}}
    for name, schema in _SCHEMAS.items()
]
RESPONSES_TOOLS = [
    {"type": "function", "name": name, "parameters": schema, "strict": True} for name, schema in _SCHEMAS.items()
]
MESSAGES_TOOLS = [{"name": name, "input_schema": schema} for name, schema in _SCHEMAS.items()]
CALLS = (("weather", json.dumps(WEATHER, sort_keys=True)), ("time", json.dumps(TIME, sort_keys=True)))
TURNS = [{"role": "user", "content": QUESTION}]


async def chat(sdk: Sdk, model: str, way: str, tools: bool, limit: int) -> Told:
    body: dict[str, Any] = {"model": model, "messages": TURNS, "max_tokens": limit}
    if tools:
        body["tools"] = CHAT_TOOLS
    if way == "whole":
        return told.of_chat(await sdk.do("chat.completions.create", **body))
    body["stream_options"] = {"include_usage": True}
    if way == "events":
        return told.of_chat_events(await sdk.events("chat.completions.create", **body, stream=True))
    _, final = await sdk.helped("chat.completions.stream", "get_final_completion", **body)
    return told.of_chat(final)


async def completions(sdk: Sdk, model: str, way: str, tools: bool, limit: int) -> Told:
    body: dict[str, Any] = {"model": model, "prompt": QUESTION, "max_tokens": limit}
    if way == "whole":
        return told.of_completion(await sdk.do("completions.create", **body))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return told.of_completion_events(await sdk.events("completions.create", **body, **options))


async def responses(sdk: Sdk, model: str, way: str, tools: bool, limit: int) -> Told:
    body: dict[str, Any] = {"model": model, "input": QUESTION, "max_output_tokens": limit}
    if tools:
        body["tools"] = RESPONSES_TOOLS
    if way == "whole":
        return told.of_response(await sdk.do("responses.create", **body))
    if way == "events":
        return told.of_response((await sdk.events("responses.create", **body, stream=True))[-1].response)
    _, final = await sdk.helped("responses.stream", "get_final_response", **body)
    return told.of_response(final)


async def messages(sdk: Sdk, model: str, way: str, tools: bool, limit: int) -> Told:
    body: dict[str, Any] = {"model": model, "messages": TURNS, "max_tokens": limit}
    if tools:
        body["tools"] = MESSAGES_TOOLS
    if way == "whole":
        return told.of_message(await sdk.do("messages.create", **body))
    if way == "events":
        return told.of_message_events(await sdk.events("messages.create", **body, stream=True))
    _, final = await sdk.helped("messages.stream", "get_final_message", **body)
    return told.of_message(final)


SURFACES = {"chat": chat, "completions": completions, "responses": responses, "messages": messages}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with house(tmp_path_factory.mktemp("house")) as built:
        yield built


@pytest_asyncio.fixture(loop_scope="module")
async def home(shared: House) -> AsyncIterator[House]:
    """One gateway for the whole file; checks after each test that nothing is left."""
    yield shared
    await shared.gateway.rest()


def sdk_of(home: House, surface: str, mode: str) -> Sdk:
    return home.sdk("anthropic" if surface == "messages" else "openai", mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", SURFACES)
async def test_text(home: House, surface: str, kind: str, way: str, mode: str) -> None:
    """Text, finish reason and usage are the same on every way through the gateway."""
    ask = SURFACES[surface]
    answer = await ask(sdk_of(home, surface, mode), f"{kind}/echo", way, False, 1000)
    assert answer == Told(QUESTION, (), "stop", 6, 6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", ["chat", "responses", "messages"])
async def test_tools(home: House, surface: str, kind: str, way: str, mode: str) -> None:
    """Two parallel tool calls arrive with names, arguments and order; text before a call stays before it."""
    ask, sdk = SURFACES[surface], sdk_of(home, surface, mode)
    answer = await ask(sdk, f"{kind}/tools", way, True, 1000)
    assert (answer.text, answer.calls, answer.finish) == ("", CALLS, "tool_calls")
    assert answer.input_tokens == 6 and answer.output_tokens > 0
    answer = await ask(sdk, f"{kind}/says", way, True, 1000)
    assert (answer.text, answer.calls, answer.finish) == ("Let me look.", CALLS[:1], "tool_calls")


@pytest.mark.parametrize("way", ["whole", "events"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", SURFACES)
async def test_limit(home: House, surface: str, kind: str, way: str) -> None:
    """The client's limit on output reaches the model in its API's field."""
    ask = SURFACES[surface]
    answer = await ask(sdk_of(home, surface, "async"), f"{kind}/long", way, False, 3)
    assert answer == Told("one two three ", (), "length", 6, 3)


@pytest.mark.parametrize("way", ["whole", "events"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", SURFACES)
async def test_usage(home: House, surface: str, kind: str, way: str) -> None:
    """Cached tokens are part of the input in OpenAI's usage, and not in Anthropic's; the totals agree."""
    ask = SURFACES[surface]
    answer = await ask(sdk_of(home, surface, "async"), f"{kind}/used", way, False, 100)
    assert (answer.input_tokens, answer.output_tokens) == (100, 7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("encoding", ["", "float", "base64"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "anthropic"])
async def test_embeddings(home: House, kind: str, encoding: str, mode: str) -> None:
    """Vectors arrive in order, whatever their encoding; the SDK asks for base64 by itself."""
    body: dict[str, Any] = {"model": f"{kind}/echo", "input": ["one two", "three"], "dimensions": 8}
    if encoding:
        body["encoding_format"] = encoding
    answer = await home.sdk("openai", mode).do("embeddings.create", **body)
    sent = json.loads(home.last["body"])
    assert sent["encoding_format"] == (encoding or "base64") and sent["input"] == body["input"]
    assert [one.index for one in answer.data] == [0, 1]
    assert all(len(one.embedding) == (44 if encoding == "base64" else 8) for one in answer.data)
    assert answer.usage.prompt_tokens == 3 and answer.model == "echo"


async def test_embeddings_onto_a_provider_without(home: House) -> None:
    """A provider without embeddings answers 400 with a code."""
    before = home.requests
    with pytest.raises(openai.BadRequestError) as caught:
        await home.sdk("openai").do("embeddings.create", model="anthropic/echo", input="x")
    assert caught.value.code == "unsupported_endpoint" and home.requests == before
