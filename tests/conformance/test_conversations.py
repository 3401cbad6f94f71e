"""Conversations: stored under an id, extended by responses, the same at every worker."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gateway.journal.conversations import Conversations
from gateway.journal.retention import forget_old
from tests.conformance.clients import MODES, Sdk
from tests.conformance.house import House, house
from tests.conformance.test_background import SLOW, ended
from tests.conformance.test_surfaces import RESPONSES_TOOLS
from tests.live import live


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def texts(items: list[Any]) -> list[str]:
    return [item.content[0].text for item in items]


@pytest.mark.parametrize("mode", MODES)
async def test_life_of_a_conversation(home: House, mode: str) -> None:
    """Created with items, described anew, added to, read in pages, an item taken out, deleted, and then gone."""
    sdk = home.sdk("openai", mode)
    made = await sdk.do("conversations.create", items=[user("one"), {"role": "assistant", "content": "two"}],
                        metadata={"a": "b"})  # fmt: skip
    assert made.object == "conversation" and made.metadata == {"a": "b"} and made.created_at > 0
    assert await sdk.do("conversations.retrieve", made.id) == made
    changed = await sdk.do("conversations.update", made.id, metadata={"c": "d"})
    assert (changed.id, changed.metadata) == (made.id, {"c": "d"})
    added = await sdk.do("conversations.items.create", made.id, items=[user("three"), user("four")])
    assert texts(added.data) == ["three", "four"] and not added.has_more
    assert {item.status for item in added.data} == {"completed"} and added.data[0].content[0].type == "input_text"
    page = await sdk.do("conversations.items.list", made.id, limit=3)
    assert texts(page.data) == ["four", "three", "two"] and page.has_more
    rest = await sdk.do("conversations.items.list", made.id, after=page.data[-1].id)
    assert texts(rest.data) == ["one"] and not rest.has_more
    oldest = await sdk.do("conversations.items.list", made.id, order="asc", limit=1)
    assert oldest.data == rest.data
    item = await sdk.do("conversations.items.retrieve", added.data[0].id, conversation_id=made.id)
    assert item == added.data[0]
    left = await sdk.do("conversations.items.delete", item.id, conversation_id=made.id)
    assert left == changed
    with pytest.raises(openai.NotFoundError):
        await sdk.do("conversations.items.retrieve", item.id, conversation_id=made.id)
    gone = await sdk.do("conversations.delete", made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "conversation.deleted", True)
    for path in ("conversations.retrieve", "conversations.delete", "conversations.items.list"):
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.do(path, made.id)
        assert made.id in caught.value.message and caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["openai", "anthropic", "native"])
async def test_responses_of_a_conversation(home: House, kind: str, streamed: bool) -> None:
    """Each response gets all earlier items, including tool calls and results, and adds its own input and output."""
    sdk = home.sdk("openai")
    made = await sdk.do("conversations.create", items=[user("my name is Ada")])
    ask: dict[str, Any] = {"conversation": made.id, "tools": RESPONSES_TOOLS}
    first = await sdk.responded(streamed, model=f"{kind}/says", input="look", **ask)
    assert first.conversation.id == made.id and first.previous_response_id is None
    call = next(item for item in first.output if item.type == "function_call")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    ask["conversation"] = {"id": made.id}
    await sdk.responded(streamed, model=f"{kind}/echo", input=[result, user("who am I?")], **ask)
    sent = home.last["body"]
    assert all(word in sent for word in ("my name is Ada", "look", "Let me look.", call.call_id, "rain", "who am I?"))
    assert made.id not in sent
    items = (await sdk.do("conversations.items.list", made.id, order="asc")).data
    kinds = ["message", "message", "message", "function_call", "function_call_output", "message", "message"]
    assert [item.type for item in items] == kinds and items[2].id == first.output[0].id
    assert (await sdk.do("responses.retrieve", first.id)).conversation.id == made.id
    told = await sdk.do("responses.input_items.list", first.id, order="asc")
    assert texts(told.data) == ["my name is Ada", "look"]


async def test_a_turn_after_a_response_of_a_conversation(home: House) -> None:
    """It continues from that response without changing the conversation, even after the conversation is deleted."""
    sdk = home.sdk("openai")
    made = await sdk.do("conversations.create", items=[user("one")])
    first = await sdk.do("responses.create", model="openai/echo", input="two", conversation=made.id)
    aside = await sdk.do("responses.create", model="openai/echo", input="three", previous_response_id=first.id)
    assert len((await sdk.do("conversations.items.list", made.id)).data) == 3
    await sdk.do("conversations.delete", made.id)
    for item in ("four", "five"):
        ask = {"model": "openai/echo", "input": item, "previous_response_id": aside.id}
        aside = await sdk.do("responses.create", **ask)
    told = [turn["content"] for turn in json.loads(home.last["body"])["messages"] if turn["role"] == "user"]
    assert [one if isinstance(one, str) else one[0]["text"] for one in told] == ["one", "two", "three", "four", "five"]
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.do("responses.create", model="openai/echo", input="x", conversation=made.id)
    assert caught.value.param == "conversation"


async def test_items_of_a_conversation_may_be_named(home: House) -> None:
    """Items can be referred to by a response, and copied into another conversation."""
    sdk = home.sdk("openai")
    made = await sdk.do("conversations.create", items=[user("remember me")])
    (item,) = (await sdk.do("conversations.items.list", made.id)).data
    said = await sdk.do("responses.create", model="openai/echo", conversation=made.id,
                        input=[{"type": "item_reference", "id": item.id}])  # fmt: skip
    assert home.last["body"].count("remember me") == 2
    named = {"type": "item_reference", "id": said.output[0].id}
    other = await sdk.do("conversations.create", items=[named])
    assert texts((await sdk.do("conversations.items.list", other.id)).data) == ["remember me"]
    with pytest.raises(openai.NotFoundError):
        await sdk.do("conversations.items.create", other.id, items=[{"type": "item_reference", "id": "msg_none"}])


async def test_what_a_conversation_can_not_be(home: House) -> None:
    """Invalid requests are refused in the API's form, with the parameter's name."""
    sdk = home.sdk("openai")
    made = await sdk.do("conversations.create")
    for path, more, param in (
        ("conversations.create", {"metadata": {"a": "x" * 513}}, "metadata"),
        ("conversations.create", {"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ("conversations.create", {"items": [user("x")] * 21}, "items"),
        ("conversations.create", {"items": [{"type": "message", "role": "user"}]}, "items[0]"),
        ("responses.create", {"model": "openai/echo", "input": "x", "conversation": 7}, "conversation"),
        ("responses.create", {"model": "openai/echo", "input": "x", "conversation": {"name": "x"}}, "conversation"),
        ("conversations.create", {"items": [{"type": 7}]}, "items[0]"),
        ("responses.create", {"model": "openai/echo", "input": "x", "conversation": made.id,
                              "previous_response_id": "resp_1"}, "conversation"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.do(path, **more)
        assert caught.value.param == param, more
    for path, more in (("conversations.items.create", {"items": []}), ("conversations.items.list", {"after": "nope"})):
        with pytest.raises(openai.BadRequestError):
            await sdk.do(path, made.id, **more)
    requests = home.requests
    with pytest.raises(openai.NotFoundError):
        await sdk.do("responses.create", model="openai/echo", input="x", conversation="conv_none")
    assert home.requests == requests


async def test_no_tenant_sees_anothers(tmp_path: Path) -> None:
    """Another tenant can't read, extend or continue it, and nothing is charged to the owner's budget."""
    keys = [{"name": name, "key": f"hg-{name}", "tenant": name} for name in ("a", "b")]
    async with house(tmp_path, kinds=("openai",), auth={"keys": keys}) as home:
        mine, other = home.sdk("openai", api_key="hg-a"), home.sdk("openai", api_key="hg-b")
        made = await mine.do("conversations.create", items=[user("secret")])
        (item,) = (await mine.do("conversations.items.list", made.id)).data
        for path, more in (
            ("conversations.retrieve", {}), ("conversations.update", {"metadata": {}}), ("conversations.delete", {}),
            ("conversations.items.list", {}), ("conversations.items.create", {"items": [user("x")]}),
        ):  # fmt: skip
            with pytest.raises(openai.NotFoundError):
                await other.do(path, made.id, **more)
        for path in ("conversations.items.retrieve", "conversations.items.delete"):
            with pytest.raises(openai.NotFoundError):
                await other.do(path, item.id, conversation_id=made.id)
        with pytest.raises(openai.NotFoundError):
            await other.do("responses.create", model="openai/echo", input="x", conversation=made.id)
        assert texts((await mine.do("conversations.items.list", made.id)).data) == ["secret"]
        async with httpx.AsyncClient(base_url=home.url) as client:
            assert (await client.get(f"/v1/conversations/{made.id}")).status_code == 401


async def test_whichever_worker_is_asked(tmp_path: Path) -> None:
    """The next turn has the last one at any worker, even if a worker dies, and concurrent turns are all stored."""
    async with live(tmp_path) as one, live(tmp_path) as two:
        here, there = Sdk("openai", "async", one.url), Sdk("openai", "async", two.url)
        made = await here.do("conversations.create")
        for number, sdk in enumerate((here, there, here)):
            await sdk.do("responses.create", model="echo", input=f"turn {number}", conversation=made.id)
        assert two.upstream.seen.requests == 1
        sent = json.loads(one.upstream.seen.recent[-1]["body"])["messages"]
        assert [turn["content"] for turn in sent if turn["role"] == "user"] == ["turn 0", "turn 1", "turn 2"]
        asks = [sdk.do("responses.create", model="echo", input=f"at once {n}", conversation=made.id)
                for n, sdk in enumerate([here, there] * 4)]  # fmt: skip
        await asyncio.gather(*asks)
        said = texts((await here.do("conversations.items.list", made.id, order="asc", limit=100)).data)[6:]
        assert len(said) == 16 and said[::2] == said[1::2] and len(set(said)) == 8
        await here.close()
        await there.close()


async def test_another_worker_continues_a_response_of_a_conversation(tmp_path: Path) -> None:
    """Its earlier items are those that the conversation had then, also after the conversation is deleted, less those
    that were deleted; without any of them it can't be continued. What continued it before has all of them.
    """
    async with live(tmp_path) as one, live(tmp_path) as two:
        here, there = Sdk("openai", "async", one.url), Sdk("openai", "async", two.url)
        made = await here.do("conversations.create", items=[user("one"), user("two")])
        alone = await here.do("conversations.create", items=[user("only")])
        empty = await here.do("conversations.create")
        ask: dict[str, Any] = {"model": "echo", "input": "three"}
        said = await here.do("responses.create", **ask, conversation=made.id)
        lost = await here.do("responses.create", **ask, conversation=alone.id)
        first = await here.do("responses.create", **ask, conversation=empty.id)
        await here.do("responses.create", model="echo", input="later", conversation=made.id)
        second = await here.do("responses.create", **ask, conversation=alone.id)
        aside = await there.do("responses.create", model="echo", input="aside", previous_response_id=second.id)
        (only, *_) = (await here.do("conversations.items.list", alone.id, order="asc")).data
        (item, *_) = (await here.do("conversations.items.list", made.id, order="asc")).data
        for id, conversation in ((only.id, alone.id), (item.id, made.id)):
            await there.do("conversations.items.delete", id, conversation_id=conversation)
        await here.do("conversations.delete", made.id)
        for id, told in ((said.id, ["two", "three"]), (first.id, ["three"])):
            assert texts((await there.do("responses.input_items.list", id, order="asc")).data) == told
            await there.do("responses.create", model="echo", input="four", previous_response_id=id)
            sent = json.loads(two.upstream.seen.recent[-1]["body"])["messages"]
            assert [turn["content"] for turn in sent if turn["role"] == "user"] == [*told, "four"]
        with pytest.raises(openai.BadRequestError) as caught:
            await there.do("responses.create", model="echo", input="four", previous_response_id=lost.id)
        assert caught.value.code == "conversation_broken"
        kept = (await here.do("responses.input_items.list", aside.id, order="asc")).data
        assert texts(kept) == ["only", *["three"] * 4, "aside"]
        await here.close()
        await there.close()


async def test_a_background_response_of_a_conversation(tmp_path: Path) -> None:
    """It adds its turn under its own ids once it has ended, and fails if the conversation is gone by then; a cancelled
    one adds nothing.
    """
    async with house(tmp_path, SLOW, kinds=("openai",)) as home:
        sdk = home.sdk("openai")
        made = await sdk.do("conversations.create")
        ask = {"conversation": made.id, "background": True}
        slow = await sdk.do("responses.create", model="openai/slow", input="x", **ask)
        await sdk.do("responses.cancel", slow.id)
        begun = await sdk.do("responses.create", model="openai/soon", input="one", **ask)
        assert begun.conversation.id == made.id
        response = await ended(sdk, begun.id)
        items = (await sdk.do("conversations.items.list", made.id, order="asc")).data
        assert texts(items) == ["one", "done"] and items[1].id == response.output[0].id
        late = await sdk.do("responses.create", model="openai/soon", input="one", **ask)
        await sdk.do("conversations.delete", made.id)
        response = await ended(sdk, late.id)
        assert response.status == "failed" and made.id in response.error.message


async def test_what_a_conversation_may_come_to(tmp_path: Path) -> None:
    """A conversation may hold as much as one request; the turn that exceeds it is stored, and the next one refused."""
    async with live(tmp_path, server={"max_messages": 5, "max_body_bytes": 4000}) as gateway:
        sdk = Sdk("openai", "async", gateway.url)
        made = await sdk.do("conversations.create", items=[user("x")] * 4)
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.do("conversations.items.create", made.id, items=[user("x")] * 2)
        assert caught.value.code == "conversation_full"
        await sdk.do("responses.create", model="echo", input="x", conversation=made.id)
        assert len((await sdk.do("conversations.items.list", made.id)).data) == 6
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.do("responses.create", model="echo", input="x", conversation=made.id)
        assert caught.value.code == "array_above_max_length" and caught.value.param == "conversation"
        long = await sdk.do("conversations.create", items=[user("x" * 3000)])
        with pytest.raises(openai.APIStatusError) as large:
            await sdk.do("responses.create", model="echo", input="y" * 2000, conversation=long.id)
        assert large.value.status_code == 413
        await sdk.close()


async def test_a_turn_that_can_not_be_kept_is_an_error(tmp_path: Path) -> None:
    """If the turn can't be stored, the client gets an error, whole or streamed, and no complete answer."""
    async with live(tmp_path) as gateway:
        sdk = Sdk("openai", "async", gateway.url)
        made = await sdk.do("conversations.create", items=[user("x")])
        with sqlite3.connect(tmp_path / "journal.db") as database:
            database.execute(
                "CREATE TRIGGER away BEFORE UPDATE ON conversations BEGIN SELECT raise(ABORT, 'gone'); END"
            )
        ask = {"model": "echo", "input": "x", "conversation": made.id}
        with pytest.raises(openai.InternalServerError):
            await sdk.do("responses.create", **ask)
        events = await sdk.events("responses.create", **ask, stream=True)
        assert events[-1].type == "response.failed"
        await gateway.rest()
        await sdk.close()


async def test_retention_takes_what_nobody_uses(tmp_path: Path) -> None:
    """Unused conversations are deleted with their items, and those in use stay."""
    async with live(tmp_path) as gateway:
        sdk, store = Sdk("openai", "async", gateway.url), gateway.services.journal.store
        old, used = [(await sdk.do("conversations.create", items=[user("x")])).id for _ in range(2)]
        with sqlite3.connect(tmp_path / "journal.db") as database:
            database.execute("UPDATE conversations SET time_s = time_s - 40 * 86400")
        await sdk.do("responses.create", model="echo", input="x", conversation=used)
        assert forget_old(store.engine, gateway.services.clock(), 30.0) == 1
        kept = Conversations(store.engine)
        assert len(kept.items(used)) == 3 and not kept.items(old)
        for id, status in ((used, 200), (old, 404)):
            async with httpx.AsyncClient(base_url=gateway.url) as client:
                assert (await client.get(f"/v1/conversations/{id}")).status_code == status
        await sdk.close()
