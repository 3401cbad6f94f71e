"""Upstreams that serve the Responses API themselves: their own features, and conversations that change upstreams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.batch.execute import shipping
from gateway.journal.store import open_store
from tests.conformance.fixed import Json, fixed
from tests.conformance.house import House, house
from tests.gateway.batch.made import open_jobs

SEARCH = [{"type": "web_search"}]
SEALED = "reasoning.encrypted_content"


def last_body(home: House) -> dict[str, Any]:
    """The last body that an upstream received."""
    body: dict[str, Any] = json.loads(home.last["body"])
    return body


@pytest.mark.parametrize("kind", ["native", "azure-native"])
async def test_a_built_in_tool_is_the_upstreams_own(home: House, kind: str) -> None:
    """A hosted tool is requested as the client did, its events are streamed, and its items are stored."""
    sdk = home.sdk("openai")
    ask: dict[str, Any] = {"model": f"{kind}/echo", "input": "news?", "tools": SEARCH}
    whole = await sdk.do("responses.create", **ask)
    assert [item.type for item in whole.output] == ["web_search_call", "message"] and whole.output_text == "news?"
    assert last_body(home)["tools"] == SEARCH and last_body(home)["store"] is False
    assert whole.store is None or whole.store is True
    events = await sdk.events("responses.create", **ask, stream=True)
    assert "response.web_search_call.searching" in [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == "news?"
    kept = await sdk.do("responses.retrieve", events[-1].response.id)
    assert kept.to_dict() == events[-1].response.to_dict()
    again = await sdk.events("responses.retrieve", response_id=kept.id, stream=True)
    assert again[-1].response.to_dict() == kept.to_dict()
    path = "/azure/openai/responses?api-version=2025-03-01-preview" if kind == "azure-native" else "/v1/responses"
    assert home.last["path"].endswith(path)
    record = await home.gateway.decision(kept.id)
    assert record.response_id == kept.id and record.attempts[0].usage["output"] == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_conversation_moves_between_kinds_of_upstream(home: House, streamed: bool) -> None:
    """Reasoning goes along where it can be read, every upstream gets all turns, and none is asked to store them."""
    sdk = home.sdk("openai")

    async def turn(model: str, said: str, **more: Any) -> Any:
        return await sdk.responded(streamed, model=model, input=said, **more)

    thinks = {"reasoning": {"effort": "low"}}
    first = await turn("native/echo", "one", **thinks, tools=SEARCH)
    assert last_body(home)["include"] == [SEALED]
    second = await turn("native/echo", "two", **thinks, previous_response_id=first.id)
    sent = last_body(home)
    assert "previous_response_id" not in sent and second.previous_response_id == first.id
    kinds = [item.get("type", "message") for item in sent["input"]]
    assert kinds == ["message", "reasoning", "web_search_call", "message", "message"]
    assert sent["input"][1]["encrypted_content"].startswith("sealed-")
    third = await turn("openai/echo", "three", previous_response_id=second.id)
    assert [message["role"] for message in last_body(home)["messages"]] == ["user", "assistant"] * 2 + ["user"]
    fourth = await turn("anthropic/echo", "four", previous_response_id=third.id)
    fifth = await turn("native/echo", "five", previous_response_id=fourth.id)
    assert fifth.output_text == "five" and len(last_body(home)["input"]) == 12


async def test_thoughts_that_were_not_sealed_stay_behind(home: House) -> None:
    """Reasoning that isn't encrypted is left out, and the upstream accepts the turn without it."""
    sdk = home.sdk("openai")
    first = await sdk.do("responses.create", model="native/echo", input="one", reasoning={"effort": "low"}, store=False)
    assert "include" not in last_body(home) and [item.type for item in first.output] == ["reasoning", "message"]
    output = [item.to_dict() for item in first.output]
    turns = [{"role": "user", "content": "one"}, *output, {"role": "user", "content": "two"}]
    second = await sdk.do("responses.create", model="native/echo", input=turns)
    roles = [item.get("role") for item in last_body(home)["input"]]
    assert second.output_text == "two" and roles == ["user", "assistant", "user"]


async def test_an_upstreams_items_are_referred_to_and_deleted(home: House) -> None:
    """Items can be referred to by the upstream's ids while their response is stored."""
    sdk = home.sdk("openai")
    first = await sdk.do("responses.create", model="native/echo", input="one", tools=SEARCH)
    named = [{"type": "item_reference", "id": item.id} for item in first.output]
    turns = [{"role": "user", "content": "one"}, *named, {"role": "user", "content": "two"}]
    await sdk.do("responses.create", model="native/echo", input=turns)
    assert [item["id"] for item in last_body(home)["input"][1:3]] == [item.id for item in first.output]
    await sdk.do("responses.delete", first.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.do("responses.create", model="native/echo", input=turns)


async def test_what_only_one_model_can_do_is_done_by_that_one(tmp_path: Path) -> None:
    """If a route's cheapest model has no built-in tools, another one answers."""
    route = {"name": "both", "models": ["openai/echo", "native/echo"], "router": "cheapest"}
    async with house(tmp_path, kinds=("openai", "native"), routes=[route]) as home:
        sdk = home.sdk("openai")
        plain = await sdk.do("responses.with_raw_response.create", model="both", input="x")
        assert plain.headers["x-headgate-model"] == "openai/echo"
        search = await sdk.do("responses.with_raw_response.create", model="both", input="x", tools=SEARCH)
        assert search.headers["x-headgate-model"] == "native/echo"
        with pytest.raises(openai.BadRequestError, match="no built-in tool 'web_search'"):
            await sdk.do("responses.create", model="openai/echo", input="x", tools=SEARCH)


async def test_a_cascade_reads_log_probabilities_where_they_are(tmp_path: Path) -> None:
    """A cascade by confidence uses chat, which has log-probabilities, and the client still gets a response."""
    models = [{"name": name, "provider": "own", "logprobs": True, "output_usd_per_mtok": usd}
              for name, usd in (("echo", 1), ("long", 9))]  # fmt: skip
    route = {"name": "sure", "models": ["echo", "long"], "cascade": "confidence", "accept_at": 0.5}
    async with house(tmp_path, kinds=(), more=models, routes=[route]) as home:
        made = await home.sdk("openai").do("responses.create", model="sure", input="hello")
        assert made.output_text == "hello" and home.last["path"] == "/v1/chat/completions"


def simple_response(text: str) -> Json:
    """The answer of an upstream that gives every response and item the same id."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]}
    return {"id": "resp_1", "object": "response", "created_at": 1, "model": "up", "status": "completed",
            "output": [item], "usage": {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}}  # fmt: skip


def events_of(response: Json) -> list[Json]:
    begun = {**response, "status": "in_progress", "output": []}
    return [{"type": "response.created", "sequence_number": 0, "response": begun},
            {"type": "response.output_text.delta", "sequence_number": 1, "item_id": "msg_1", "output_index": 0,
             "content_index": 0, "delta": response["output"][0]["content"][0]["text"], "logprobs": []},
            {"type": "response.completed", "sequence_number": 2, "response": response}]  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
async def test_responses_that_an_upstream_calls_the_same_are_kept_apart(tmp_path: Path, streamed: bool) -> None:
    """Each tenant has its own, whole, under an id that nobody else's has; of others' it can't do anything. An item of
    theirs is the tenant's last of that id, or the one of the conversation that goes on.
    """
    auth = {"keys": [{"name": name, "key": f"hg-{name}", "tenant": name} for name in ("a", "b", "c")]}
    async with fixed(tmp_path, "openai", b"", provider={"responses": True}, auth=auth) as home:
        sdks = {name: home.sdk("openai", api_key=f"hg-{name}") for name in ("a", "b")}
        ids: dict[str, list[str]] = {"a": [], "b": []}
        for turn in ("one", "two"):
            for name, sdk in sdks.items():
                said = simple_response(f"{turn} of {name}")
                home.answer = events_of(said) if streamed else said
                told = await sdk.responded(streamed, model="m", input=f"{turn} to {name}")
                ids[name].append(told.id)
        assert len({*ids["a"], *ids["b"], "resp_1"}) == 5
        for name, other in (("a", "b"), ("b", "a")):
            sdk = sdks[name]
            for id in (*ids[other], "resp_1"):
                for call in ("retrieve", "delete", "cancel"):
                    with pytest.raises(openai.NotFoundError):
                        await sdk.do(f"responses.{call}", id)
                with pytest.raises(openai.BadRequestError, match="not found"):
                    await sdk.do("responses.create", model="m", input="go on", previous_response_id=id)
        assert home.gateway is not None
        for name, sdk in sdks.items():
            for before, meant in ((None, "two"), (ids[name][0], "one")):
                home.answer = events_of(said) if streamed else said
                more: Any = {"previous_response_id": before} if before else {}
                named: Any = [{"type": "item_reference", "id": "msg_1"}]
                await sdk.responded(streamed, model="m", input=named, store=False, **more)
                assert home.asked["input"][-1]["content"][0]["text"] == f"{meant} of {name}"
        stranger = home.sdk("openai", api_key="hg-c")
        with pytest.raises(openai.NotFoundError, match="msg_1"):
            await stranger.do("responses.create", model="m", input=named)
        for name, sdk in sdks.items():
            for turn, id in zip(("one", "two"), ids[name], strict=True):
                kept = await sdk.do("responses.retrieve", id)
                assert kept.output_text == f"{turn} of {name}" and kept.id == id
            said = simple_response(f"three of {name}")
            home.answer = events_of(said) if streamed else said
            told = await sdk.responded(streamed, model="m", input="go on", previous_response_id=ids[name][0])
            ids[name].append(told.id)
            assert [item["content"] for item in home.asked["input"] if item["role"] == "user"] == [
                f"one to {name}", "go on",
            ]  # fmt: skip
            assert home.gateway is not None
            record = await home.gateway.decision(ids[name][0])
            assert (record.response_id, record.tenant) == (ids[name][0], name)
        for name, sdk in sdks.items():
            for id, gone in ((ids[name][1], False), (ids[name][2], True)):
                await sdk.do("responses.delete", id)
                home.answer = events_of(said) if streamed else said
                if gone:
                    with pytest.raises(openai.NotFoundError, match="msg_1"):
                        await sdk.do("responses.create", model="m", input=named, store=False)
                else:
                    await sdk.responded(streamed, model="m", input=named, store=False)
                    assert home.asked["input"][-1]["content"][0]["text"] == f"three of {name}"


async def test_items_that_an_upstream_calls_the_same_are_all_in_the_database(tmp_path: Path) -> None:
    """Each tenant's items are stored, whichever came first."""
    auth = {"keys": [{"name": name, "key": f"hg-{name}", "tenant": name} for name in ("a", "b")]}
    async with fixed(tmp_path, "openai", b"", provider={"responses": True}, auth=auth) as home:
        assert home.gateway is not None
        services = home.gateway.services
        for name in ("a", "b"):
            home.answer = simple_response(f"said to {name}")
            await home.sdk("openai", api_key=f"hg-{name}").do("responses.create", model="m", input="x")
        async with shipping(services.spool_dir, open_jobs(services).engine):
            await services.spool.sync()
        store = open_store(str(services.config.storage.url))
        for name in ("a", "b"):
            kept = store.response(f"item:{name}\nmsg_1", name)
            assert kept is not None and f"said to {name}".encode() in kept.output
