"""Inference servers of others: their queue, their health, and fields that they ignore."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import httpx
import pytest

from gateway.admin.engines import engines
from gateway.admin.services import AdminServices
from gateway.config.load import parse
from gateway.config.types import ProviderConfig
from gateway.engines import Engines, engine_waits
from gateway.journal.ship import ShipState
from gateway.journal.store import open_store
from local_models.backends import PROFILES
from tests.live import Live, live
from tests.until import until

ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "qwen",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "from the engine"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}  # fmt: skip


@dataclass
class Engine:
    """An HTTP server with a fixed answer for each path, which records its requests."""

    url: str = ""
    pages: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                path, length = line.split()[1].decode(), 0
                while (header := await reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                body = await reader.readexactly(length)
                self.asked.append((path, json.loads(body) if body else {}))
                status, page = self.pages.get(path, (404, ""))
                head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(page)}\r\n\r\n"
                writer.write((head + page).encode())
        finally:
            writer.close()

    def waits(self, waiting: int, running: int) -> None:
        self.pages["/metrics"] = (200, f"vllm:num_requests_waiting {waiting}\nvllm:num_requests_running {running}\n")


@asynccontextmanager
async def engine() -> AsyncIterator[Engine]:
    found = Engine(pages={"/health": (200, ""), "/v1/chat/completions": (200, json.dumps(ANSWER))})
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield found
    server.close()


@asynccontextmanager
async def before(one: Engine, folder: Path, kind: str = "vllm") -> AsyncIterator[Live]:
    """A gateway whose route has the engine's model and another provider's."""
    async with live(
        folder,
        models=["echo", {"name": "qwen", "provider": "mine", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.1}],
        providers=[{"name": "mine", "kind": "openai", "base_url": f"{one.url}/v1", "engine": kind}],
        routes=[{"name": "auto", "models": ["qwen", "echo"], "router": "cheapest", "fallback": ["echo"]}],
    ) as gateway:
        yield gateway


def watching(gateway: Live) -> Engines:
    return Engines(gateway.services.fleet, gateway.services.driver.sender)


async def look(gateway: Live) -> None:
    await watching(gateway).look(gateway.services.driver.sender.providers["mine"])


async def ask(gateway: Live, model: str = "qwen", **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
    async with httpx.AsyncClient(timeout=60) as client:
        return await client.post(f"{gateway.url}/v1/chat/completions", json=body)


async def test_routers_learn_the_wait_behind_an_engines_own_queue(tmp_path: Path) -> None:
    """The wait counts requests of other clients, shrinks as fast as the running ones finish, and ends with the queue.
    """
    async with engine() as one, before(one, tmp_path) as gateway:
        fleet = gateway.services.fleet
        (deployment,) = fleet.deployments("qwen")
        fleet.succeeded(deployment, 1.0, 0.5, 2.0)
        one.waits(12, 4)
        await look(gateway)
        assert fleet.queue_s("qwen") == pytest.approx(12 * 2.0 / 4)
        assert engine_waits(fleet)() == {("qwen", "mine"): 12.0}
        one.waits(0, 4)
        await look(gateway)
        assert fleet.queue_s("qwen") == 0.0


async def test_an_engine_that_is_not_well_is_left_alone_before_a_request_fails(tmp_path: Path) -> None:
    """An engine gets no requests while its health page answers 503 or nothing listens, and is used again afterwards."""
    async with engine() as one, before(one, tmp_path) as gateway:
        one.waits(0, 0)
        await look(gateway)
        assert (await ask(gateway, "auto")).headers["x-headgate-model"] == "qwen"
        one.pages["/health"] = (503, "loading")
        await look(gateway)
        assert not gateway.services.fleet.healthy("qwen", gateway.services.now())
        asked = len(one.asked)
        assert (await ask(gateway, "auto")).headers["x-headgate-model"] == "echo"
        assert len(one.asked) == asked
        one.pages["/health"] = (200, "")
        await look(gateway)
        assert gateway.services.fleet.healthy("qwen", gateway.services.now())
        assert (await ask(gateway)).json()["choices"][0]["message"]["content"] == "from the engine"


async def test_nobody_there_is_down_and_a_page_that_is_missing_is_not(tmp_path: Path) -> None:
    """An engine without a metrics page stays in service, and the log says how to enable the page."""
    async with engine() as one, before(one, tmp_path) as gateway:
        await look(gateway)
        assert gateway.services.fleet.healthy("qwen", gateway.services.now())
        assert gateway.services.fleet.queue_s("qwen") == 0.0
        assert engine_waits(gateway.services.fleet)() == {}
    async with engine() as gone:
        pass
    async with before(gone, tmp_path / "gone") as gateway:
        await look(gateway)
        assert not gateway.services.fleet.healthy("qwen", gateway.services.now())


async def test_how_to_enable_the_metrics_page_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is not logged at every look."""
    async with engine() as one, before(one, tmp_path, "llama-server") as gateway:
        watch = watching(gateway)
        for _ in range(3):
            await watch.look(gateway.services.driver.sender.providers["mine"])
    assert [record.getMessage() for record in caplog.records if "does not report" in record.getMessage()] == [
        "provider mine does not report its load: start it with --metrics"
    ]


async def test_engines_are_read_beside_the_requests(tmp_path: Path) -> None:
    """The chore reads every engine by itself."""
    async with engine() as one, before(one, tmp_path) as gateway:
        one.waits(3, 1)
        chore = asyncio.create_task(watching(gateway).run())
        (deployment,) = gateway.services.fleet.deployments("qwen")
        report = await until(lambda: deployment.report, 60)
        chore.cancel()
        assert report is not None and report.waiting == 3.0


async def test_a_field_goes_out_by_the_engines_own_name(tmp_path: Path) -> None:
    """llama-server's limit is called max_tokens; everything else is sent as the client wrote it."""
    async with engine() as one, before(one, tmp_path, "llama-server") as gateway:
        answer = await ask(gateway, max_completion_tokens=7, temperature=0.25)
        assert answer.status_code == 200, answer.text
        path, body = one.asked[-1]
        assert path == "/v1/chat/completions"
        assert (body["max_tokens"], body["temperature"]) == (7, 0.25) and "max_completion_tokens" not in body


async def test_a_field_that_an_engine_ignores_goes_to_another_model_or_is_refused(tmp_path: Path) -> None:
    """transformers serve ignores `stop`: the route's next model answers, a pinned model is refused, and no breaker
    counts it.
    """
    async with engine() as one, before(one, tmp_path, "transformers-serve") as gateway:
        moved = await ask(gateway, "auto", stop=["x"])
        assert (moved.status_code, moved.headers["x-headgate-model"]) == (200, "echo"), moved.text
        refused = await ask(gateway, stop=["x"])
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (400, "unsupported_value")
        assert "stop" in error["message"] and error["type"] == "invalid_request_error"
        assert not [path for path, _ in one.asked if path.endswith("completions")]
        for _ in range(30):
            await ask(gateway, stop=["x"])
        assert (await ask(gateway)).status_code == 200
        await gateway.rest()


async def test_operators_see_every_engines_load(tmp_path: Path) -> None:
    """The metrics show the queue that an engine reports, and nothing where it reports none."""
    async with engine() as one:
        one.waits(3, 2)
        home = {
            "server": {"run_dir": str(tmp_path)}, "storage": {"url": f"sqlite:///{tmp_path}/j.db"},
            "providers": [{"name": "mine", "kind": "openai", "base_url": f"{one.url}/v1", "engine": "vllm"}],
            "models": [{"name": "qwen", "provider": "mine"}],
        }  # fmt: skip
        config, problems = parse(home, {})
        assert config is not None, problems
        (seen,) = await asyncio.to_thread(engines, AdminServices(config, open_store(config.storage.url), ShipState()))
    assert (seen.provider, seen.model, seen.waiting, seen.running) == ("mine", "qwen", 3, 2)
    assert seen.kv_used_share is None and seen.tokens_per_s is None


def test_only_what_speaks_openai_is_an_engine() -> None:
    """An engine at another kind of provider, or an unknown one, is refused with its path."""
    providers = [
        {"name": "a", "kind": "anthropic", "base_url": "http://127.0.0.1:1", "engine": "vllm"},
        {"name": "b", "kind": "openai", "base_url": "http://127.0.0.1:1/v1", "engine": "tgi"},
    ]
    _, problems = parse({"providers": providers}, {})
    assert any("providers[0].engine" in one for one in problems)
    assert any("providers[1].engine" in one for one in problems)


def test_every_known_engine_can_be_configured() -> None:
    """The configuration accepts every engine that has a profile."""
    assert set(get_args(get_type_hints(ProviderConfig)["engine"])) == {"", *PROFILES}
