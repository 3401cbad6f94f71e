"""The list of models and single models, in the form of both clients' APIs."""

from __future__ import annotations

from pathlib import Path

import anthropic
import openai
import pytest

from tests.conformance.clients import MODES
from tests.conformance.house import House, house
from tests.conformance.test_surfaces import TURNS


@pytest.mark.parametrize("mode", MODES)
async def test_models(home: House, mode: str) -> None:
    """Every model is listed and can be retrieved, even if its id contains a slash."""
    for kind, missing in (("openai", openai.NotFoundError), ("anthropic", anthropic.NotFoundError)):
        sdk = home.sdk(kind, mode)
        page = await sdk.do("models.list")
        ids = [model.id for model in page.data]
        assert "anthropic/echo" in ids and len(ids) == len(set(ids))
        for id in ("anthropic/echo", "azure-v1/tools"):
            assert (await sdk.do("models.retrieve", id)).id == id
        with pytest.raises(missing) as caught:
            await sdk.do("models.retrieve", "no/such")
        assert kind == "anthropic" or caught.value.code == "model_not_found"  # type: ignore[attr-defined]


async def test_anthropics_list_comes_in_pages(home: House) -> None:
    """Pages have the requested size in both directions, the SDK iterates over all, and every model is active."""
    sdk = home.sdk("anthropic")
    whole = [model.id for model in (await sdk.do("models.list")).data]
    page = await sdk.do("models.list", limit=4)
    assert [model.id for model in page.data] == whole[:4] and page.has_more
    assert [model.id async for model in sdk.client.models.list(limit=4)] == whole
    back = await sdk.do("models.list", limit=2, before_id=whole[4])
    assert [model.id for model in back.data] == whole[2:4] and back.has_more
    assert {model.lifecycle for model in page.data} == {"active"}
    for query in ({"after_id": "nope"}, {"limit": 0}):
        with pytest.raises(anthropic.BadRequestError):
            await sdk.do("models.list", **query)


async def test_a_key_sees_only_its_models(tmp_path: Path) -> None:
    """Routes come first, and a restricted key sees and may use only its own models."""
    routes = [{"name": "team/auto", "models": ["openai/echo"], "router": "cheapest"}]
    keys = [{"name": "a", "key": "hg-a", "models": ["team/auto"]}]
    auth = {"keys": keys, "master_key": "hg-master"}
    async with house(tmp_path, kinds=("openai",), routes=routes, auth=auth) as home:
        sdk, master = home.sdk("openai", api_key="hg-a"), home.sdk("openai", api_key="hg-master")
        assert [model.id for model in (await sdk.do("models.list")).data] == ["team/auto"]
        assert (await master.do("models.list")).data[0].id == "team/auto"
        with pytest.raises(openai.NotFoundError):
            await sdk.do("models.retrieve", "openai/echo")
        with pytest.raises(openai.NotFoundError):
            await sdk.do("chat.completions.create", model="openai/echo", messages=TURNS)
        answer = await sdk.do("chat.completions.create", model="team/auto", messages=TURNS)
        assert answer.choices[0].message.content == TURNS[0]["content"]
