"""Files: uploaded with either official client, named by id on every surface, given to whichever upstream answers."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
import pytest_asyncio
from anthropic.types import DeletedFile, FileMetadata
from openai.types import FileObject

from gateway.batch.files import Files
from tests.conformance.clients import Sdk
from tests.conformance.house import House, house
from tests.conformance.strict import adapter

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECRET = "a line nobody may see in a log"
PDF, PNG, TEXT = b"%PDF-1.4 " + SECRET.encode(), b"\x89PNG\r\n\x1a\n" + b"x" * 90, f"# Title\n{SECRET}\n".encode()
MAX_BODY = 200_000
KINDS = ("openai", "anthropic", "native")
UNKNOWN = "file_" + "0" * 28
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    keys = [{"name": name, "key": f"hg-{name}", "tenant": name} for name in ("a", "b", "c")]
    async with house(tmp_path_factory.mktemp("house"), kinds=KINDS, auth={"keys": keys},
                     server={"max_body_bytes": MAX_BODY}) as built:  # fmt: skip
        yield built


@pytest_asyncio.fixture(loop_scope="module")
async def home(shared: House, caplog: pytest.LogCaptureFixture) -> AsyncIterator[House]:
    """Checks that no content of a file is logged."""
    caplog.set_level(logging.DEBUG)
    yield shared
    ours = [one for one in caplog.records if not one.name.startswith(("httpcore", "httpx", "openai", "anthropic"))]
    told = "\n".join(f"{one.getMessage()} {one.exc_info}" for one in ours)
    assert SECRET not in told and base64.b64encode(PDF).decode()[:60] not in told
    assert [one for one in ours if one.levelno >= logging.ERROR] == []


def client(home: House, kind: str, key: str = "hg-a", mode: str = "async") -> Sdk:
    found = home.sdks.get(f"{kind}/{key}/{mode}")
    if found is None:
        found = home.sdks[f"{kind}/{key}/{mode}"] = Sdk(kind, mode, home.url, api_key=key)
    return found


async def upload(home: House, name: str, data: bytes) -> str:
    made = await client(home, "openai").do("files.create", file=(name, data), purpose="user_data")
    assert made.purpose == "user_data" and made.bytes == len(data)
    return str(made.id)


def part_of(surface: str, id: Any, *, image: bool = False) -> dict[str, Any]:
    if surface == "chat":
        return {"type": "file", "file": {"file_id": id}}
    if surface == "responses":
        return {"type": "input_image" if image else "input_file", "file_id": id}
    return {"type": "image" if image else "document", "source": {"type": "file", "file_id": id}}


async def ask(home: House, surface: str, model: str, *parts: dict[str, Any], key: str = "hg-a", **more: Any) -> Any:
    """A request by the official client of that surface."""
    text = {"type": "input_text" if surface == "responses" else "text", "text": "what is it?"}
    turns = [{"role": "user", "content": [*parts, text]}]
    sdk = client(home, "anthropic" if surface == "messages" else "openai", key)
    if surface == "responses":
        return await sdk.do("responses.create", model=model, input=turns, **more)
    if surface == "messages":
        return await sdk.do("messages.create", model=model, max_tokens=99, messages=turns, **more)
    return await sdk.do("chat.completions.create", model=model, messages=turns, **more)


def received(home: House) -> str:
    """The last request that the upstream received."""
    return str(home.last["body"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", PATHS)
@pytest.mark.parametrize(("name", "data"), [("a.pdf", PDF), ("a.md", TEXT)])
async def test_a_file_reaches_every_upstream(home: House, surface: str, kind: str, name: str, data: bytes) -> None:
    """The file reaches the upstream in its API's form, and no upstream gets an id that it can't know."""
    id = await upload(home, name, data)
    await ask(home, surface, f"{kind}/echo", part_of(surface, id))
    body = received(home)
    assert id not in body
    if name == "a.pdf":
        assert base64.b64encode(data).decode() in body and "a.pdf" in body
    else:
        assert base64.b64encode(data).decode() in body or json.dumps(data.decode())[1:-1] in body
    if kind == "anthropic":
        content = json.loads(body)["messages"][0]["content"]
        (block,) = [one for one in content if one["type"] == "document"]
        assert block["source"]["type"] == ("base64" if name == "a.pdf" else "text")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", ["responses", "messages"])
async def test_an_image_reaches_every_upstream(home: House, surface: str, kind: str) -> None:
    id = await upload(home, "a.png", PNG)
    await ask(home, surface, f"{kind}/echo", part_of(surface, id, image=True))
    body = received(home)
    assert id not in body and base64.b64encode(PNG).decode() in body and "image/png" in body


async def test_a_conversation_keeps_the_id(home: House) -> None:
    """A stored turn names the file, and the next turn gets its content again, until it is deleted."""
    id = await upload(home, "a.md", TEXT)
    sdk = client(home, "openai")
    first = await ask(home, "responses", "openai/echo", part_of("responses", id))
    (item,) = (await sdk.do("responses.input_items.list", first.id)).data
    assert item.content[0].file_id == id and SECRET not in item.to_json()
    again: dict[str, Any] = {"model": "openai/echo", "input": "more", "previous_response_id": first.id}
    await sdk.do("responses.create", **again)
    assert base64.b64encode(TEXT).decode() in received(home)
    counted = await sdk.do("responses.input_tokens.count", **again)
    assert counted.input_tokens > len(TEXT) / 4
    record = await home.gateway.decision(first.id)
    assert SECRET not in str(record) and base64.b64encode(TEXT).decode() not in str(record)
    await sdk.do("files.delete", id)
    with pytest.raises(openai.NotFoundError, match="upload it"):
        await sdk.do("responses.create", **again)


async def test_a_response_of_the_background_has_the_file_too(home: House) -> None:
    """The stored response only names the file."""
    id = await upload(home, "a.md", TEXT)
    sdk, inline = client(home, "openai"), base64.b64encode(TEXT).decode()
    told = await ask(home, "responses", "openai/echo", part_of("responses", id), background=True)
    while told.status in ("queued", "in_progress"):
        told = await sdk.do("responses.retrieve", told.id)
    assert told.status == "completed" and inline in received(home)
    record = await home.gateway.services.journal.response(told.id, "a")
    assert record is not None and id.encode() in record.input and inline.encode() not in record.input + record.output


async def test_what_is_held_and_counted_is_of_the_file(home: House) -> None:
    """The hold and Anthropic's token count cover the file's content, and not only its id."""
    id = await upload(home, "a.txt", b"word " * 4000)
    told = await ask(home, "chat", "openai/echo", part_of("chat", id))
    assert (await home.gateway.decision(told.id)).input_tokens > 5000
    turn = {"role": "user", "content": [part_of("messages", id)]}
    body: dict[str, Any] = {"model": "openai/echo", "messages": [turn]}
    counted = await client(home, "anthropic").do("messages.count_tokens", **body)
    assert counted.input_tokens > 5000
    await client(home, "anthropic").do("messages.count_tokens", **(body | {"model": "anthropic/echo"}))
    assert "word word" in received(home) and id not in received(home)


@pytest.mark.parametrize("surface", PATHS)
async def test_anothers_file_is_as_unknown_as_none(home: House, surface: str) -> None:
    """Another tenant's file and an unknown one get the same 404 before anything is sent upstream."""
    id, asked = await upload(home, "a.md", TEXT), home.requests
    error = anthropic.NotFoundError if surface == "messages" else openai.NotFoundError
    for wrong, key in ((id, "hg-b"), (UNKNOWN, "hg-a")):
        with pytest.raises(error, match="upload it") as caught:
            await ask(home, surface, "openai/echo", part_of(surface, wrong), key=key)
        assert f"'{wrong}'" in str(caught.value)
    assert home.requests == asked


async def test_an_upstreams_own_id_is_passed_on_or_refused(home: House) -> None:
    """An upstream's own id is passed on to a provider of the same surface, and refused for others."""
    await ask(home, "chat", "openai/echo", part_of("chat", "file-abc123"))
    assert json.loads(received(home))["messages"][0]["content"][0] == part_of("chat", "file-abc123")
    await ask(home, "messages", "anthropic/echo", part_of("messages", "file_011CNha8iCJcU1wXNR6q4V8w"))
    assert "file_011CNha8iCJcU1wXNR6q4V8w" in received(home)
    await ask(home, "messages", "anthropic/echo", {"type": "container_upload", "file_id": "file_011CNha8iCJcU1w"})
    with pytest.raises(openai.BadRequestError):
        await ask(home, "chat", "anthropic/echo", part_of("chat", "file-abc123"))


async def test_a_request_may_be_no_larger_than_its_files_make_it(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered with 413 before a file is read, whether one is too large or is named too often."""
    large, small = await upload(home, "a.txt", b"x" * MAX_BODY), await upload(home, "a.txt", b"x" * (MAX_BODY // 3))
    with monkeypatch.context() as nothing:
        nothing.delattr(Files, "read")
        for surface in PATHS:
            for parts in ([part_of(surface, large)], [part_of(surface, small)] * 3):
                error: Any = anthropic.APIStatusError if surface == "messages" else openai.APIStatusError
                with pytest.raises(error, match="name fewer or smaller files") as caught:
                    await ask(home, surface, "openai/echo", *parts)
                assert caught.value.status_code == 413
    await ask(home, "chat", "openai/echo", part_of("chat", small))


async def test_too_many_and_empty_files_are_refused(home: House) -> None:
    many = [part_of("chat", f"file_{number:028x}") for number in range(101)]
    with pytest.raises(openai.BadRequestError, match="at most 100"):
        await ask(home, "chat", "openai/echo", *many)
    with pytest.raises(openai.BadRequestError, match="is empty"):
        await ask(home, "chat", "openai/echo", part_of("chat", await upload(home, "a", b"")))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("surface", PATHS)
@pytest.mark.parametrize("id", [7, None, "", [], {}, True, ["file_" + "0" * 28]])
async def test_malformed_ids(home: House, surface: str, kind: str, id: Any) -> None:
    """Malformed ids are answered with 400 in the surface's form, whatever the provider."""
    asked, error = home.requests, anthropic.BadRequestError if surface == "messages" else openai.BadRequestError
    with pytest.raises(error, match="file_id"):
        await ask(home, surface, f"{kind}/echo", part_of(surface, id))
    assert home.requests == asked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [{"type": "file"}, {"type": "file", "file": None}, {"type": "file", "file": 7},
                                  {"type": "file", "file": {}}, {"type": "file", "file": []}])  # fmt: skip
async def test_malformed_parts(home: House, kind: str, part: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="file"):
        await ask(home, "chat", f"{kind}/echo", part)


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("api", ["files", "beta.files"])
async def test_anthropics_client_keeps_its_files(home: House, mode: str, api: str) -> None:
    """It uploads, lists, reads and deletes files in Anthropic's form; OpenAI's client sees the same files."""
    sdk = client(home, "anthropic", mode=mode)
    made = await sdk.do(f"{api}.upload", file=("folder/a.pdf", PDF, "application/pdf"), expires_in_seconds=7200)
    assert (made.type, made.filename, made.mime_type) == ("file", "a.pdf", "application/pdf")
    assert (made.size_bytes, made.downloadable) == (len(PDF), True)
    assert (made.expires_at - made.created_at).total_seconds() in (7199, 7200, 7201)
    assert await sdk.do(f"{api}.retrieve_metadata", made.id) == made
    assert (await sdk.do(f"{api}.list")).data[0] == made
    heard = await sdk.do(f"{api}.download", made.id)
    assert (await heard.read() if sdk.is_async else heard.read()) == PDF
    other = await client(home, "openai").do("files.retrieve", made.id)
    assert (other.object, other.purpose, other.bytes) == ("file", "user_data", len(PDF))
    assert (await ask(home, "messages", "anthropic/echo", part_of("messages", made.id))).content
    with pytest.raises(anthropic.NotFoundError):
        await client(home, "anthropic", "hg-b").do(f"{api}.retrieve_metadata", made.id)
    gone = await sdk.do(f"{api}.delete", made.id)
    assert (gone.id, gone.type) == (made.id, "file_deleted")
    with pytest.raises(anthropic.NotFoundError):
        await sdk.do(f"{api}.download", made.id)


async def test_anthropics_lists_come_in_pages(home: House) -> None:
    """Lists are newest first, paged by `page`, or by `after_id` and `before_id` for older clients; or given by ids."""
    sdk = client(home, "anthropic", "hg-c")
    ids = [(await sdk.do("beta.files.upload", file=(f"{number}.txt", b"x"))).id for number in range(5)][::-1]
    assert [one.id async for one in await sdk.client.beta.files.list(limit=2)] == ids
    headers = {"x-api-key": "hg-c", "anthropic-version": "2023-06-01"}
    async with httpx.AsyncClient(base_url=home.url, headers=headers, verify=False) as http:

        async def page(**query: Any) -> Any:
            answer = await http.get("/v1/files", params=query)
            assert answer.status_code == 200, answer.text
            told = answer.json()
            assert all(adapter(FileMetadata).validate_json(json.dumps(one), strict=True) for one in told["data"])
            names = [one["id"] for one in told["data"]]
            assert (told["first_id"], told["last_id"]) == ((names[0], names[-1]) if names else (None, None))
            return names, told["has_more"]

        assert await page(limit=2) == (ids[:2], True)
        assert await page(limit=2, after_id=ids[1]) == (ids[2:4], True)
        assert await page(limit=2, after_id=ids[3]) == (ids[4:], False)
        assert await page(limit=2, before_id=ids[4]) == (ids[2:4], True)
        assert await page(limit=2, before_id=ids[1]) == (ids[:1], False)
        assert await page(**{"ids[]": [ids[3], UNKNOWN, ids[0]]}) == ([ids[3], ids[0]], False)
        assert await page(scope_id="session_x") == ([], False)
        for wrong in ({"limit": 0}, {"limit": 1001}, {"after_id": UNKNOWN}, {"page": "page_x"}):
            answer = await http.get("/v1/files", params=wrong)
            assert answer.status_code == 400 and answer.json()["type"] == "error", answer.text
        removed = await http.delete(f"/v1/files/{ids[0]}")
        assert adapter(DeletedFile).validate_json(removed.content, strict=True).type == "file_deleted"
        missing = await http.get(f"/v1/files/{ids[0]}/content")
        assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
        for fields in ({"expires_in_seconds": "60"}, {"expires_in_seconds": "soon"}):
            answer = await http.post("/v1/files", files={"file": ("a", b"x")}, data=fields)
            assert answer.status_code == 400 and answer.json()["type"] == "error", answer.text
        assert (await http.post("/v1/files", files={"none": ("a", b"x")})).json()["type"] == "error"
    async with httpx.AsyncClient(headers={"authorization": "Bearer hg-c"}, verify=False) as http:
        told = (await http.get(f"{home.url}/v1/files/{ids[1]}")).content
        assert adapter(FileObject).validate_json(told, strict=True).id == ids[1]
