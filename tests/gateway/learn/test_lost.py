"""The file of a promoted router is lost: the configured router answers, and an alarm is raised."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI

from gateway.app import build_services, reload
from gateway.config.settings import Current, change_settings, read_settings
from gateway.errors import ConfigError
from gateway.journal.store import open_store
from gateway.learn.loop import REFUSED, WAITS
from gateway.learn.shadow import begin_canary, mark
from gateway.promote import Versions
from gateway.providers.scripted import ScriptedServer
from routers.registry import DEFAULT_ARTIFACT
from tests.gateway.batch.test_kill import configuration
from tests.gateway.learn.test_loop import Street, configured
from tests.live import served
from tests.ports import free_port


async def test_a_restarting_worker_serves_without_the_file(tmp_path: Path) -> None:
    """A worker killed after the loss answers by the configured router. readyz, the metrics and the admin API's alarms
    report the loss, until the version is promoted again.
    """
    port, admin_port = free_port(), free_port()
    async with ScriptedServer() as upstream:
        config = configuration(tmp_path, upstream.url)
        config.write_text(config.read_text().replace("[server]", f"[server]\nport = {port}\nadmin_port = {admin_port}"))
        store = open_store(f"sqlite:///{tmp_path}/journal.db")
        versions = Versions(store, tmp_path / "run")
        live = versions.promote("auto", versions.add("auto", DEFAULT_ARTIFACT, actor="me").version, actor="me")
        Path(live.artifact).unlink()
        async with served(config) as process, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            assert (await http.get("/readyz")).json()["routers"]["auto"].endswith("no such file")
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
            worker = next(pid for pid, command in commands.items() if b"gateway.serve.worker" in command)
            os.kill(int(worker), signal.SIGKILL)
            client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=20)
            answer = await client.chat.completions.with_raw_response.create(
                model="auto", messages=[{"role": "user", "content": "hello"}]
            )
            assert answer.headers["x-headgate-model"] == "small"
            assert 'headgate_router_lost{route="auto"} 1.0' in (await http.get("/metrics")).text
            told = (await http.post(f"http://127.0.0.1:{admin_port}/admin/learning/auto/refresh")).json()
            assert [alarm["kind"] for alarm in told["alarms"]] == ["lost"]
            versions.add("auto", DEFAULT_ARTIFACT, actor="me")
            versions.promote("auto", live.version, actor="me")
            change_settings(tmp_path / "run", lambda now: now)
            deadline = time.monotonic() + 30
            os.kill(process.pid, signal.SIGHUP)
            while (await http.get("/readyz")).json()["routers"] != "ok":
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        store.close()


def test_a_lost_version_blocks_no_other_change(tmp_path: Path) -> None:
    """A new version that can't be opened is still refused, and the old one stays."""
    config, lost = configured(tmp_path), tmp_path / "gone.safetensors"
    run_dir = tmp_path / "run"
    change_settings(run_dir, lambda now: type(now)(routers={"auto": str(lost)}))
    services = build_services(config, Current(run_dir), 0)
    assert services.book.lost == {"auto": f"{lost}: no such file"}
    begun = Versions(open_store(config.storage.url), run_dir).add("auto", DEFAULT_ARTIFACT, actor="me")
    begin_canary(str(run_dir), "auto", begun, 0.2)
    assert services.current.refresh()
    reload(services)
    assert services.book.lost and services.book.routes["auto"].router is not None
    change_settings(run_dir, lambda now: type(now)(routers={"auto": "/another.safetensors"}))
    assert services.current.refresh()
    before = services.book
    with pytest.raises(ConfigError, match="another"):
        reload(services)
    assert services.book is before


def test_the_loop_gives_up_a_lost_candidate(tmp_path: Path) -> None:
    """Its canary ends, and the loop waits for another one; the same holds if the live version is lost."""
    street = Street(tmp_path)
    street.round(80)
    for state in ("shadow", "canary"):
        version = street.loop.versions.add("auto", DEFAULT_ARTIFACT, actor="me")
        version = mark(street.store, version, state, 1.0)
        begin_canary(street.config.server.run_dir, "auto", version, 0.2)
        Path(version.artifact).unlink()
        told = street.loop.step(time.time())
        assert (told.action, told.version) == (REFUSED, version.version) and "no such file" in told.reason
        assert read_settings(street.config.server.run_dir).canaries == {}
    version = street.loop.versions.add("auto", DEFAULT_ARTIFACT, actor="me")
    Path(street.loop.versions.promote("auto", version.version, actor="me").artifact).unlink()
    assert street.loop.step(time.time()).action in (WAITS, REFUSED)
    street.store.close()
