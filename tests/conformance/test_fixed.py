"""Answers that the scripted provider never gives, as the client of each API gets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.conformance.fixed import Json, completion, completion_events, fixed, message, message_events
from tests.conformance.test_surfaces import TURNS

NOTHING: Json = {"type": "object", "properties": {}, "additionalProperties": False, "required": []}
CHAT_TOOL = {"type": "function", "function": {"name": "now", "parameters": NOTHING, "strict": True}}
RESPONSES_TOOL = {"type": "function", "name": "now", "parameters": NOTHING, "strict": True}
MESSAGES_TOOL: Json = {"name": "now", "input_schema": NOTHING}
CALL: Json = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
TOOL_USE: Json = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}}


@pytest.mark.parametrize(
    ("block", "deltas", "wanted"),
    [
        (TOOL_USE, [], {}),
        (TOOL_USE, [{"type": "input_json_delta", "partial_json": ""}], {}),
        (TOOL_USE | {"input": None}, [], {}),
        (TOOL_USE | {"input": {"a": 1}}, [], {"a": 1}),
        (TOOL_USE, [{"type": "input_json_delta", "partial_json": '{"a":1}'}], {"a": 1}),
    ],
)
async def test_arguments_of_a_streamed_call_are_json(
    tmp_path: Path, block: Json, deltas: list[Json], wanted: Json
) -> None:
    """Anthropic streams nothing for a call without arguments; OpenAI's clients parse what they get, so it is `{}`."""
    async with fixed(tmp_path, "anthropic", message_events((block, deltas), stop="tool_use")) as home:
        sdk = home.sdk("openai")
        body: Json = {"model": "m", "messages": TURNS, "tools": [CHAT_TOOL]}
        _, chat = await sdk.helped("chat.completions.stream", "get_final_completion", **body)
        call = chat.choices[0].message.tool_calls[0].function
        assert (json.loads(call.arguments), call.parsed_arguments) == (wanted, wanted)
        body = {"model": "m", "input": "x", "tools": [RESPONSES_TOOL]}
        _, response = await sdk.helped("responses.stream", "get_final_response", **body)
        assert response.output[0].parsed_arguments == wanted
        assert (await sdk.do("responses.retrieve", response.id)).output[0].arguments == response.output[0].arguments


@pytest.mark.parametrize(
    ("finish", "stop"), [("tool_calls", "tool_use"), ("stop", "tool_use"), ("length", "max_tokens")]
)
async def test_a_forced_call_stops_for_its_tool(tmp_path: Path, finish: str, stop: str) -> None:
    """OpenAI ends a forced call with `stop`, and Anthropic's agents continue only after `tool_use`."""
    body: Json = {"model": "m", "max_tokens": 9, "messages": TURNS, "tools": [MESSAGES_TOOL]}
    async with fixed(tmp_path, "openai", completion(finish, tool_calls=[CALL])) as home:
        sdk = home.sdk("anthropic")
        whole = await sdk.do("messages.create", **body)
        home.answer = completion_events({"tool_calls": [CALL | {"index": 0}]}, finish=finish)
        _, final = await sdk.helped("messages.stream", "get_final_message", **body)
        assert whole.stop_reason == final.stop_reason == stop


async def test_no_tools_are_no_tools(tmp_path: Path) -> None:
    """The other APIs take an empty list of tools or stop sequences; chat refuses either, and a choice among none."""
    async with fixed(tmp_path, "openai", completion(content="ok")) as home:
        body: Json = {"model": "m", "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
        await home.sdk("openai").do("responses.create", input="x", **body)
        assert home.asked == {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        body = {"model": "m", "max_tokens": 9, "stop_sequences": [], "tools": [], "tool_choice": {"type": "auto"}}
        await home.sdk("anthropic").do("messages.create", messages=TURNS, **body)
        assert home.asked == {"model": "m", "messages": TURNS, "max_completion_tokens": 9}
        body = {"model": "m", "input": "x", "tool_choice": "required"}
        await home.sdk("openai").do("responses.create", **body)
        assert home.asked["tool_choice"] == "required"


async def test_a_prompt_is_read_into_the_cache_for_no_answer(tmp_path: Path) -> None:
    """`max_tokens=0` warms Anthropic's cache; an API that can't is not asked for a token of answer."""
    body: Json = {"model": "m", "max_tokens": 0, "messages": TURNS}
    async with fixed(tmp_path, "anthropic", message(stop="max_tokens")) as home:
        answer = await home.sdk("anthropic").do("messages.create", **body)
        assert (answer.content, answer.stop_reason, home.asked["max_tokens"]) == ([], "max_tokens", 0)
    async with fixed(tmp_path, "openai", completion(content="ok")) as home:
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            await home.sdk("anthropic").do("messages.create", **body)
        assert home.asked == {}


async def test_a_region_is_kept_or_refused(tmp_path: Path) -> None:
    """A request that is restricted to a region is refused by models that can't be."""
    body: Json = {"model": "m", "max_tokens": 9, "messages": TURNS}
    async with fixed(tmp_path, "openai", completion(content="ok")) as home:
        sdk = home.sdk("anthropic")
        with pytest.raises(anthropic.BadRequestError, match="inference_geo"):
            await sdk.do("messages.create", **body, inference_geo="us")
        assert home.asked == {}
        assert (await sdk.do("messages.create", **body, inference_geo="global")).content[0].text == "ok"


async def test_a_failed_tool_is_told_as_failed(tmp_path: Path) -> None:
    """`is_error` reaches, as text, a model whose API has no field for it."""
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no such city", "is_error": True}
    turns = [*TURNS, {"role": "assistant", "content": [TOOL_USE]}, {"role": "user", "content": [result]}]
    async with fixed(tmp_path, "openai", completion(content="ok")) as home:
        body: Json = {"model": "m", "max_tokens": 9, "messages": turns, "tools": [MESSAGES_TOOL]}
        await home.sdk("anthropic").do("messages.create", **body)
        wanted = {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: no such city"}
        assert home.asked["messages"][-1] == wanted


async def test_what_a_server_tool_found_is_not_forgotten(tmp_path: Path) -> None:
    """Blocks that another API can't represent are refused there, and not dropped."""
    found = [{"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {"query": "x"}},
             {"type": "web_search_tool_result", "tool_use_id": "s1", "content": []},
             {"type": "text", "text": "It is there."}]  # fmt: skip
    body: Json = {"model": "m", "max_tokens": 9}
    turns = [*TURNS, {"role": "assistant", "content": found}, *TURNS]
    async with fixed(tmp_path, "openai", completion(content="ok")) as home:
        with pytest.raises(anthropic.BadRequestError, match="server_tool_use"):
            await home.sdk("anthropic").do("messages.create", messages=turns, **body)
        assert home.asked == {}


OK = message({"type": "text", "text": "ok"})


async def test_a_forced_tool_is_called_without_thinking(tmp_path: Path) -> None:
    """Anthropic refuses thinking beside a forced tool; OpenAI's models take an effort with it."""
    body: Json = {"model": "m", "messages": TURNS, "tools": [CHAT_TOOL], "reasoning_effort": "high"}
    async with fixed(tmp_path, "anthropic", OK) as home:
        sdk = home.sdk("openai")
        for choice in ("required", {"type": "function", "function": {"name": "now"}}):
            await sdk.do("chat.completions.create", tool_choice=choice, **body)
            assert "thinking" not in home.asked and home.asked["output_config"] == {"effort": "high"}
        await sdk.do("chat.completions.create", tool_choice="auto", **body)
        assert home.asked["thinking"] == {"type": "adaptive"}


async def test_system_prompts_alone_are_a_question(tmp_path: Path) -> None:
    """OpenAI answers a chat of nothing but a system prompt; Anthropic needs a turn."""
    turns = [{"role": "system", "content": "Say hello."}, {"role": "developer", "content": "In French."}]
    async with fixed(tmp_path, "anthropic", OK) as home:
        await home.sdk("openai").do("chat.completions.create", model="m", messages=turns)
        assert home.asked["messages"] == [{"role": "user", "content": "Say hello.\n\nIn French."}]
        assert "system" not in home.asked


async def test_what_other_models_said_is_taken(tmp_path: Path) -> None:
    """White space before a call and other servers' ids are accepted, and refusals are passed on."""
    call = CALL | {"id": "functions.now:0"}
    turns = [*TURNS, {"role": "assistant", "content": "\n\n", "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "functions.now:0", "content": "noon"},
             {"role": "assistant", "content": None, "refusal": "I won't."}, *TURNS]  # fmt: skip
    async with fixed(tmp_path, "anthropic", OK) as home:
        await home.sdk("openai").do("chat.completions.create", model="m", messages=turns)
        _, called, result, refused, _ = home.asked["messages"]
        assert called["content"] == [TOOL_USE | {"id": "functions_now_0"}]
        assert result["content"][0]["tool_use_id"] == "functions_now_0"
        assert refused["content"] == [{"type": "text", "text": "I won't."}]


@pytest.mark.parametrize(("api", "kind"), [("chat", "anthropic"), ("responses", "openai")])
async def test_moderation_is_not_left_out(tmp_path: Path, api: str, kind: str) -> None:
    """A request for moderated answers is refused by models that can't moderate."""
    wanted = {"model": "omni-moderation-latest", "policy": {"output": {"mode": "block"}}}
    asked: Json = {"messages": TURNS} if api == "chat" else {"input": "x"}
    path = "chat.completions.create" if api == "chat" else "responses.create"
    async with fixed(tmp_path, kind, completion(content="ok") if kind == "openai" else OK) as home:
        with pytest.raises(openai.BadRequestError) as caught:
            await home.sdk("openai").do(path, model="m", moderation=wanted, **asked)
        assert caught.value.param == "moderation" and home.asked == {}


async def test_a_file_keeps_its_name(tmp_path: Path) -> None:
    """A text file is sent as text with its name; a file stored at OpenAI is refused by its type."""
    file = {"filename": "plan.pdf", "file_data": "data:application/pdf;base64,AAAA"}
    turns = [{"role": "user", "content": [{"type": "file", "file": file}]}]
    async with fixed(tmp_path, "anthropic", OK) as home:
        sdk = home.sdk("openai")
        await sdk.do("chat.completions.create", model="m", messages=turns)
        source = {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}
        assert home.asked["messages"][0]["content"] == [{"type": "document", "source": source, "title": "plan.pdf"}]
        note = {"filename": "a.md", "file_data": "data:text/markdown;base64,R3LDvMOfIEdvdHQ="}
        turns = [{"role": "user", "content": [{"type": "file", "file": note}]}]
        await sdk.do("chat.completions.create", model="m", messages=turns)
        source = {"type": "text", "media_type": "text/plain", "data": "Grüß Gott"}
        assert home.asked["messages"][0]["content"] == [{"type": "document", "source": source, "title": "a.md"}]
        turns = [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]
        with pytest.raises(openai.BadRequestError, match="type 'file'"):
            await sdk.do("chat.completions.create", model="m", messages=turns)


@pytest.mark.parametrize("limit", [64, 32_000])
async def test_an_answer_is_as_long_as_its_model_may_make_it(tmp_path: Path, limit: int) -> None:
    """Anthropic demands a limit: a chat without one gets the model's own, for which money is held."""
    async with fixed(tmp_path, "anthropic", OK, {"max_output_tokens": limit}) as home:
        sdk = home.sdk("openai")
        await sdk.do("chat.completions.create", model="m", messages=TURNS)
        assert home.asked["max_tokens"] == limit
        await sdk.do("chat.completions.create", model="m", messages=TURNS, max_completion_tokens=7)
        assert home.asked["max_tokens"] == 7


async def test_another_models_thinking_is_not_shown_to_anthropic(tmp_path: Path) -> None:
    """Unsigned thinking of other models is left out, since Anthropic would refuse it."""
    said = completion(content="Noon.", reasoning_content="It is twelve.")
    async with fixed(tmp_path / "a", "openai", said) as home:
        first = await home.sdk("anthropic").do("messages.create", model="m", max_tokens=9, messages=TURNS)
    assert [block.type for block in first.content] == ["thinking", "text"]
    own = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    turns = [*TURNS, {"role": "assistant", "content": first.content}, *TURNS,
             {"role": "assistant", "content": [own, {"type": "text", "text": "So."}]}, *TURNS]  # fmt: skip
    async with fixed(tmp_path / "b", "anthropic", OK | {"input_tokens": 7}) as home:
        sdk = home.sdk("anthropic")
        await sdk.do("messages.create", model="m", max_tokens=9, messages=turns)
        spoken = [turn["content"] for turn in home.asked["messages"] if turn["role"] == "assistant"]
        assert spoken == [[{"type": "text", "text": "Noon."}], [own, {"type": "text", "text": "So."}]]
        assert (await sdk.do("messages.count_tokens", model="m", messages=turns)).input_tokens == 7
        assert "twelve" not in str(home.asked)


async def test_a_tools_picture_reaches_the_model(tmp_path: Path) -> None:
    """A response's tools may answer with an image, and Anthropic's; chat's only in text, so there the user shows it."""
    items: list[Json] = [{"role": "user", "content": "look"}]
    for id in ("call_1", "call_2"):
        items.append({"type": "function_call", "call_id": id, "name": "now", "arguments": "{}"})
    for id in ("call_1", "call_2"):
        output = [{"type": "input_text", "text": id}, {"type": "input_image", "image_url": f"https://x.test/{id}"}]
        items.append({"type": "function_call_output", "call_id": id, "output": output})
    items.append({"role": "user", "content": "so?"})
    async with fixed(tmp_path / "a", "openai", completion(content="ok")) as home:
        await home.sdk("openai").do("responses.create", model="m", input=items)
        assert [turn["role"] for turn in home.asked["messages"]] == [
            "user", "assistant", "tool", "tool", "user", "user"]  # fmt: skip
        assert [turn["content"] for turn in home.asked["messages"][2:4]] == ["call_1", "call_2"]
        urls = [part["image_url"]["url"] for part in home.asked["messages"][4]["content"]]
        assert urls == ["https://x.test/call_1", "https://x.test/call_2"]
    async with fixed(tmp_path / "b", "anthropic", OK) as home:
        await home.sdk("openai").do("responses.create", model="m", input=items)
        results = home.asked["messages"][2]["content"][:2]
        assert [[part["type"] for part in result["content"]] for result in results] == [["text", "image"]] * 2


class Place(BaseModel):
    city: str
    country: str = ""


async def test_a_property_may_be_absent(tmp_path: Path) -> None:
    """Anthropic's schemas may leave a property open; OpenAI refuses such a one as strict, so it isn't called strict."""
    tool: Json = {"name": "go", "strict": True, "input_schema": Place.model_json_schema()}
    async with fixed(tmp_path, "openai", completion(content='{"city":"Bern"}')) as home:
        sdk = home.sdk("anthropic")
        body: Json = {"model": "m", "max_tokens": 99, "messages": TURNS}
        answer = await sdk.do("messages.parse", output_format=Place, tools=[tool], **body)
        assert answer.parsed_output == Place(city="Bern")
        assert home.asked["response_format"]["json_schema"]["strict"] is False
        assert home.asked["tools"][0]["function"]["strict"] is False
        closed = {**NOTHING, "properties": {"city": {"type": "string"}}, "required": ["city"]}
        config = {"format": {"type": "json_schema", "schema": closed}}
        await sdk.do("messages.create", output_config=config, tools=[tool | {"input_schema": closed}], **body)
        assert home.asked["response_format"]["json_schema"]["strict"] is True
        assert home.asked["tools"][0]["function"]["strict"] is True


async def test_a_document_with_what_is_said_of_it(tmp_path: Path) -> None:
    """A document's title and context reach a chat model; citations, which it can't make, are refused."""
    text = {"type": "text", "media_type": "text/plain", "data": "All is well."}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}
    said = {"title": "Letter", "context": "From 1914."}
    content = [{"type": "document", "source": source, **said} for source in (text, pdf)]
    body: Json = {"model": "m", "max_tokens": 9}
    async with fixed(tmp_path, "openai", completion(content="ok")) as home:
        sdk = home.sdk("anthropic")
        await sdk.do("messages.create", messages=[{"role": "user", "content": content}], **body)
        parts = home.asked["messages"][0]["content"]
        assert [part.get("text") for part in parts] == ["Letter", "From 1914.", "All is well.", "From 1914.", None]
        assert parts[-1]["file"]["filename"] == "Letter"
        cited = [{**content[0], "citations": {"enabled": True}}]
        with pytest.raises(anthropic.BadRequestError, match="cite"):
            await sdk.do("messages.create", messages=[{"role": "user", "content": cited}], **body)


async def test_what_was_found_reaches_a_chat_model(tmp_path: Path) -> None:
    """Search results, and a document in blocks, are given as text: what a tool found stands in its answer. What cannot
    be given is refused by its source.
    """
    found = {"type": "search_result", "source": "https://a.test", "title": "Rain", "content": [text("Wet in Bern.")]}
    pixel = {"type": "image", "source": {"type": "url", "url": "https://a.test/1.png"}}
    blocks = {"type": "document", "source": {"type": "content", "content": [text("Page 1."), pixel]}, "title": "Log"}
    plain = {"type": "document", "source": {"type": "content", "content": "All of it."}}
    turns = [
        {"role": "user", "content": [blocks, plain, found]},
        {"role": "assistant", "content": [TOOL_USE]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": [found, pixel]}]},
    ]
    body: Json = {"model": "m", "max_tokens": 9}
    async with fixed(tmp_path, "openai", completion(content="ok")) as home:
        sdk = home.sdk("anthropic")
        await sdk.do("messages.create", messages=turns, tools=[MESSAGES_TOOL], **body)
        first, _, result, shown = home.asked["messages"]
        picture = {"type": "image_url", "image_url": {"url": "https://a.test/1.png"}}
        said = ("Rain", "https://a.test", "Wet in Bern.")
        assert first["content"] == [text("Log"), text("Page 1."), picture, text("All of it."), *map(text, said)]
        assert (result["role"], result["content"], shown["content"]) == ("tool", "\n".join(said), [picture])
        cited = [{"role": "user", "content": [found | {"citations": {"enabled": True}}]}]
        with pytest.raises(anthropic.BadRequestError, match="cite"):
            await sdk.do("messages.create", messages=cited, **body)
        kept = [{"type": "image", "source": {"type": "file", "file_id": "file_1"}}]
        with pytest.raises(anthropic.BadRequestError, match="'image' with a source of type 'file'"):
            await sdk.do("messages.create", messages=[{"role": "user", "content": kept}], **body)


def text(said: str) -> Json:
    return {"type": "text", "text": said}


async def test_a_file_by_its_address(tmp_path: Path) -> None:
    """A response's file reaches Claude by its URL; a chat model, whose API takes none, refuses it."""
    file = {"type": "input_file", "file_url": "https://a.test/plan.pdf", "filename": "plan.pdf"}
    asked: Json = {"model": "m", "input": [{"role": "user", "content": [file]}]}
    async with fixed(tmp_path, "anthropic", OK) as home:
        await home.sdk("openai").do("responses.create", **asked)
        source = {"type": "url", "url": "https://a.test/plan.pdf"}
        assert home.asked["messages"][0]["content"] == [{"type": "document", "source": source, "title": "plan.pdf"}]
    async with fixed(tmp_path / "chat", "openai", completion(content="ok")) as home:
        with pytest.raises(openai.BadRequestError, match="by its URL"):
            await home.sdk("openai").do("responses.create", **asked)
        assert home.asked == {}


async def test_anthropics_own_words_in_a_chat(tmp_path: Path) -> None:
    """Anthropic's fields for thinking and caching, sent by OpenAI's client, reach Anthropic unchanged."""
    mark = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    thinking = {"type": "enabled", "budget_tokens": 2000}
    turns = [{"role": "system", "content": [{"type": "text", "text": "Be brief.", **mark}]},
             {"role": "user", "content": [{"type": "text", "text": "Hi.", **mark}]}]  # fmt: skip
    async with fixed(tmp_path, "anthropic", OK) as home:
        sdk = home.sdk("openai")
        body: Json = {"model": "m", "messages": turns, "tools": [CHAT_TOOL | mark]}
        await sdk.do("chat.completions.create", **body, extra_body={"thinking": thinking})
        assert home.asked["thinking"] == thinking and home.asked["tools"][0]["cache_control"] == mark["cache_control"]
        assert home.asked["system"] == turns[0]["content"]
        assert home.asked["messages"][0]["content"] == turns[1]["content"]


async def test_a_call_is_answered_behind_what_was_said_with_it(tmp_path: Path) -> None:
    """A response may say something after its call; in chat both are one turn, as the call's answer must come next."""
    items: list[Json] = [{"role": "user", "content": "x"},
                         {"type": "function_call", "call_id": "call_1", "name": "now", "arguments": "{}"},
                         {"role": "assistant", "content": [{"type": "output_text", "text": "One moment."}]},
                         {"type": "function_call_output", "call_id": "call_1", "output": "noon"}]  # fmt: skip
    async with fixed(tmp_path, "openai", completion(content="ok")) as home:
        await home.sdk("openai").do("responses.create", model="m", input=items)
        _, said, answered = home.asked["messages"]
        assert (said["content"], len(said["tool_calls"])) == ("One moment.", 1)
        assert (answered["role"], answered["content"]) == ("tool", "noon")


@pytest.mark.parametrize("user", ["u-1", "ada@example.org", '{"device_id":"' + "a" * 64 + '","session_id":"b"}'])
async def test_a_users_name_is_one_that_the_other_api_takes(tmp_path: Path, user: str) -> None:
    """Names that are too long for OpenAI, and e-mail addresses, which Anthropic refuses, are hashed."""
    async with fixed(tmp_path / "a", "openai", completion(content="ok")) as home:
        body: Json = {"model": "m", "max_tokens": 9, "messages": TURNS, "metadata": {"user_id": user}}
        await home.sdk("anthropic").do("messages.create", **body)
        named = home.asked["user"]
    async with fixed(tmp_path / "b", "anthropic", OK) as home:
        await home.sdk("openai").do("chat.completions.create", model="m", messages=TURNS, user=user)
        assert home.asked["metadata"] == {"user_id": named}
    assert named == user if user == "u-1" else re.fullmatch("[0-9a-f]{64}", named)


async def test_thinking_that_nobody_is_shown_may_be_cleared(tmp_path: Path) -> None:
    """Agents ask Anthropic to clear old thinking, of which a chat model is shown none; other edits are refused."""
    body: Json = {"model": "m", "max_tokens": 9, "messages": TURNS}
    edits = [{"type": "clear_thinking_20251015", "keep": "all"}]
    async with fixed(tmp_path, "openai", completion(content="ok")) as home:
        create = home.sdk("anthropic").client.beta.messages.create
        assert (await create(**body, context_management={"edits": edits})).content[0].text == "ok"
        edits = [*edits, {"type": "clear_tool_uses_20250919"}]
        with pytest.raises(anthropic.BadRequestError, match="clear_tool_uses"):
            await create(**body, context_management={"edits": edits})


async def test_a_stop_at_white_space_is_left_to_models_that_can(tmp_path: Path) -> None:
    """Anthropic refuses it, so a route tries its next model, and a pinned model is an error."""
    routes = [{"name": "r", "models": ["m"], "fallback": ["echo"], "router": "cheapest"}]
    more = [{"name": "echo", "provider": "up"}]
    async with fixed(tmp_path, "anthropic", OK, routes=routes, more=more) as home:
        sdk = home.sdk("openai")
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.do("chat.completions.create", model="m", messages=TURNS, stop=["\n"])
        assert (caught.value.param, caught.value.code) == ("stop", "unsupported_parameter")
        answer = await sdk.do("chat.completions.create", model="r", messages=TURNS, stop=["\n"])
        assert answer.choices[0].message.content == TURNS[0]["content"] and home.asked == {}


async def test_a_servers_own_way_to_call(tmp_path: Path) -> None:
    """Arguments as an object, and calls without an id, are translated for the other APIs, streamed and not."""
    call: Json = {"function": {"name": "now", "arguments": {"a": 1}}}
    async with fixed(tmp_path, "openai", completion("tool_calls", tool_calls=[call])) as home:
        for streamed in (False, True):
            if streamed:
                home.answer = completion_events({"tool_calls": [call]}, finish="tool_calls")
            said: Json = {"model": "m", "max_tokens": 9, "messages": TURNS, "stream": streamed}
            message = await home.sdk("anthropic").do("messages.create", **said)
            if streamed:
                starts = [event.content_block async for event in message if event.type == "content_block_start"]
                assert starts[0].id.startswith("toolu_")
            else:
                assert message.content[0].id.startswith("toolu_") and message.content[0].input == {"a": 1}
            response = await home.sdk("openai").do("responses.create", model="m", input="x", stream=streamed)
            if streamed:
                response = [event async for event in response][-1].response
            assert response.output[0].call_id.startswith("call_") and response.output[0].arguments == '{"a":1}'


async def test_custom_tools_of_chat_pass(tmp_path: Path) -> None:
    """Where the provider speaks the client's own API, a kind of tool that the gateway doesn't know is its business."""
    call: Json = {"id": "call_1", "type": "custom", "custom": {"name": "code", "input": "print(1)"}}
    tools: list[Json] = [{"type": "custom", "custom": {"name": "code", "description": "runs code"}}]
    choice: Json = {"type": "custom", "custom": {"name": "code"}}
    body: Json = {"model": "m", "messages": TURNS, "tools": tools, "tool_choice": choice}
    async with fixed(tmp_path, "openai", completion(tool_calls=[call], content=None)) as home:
        whole = await home.sdk("openai").do("chat.completions.create", **body)
        assert whole.choices[0].message.tool_calls[0].to_dict() == call
        assert home.asked == body
        home.answer = completion_events({"tool_calls": [{"index": 0, **call}]})
        events = await home.sdk("openai").events("chat.completions.create", stream=True, **body)
        assert events[0].to_dict()["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **call}]


async def test_the_service_tier_that_served_is_told(tmp_path: Path) -> None:
    """The answer has the upstream's service tier, whatever was requested, or none where it reports none."""
    body: Json = {"model": "m", "input": "x", "service_tier": "priority"}
    streamed = [event | {"service_tier": "default"} for event in completion_events({"content": "ok"})]
    async with fixed(tmp_path, "openai", completion(content="ok") | {"service_tier": "default"}) as home:
        sdk = home.sdk("openai")
        assert (await sdk.do("responses.create", **body)).service_tier == "default"
        assert home.asked["service_tier"] == "priority"
        home.answer = streamed
        events = await sdk.events("responses.create", **body, stream=True)
        assert (events[0].response.service_tier, events[-1].response.service_tier) == ("priority", "default")
        assert (await sdk.do("responses.retrieve", events[-1].response.id)).service_tier == "default"
        home.answer = completion(content="ok")
        assert (await sdk.do("responses.create", **body)).service_tier is None
