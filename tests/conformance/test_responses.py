"""The Responses API: stored, continued and streamed responses, with tools, on providers that don't serve it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import sqlalchemy as sa
from pydantic import BaseModel

from gateway.api.openapi import document
from gateway.journal.record import ResponseRecord
from gateway.journal.ship import Shipper
from gateway.stored.recent_responses import REMEMBERED_S
from gateway.wire.tools import folded
from tests.conformance.clients import MODES, Sdk
from tests.conformance.house import House, house
from tests.conformance.test_chat import PIXEL
from tests.conformance.test_surfaces import MESSAGES_TOOLS, RESPONSES_TOOLS
from tests.live import Live, live

KINDS = ("openai", "anthropic", "native")


class City(BaseModel):
    name: str
    people: int


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
async def test_life_of_a_response(home: House, kind: str, mode: str) -> None:
    """Created, retrieved as it was, its input listed, deleted, and then gone."""
    sdk = home.sdk("openai", mode)
    made = await sdk.do("responses.create", model=f"{kind}/echo", input="hello", metadata={"a": "b"})
    assert made.status == "completed" and made.output_text == "hello" and made.metadata == {"a": "b"}
    again = await sdk.do("responses.retrieve", made.id)
    assert again.to_dict() == made.to_dict()
    events = await sdk.events("responses.retrieve", response_id=made.id, stream=True)
    assert events[-1].response.to_dict() == made.to_dict()
    items = await sdk.do("responses.input_items.list", made.id)
    assert [(item.role, item.content[0].type, item.content[0].text) for item in items.data] == [
        ("user", "input_text", "hello")]  # fmt: skip
    await sdk.do("responses.delete", made.id)
    for path in ("responses.retrieve", "responses.input_items.list", "responses.delete"):
        with pytest.raises(openai.NotFoundError):
            await sdk.do(path, made.id)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
async def test_two_turns(home: House, kind: str, mode: str) -> None:
    """With `previous_response_id` the earlier turns come first; instructions belong to one turn only."""
    sdk = home.sdk("openai", mode)
    first = await sdk.do("responses.create", model=f"{kind}/echo", input="my name is Ada", instructions="be kind")
    events = await sdk.events(
        "responses.create", model=f"{kind}/echo", input="who am I?", previous_response_id=first.id, stream=True
    )
    second = events[-1].response
    assert second.previous_response_id == first.id and second.output_text == "who am I?"
    sent = json.loads(home.last["body"])
    told = [turn["content"] for turn in sent["input" if kind == "native" else "messages"]]
    texts = [part if isinstance(part, str) else part[0]["text"] for part in told]
    assert texts == ["my name is Ada", "my name is Ada", "who am I?"] and "be kind" not in str(sent)
    third = await sdk.do("responses.create", model=f"{kind}/echo", input="and?", previous_response_id=second.id)
    items = await sdk.do("responses.input_items.list", third.id, order="asc")
    assert len(items.data) == 5


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_input_items_come_in_pages(home: House, order: str) -> None:
    """Pages have the requested size, the SDK iterates over each item once, and an unknown cursor is refused."""
    sdk = home.sdk("openai")
    turns = [{"role": role, "content": f"{index}"} for index, role in enumerate(["user", "assistant"] * 3)]
    made = await sdk.do("responses.create", model="openai/echo", input=[*turns, {"role": "user", "content": "6"}])
    page = await sdk.do("responses.input_items.list", made.id, limit=3, order=order)
    assert len(page.data) == 3 and page.has_more
    walked = [item async for item in sdk.client.responses.input_items.list(made.id, limit=3, order=order)]
    assert [item.content[0].text for item in walked] == sorted("0123456", reverse=order == "desc")
    assert {item.content[0].type for item in walked} == {"input_text", "output_text"}
    for query in ({"after": "nope"}, {"limit": 0}, {"limit": 101}):
        with pytest.raises(openai.BadRequestError):
            await sdk.do("responses.input_items.list", made.id, **query)


async def test_a_turn_after_nothing(home: House) -> None:
    """An unknown previous response is the client's error, with the parameter's name."""
    with pytest.raises(openai.BadRequestError) as caught:
        await home.sdk("openai").do(
            "responses.create", model="openai/echo", input="x", previous_response_id="resp_none"
        )
    assert (caught.value.param, caught.value.code) == ("previous_response_id", "previous_response_not_found")


async def test_what_is_not_stored_is_not_found(home: House) -> None:
    """With `store=False` nothing is stored."""
    sdk = home.sdk("openai")
    made = await sdk.do("responses.create", model="openai/echo", input="x", store=False)
    with pytest.raises(openai.NotFoundError):
        await sdk.do("responses.retrieve", made.id)


async def test_no_background_to_cancel(home: House) -> None:
    """A response that isn't in the background can't be cancelled."""
    sdk = home.sdk("openai")
    made = await sdk.do("responses.create", model="openai/echo", input="x")
    with pytest.raises(openai.BadRequestError):
        await sdk.do("responses.cancel", made.id)


async def test_no_background_stream_to_take_up_again(home: House) -> None:
    """A stored response's replay is numbered anew, so resuming it after an event is refused."""
    sdk = home.sdk("openai")
    made = await sdk.do("responses.create", model="openai/echo", input="x")
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.events("responses.retrieve", response_id=made.id, stream=True, starting_after=1)
    assert caught.value.param == "starting_after"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_tool_loop(home: House, kind: str, streamed: bool) -> None:
    """Calls are items, and their outputs, continued by id, reach the model in its dialect."""
    sdk = home.sdk("openai")
    first = await sdk.responded(streamed, model=f"{kind}/tools", input="look", tools=RESPONSES_TOOLS)
    calls = [item for item in first.output if item.type == "function_call"]
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": f"{call.name}!"} for call in calls]
    await sdk.do("responses.create", model=f"{kind}/echo", input=outputs, previous_response_id=first.id)
    body = json.loads(home.last["body"])
    sent = body["input" if kind == "native" else "messages"]
    if kind == "native":
        assert [item["output"] for item in sent[-2:]] == ["weather!", "time!"]
        assert [item["call_id"] for item in sent[1:3]] == [call.call_id for call in calls]
    elif kind == "openai":
        assert [turn["content"] for turn in sent if turn["role"] == "tool"] == ["weather!", "time!"]
        assert [call["id"] for call in sent[1]["tool_calls"]] == [call.call_id for call in calls]
    else:
        assert [block["content"] for block in sent[2]["content"]] == ["weather!", "time!"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_items_are_referred_to(home: House, kind: str, streamed: bool) -> None:
    """Items may be referred to by id, calls too, and each model gets them in its own dialect."""
    sdk = home.sdk("openai")
    first = await sdk.responded(streamed, model=f"{kind}/says", input="look", tools=RESPONSES_TOOLS)
    said, call = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    named = [{"type": "item_reference", "id": item.id} for item in (said, call)]
    turns = [{"role": "user", "content": "look"}, *named, result]
    second = await sdk.do("responses.create", model=f"{kind}/echo", input=turns)
    body = json.loads(home.last["body"])
    sent = body["input" if kind == "native" else "messages"]
    assert "Let me look." in str(sent[1]) and call.call_id in str(sent[1:-1]) and "rain" in str(sent[-1])
    items = await sdk.do("responses.input_items.list", second.id, order="asc")
    assert [item.type for item in items.data] == ["message", "message", "function_call", "function_call_output"]
    assert items.data[1].id == said.id


async def test_an_item_that_is_not_kept(home: House) -> None:
    """A reference to an item that wasn't stored, was deleted or never existed is not found."""
    sdk = home.sdk("openai")
    secret = await sdk.do("responses.create", model="openai/echo", input="x", store=False)
    gone = await sdk.do("responses.create", model="openai/echo", input="x")
    await sdk.do("responses.delete", gone.id)
    for id in (secret.output[0].id, gone.output[0].id, "msg_1", gone.output[0].id[:-1] + "9"):
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.do("responses.create", model="openai/echo", input=[{"type": "item_reference", "id": id}])
        assert caught.value.param == "input"
    many = [{"type": "item_reference", "id": f"msg_{number:032x}0000"} for number in range(513)]
    with pytest.raises(openai.BadRequestError, match="512 responses"):
        await sdk.do("responses.create", model="openai/echo", input=many)


async def test_what_is_referred_to_counts_as_sent(tmp_path: Path) -> None:
    """The size limit of a body includes items that are referred to, and earlier turns."""
    most = {"max_body_bytes": 20_000}
    async with live(tmp_path, server=most) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        first = (await client.post("/v1/responses", json={"model": "echo", "input": "x" * 4000})).json()
        one = {"type": "item_reference", "id": first["output"][0]["id"]}
        before = {"previous_response_id": first["id"]}
        for path in ("/v1/responses", "/v1/responses/input_tokens"):
            few = await client.post(path, json={"model": "echo", "input": [one] * 3})
            many = await client.post(path, json={"model": "echo", "input": [one] * 30})
            assert (few.status_code, many.status_code) == (200, 413), many.text
            long = await client.post(path, json={"model": "echo", "input": "y" * 15_000, **before})
            assert (long.status_code, long.json()["error"]["code"]) == (413, "request_too_large")


async def test_a_long_conversation_asks_the_database_for_nothing(tmp_path: Path) -> None:
    """It is kept in memory once, however long it is, and not per turn; what was evicted is read again."""
    queries: list[str] = []

    def count(*told: Any) -> None:
        queries.append(told[2])

    sa.event.listen(sa.engine.Engine, "before_cursor_execute", count)
    async with live(tmp_path) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        ids: list[str | None] = [None]
        for number in range(40):
            body = {"model": "echo", "input": f"{number} " + "x" * 4000, "previous_response_id": ids[-1]}
            ids.append((await client.post("/v1/responses", json=body)).json()["id"])
        kept = gateway.services.responses.recent
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", count)
        assert not queries and ids[-1] in {id for _, id in kept._kept}
        assert kept._bytes == sum(one.size for one in kept._kept.values()) < 2**20
        branch = {"model": "echo", "input": "y", "previous_response_id": ids[-2]}
        assert (await client.post("/v1/responses", json=branch)).json()["status"] == "completed"
        items = (await client.get(f"/v1/responses/{ids[-1]}/input_items?order=asc&limit=100")).json()["data"]
        assert len(items) == 79 and items[-1]["content"][0]["text"].startswith("39 ")


async def test_a_conversation_takes_as_much_room_as_was_said(tmp_path: Path) -> None:
    """Stored turns don't repeat earlier ones, and a gateway that hasn't it in memory reads it with one query."""
    said = "x" * 800

    async def turns(gateway: Live, ids: list[str | None], count: int) -> None:
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            for _ in range(count):
                body = {"model": "echo", "input": said, "previous_response_id": ids[-1]}
                ids.append((await client.post("/v1/responses", json=body)).json()["id"])

    ids: list[str | None] = [None]
    async with live(tmp_path) as gateway:
        await turns(gateway, ids, 60)
        Shipper(gateway.services.spool_dir, gateway.services.journal.store.engine).ship_all()
    with sqlite3.connect(tmp_path / "journal.db") as database:
        (bytes_kept,) = database.execute("SELECT sum(length(input) + length(output)) FROM responses").fetchone()
    assert bytes_kept < 60 * 4 * 800
    queries: list[str] = []

    def count(*told: Any) -> None:
        queries.append(told[2]) if "FROM responses" in told[2] else None

    async with live(tmp_path) as gateway:
        await gateway.services.journal.response("resp_none", "default")
        sa.event.listen(sa.engine.Engine, "before_cursor_execute", count)
        await turns(gateway, ids, 2)
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", count)
        assert len(queries) == 1 and ids[-1] is not None
        assert len(await gateway.services.responses.input_of(ids[-1], "default")) == 2 * 61 + 1


async def test_an_early_turn_is_deleted(tmp_path: Path) -> None:
    """A deleted early turn is gone, and the conversation continues, whether it is in memory or read again."""
    async with live(tmp_path) as gateway, live(tmp_path, models=["echo", "other"]) as elsewhere:
        here, there = Sdk("openai", "async", gateway.url), Sdk("openai", "async", elsewhere.url)
        first = await here.do("responses.create", model="echo", input="one")
        second = await here.do("responses.create", model="echo", input="two", previous_response_id=first.id)
        await there.do("responses.create", model="echo", input="aside", previous_response_id=first.id)
        await here.do("responses.delete", first.id)
        for sdk in (here, there):
            third = await sdk.do("responses.create", model="echo", input="three", previous_response_id=second.id)
            items = await sdk.do("responses.input_items.list", third.id, order="asc")
            texts = [item.content[0].text for item in items.data]
            assert texts == ["one", "one", "two", "two", "three"]
            with pytest.raises(openai.NotFoundError):
                await sdk.do("responses.retrieve", first.id)
            with pytest.raises(openai.BadRequestError):
                await sdk.do("responses.create", model="echo", input="x", previous_response_id=first.id)
            await sdk.close()


async def test_a_conversation_that_is_broken_says_so(tmp_path: Path) -> None:
    """A missing early turn, or a cycle, is an error; turns that older releases stored are still read."""
    def made(id: str, previous: str, text: str, items: list[Any] | None = None) -> ResponseRecord:
        said = {"type": "message", "role": "user", "content": text}
        answer = {"type": "message", "role": "assistant", "content": text}
        output = {"id": id, "status": "completed", "output": [answer]}
        return ResponseRecord(
            id=id, time_s=1.0, tenant="default", previous_response_id=previous, output=json.dumps(output).encode(),
            input=json.dumps([said] if items is None else items).encode(),
        )  # fmt: skip

    async with live(tmp_path) as gateway:
        sdk, spool = Sdk("openai", "async", gateway.url), gateway.services.spool
        old = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "a"), ("user", "b"))]
        for record in (made("resp_old", "", "b", old), made("resp_new", "resp_old", "c"), made("resp_b", "resp_a", "x"),
                       made("resp_c", "resp_d", "x"), made("resp_d", "resp_c", "x")):  # fmt: skip
            spool.append(record)
        await sdk.do("responses.create", model="echo", input="d", previous_response_id="resp_new")
        sent = json.loads(gateway.upstream.seen.recent[-1]["body"])["messages"]
        assert [turn["content"] for turn in sent if turn["role"] == "user"] == ["a", "b", "c", "d"]
        for id, word in (("resp_b", "resp_a"), ("resp_c", "circle")):
            with pytest.raises(openai.BadRequestError, match=word) as caught:
                await sdk.do("responses.create", model="echo", input="x", previous_response_id=id)
            assert (caught.value.param, caught.value.code) == ("previous_response_id", "conversation_broken")
            with pytest.raises(openai.BadRequestError, match=word):
                await sdk.do("responses.input_items.list", id)
        await sdk.close()


async def test_what_is_remembered_is_looked_up_again(tmp_path: Path) -> None:
    """A response in memory is read again after a while, since another machine may have deleted it."""
    async with live(tmp_path) as gateway:
        sdk, services = Sdk("openai", "async", gateway.url), gateway.services
        made = await sdk.do("responses.create", model="echo", input="x")
        services.spool.append(ResponseRecord(id=made.id, time_s=services.clock(), tenant="default", deleted=True))
        assert (await sdk.do("responses.retrieve", made.id)).id == made.id
        services.responses.recent._clock = lambda: services.clock() + REMEMBERED_S
        with pytest.raises(openai.NotFoundError):
            await sdk.do("responses.retrieve", made.id)
        await sdk.close()


async def test_a_conversation_of_too_many_turns_is_told_so(tmp_path: Path) -> None:
    """The error speaks of the conversation, since the request itself has one item."""
    async with live(tmp_path, server={"max_messages": 20}) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url) as client:
            before = None
            for number in range(11):
                body = {"model": "echo", "input": "x", "previous_response_id": before}
                answer = await client.post("/v1/responses", json=body)
                assert answer.status_code == (200 if number < 10 else 400), answer.text
                before = answer.json().get("id")
        error = answer.json()["error"]
        assert error["param"] == "previous_response_id" and "turns before it" in error["message"]


@pytest.mark.parametrize("kind", KINDS)
async def test_stream_events(home: House, kind: str) -> None:
    """Typed events are numbered without gaps, items open and close in order, and the last event has the response."""
    events = await home.sdk("openai").events(
        "responses.create", model=f"{kind}/says", input="x", tools=RESPONSES_TOOLS, stream=True
    )
    kinds = [event.type for event in events]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 2
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == "Let me look."
    arguments = [event.arguments for event in events if event.type == "response.function_call_arguments.done"]
    assert json.loads(arguments[0]) == {"city": "Bern", "days": 2}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
async def test_structured_output(home: House, kind: str, mode: str) -> None:
    """`responses.parse` and the stream helper return an object of the given class."""
    sdk = home.sdk("openai", mode)
    answer = await sdk.do("responses.parse", model=f"{kind}/echo", input="x", text_format=City)
    assert answer.output_parsed == City(name="text", people=0)
    _, final = await sdk.helped(
        "responses.stream", "get_final_response", model=f"{kind}/echo", input="x", text_format=City
    )
    assert final.output_parsed == answer.output_parsed


async def test_image(home: House) -> None:
    """An input image reaches a chat model in its API's form."""
    url = f"data:image/png;base64,{PIXEL}"
    parts = [{"type": "input_text", "text": "what?"}, {"type": "input_image", "image_url": url, "detail": "low"}]
    await home.sdk("openai").do("responses.create", model="openai/echo", input=[{"role": "user", "content": parts}])
    sent = json.loads(home.last["body"])["messages"][0]["content"]
    assert sent[1] == {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


async def test_tokens_are_counted_before_asking(home: House) -> None:
    """`responses.input_tokens.count` returns an estimate without asking a model."""
    counted = await home.sdk("openai").do("responses.input_tokens.count", model="openai/echo", input="a b c " * 40)
    assert counted.object == "response.input_tokens" and 20 < counted.input_tokens < 200 and home.requests == 0


async def test_tokens_are_counted_for_the_keys_own_models(tmp_path: Path) -> None:
    """A model that the key may not use does not exist for it, as in a request."""
    keys = [{"name": "a", "key": "hg-a", "models": ["mine"]}]
    headers = {"authorization": "Bearer hg-a"}
    async with live(tmp_path, models=["mine", "other"], auth={"keys": keys}) as gateway, httpx.AsyncClient(
        base_url=gateway.url, headers=headers
    ) as client:
        for model, status in (("mine", 200), ("other", 404)):
            answer = await client.post("/v1/responses/input_tokens", json={"model": model, "input": "x"})
            assert answer.status_code == status, answer.text


async def test_a_turn_that_adds_nothing(home: House) -> None:
    """A request that continues a turn may omit its input; it is counted and answered."""
    sdk = home.sdk("openai")
    first = await sdk.do("responses.create", model="openai/echo", input="a b c " * 50)
    ask: dict[str, Any] = {"model": "openai/echo", "previous_response_id": first.id}
    assert (await sdk.do("responses.input_tokens.count", **ask)).input_tokens > 100 and home.requests == 1
    second = await sdk.do("responses.create", **ask)
    assert [message["role"] for message in json.loads(home.last["body"])["messages"]] == ["user", "assistant"]
    items = await sdk.do("responses.input_items.list", second.id, order="asc")
    assert [item.role for item in items.data] == ["user", "assistant"]
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.do("responses.create", model="openai/echo")
    assert caught.value.param == "input"
    paths = json.loads(document())["paths"]
    for path in ("/v1/responses", "/v1/responses/input_tokens", "/v1/responses/compact"):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["required"] == ["model"] and {"input", "previous_response_id"} <= body["properties"].keys()


async def test_what_has_no_counterpart_is_refused(home: House) -> None:
    """Hosted tools are refused by name."""
    tools: list[Any] = [{"type": "web_search"}]
    with pytest.raises(openai.BadRequestError) as caught:
        await home.sdk("openai").do("responses.create", model="openai/echo", input="x", tools=tools)
    assert caught.value.param == "tools" and home.requests == 0


async def test_log_probabilities_whole_and_streamed(home: House) -> None:
    """If requested, they are in each delta, in the completed part and in the last event, as in a whole answer."""
    sdk = home.sdk("openai")
    body: dict[str, Any] = {"model": "openai/long", "input": "x", "include": ["message.output_text.logprobs"]}
    whole = await sdk.do("responses.create", **body)
    events = await sdk.events("responses.create", **body, stream=True)
    deltas = [one.token for e in events if e.type == "response.output_text.delta" for one in e.logprobs]
    done = next(e for e in events if e.type == "response.output_text.done")
    wanted = [one.token for one in whole.output[0].content[0].logprobs]
    assert len(wanted) == 8
    assert deltas == [one.token for one in done.logprobs] == wanted
    assert [one.token for one in events[-1].response.output[0].content[0].logprobs] == wanted


@pytest.mark.parametrize("kind", ("openai", "anthropic"))
@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_in_a_namespace(tmp_path: Path, kind: str, streamed: bool) -> None:
    """Models without namespaces call such tools, however long their names, and get the results."""
    space, long = "files", "read_" + "x" * 70
    empty = {"type": "object", "properties": {}}
    inner = [{"type": "function", "name": name, "parameters": empty} for name in ("ls", long)]
    tools = [*RESPONSES_TOOLS, {"type": "namespace", "name": space, "description": "files", "tools": inner}]
    shortened = folded(space, long)
    scripts = {"calls": [{"tool_calls": [{"name": name} for name in ("weather", "files__ls", shortened)]}]}
    async with house(tmp_path, scripts, kinds=(kind,)) as home:
        sdk = home.sdk("openai")
        first = await sdk.responded(streamed, model=f"{kind}/calls", input="look", tools=tools)
        calls = [item.to_dict() for item in first.output]
        named = [(call["name"], call.get("namespace")) for call in calls]
        assert named == [("weather", None), ("ls", space), (long, space)]
        outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": "ok"} for call in calls]
        then: dict[str, Any] = {"previous_response_id": first.id, "tools": tools}
        await sdk.do("responses.create", model=f"{kind}/echo", input=outputs, **then)
        sent = home.last["body"]
        assert "files__ls" in sent and shortened in sent and long not in sent and len(shortened) == 64


@pytest.mark.parametrize("kind", ("openai", "anthropic"))
@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_that_take_plain_text(tmp_path: Path, kind: str, streamed: bool) -> None:
    """Models with functions only get the grammar in the description; the client gets a custom tool call."""
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "begin" /.+/'}
    tools: list[Any] = [{"type": "custom", "name": "patch", "description": "Edits files.", "format": grammar}]
    patch = "begin a, +b"
    scripts = {"calls": [{"tool_calls": [{"name": "patch", "arguments": {"input": patch}}]}]}
    async with house(tmp_path, scripts, kinds=(kind,)) as home:
        sdk = home.sdk("openai")
        choice = {"type": "custom", "name": "patch"}
        ask: dict[str, Any] = {"model": f"{kind}/calls", "input": "x", "tools": tools, "tool_choice": choice}
        first = await sdk.responded(streamed, **ask)
        asked = home.last["body"]
        (call,) = first.output
        assert (call.type, call.name, call.input) == ("custom_tool_call", "patch", patch)
        output = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "done"}
        then: dict[str, Any] = {"previous_response_id": first.id, "tools": tools, "input": [output]}
        await sdk.do("responses.create", model=f"{kind}/echo", **then)
        sent = home.last["body"]
        if streamed:
            again = [event.type for event in await sdk.events("responses.create", **ask, stream=True)]
            assert "response.custom_tool_call_input.done" in again
    assert "Edits files." in asked and "start:" in asked and patch in sent


@pytest.mark.parametrize("kind", ("openai", "anthropic"))
@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_that_a_conversation_adds(tmp_path: Path, kind: str, streamed: bool) -> None:
    """Tools may be added by an item, as coding agents do: in namespaces, custom tools and hosted ones."""
    inner = [{"type": "custom", "name": "exec", "description": "Runs JavaScript."}]
    space = {"type": "namespace", "name": "functions", "description": "", "tools": inner}
    added = {"type": "additional_tools", "role": "developer", "tools": [space, {"type": "web_search"}]}
    scripts = {"calls": [{"tool_calls": [{"name": "functions__exec", "arguments": {"input": "1 + 1"}}]}]}
    own = [{"name": f"own-{name}", "provider": "up" if kind == "openai" else "claude", "upstream_name": name,
            "hosted_tools": "leave_out"} for name in ("calls", "echo")]  # fmt: skip
    async with house(tmp_path, scripts, kinds=(kind,), more=own) as home:
        sdk = home.sdk("openai")
        asked: list[Any] = [added, {"role": "user", "content": "x"}]
        first = await sdk.responded(streamed, model="own-calls", input=asked)
        (call,) = first.output
        assert (call.type, call.namespace, call.name, call.input) == ("custom_tool_call", "functions", "exec", "1 + 1")
        output: Any = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": "2"}
        await sdk.do("responses.create", model="own-echo", input=[output], previous_response_id=first.id)
        sent = home.last["body"]
        assert sent.count("Runs JavaScript.") == 1 and "functions__exec" in sent and "web_search" not in sent
        with pytest.raises(openai.BadRequestError, match="additional_tools"):
            await sdk.do("responses.create", model="own-echo", input=[{**added, "tools": "none"}])


@pytest.mark.parametrize("surface", ["responses", "messages"])
async def test_tools_that_a_provider_runs_may_be_left_out(tmp_path: Path, surface: str) -> None:
    """With `hosted_tools = "leave_out"` they are dropped, and the client's own tools stay."""
    model = {"name": "frugal", "provider": "up", "upstream_name": "echo", "hosted_tools": "leave_out"}
    async with house(tmp_path, kinds=(), more=[model]) as home:
        if surface == "responses":
            tools: list[Any] = [{"type": "web_search"}, *RESPONSES_TOOLS]
            made = await home.sdk("openai").do("responses.create", model="frugal", input="x", tools=tools)
            assert made.output_text == "x"
        else:
            tools = [{"type": "web_search_20250305", "name": "web_search"}, *MESSAGES_TOOLS]
            said = [{"role": "user", "content": "x"}]
            await home.sdk("anthropic").do("messages.create", model="frugal", max_tokens=9, messages=said, tools=tools)
        sent = json.loads(home.last["body"])
        assert [tool["function"]["name"] for tool in sent["tools"]] == ["weather", "time"]
