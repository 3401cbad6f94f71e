from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.live import served
from tests.ports import free_port
from tests.until import PATIENCE_S

TOML = """
[server]
port = {port}
admin_port = {admin_port}
workers = 2
run_dir = "{folder}/run"
[storage]
url = "sqlite:///{folder}/journal.db"
[[providers]]
name = "sim"
kind = "scripted"
[[models]]
name = "small"
provider = "sim"
upstream_name = "echo"
input_usd_per_mtok = 0.1
output_usd_per_mtok = 0.4
[[models]]
name = "large"
provider = "sim"
upstream_name = "echo"
input_usd_per_mtok = 2.0
output_usd_per_mtok = 8.0
[[routes]]
name = "auto"
models = ["small", "large"]
cost_weight = 0.0
store_text = true
cache = "exact"
[auth]
master_key = "master"
"""


class Both:
    """The data plane and the admin port of one gateway, and both of its workers."""

    def __init__(self, data: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
        self.data, self.admin = data, admin
        self._asked = 0

    async def ask(self, text: str = "", model: str = "auto") -> httpx.Response:
        self._asked += 1
        body = {"model": model, "temperature": 0,
                "messages": [{"role": "user", "content": text or f"question {self._asked}"}]}  # fmt: skip
        answer = await self.data.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer

    async def obeys(self, wanted: set[str]) -> None:
        """Wait until exactly these models answer: on a busy machine a worker may apply a change a little later."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := await self.models()) != wanted:
            assert time.monotonic() < deadline, found

    async def models(self, count: int = 40) -> set[str]:
        """The models that answer now; each request has a connection of its own, so that every worker is met."""
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=self.data.base_url, headers=self.data.headers, limits=limits) as fresh:
            one = Both(fresh, self.admin)
            one._asked = self._asked = self._asked + 1000
            return {(await one.ask()).headers["x-headgate-model"] for _ in range(count)}

    async def change(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        answer = await self.admin.request(method, f"/admin{path}", json=body or None)
        assert answer.is_success, answer.text
        told: dict[str, Any] = answer.json()
        return told

    async def eventually(self, path: str, wanted: Callable[[Any], bool]) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = (await self.admin.get(f"/admin{path}")).json()
                if wanted(told):
                    return told
                await asyncio.sleep(0.05)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Both]:
    ports = {"port": free_port(), "admin_port": free_port()}
    (tmp_path / "headgate.toml").write_text(TOML.format(folder=tmp_path, **ports))
    key = {"authorization": "Bearer master"}
    async with (
        served(tmp_path / "headgate.toml"),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['port']}", headers=key, timeout=60) as data,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['admin_port']}", headers=key, timeout=60) as admin,
    ):
        both = Both(data, admin)
        await both.eventually("/revision", lambda told: told["database"] == "ok")
        yield both


async def test_an_operators_hour(gateway: Both) -> None:
    """With two real workers and a control process, a changed knob, an added model, a deleted cache entry and a label
    take effect at every worker.
    """
    await gateway.obeys({"large"})

    # a knob is changed, and every worker's next requests obey it
    done = await gateway.change("PUT", "/routes/auto/knobs", knobs={"cost_weight": 1.0}, version=0)
    assert done["workers"] == 2
    await gateway.obeys({"small"})
    await gateway.change("POST", "/routes/auto/undo?version=1")
    await gateway.obeys({"large"})

    # a canary gets about its share, and its decisions are marked
    await gateway.change("PUT", "/routes/auto/trial", kind="canary", knobs={"cost_weight": 1.0}, share=0.5, version=2)
    await gateway.obeys({"small", "large"})
    await gateway.change("DELETE", "/routes/auto/trial?version=3")
    await gateway.obeys({"large"})

    # a model is added to the route while it is running, and answers
    await gateway.change("PUT", "/models/free", provider="sim", upstream_name="echo", routes=["auto"], version=0)
    assert "free" in {one["id"] for one in (await gateway.data.get("/v1/models")).json()["data"]}
    assert (await gateway.ask(model="free")).headers["x-headgate-model"] == "free"
    await gateway.change("DELETE", "/models/free?version=1")
    assert (await gateway.data.get("/v1/models/free")).status_code == 404

    # a cache entry is found by its text and deleted everywhere
    first = await gateway.ask("what is the answer to it all")
    assert (await gateway.ask("what is the answer to it all")).headers["x-headgate-cache"] == "hit"
    (entry,) = (await gateway.eventually("/cache/entries?query=answer to it all", lambda told: told["data"]))["data"]
    assert (await gateway.change("DELETE", f"/cache/entries/{entry['id']}"))["deleted"] is True
    assert (await gateway.ask("what is the answer to it all")).headers["x-headgate-cache"] == "miss"

    # its decision is explained and labelled, whether or not it is shipped
    id = first.headers["x-headgate-decision-id"]
    told = await gateway.eventually(f"/decisions?limit=1000&until_s={time.time() + 60}",
                                    lambda page: id in {one["id"] for one in page["data"]})  # fmt: skip
    assert told["next"] is None
    explained = (await gateway.admin.get(f"/admin/decisions/{id}")).json()
    assert any("large was expected" in one for one in explained["summary"])
    assert (await gateway.change("PUT", f"/labels/{id}", score=1.0))["source"] == "label"

    # the figures include all of it, and the live stream has announced it
    total = await gateway.eventually("/overview?window=hour", lambda one: one["totals"]["requests"] > 200)
    assert total["totals"]["errors"] == 0 and total["baseline"]["model"] == "large"
    async with gateway.admin.stream("GET", "/admin/live") as stream:
        lines = stream.aiter_lines()
        assert await anext(lines) == "event: revision"
        assert '"decisions":' in await anext(lines)
