from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.admin import worker_sockets
from gateway.admin.worker_sockets import ask, ask_all, settings_version, socket_paths
from gateway.config.overlay import Overlay
from gateway.config.settings import change_settings, publish_keys
from gateway.keys import new_key
from gateway.serve.control_socket import MAX_PATH_BYTES, ControlSocket, socket_path
from gateway.serve.worker import Follower
from routers.registry import DEFAULT_ARTIFACT
from tests.live import Live, live
from tests.until import PATIENCE_S, until

ROUTE = {"name": "auto", "models": ["echo", "other"], "router": "cheapest", "cache": "exact"}
OTHER = {"name": "other", "input_usd_per_mtok": 9.0, "output_usd_per_mtok": 9.0}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker on a busy machine may take longer to answer."""
    monkeypatch.setattr(worker_sockets, "ANSWER_WITHIN_S", PATIENCE_S)


@asynccontextmanager
async def opened(folder: Path, **extra: Any) -> AsyncIterator[tuple[Live, ControlSocket]]:
    scripts = {"other": [{"text": "hi"}]}
    async with live(folder, models=["echo", OTHER], scripts=scripts, routes=[ROUTE], **extra) as one:
        sock = ControlSocket(one.app, Follower(one.app).look)
        await sock.open()
        try:
            yield one, sock
        finally:
            await sock.close()


async def send_chat(gateway: Live, text: str = "hello", model: str = "auto", **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": text}], **fields}
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer


def run_dir(gateway: Live) -> Path:
    return Path(gateway.services.config.server.run_dir)


def test_a_deep_folder_still_has_a_socket(tmp_path: Path) -> None:
    """A socket's address is short, while the folder's path may be long."""
    deep = tmp_path / ("x" * 60) / ("y" * 60)
    assert len(str(socket_path(deep, 0))) > MAX_PATH_BYTES

    async def scenario() -> None:
        async with opened(tmp_path, server={"run_dir": str(deep)}) as (gateway, _):
            (sock,) = await asyncio.to_thread(socket_paths, run_dir(gateway))
            assert await asyncio.to_thread(settings_version, sock) == 0

    asyncio.run(scenario())


async def test_settings_are_in_force_before_the_answer_comes(tmp_path: Path) -> None:
    """An answered version is in force for the next request, and a version with faults is never confirmed."""
    async with opened(tmp_path) as (gateway, _):
        assert (await send_chat(gateway)).headers["x-headgate-model"] == "echo"
        change(gateway, {"auto": {"models": ["other"]}})
        sock = socket_path(run_dir(gateway), 0)
        assert await asyncio.to_thread(settings_version, sock) == 1
        assert (await send_chat(gateway, "anew")).headers["x-headgate-model"] == "other"
        change(gateway, {"auto": {"models": ["nobody"]}})
        assert await asyncio.to_thread(settings_version, sock) == 1
        assert (await send_chat(gateway, "again")).headers["x-headgate-model"] == "other"
        change(gateway, {})
        assert await asyncio.to_thread(settings_version, sock) == 3
        assert (await send_chat(gateway, "at last")).headers["x-headgate-model"] == "echo"


def change(gateway: Live, routes: dict[str, dict[str, Any]]) -> None:
    import msgspec

    change_settings(run_dir(gateway), lambda held: msgspec.structs.replace(held, overlay=Overlay(routes=routes)))


async def test_a_revoked_key_opens_nothing_whatever_became_of_a_router(tmp_path: Path) -> None:
    """A missing router file doesn't stop the revocation of keys; routes continue with the loaded router."""
    import msgspec

    artefact = tmp_path / "promoted.safetensors"
    shutil.copy(DEFAULT_ARTIFACT, artefact)
    key, record = new_key("app", time.time())
    routes = [{"name": "auto", "models": ["echo"], "cache": "none"}]
    async with live(tmp_path, routes=routes, auth={"master_key": "hg-master"}) as gateway:
        follower, folder = Follower(gateway.app), run_dir(gateway)
        change_settings(
            folder, lambda held: msgspec.structs.replace(held, routers={"auto": str(artefact)}, keys=(record,))
        )
        follower.look()
        assert (await said_to(gateway, key)).status_code == 200
        artefact.unlink()
        publish_keys(folder, [msgspec.structs.replace(record, revoked_s=time.time())])
        follower.look()
        assert (await said_to(gateway, key)).status_code == 401
        assert (await said_to(gateway, "hg-master")).status_code == 200


async def test_a_key_with_an_endless_budget_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    """Such a key of an older release still works, and keys made or revoked after it take effect."""
    import msgspec

    (rich, one), (key, two) = new_key("rich", time.time()), new_key("app", time.time())
    routes = [{"name": "auto", "models": ["echo"], "cache": "none"}]
    async with live(tmp_path, routes=routes, auth={"master_key": "hg-master"}) as gateway:
        follower, folder = Follower(gateway.app), run_dir(gateway)
        publish_keys(folder, [msgspec.structs.replace(one, budget_usd=1e300), two])
        follower.look()
        for sent in (rich, key):
            assert (await said_to(gateway, sent)).status_code == 200
        publish_keys(folder, [one, msgspec.structs.replace(two, revoked_s=time.time())])
        follower.look()
        assert (await said_to(gateway, key)).status_code == 401


async def said_to(gateway: Live, key: str) -> httpx.Response:
    asked = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
    async with httpx.AsyncClient(timeout=60, headers={"authorization": f"Bearer {key}"}) as client:
        return await client.post(f"{gateway.url}/v1/chat/completions", json=asked)


async def test_a_provider_is_replaced_under_traffic(tmp_path: Path) -> None:
    """New requests go to the new address, requests in flight end at the old one, and the old pool is closed."""
    import msgspec

    async with opened(tmp_path) as (gateway, _):
        follower = Follower(gateway.app)
        before = gateway.services.driver.sender.providers["up"]
        url = before.config.base_url
        overlay = Overlay(providers={"up": {"base_url": url, "max_connections": 3}})
        busy = [asyncio.create_task(send_chat(gateway, f"question {n}", cache="none")) for n in range(8)]
        change_settings(run_dir(gateway), lambda held: msgspec.structs.replace(held, overlay=overlay))
        follower.look()
        after = gateway.services.driver.sender.providers["up"]
        assert after is not before and after.config.max_connections == 3
        assert gateway.services.driver.sender.providers["claude"].config.name == "claude"
        await asyncio.gather(*busy)
        await send_chat(gateway, "and one more")
        await until(lambda: not (before.pool.in_use or follower._retiring))


async def test_entries_are_found_shown_and_forgotten(tmp_path: Path) -> None:
    """Entries are found by id, answer, tenant and model, by text only for those who may read it, and deleted ones are
    gone.
    """
    async with opened(tmp_path) as (gateway, _):
        await send_chat(gateway, "alpha particle")
        await send_chat(gateway, "beta decay")
        folder = run_dir(gateway)

        async def found(**wanted: Any) -> list[dict[str, Any]]:
            told, silent = await asyncio.to_thread(ask_all, folder, {"ask": "entries", "text": True, **wanted})
            assert silent == []
            data: list[dict[str, Any]] = told["worker-0"]["data"]
            return data

        assert len(await found()) == 2
        (one,) = await found(query="ALPHA")
        assert one["answer"] == "alpha particle" and one["model"] == "echo"
        assert await found(query="alpha", text=False) == []
        assert len(await found(query=one["id"], text=False)) == 1
        assert await found(tenant="nobody") == [] and len(await found(model="echo", limit=1)) == 1
        assert (await send_chat(gateway, "alpha particle")).headers["x-headgate-cache"] == "hit"
        sock = socket_path(folder, 0)
        assert await asyncio.to_thread(ask, sock, {"ask": "forget", "id": one["id"]}) is True
        assert await asyncio.to_thread(ask, sock, {"ask": "forget", "id": one["id"]}) is False
        assert (await send_chat(gateway, "alpha particle")).headers["x-headgate-cache"] == "miss"


async def test_an_invalid_request_closes_nothing(tmp_path: Path) -> None:
    """It gets an error and the next request an answer; only the owner may open the socket."""
    async with opened(tmp_path) as (gateway, _):
        sock = socket_path(run_dir(gateway), 0)
        assert sock.stat().st_mode & 0o777 == 0o600
        for question in ({}, {"ask": "secrets"}, {"ask": "forget"}):
            assert await asyncio.to_thread(ask, sock, question) is None
        fleet = await asyncio.to_thread(ask, sock, {"ask": "fleet"})
        assert {one["model"] for one in fleet} == {"echo", "other"}


async def test_a_worker_that_is_gone_is_silent(tmp_path: Path) -> None:
    """A dead worker's socket file may remain, and nobody waits for it."""
    async with opened(tmp_path) as (gateway, sock):
        folder = run_dir(gateway)
        left = folder / "worker-7.door"
        left.touch()
        told, silent = await asyncio.to_thread(ask_all, folder, {"ask": "version"})
        assert (told, silent) == ({"worker-0": 0}, ["worker-7"])
        await sock.close()
        assert not socket_path(folder, 0).exists()


@pytest.mark.parametrize("successor", [True, False])
async def test_a_worker_removes_only_its_own_socket(tmp_path: Path, successor: bool) -> None:
    """A socket that its successor has already opened stays."""
    async with opened(tmp_path) as (gateway, sock):
        other = ControlSocket(gateway.app, lambda: None)
        if successor:
            await other.open()
        await sock.close()
        assert socket_path(run_dir(gateway), 0).exists() is successor
        await other.close()
