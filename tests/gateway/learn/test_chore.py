"""The control process runs the steps of the learning loop and records what they did."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path

import httpx
import msgspec

from gateway.journal.store import open_store
from gateway.learn.alarms import Alarm
from gateway.learn.chore import TOLD, LearningChore, note
from gateway.learn.loop import SHADOW, WAITS, StepReport
from tests.gateway.learn.test_loop import Street, configured
from tests.live import served
from tests.ports import free_port


def turned(street: Street, every_s: float) -> LearningChore:
    route = msgspec.structs.replace(street.config.routes[0], learn_every_s=every_s)
    config = msgspec.structs.replace(street.config, routes=[route])
    return LearningChore(lambda: config, street.store)


def test_a_route_learns_when_it_is_due(tmp_path: Path) -> None:
    """Nothing happens before its time; then a step trains a candidate and is recorded."""
    street = Street(tmp_path)
    for _ in range(3):
        street.round(80)
    chore = turned(street, 10.0)
    assert not chore.look(0.0) and not chore.look(9.9)
    assert chore.look(10.0)
    chore.close()
    told = street.store.setting(TOLD + "auto")
    assert told["action"] in {SHADOW, WAITS, "refused"} and told["reason"]
    assert not chore.look(19.9) and chore.look(20.1)
    chore.close()
    street.store.close()


def test_a_route_without_learning_is_left_alone(tmp_path: Path) -> None:
    """It has no `learn_every_s`."""
    street = Street(tmp_path)
    chore = turned(street, 0.0)
    assert not chore.look(0.0) and not chore.look(1e9)
    street.store.close()


def test_waiting_is_recorded_once_and_alarms_at_once(tmp_path: Path) -> None:
    """A loop that waits doesn't fill the store; a new alarm is stored and logged."""
    store = open_store(configured(tmp_path).storage.url)
    waits = StepReport(WAITS, "3 scored rounds")
    note(store, "auto", waits)
    note(store, "auto", StepReport(WAITS, "4 scored rounds"))
    assert len(store.setting_versions(TOLD + "auto")) == 1
    alarm = Alarm("calibration", "large scores 0.20 below what the router expects", -0.2, "large")
    note(store, "auto", StepReport(WAITS, "5 scored rounds", alarms=(alarm,)))
    assert store.setting(TOLD + "auto")["alarms"][0]["kind"] == "calibration"
    store.close()


CONFIG = """
[server]
port = {port}
admin_port = {admin}
run_dir = "{folder}/run"
[storage]
url = "sqlite:///{folder}/journal.db"
[[providers]]
name = "up"
kind = "scripted"
[[models]]
name = "small"
provider = "up"
input_usd_per_mtok = 0.1
[[models]]
name = "large"
provider = "up"
input_usd_per_mtok = 2.0
[[routes]]
name = "auto"
models = ["small", "large"]
router = "linear"
explore = 0.5
learn_every_s = 0.2
"""


async def test_a_served_gateway_learns_by_itself(tmp_path: Path) -> None:
    """From feedback over HTTP alone the control process trains a candidate and makes it the shadow."""
    port, rng = free_port(), random.Random(3)
    path = tmp_path / "headgate.toml"
    path.write_text(CONFIG.format(port=port, admin=free_port(), folder=tmp_path))
    async with served(path), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        for i in range(170):
            poem = rng.random() < 0.5
            text = f"write a poem about the sea {i % 7}" if poem else f"Question: {i % 9} * 7 = ?\nA) 1\nB) 2\nC) 3"
            body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            right = float(answer.headers["x-headgate-model"] == ("small" if poem else "large"))
            said = {"decision_id": answer.headers["x-headgate-decision-id"], "score": right}
            assert (await client.post("/v1/feedback", json=said)).status_code == 200
        store = open_store(f"sqlite:///{tmp_path}/journal.db")
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and not any(one.name == "auto" for one in store.router_versions("auto")):
            await asyncio.sleep(0.1)
        versions = store.router_versions("auto")
        told = store.setting(TOLD + "auto")
        store.close()
    assert versions, json.dumps(told)
