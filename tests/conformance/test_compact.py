"""Compacting a conversation: by models that serve the Responses API; all others refuse it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conformance.clients import MODES
from tests.conformance.fixed import Json, completion, fixed, message
from tests.conformance.house import house
from tests.conformance.studio import Said, studio

USAGE: Json = {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 30,
               "output_tokens_details": {"reasoning_tokens": 10}, "total_tokens": 130}  # fmt: skip
SEALED: Json = {"id": "cmp_1", "type": "compaction", "encrypted_content": "sealed"}
TURN: Json = {"type": "message", "role": "user", "content": "one"}
SHORTER: Json = {"id": "resp_c", "object": "response.compaction", "created_at": 1, "output": [TURN, SEALED],
                 "usage": USAGE}  # fmt: skip
MADE: Json = {"id": "resp_up", "object": "response", "created_at": 1, "status": "completed", "model": "up", "output": [
    {"id": "rs_1", "type": "reasoning", "summary": []},
    {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
     "content": [{"type": "output_text", "text": "two", "annotations": []}]},
], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": USAGE}  # fmt: skip
SAID = {"/responses/compact": Said(SHORTER), "/responses": Said(MADE)}
PRICED = {"name": "m", "upstream_name": "up", "input_usd_per_mtok": 1.0, "cache_read_usd_per_mtok": 0.5,
          "output_usd_per_mtok": 10.0}  # fmt: skip
NATIVE = {"responses": True}


@pytest.mark.parametrize("mode", MODES)
async def test_a_conversation_is_made_shorter(tmp_path: Path, mode: str) -> None:
    """The upstream compacts it and is billed by its usage; the next turn there begins with the result."""
    async with studio(tmp_path, SAID, [PRICED], provider=NATIVE) as home:
        sdk = home.sdk("openai", mode)
        ask: Json = {"model": "m", "input": [TURN], "instructions": "Be brief."}
        raw = await sdk.do("responses.with_raw_response.compact", **ask)
        assert raw.http_response.json() == SHORTER and raw.parse().output[-1].type == "compaction"
        assert home.asked[0].path == "/v1/responses/compact" and home.asked[0].json == {**ask, "model": "up"}
        record = await home.decision(raw.headers)
        assert record.surface == "compact" and record.cost_nanousd == 60 * 1000 + 40 * 500 + 30 * 10_000
        await sdk.do("responses.create", model="m", input=[*SHORTER["output"], TURN])
        assert home.asked[-1].json["input"] == [TURN, SEALED, TURN]


async def test_turns_that_are_kept_here_are_made_shorter(tmp_path: Path) -> None:
    """The upstream gets all stored turns and the files that they name, and none of other tenants."""
    keys = [{"name": name, "key": f"hg-{name}", "tenant": name} for name in ("a", "b")]
    async with studio(tmp_path, SAID, [PRICED], provider=NATIVE, auth={"keys": keys}) as home:
        sdk, other = (home.sdk("openai", api_key=f"hg-{name}") for name in ("a", "b"))
        made = await sdk.do("responses.create", model="m", input="one")
        for more in ({}, {"input": "three"}):
            await sdk.do("responses.compact", model="m", previous_response_id=made.id, **more)
            told = home.asked[-1].json
            assert "previous_response_id" not in told
            said = ["one", MADE["output"][1]["content"], *more.values()]
            assert [item["content"] for item in told["input"]] == said
        id = (await sdk.do("files.create", file=("a.txt", b"said"), purpose="user_data")).id
        turn = {"role": "user", "content": [{"type": "input_file", "file_id": id}]}
        await sdk.do("responses.compact", model="m", input=[turn])
        (part,) = home.asked[-1].json["input"][0]["content"]
        assert part == {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,c2FpZA=="}
        with pytest.raises(openai.BadRequestError) as caught:
            await other.do("responses.compact", model="m", previous_response_id=made.id)
        assert caught.value.code == "previous_response_not_found"


@pytest.mark.parametrize(
    ("base", "path"),
    [("/azure", "/azure/openai/responses/compact?api-version=2025-03-01-preview"),
     ("/openai/v1", "/openai/v1/responses/compact")],
)  # fmt: skip
async def test_azures_paths(tmp_path: Path, base: str, path: str) -> None:
    """Azure's paths work towards the upstream and from a client."""
    answers = {"/responses/compact": Said(SHORTER)}
    async with studio(tmp_path, answers, [PRICED], "azure", {**NATIVE, "path": base}) as home:
        client = home.sdk("openai", base_url=f"{home.live.url}/openai/v1")
        assert (await client.do("responses.compact", model="m", input="x")).output[-1].type == "compaction"
        assert home.asked[-1].path == path


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
async def test_no_other_model_makes_one_shorter(tmp_path: Path, kind: str) -> None:
    """Other models refuse with an error that says what to do, and the upstream gets no request."""
    said = completion(content="ok") if kind == "openai" else message({"type": "text", "text": "ok"})
    async with fixed(tmp_path, kind, said) as home:
        sdk = home.sdk("openai")
        with pytest.raises(openai.BadRequestError, match="/v1/responses") as caught:
            await sdk.do("responses.compact", model="m", input="x")
        assert caught.value.code == "unsupported_endpoint"
        asked: dict[str, Any] = {
            "context_management": [{"type": "compaction", "compact_threshold": 1000}],
            "input": [TURN, SEALED, TURN],
        }
        for param, value in asked.items():
            with pytest.raises(openai.BadRequestError, match=param) as caught:
                await sdk.do("responses.create", **{"model": "m", "input": "x", param: value})
            assert caught.value.param == param and caught.value.code == "unsupported_parameter"
        assert not home.asked
        body: Json = {"model": "m", "input": "x", "truncation": "auto", "context_management": None}
        assert (await sdk.do("responses.create", **body)).output_text == "ok"


async def test_what_makes_one_shorter_reaches_who_can(tmp_path: Path) -> None:
    """A route chooses a model that can compact."""
    route = {"name": "both", "models": ["openai/echo", "native/echo"], "router": "cheapest"}
    async with house(tmp_path, kinds=("openai", "native"), routes=[route]) as home:
        edits = [{"type": "compaction", "compact_threshold": 1000}]
        ask: Json = {"model": "both", "input": "x", "truncation": "auto", "context_management": edits}
        made = await home.sdk("openai").do("responses.with_raw_response.create", **ask)
        assert made.headers["x-headgate-model"] == "native/echo" and made.parse().output_text == "x"
        assert '"truncation":"auto"' in home.last["body"] and "compact_threshold" in home.last["body"]


@pytest.mark.parametrize(
    ("body", "param"),
    [(b'{"model": "m"}', "input"), (b'{"input": "x"}', "model"), (b'{"model": "m", "input": 7}', "input"),
     (b"[]", None)],
)  # fmt: skip
async def test_bad_input(tmp_path: Path, body: bytes, param: str | None) -> None:
    async with studio(tmp_path, SAID, [PRICED], provider=NATIVE) as home, httpx.AsyncClient() as client:
        answer = await client.post(f"{home.live.url}/v1/responses/compact", content=body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
        assert not home.asked
