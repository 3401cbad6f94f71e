"""Chat completions and completions: features beyond text, tools and usage."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.conformance.clients import MODES
from tests.conformance.house import House
from tests.conformance.test_surfaces import CHAT_TOOLS, TURNS

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Trip(BaseModel):
    city: str
    days: int
    by_train: bool


async def lines(home: House, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[str]:
    """The data lines of a stream."""
    async with httpx.AsyncClient() as client:
        answer = await client.post(home.url + path, json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\n")
    return [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]


@pytest.mark.parametrize("surface", ["chat", "completions"])
@pytest.mark.parametrize("kind", ["openai", "azure", "anthropic"])
async def test_done_and_usage_chunks(home: House, kind: str, surface: str) -> None:
    """[DONE] ends each stream, after a usage chunk without choices if and only if that is requested."""
    path = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}[surface]
    asked = {"messages": TURNS} if surface == "chat" else {"prompt": "What is new?"}
    body = {"model": f"{kind}/echo", **asked}
    *plain, done = await lines(home, body, path)
    assert done == "[DONE]"
    assert all(json.loads(line)["choices"] and "usage" not in json.loads(line) for line in plain)
    *chunks, usage, done = await lines(home, {**body, "stream_options": {"include_usage": True}}, path)
    assert done == "[DONE]" and json.loads(usage)["choices"] == []
    assert json.loads(usage)["usage"]["total_tokens"] > 0
    assert all(json.loads(chunk)["usage"] is None and json.loads(chunk)["choices"] for chunk in chunks)
    assert len({json.loads(chunk)["id"] for chunk in [*chunks, usage]}) == 1


async def test_other_stream_options_reach_the_upstream(home: House) -> None:
    """The gateway requests usage from the upstream without dropping the client's other stream options."""
    options = {"include_obfuscation": False}
    body = {"model": "openai/echo", "messages": TURNS}
    assert (await lines(home, {**body, "stream_options": options}))[-1] == "[DONE]"
    assert json.loads(home.last["body"])["stream_options"] == {**options, "include_usage": True}
    assert (await lines(home, {**body, "stream_options": None}))[-1] == "[DONE]"
    assert json.loads(home.last["body"])["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["openai", "azure", "anthropic"])
async def test_structured_output(home: House, kind: str, mode: str) -> None:
    """The SDK's `parse` returns an object of the given class, streamed and not, from every dialect."""
    sdk = home.sdk("openai", mode)
    body = {"model": f"{kind}/echo", "messages": TURNS, "response_format": Trip}
    answer = await sdk.do("chat.completions.parse", **body)
    assert answer.choices[0].message.parsed == Trip(city="text", days=0, by_train=True)
    _, final = await sdk.helped("chat.completions.stream", "get_final_completion", **body)
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_stream_helper_events(home: House, kind: str) -> None:
    """The helper's events add up: content deltas to the content, argument deltas to the arguments."""
    sdk = home.sdk("openai")
    body: dict[str, Any] = {"model": f"{kind}/says", "messages": TURNS, "tools": CHAT_TOOLS}
    events, final = await sdk.helped("chat.completions.stream", "get_final_completion", **body)
    deltas = "".join(event.delta for event in events if event.type == "content.delta")
    arguments = "".join(
        event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"
    )
    call = final.choices[0].message.tool_calls[0]
    assert deltas == final.choices[0].message.content == "Let me look."
    assert arguments == call.function.arguments and call.function.parsed_arguments == {"city": "Bern", "days": 2}


@pytest.mark.parametrize("mode", MODES)
async def test_two_choices(home: House, mode: str) -> None:
    """n=2 gives two choices, streamed and not."""
    sdk = home.sdk("openai", mode)
    body: dict[str, Any] = {"model": "openai/echo", "messages": TURNS, "n": 2}
    answer = await sdk.do("chat.completions.create", **body)
    assert [choice.index for choice in answer.choices] == [0, 1]
    _, final = await sdk.helped("chat.completions.stream", "get_final_completion", **body)
    assert [choice.message.content for choice in final.choices] == [TURNS[0]["content"]] * 2


@pytest.mark.parametrize("field", [{"n": 2}, {"logit_bias": {"1": 5}}, {"frequency_penalty": 1.0}])
async def test_what_a_provider_cannot_do_is_refused(home: House, field: dict[str, Any]) -> None:
    """A setting that changes the answer and has no counterpart is refused by its name, and not dropped silently."""
    with pytest.raises(openai.BadRequestError) as caught:
        await home.sdk("openai").do("chat.completions.create", model="anthropic/echo", messages=TURNS, **field)
    assert caught.value.code == "unsupported_parameter" and caught.value.param in field
    assert home.requests == 0


@pytest.mark.parametrize("mode", MODES)
async def test_logprobs(home: House, mode: str) -> None:
    """Log-probabilities arrive if and only if they are requested."""
    sdk = home.sdk("openai", mode)
    body: dict[str, Any] = {"model": "openai/echo", "messages": TURNS}
    answer = await sdk.do("chat.completions.create", **body, logprobs=True, top_logprobs=2)
    assert [token.logprob for token in answer.choices[0].logprobs.content] == [-0.1] * 6
    assert json.loads(home.last["body"])["top_logprobs"] == 2
    _, final = await sdk.helped("chat.completions.stream", "get_final_completion", **body, logprobs=True)
    assert len(final.choices[0].logprobs.content) == 6
    answer = await sdk.do("chat.completions.create", **body)
    assert answer.choices[0].logprobs is None


@pytest.mark.parametrize("kind", ["openai", "azure", "azure-v1", "scripted", "local"])
async def test_known_and_unknown_fields_reach_the_upstream(home: House, kind: str) -> None:
    """Every field that the client sends arrives, unknown ones included; only the model's name is replaced."""
    extra = {"x_tomorrow": {"deep": [1, 2.5, None, "é"]}, "reasoning_effort": "low"}
    body: dict[str, Any] = {"messages": TURNS, "seed": 7, "temperature": 0.25, "user": "u-1", "stop": ["zz"],
                            "metadata": {"a": "b"}, "logit_bias": {"5": -1}, "service_tier": "auto"}  # fmt: skip
    await home.sdk("openai").do("chat.completions.create", model=f"{kind}/echo", **body, extra_body=extra)
    assert json.loads(home.last["body"]) == {"model": "echo", **body, **extra}


@pytest.mark.parametrize("mode", MODES)
async def test_image(home: House, mode: str) -> None:
    """An image arrives unchanged, or in the form of the provider's API where that is another."""
    url = f"data:image/png;base64,{PIXEL}"
    content = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    for kind in ("openai", "anthropic"):
        answer = await home.sdk("openai", mode).do(
            "chat.completions.create", model=f"{kind}/echo", messages=[{"role": "user", "content": content}]
        )
        assert answer.choices[0].message.content == "what is this?"
        assert answer.usage.prompt_tokens == 3 + 85
        sent = json.loads(home.last["body"])["messages"][0]["content"][1]
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        assert sent == (content[1] if kind == "openai" else {"type": "image", "source": source})


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_tool_loop(home: House, kind: str) -> None:
    """Calls, their results, the next answer: the conversation goes back as the SDK keeps it."""
    sdk = home.sdk("openai")
    body: dict[str, Any] = {"tools": CHAT_TOOLS, "tool_choice": "auto", "parallel_tool_calls": True}
    first = await sdk.do("chat.completions.create", model=f"{kind}/tools", messages=TURNS, **body)
    message = first.choices[0].message
    turns = [*TURNS, message]
    turns += [{"role": "tool", "tool_call_id": call.id, "content": f"{call.function.name} is fine"}
              for call in message.tool_calls]  # fmt: skip
    await sdk.do("chat.completions.create", model=f"{kind}/echo", messages=turns, **body)
    sent = json.loads(home.last["body"])["messages"]
    ids = [call.id for call in message.tool_calls]
    if kind == "openai":
        assert [turn.get("tool_call_id") for turn in sent[2:]] == ids
    else:
        assert [block["id"] for block in sent[1]["content"]] == ids
        assert [(block["tool_use_id"], block["content"]) for block in sent[2]["content"]] == [
            (ids[0], "weather is fine"), (ids[1], "time is fine")]  # fmt: skip


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_forced_tool(home: House, kind: str, choice: Any) -> None:
    """A forced tool is called, in both dialects."""
    answer = await home.sdk("openai").do(
        "chat.completions.create", model=f"{kind}/echo", messages=TURNS, tools=CHAT_TOOLS, tool_choice=choice
    )
    wanted = "weather" if choice == "required" else "time"
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == [wanted]


@pytest.mark.parametrize("mode", ["auto", "required"])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_allowed_tools(home: House, kind: str, mode: str) -> None:
    """`allowed_tools` is passed on where the API has it; another API's model is sent only the allowed tools."""
    sdk, time = home.sdk("openai"), CHAT_TOOLS[1]
    few: Any = {"mode": mode, "tools": [{"type": "function", "function": {"name": "time"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": few}
    body: dict[str, Any] = {"model": f"{kind}/echo", "messages": TURNS, "tools": CHAT_TOOLS}
    answer = await sdk.do("chat.completions.create", tool_choice=choice, **body)
    sent = json.loads(home.last["body"])
    if kind == "openai":
        assert (sent["tools"], sent["tool_choice"]) == (CHAT_TOOLS, choice)
    else:
        assert [tool["name"] for tool in sent["tools"]] == ["time"]
        assert sent["tool_choice"] == {"type": {"required": "any"}.get(mode, mode)}
        calls = answer.choices[0].message.tool_calls or []
        assert [call.function.name for call in calls] == (["time"] if mode == "required" else [])
    tools = [{"type": "function", "strict": True, **tool["function"]} for tool in CHAT_TOOLS] + [{"type": "web_search"}]
    flat = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "time"}]}
    made = await sdk.do("responses.create", model=f"{kind}/echo", input="hello", tools=tools, tool_choice=flat)
    sent = json.loads(home.last["body"])
    assert [tool.get("name") or tool["function"]["name"] for tool in sent["tools"]] == [time["function"]["name"]]
    assert made.tool_choice.to_dict() == flat and len(made.tools) == 3
    assert [item.type for item in made.output] == ["function_call" if mode == "required" else "message"]


@pytest.mark.parametrize("few", [[], [{"type": "function", "name": "gone"}], "time", [7]])
async def test_tools_that_are_not_there_are_not_allowed(home: House, few: Any) -> None:
    """A choice of tools that aren't in the request is refused."""
    tools = [{"type": "function", **tool["function"]} for tool in CHAT_TOOLS]
    choice = {"type": "allowed_tools", "mode": "auto", "tools": few}
    with pytest.raises(openai.BadRequestError) as refused:
        await home.sdk("openai").do("responses.create", model="openai/echo", input="x", tools=tools, tool_choice=choice)
    assert refused.value.param == "tool_choice"


@pytest.mark.parametrize("stop", [{"stop": "three"}, {"stop": ["nothing", "three"]}])
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_stop_and_system(home: House, kind: str, stop: dict[str, Any]) -> None:
    """Stop sequences and system prompts reach both dialects."""
    turns = [{"role": "system", "content": "be brief"}, *TURNS]
    answer = await home.sdk("openai").do("chat.completions.create", model=f"{kind}/long", messages=turns, **stop)
    assert answer.choices[0].message.content.strip() == "one two"
    sent = json.loads(home.last["body"])
    assert "be brief" in (sent["messages"][0]["content"] if kind == "openai" else sent["system"])


async def test_completions_extras(home: House) -> None:
    """Several prompts, log-probabilities and echo pass through where the provider has text completions."""
    sdk = home.sdk("openai")
    answer = await sdk.do("completions.create", model="openai/echo", prompt="one two", logprobs=1, n=2)
    assert [choice.logprobs.token_logprobs for choice in answer.choices] == [[-0.1, -0.1]] * 2
    await sdk.do("completions.create", model="openai/echo", prompt=["a", "b"], echo=True)
    assert json.loads(home.last["body"])["prompt"] == ["a", "b"]


async def test_credentials_stay_where_they_belong(home: House) -> None:
    """The client's key never goes upstream, nor do its headers; the provider's own key does."""
    sdk = home.sdk("openai", api_key="client-secret", organization="org-1", project="p-1")
    await sdk.do("chat.completions.create", model="openai/echo", messages=TURNS)
    sent = home.last["headers"]
    assert sent["authorization"] == "Bearer sk-upstream-secret"
    assert "client-secret" not in str(sent) and not any(name.startswith(("x-stainless", "openai-")) for name in sent)
