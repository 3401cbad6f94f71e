"""Conversations with tools that move between upstreams whose ids of calls differ: Gemini signs calls, Mistral's ids are
short, Anthropic's and OpenAI's APIs take what fits theirs. The scripted upstream refuses what the real ones do.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.providers.scripted_answer import UNSIGNED, signature_of
from gateway.wire.call_ids import holds_sealed, seal, style_of, unseal
from tests.conformance.house import House, house
from tests.conformance.test_surfaces import CHAT_TOOLS, MESSAGES_TOOLS, RESPONSES_TOOLS

Json = dict[str, Any]
TWO = [{"name": "weather", "arguments": {"city": "Bern", "days": 2}}, {"name": "time", "arguments": {"zone": "CET"}}]
CALLS = {"tool_calls": TWO}
SCRIPTS = {
    "gemini-3-pro": [{**CALLS, "call_ids": "signed"}],
    "mistral-large": [{**CALLS, "call_ids": "nine"}],
    "plain": [CALLS],
}
GEMINI, MISTRAL = "openai/gemini-3-pro", "openai/mistral-large"
ELSEWHERE = (MISTRAL, "openai/plain", "native/plain", "anthropic/plain")
MOVES = [(GEMINI, GEMINI), (MISTRAL, MISTRAL), *((GEMINI, name) for name in ELSEWHERE),
         *((name, GEMINI) for name in ELSEWHERE), ("openai/plain", MISTRAL), ("anthropic/plain", MISTRAL)]  # fmt: skip


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, SCRIPTS, kinds=("openai", "native", "anthropic")) as built:
        yield built


def last_body(home: House) -> Json:
    body: Json = json.loads(home.last["body"])
    return body


class Messages:
    """A conversation of an agent on Anthropic's SDK."""

    def __init__(self, home: House, stream: bool) -> None:
        self.sdk, self.stream = home.sdk("anthropic"), stream
        self.turns: list[Json] = [{"role": "user", "content": "weather?"}]

    async def turn(self, model: str) -> None:
        body: Json = {"model": model, "max_tokens": 99, "messages": self.turns, "tools": MESSAGES_TOOLS}
        if self.stream:
            _, answer = await self.sdk.helped("messages.stream", "get_final_message", **body)
        else:
            answer = await self.sdk.do("messages.create", **body)
        calls = [block for block in answer.content if block.type == "tool_use"]
        assert [call.name for call in calls] == ["weather", "time"]
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "ok"} for call in calls]
        content = [block.to_dict() for block in answer.content]
        self.turns += [{"role": "assistant", "content": content}, {"role": "user", "content": results}]


class Responses:
    """A conversation of an agent on OpenAI's SDK, with all turns sent again, or stored by the gateway."""

    def __init__(self, home: House, stream: bool, keeps: bool = False) -> None:
        self.sdk, self.stream, self.keeps = home.sdk("openai"), stream, keeps
        self.turns: list[Json] = [{"role": "user", "content": "weather?"}]
        self.before: str | None = None

    async def turn(self, model: str) -> None:
        body: Json = {"model": model, "input": self.turns, "tools": RESPONSES_TOOLS, "store": self.keeps}
        answer = await self.sdk.responded(self.stream, **body, previous_response_id=self.before)
        calls = [item for item in answer.output if item.type == "function_call"]
        assert [call.name for call in calls] == ["weather", "time"]
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": "ok"} for call in calls]
        if self.keeps:
            self.turns, self.before = results, answer.id
        else:
            self.turns = [*self.turns, *(item.to_dict() for item in answer.output), *results]


class Chat:
    """A conversation of a chat client, which returns only the known fields of a call."""

    def __init__(self, home: House, stream: bool) -> None:
        self.sdk, self.stream = home.sdk("openai"), stream
        self.turns: list[Json] = [{"role": "user", "content": "weather?"}]

    async def turn(self, model: str) -> None:
        body: Json = {"model": model, "messages": self.turns, "tools": CHAT_TOOLS}
        if self.stream:
            _, answer = await self.sdk.helped("chat.completions.stream", "get_final_completion", **body)
        else:
            answer = await self.sdk.do("chat.completions.create", **body)
        calls = [{"id": call.id, "type": "function",
                  "function": {"name": call.function.name, "arguments": call.function.arguments}}
                 for call in answer.choices[0].message.tool_calls]  # fmt: skip
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in calls]
        self.turns += [{"role": "assistant", "content": None, "tool_calls": calls}, *results]


def paired(body: Json) -> tuple[list[str], list[str]]:
    """Ids of calls and of results, in whatever API an upstream was asked."""
    calls, results = [], []
    for item in body.get("input") or body["messages"]:
        calls += [call["id"] for call in item.get("tool_calls") or ()]
        blocks = item["content"] if isinstance(item.get("content"), list) else ()
        calls += [block["id"] for block in blocks if block["type"] == "tool_use"]
        results += [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
        calls += [item["call_id"]] if item.get("type") == "function_call" else []
        results += [item["call_id"]] if item.get("type") == "function_call_output" else []
        results += [item["tool_call_id"]] if item.get("role") == "tool" else []
    return calls, results


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("surface", ["messages", "responses", "kept", "chat"])
async def test_a_conversation_goes_on_with_whoever_takes_the_next_turn(home: House, surface: str, stream: bool) -> None:
    """Every call keeps its result when upstreams change, and no upstream gets fields of another one's API."""
    for begun, goes_on in MOVES:
        said: Messages | Responses | Chat = (
            Messages(home, stream) if surface == "messages"
            else Chat(home, stream) if surface == "chat" else Responses(home, stream, surface == "kept")
        )  # fmt: skip
        for model in (begun, goes_on, begun):
            await said.turn(model)
        calls, results = paired(last_body(home))
        assert len(set(calls)) == 4 and calls == results, (begun, goes_on)
        if begun not in (GEMINI, MISTRAL):
            text = home.last["body"]
            assert "extra_content" not in text and not holds_sealed(text.encode()) and max(map(len, calls)) <= 40


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("surface", ["messages", "responses", "kept"])
async def test_gemini_is_given_its_own_signature_back(home: House, surface: str, stream: bool) -> None:
    """Gemini's signature is returned on the call that it signed, with the call's original id."""
    said = Messages(home, stream) if surface == "messages" else Responses(home, stream, surface == "kept")
    await said.turn(GEMINI)
    await said.turn(GEMINI)
    first, second = next(turn for turn in last_body(home)["messages"] if turn.get("tool_calls"))["tool_calls"]
    assert first["extra_content"] == signature_of(first["id"]) and "extra_content" not in second
    assert first["id"].startswith("call_scripted-") and first["id"].endswith("_0")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("surface", ["messages", "responses", "kept"])
async def test_what_a_signature_comes_late_for(tmp_path: Path, surface: str, stream: bool) -> None:
    """Signatures that come after the call's id, or with a text, are returned to Gemini and to no other upstream."""
    scripts = {**SCRIPTS, "gemini-3-late": [{**CALLS, "text": "Let me look.", "call_ids": "late"}]}
    late = "openai/gemini-3-late"
    async with house(tmp_path, scripts, kinds=("openai", "native", "anthropic")) as home:
        for goes_on in (late, *ELSEWHERE):
            said = Messages(home, stream) if surface == "messages" else Responses(home, stream, surface == "kept")
            await said.turn(late)
            await said.turn(goes_on)
            sent = last_body(home)
            calls, results = paired(sent)
            assert len(calls) == 2 and calls == results
            text = home.last["body"]
            assert "Let me look." in text and not holds_sealed(text.encode())
            assert ("extra_content" in text) == (goes_on == late)
            await said.turn(late)
            turns = [turn for turn in last_body(home)["messages"] if turn.get("tool_calls")]
            assert turns[0]["extra_content"] == signature_of("Let me look.")
            first, second = turns[0]["tool_calls"]
            assert first["extra_content"] == signature_of(first["id"]) and "extra_content" not in second


@pytest.mark.parametrize("stream", [False, True])
async def test_a_text_alone_is_signed(tmp_path: Path, stream: bool) -> None:
    """A signature on a text without calls is returned, and the client shows only the text."""
    scripts = {"gemini-3-pro": [{"text": "hello", "call_ids": "signed"}], "plain": [{}]}
    async with house(tmp_path, scripts, kinds=("openai", "native", "anthropic")) as home:
        claude, gpt = home.sdk("anthropic"), home.sdk("openai")
        turns: list[Json] = [{"role": "user", "content": "x"}]
        ask: Json = {"model": GEMINI, "max_tokens": 9, "messages": turns}
        if stream:
            _, answer = await claude.helped("messages.stream", "get_final_message", **ask)
        else:
            answer = await claude.do("messages.create", **ask)
        assert [block.type for block in answer.content] == ["text", "redacted_thinking"]
        turns += [{"role": "assistant", "content": [block.to_dict() for block in answer.content]}, turns[0]]
        first = await gpt.responded(stream, model=GEMINI, input="x")
        assert first.output_text == "hello" and first.output[-1].type == "reasoning"
        for model in (GEMINI, "openai/plain", "native/plain", "anthropic/plain"):
            await claude.do("messages.create", **{**ask, "model": model})
            sents = [last_body(home)]
            await gpt.do("responses.create", model=model, input="y", previous_response_id=first.id)
            for sent in (*sents, last_body(home)):
                text = json.dumps(sent)
                assert "hello" in text and not holds_sealed(text.encode())
                assert ("extra_content" in text) == (model == GEMINI)
                if model == GEMINI:
                    assert sent["messages"][1]["extra_content"] == signature_of("hello")


async def test_a_fallback_takes_over_in_the_middle(tmp_path: Path) -> None:
    """A route whose first model fails continues with Mistral's, and returns to the first once that answers again."""
    scripts = {**SCRIPTS, "plain": [CALLS, {"status": 503}, CALLS]}
    route = {"name": "r", "models": ["anthropic/plain"], "fallback": [MISTRAL], "retries": 0}
    async with house(tmp_path, scripts, kinds=("openai", "anthropic"), routes=[route]) as home:
        said = Messages(home, False)
        for by in ("plain", "mistral-large", "plain"):
            await said.turn("r")
            assert last_body(home)["model"] == by


async def test_a_call_that_nobody_signed_is_marked_as_one(home: House) -> None:
    """A chat client that drops signatures is served with Google's marker, since Gemini refuses unsigned calls."""
    said = Chat(home, False)
    await said.turn(GEMINI)
    await said.turn(GEMINI)
    assert last_body(home)["messages"][1]["tool_calls"][0]["extra_content"] == UNSIGNED
    async with house(Path(home.gateway.services.config.server.run_dir) / "any", SCRIPTS, kinds=("openai",),
                     more=[{"name": "as-is", "provider": "up", "upstream_name": "gemini-3-pro", "call_ids": "any"}],
                     ) as other:  # fmt: skip
        said.sdk = other.sdk("openai")
        with pytest.raises(openai.BadRequestError, match="missing a thought_signature"):
            await said.turn("as-is")


async def test_what_a_chat_client_returns_whole_is_passed_as_it_is(home: House) -> None:
    """A conversation with its signatures goes to Gemini byte for byte; so does one with Mistral's ids to Mistral."""
    for model, name in ((GEMINI, "gemini-3-pro"), (MISTRAL, "mistral-large")):
        sdk = home.sdk("openai")
        answer = await sdk.do("chat.completions.create", model=model, messages=[{"role": "user", "content": "x"}])
        turn = answer.choices[0].message.to_dict()
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "ok"} for call in turn["tool_calls"]]
        turns = [{"role": "user", "content": "x"}, turn, *results]
        await sdk.do("chat.completions.create", model=model, messages=turns)
        assert last_body(home)["messages"] == turns and last_body(home)["model"] == name


@pytest.mark.parametrize(
    ("stated", "name", "style"),
    [
        ("auto", "gpt-5", "any"), ("auto", "mistral-large-latest", "nine"), ("auto", "devstral-small", "nine"),
        ("auto", "open-mixtral-8x7b", "nine"), ("auto", "gemini-3-pro-preview", "signed"),
        ("auto", "google/gemini-2.5-flash", "kept"), ("auto", "gemini-flash-latest", "signed"),
        ("any", "gemini-3-pro-preview", "any"), ("nine", "gpt-5", "nine"),
    ],
)  # fmt: skip
def test_whose_ids_are_peculiar(stated: str, name: str, style: str) -> None:
    """The style of call ids is read from the model's name unless it is configured."""
    assert style_of(stated, name) == style


@pytest.mark.parametrize("id", ["call_1", "", "a__extra__", "a__extra__b", "a__extra__!!", "__extra__eyJhIjoxfQ"])
def test_an_id_carries_anything_and_gives_it_back(id: str) -> None:
    """Any id is restored from a sealed one with its content, and an id that isn't sealed stays as it is."""
    extra = {"google": {"thought_signature": "ä+/=" * 500}}
    assert unseal(seal(id, extra)) == (id, extra) and seal(id, None) == id
    assert all(sign.isalnum() or sign in "_-" for sign in seal("call_1", extra))
    if not id.endswith("eyJhIjoxfQ"):
        assert unseal(id) == (id, None)
