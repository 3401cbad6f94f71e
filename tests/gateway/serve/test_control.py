from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from gateway import http_protocol
from gateway.admin.app import make_admin
from gateway.admin.counters import SpendRow, StatsRow
from gateway.admin.services import AdminServices
from gateway.config.settings import read_settings
from gateway.config.types import Auth, Config, ModelConfig, Secret, Server, Storage
from gateway.errors import ConfigError
from gateway.journal.record import AuditRecord, Record
from gateway.journal.schema import migrate, open_engine
from gateway.journal.ship import Shipper, ShipState
from gateway.journal.spool import Spool, spool_dir
from gateway.journal.store import Store, open_store
from gateway.journal.write import write_records
from gateway.keys import hash_key
from gateway.metrics import Metrics
from gateway.serve.control import serve_control
from tests.gateway.journal.records import NOON_S, decision, feedback
from tests.ports import free_port
from tests.postgres_server import PostgresServer
from tests.until import PATIENCE_S

MASTER = {"authorization": "Bearer master"}


def configured(folder: Path, *, master_key: str = "", url: str = "", port: int = 0) -> Config:
    return Config(
        server=Server(run_dir=str(folder / "run"), admin_port=port),
        storage=Storage(url=Secret(url or f"sqlite:///{folder}/journal.db")),
        auth=Auth(master_key=Secret(master_key)),
        models=[ModelConfig(name="small", provider="acme"), ModelConfig(name="large", provider="acme")],
    )


@pytest.fixture
def admin(tmp_path: Path) -> AdminServices:
    config = configured(tmp_path)
    return AdminServices(config, open_store(config.storage.url), ShipState(), opened=True)


@pytest.fixture
async def client(admin: AdminServices) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(admin) as client:
        yield client


def client_of(admin: AdminServices, peer: str = "127.0.0.1", **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(make_admin(admin), client=(peer, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost:8081", **options)


def write(store: Store, *records: Record) -> None:
    with store.engine.begin() as connection:
        write_records(connection, records)


async def test_decisions_are_listed_filtered_and_paged(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """Following `next` returns every matching decision once; money is in dollars."""
    write(admin.store, *(decision(number) for number in range(5)), decision(9, route="code"))
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get(f"/admin/decisions?route=auto&limit=2&cursor={cursor}")).json()
        seen += [row["id"] for row in page["data"]]
        cursor = page["next"]
    assert seen == ["dec_4", "dec_3", "dec_2", "dec_1", "dec_0"]
    assert page["data"][0]["cost_usd"] == 1e-6
    assert (await client.get("/admin/decisions?cursor=x:y")).status_code == 400


async def test_a_decision_is_explained_with_its_feedback(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """A decision is found by any of its ids, whether it is stored or still in a spool."""
    write(admin.store, decision(1), feedback(1, 0.25))
    Spool(admin.spool_dir).append(decision(2))
    found = (await client.get("/admin/decisions/chatcmpl-1")).json()
    assert found["decision"]["propensity"] == 0.8
    assert found["feedback"][0]["score"] == 0.25
    assert (await client.get("/admin/decisions/dec_2")).json()["feedback"] == []
    missing = await client.get("/admin/decisions/dec_3")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [("GET", "/admin/stats?since_s=nan", b"", 422, "unsound"), ("GET", "/admin/stats?until_s=inf", b"", 422, "unsound"),
     ("GET", "/admin/spend?since_s=nan", b"", 422, "unsound"), ("GET", "/admin/nope", b"", 404, "unknown_url"),
     ("PATCH", "/admin/spend", b"", 405, "method_not_allowed"), ("POST", "/admin/keys", b"\xff", 400, "unsound"),
     ("POST", "/admin/keys", b"[" * 100_000, 400, "unsound"), ("GET", "/admin/decisions/%00", b"", 404, "not_found")],
)  # fmt: skip
async def test_bad_input_is_refused_in_one_shape(
    admin: AdminServices, client: httpx.AsyncClient, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    """Whichever layer refuses it, the status is 4xx and the error has a code."""
    write(admin.store, decision(1, response_id=""))
    answer = await client.request(method, path, content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert ("allow" in answer.headers) == (status == 405)


async def test_rows_of_the_same_time_are_paged_without_gaps(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """Feedback and audit lines with equal times each appear on one page, and the pages link to the next."""
    notes = [AuditRecord(id=f"aud_{i}", time_s=NOON_S, actor="me", action="key.create") for i in range(102)]
    write(admin.store, *(feedback(i, 1.0, time_s=NOON_S) for i in range(5)), *notes)
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get("/admin/feedback", params={"limit": 2, "cursor": cursor})).json()
        seen += [row["id"] for row in page["data"]]
        cursor = page["next"]
    assert sorted(seen) == [f"fb_{i}" for i in range(5)]
    first = (await client.get("/admin/audit")).json()
    last = {"before_s": first[-1]["time_s"], "before_id": first[-1]["id"]}
    rest = (await client.get("/admin/audit", params=last)).json()
    assert {row["id"] for row in first + rest} == {one.id for one in notes}
    shown = (await client.get("/audit")).text
    older = unescape(shown.partition('href="/audit?cursor=')[2].partition('"')[0])
    assert (await client.get(f"/audit?cursor={older}")).text.count("key.create") == 4


async def test_a_key_is_shown_once_and_reaches_the_workers(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """Only its hash is stored. Workers get the key, its changes and its revocation, and each adds an audit line."""
    made = (await client.post("/admin/keys", json={"name": "ci", "models": ["small"], "rpm": 5})).json()
    plaintext, id = made["key"], made["record"]["id"]
    (held,) = read_settings(admin.run_dir).keys
    assert held.key_hash == hash_key(plaintext) and held.models == ("small",)
    changed = (await client.patch(f"/admin/keys/{id}", json={"rpm": None, "budget_usd": 2.5})).json()
    assert (await client.patch(f"/admin/keys/{id}", json={"models": ["smal"]})).status_code == 422
    assert (changed["rpm"], changed["budget_usd"], changed["models"]) == (None, 2.5, ["small"])
    assert (await client.post("/admin/keys", json={"name": "ci"})).status_code == 409
    await client.delete(f"/admin/keys/{id}")
    assert read_settings(admin.run_dir).keys[0].revoked_s is not None
    assert (await client.get("/admin/keys")).json() == []
    everything = [
        await client.get(path) for path in ("/admin/keys?revoked=true", f"/admin/keys/{id}", "/admin/audit")
    ]
    assert not any(plaintext in answer.text or hash_key(plaintext) in answer.text for answer in everything)
    actions = [row["action"] for row in everything[-1].json()]
    assert actions == ["key.revoke", "key.change", "key.create"]


async def test_a_key_made_while_the_disk_is_full_is_shown(client: httpx.AsyncClient, admin: AdminServices) -> None:
    """The key is stored, so its secret must be shown; workers get it once the file can be written."""
    in_the_way = admin.run_dir / f"settings.json.{os.getpid()}.new"
    in_the_way.mkdir(parents=True)
    answer = await client.post("/admin/keys", json={"name": "app"})
    assert answer.status_code == 201 and not read_settings(str(admin.run_dir)).keys
    assert (await client.patch(f"/admin/keys/{answer.json()['record']['id']}", json={"rpm": 7})).status_code == 200
    in_the_way.rmdir()
    admin.publish()
    (key,) = read_settings(str(admin.run_dir)).keys
    assert (key.key_hash, key.rpm) == (hash_key(answer.json()["key"]), 7)


async def test_a_rotated_key_has_two_secrets_for_a_while(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """Its id and budget stay. Workers get both hashes, neither is shown, and the audit log has the end of the old one.
    """
    made = (await client.post("/admin/keys", json={"name": "ci", "budget_usd": 2.5})).json()
    path = f"/admin/keys/{made['record']['id']}"
    asked = time.time()
    turned = (await client.post(f"{path}/rotate", json={"grace_s": 60})).json()
    (held,) = read_settings(admin.run_dir).keys
    assert held.key_hash == hash_key(turned["key"])
    assert [one.key_hash for one in held.earlier] == [hash_key(made["key"])]
    until_s = turned["record"]["earlier_until_s"]
    assert asked + 60 <= until_s <= time.time() + 60 and turned["record"]["prefix"] == turned["key"][:7]
    assert {**turned["record"], "earlier_until_s": None, "prefix": made["record"]["prefix"]} == made["record"]
    seen = [await client.get(url) for url in ("/admin/keys", path, "/admin/audit")]
    shown = "".join(answer.text for answer in seen)
    assert not any(word in shown for plain in (made["key"], turned["key"]) for word in (plain, hash_key(plain)))
    latest = seen[-1].json()[0]
    assert latest["action"] == "key.rotate" and latest["detail"] == {"name": "ci", "earlier_until_s": until_s}
    assert (await client.post(f"{path}/rotate", json={"grace_s": -1})).status_code == 422
    assert (await client.post("/admin/keys/key_none/rotate", json={})).status_code == 404
    await client.delete(path)
    assert (await client.post(f"{path}/rotate", json={})).status_code == 409


async def test_json_with_another_content_type_gets_a_hint(client: httpx.AsyncClient) -> None:
    """curl -d sends it with the content type of a form."""
    said = {"content-type": "application/x-www-form-urlencoded"}
    told = await client.post("/admin/keys", content=b'{"name": "ci"}', headers=said)
    assert told.status_code == 415 and "content-type: application/json" in told.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [{}, {"name": ""}, {"name": "a", "rpm": 0}, {"name": "a", "secret": "x"}, {"name": "a", "budget_usd": 1e300},
     {"name": "a", "rpm": 10**400}, {"name": "  "}, {"name": "a\nb"}, {"name": "a", "tenant": "\t"}],
)  # fmt: skip
async def test_an_invalid_key_is_refused(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    """A key without a name, with a negative or too large limit, or with an unknown field is refused."""
    assert (await client.post("/admin/keys", json=body)).status_code == 422


async def test_a_key_changed_from_an_old_page_is_a_conflict(client: httpx.AsyncClient) -> None:
    """A change that states an outdated version is refused; one that states none is applied."""
    id = (await client.post("/admin/keys", json={"name": "ci", "rpm": 5})).json()["record"]["id"]
    (seen,) = (await client.get("/admin/keys")).json()
    assert (await client.patch(f"/admin/keys/{id}", json={"rpm": 7, "version": seen["version"]})).status_code == 200
    late = await client.patch(f"/admin/keys/{id}", json={"rpm": 5, "tpm": 9, "version": seen["version"]})
    assert late.status_code == 409 and "changed meanwhile" in late.json()["error"]["message"]
    now = (await client.patch(f"/admin/keys/{id}", json={"tpm": 9})).json()
    assert (now["rpm"], now["tpm"]) == (7, 9)


async def test_limits_that_workers_cannot_share_are_refused(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """Without Redis each of two workers would grant the whole budget. Other fields can still be changed."""
    made = (await client.post("/admin/keys", json={"name": "old", "rpm": 5})).json()["record"]["id"]
    admin.config = replace(admin.config, server=replace(admin.config.server, workers=2))
    admin._current = None
    for limit in ({"budget_usd": 1.0}, {"rpm": 5}, {"tpm": 5}):
        (name,) = limit
        answer = await client.post("/admin/keys", json={"name": "new", **limit})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, name)
        assert "storage.redis_url" in answer.json()["error"]["message"]
    assert (await client.patch(f"/admin/keys/{made}", json={"models": ["small"]})).status_code == 200
    assert (await client.patch(f"/admin/keys/{made}", json={"rpm": 6})).status_code == 422
    assert (await client.patch(f"/admin/keys/{made}", json={"rpm": None})).status_code == 200
    assert (await client.post("/admin/keys", json={"name": "new"})).status_code == 201


async def test_counters_are_shown(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """Spend and statistics are those of the store."""
    write(admin.store, decision(1), decision(2, status=500), feedback(1, 1.0))
    (spend,) = (await client.get("/admin/spend")).json()
    assert (spend["requests"], spend["cost_usd"]) == (2, 2e-6)
    stats = (await client.get(f"/admin/stats?since_s={NOON_S}&until_s={NOON_S + 60}")).json()
    (row,) = stats["data"]
    assert (row["requests"], row["errors"], sum(row["latency_counts"])) == (2, 1, 2)
    assert len(row["latency_counts"]) == len(stats["latency_bounds_s"]) + 1
    assert (spend.keys(), row.keys()) == (SpendRow.model_fields.keys(), StatsRow.model_fields.keys())
    assert (await client.get("/admin/stats?step_s=61")).status_code == 422


async def test_metrics_are_the_sum_of_all_workers(admin: AdminServices, client: httpx.AsyncClient) -> None:
    """The snapshots of two workers are added up, beside the lag of the journal."""
    admin.run_dir.mkdir()
    for worker, level in ((0, 0.0), (1, 2.0)):
        said = Metrics()
        said.watch("headgate_breaker_state", partial(dict, [(("small", "acme"), level)]))
        said.watch("headgate_deployment_in_flight", lambda: {("small", "acme"): 3.0})
        (admin.run_dir / f"worker-{worker}.metrics").write_bytes(said.snapshot())
    admin.shipping.waiting_bytes = 77
    text = (await client.get("/metrics")).text
    assert "headgate_journal_lag_bytes 77.0" in text
    assert 'headgate_deployment_in_flight{model="small",provider="acme"} 6.0' in text


async def test_the_master_key_is_needed_where_there_is_one(tmp_path: Path) -> None:
    """Every method of every admin path refuses no key, a wrong key and a prefix of the key; health is open."""
    config = configured(tmp_path, master_key="master")
    admin = AdminServices(config, open_store(config.storage.url), ShipState(), opened=True)
    async with client_of(admin, peer="203.0.113.9") as client:
        paths = make_admin(admin).openapi()["paths"]
        guarded = [(method, path) for path in paths for method in paths[path] if path.startswith("/admin")]
        assert len(guarded) >= 20
        for method, path in guarded:
            if (method, path) == ("post", "/admin/session"):
                continue
            for headers in ({}, {"authorization": "Bearer maste"}, {"authorization": "Basic master"}):
                answer = await client.request(method, re.sub(r"{\w+}", "x", path), headers=headers)
                assert answer.status_code == 401, (method, path)
        assert (await client.get("/admin/audit", headers=MASTER)).status_code == 200
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("peer", "headers"),
    [
        ("203.0.113.9", {}),
        ("127.0.0.1", {"host": "evil.example"}),
        ("127.0.0.1", {"origin": "https://evil.example"}),
        ("127.0.0.1", {"origin": "null"}),
    ],
)
async def test_without_a_key_only_this_machine_is_answered(
    admin: AdminServices, peer: str, headers: dict[str, str]
) -> None:
    """Another machine, a rebound name and another site's page are refused."""
    async with client_of(admin, peer=peer, headers=headers) as client:
        assert (await client.get("/admin/audit")).status_code == 403
        assert (await client.post("/admin/keys", json={"name": "a"})).status_code == 403


async def test_a_database_that_is_away_is_reported(tmp_path: Path) -> None:
    """The answer is 503 with a code and no traceback, and readiness fails too."""
    config = configured(tmp_path, url=f"sqlite:///{tmp_path}/missing/journal.db")
    fault = ShipState(fault="away")
    async with client_of(AdminServices(config, Store(open_engine(config.storage.url)), fault)) as client:
        answer = await client.get("/admin/audit")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "journal_unavailable")
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200


@asynccontextmanager
async def controlled(config: Config) -> AsyncIterator[httpx.AsyncClient]:
    """The control process in this event loop, reachable over HTTP."""
    stop = asyncio.Event()
    running = asyncio.create_task(serve_control(config, stop))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{config.server.admin_port}") as client:
        try:
            yield client
        finally:
            stop.set()
            await running


async def eventually(ask: Callable[[], Any], wanted: Callable[[httpx.Response], bool]) -> httpx.Response:
    """Repeats the request until the answer is the expected one, for at most a minute."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                answer: httpx.Response = await ask()
                if wanted(answer):
                    return answer
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "said",
    [b"", b"GET /healthz HTTP/1.1\r\nhost:", b"POST /login HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nuser"],
)
async def test_slow_clients_keep_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, said: bytes
) -> None:
    """Clients that send nothing, half a head or half a body are disconnected as on the data port; one that reads a
    stream isn't.
    """
    config = configured(tmp_path, port=free_port())
    async with controlled(config) as client:
        await eventually(lambda: client.get("/readyz"), lambda answer: answer.status_code == 200)
        monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
        async with client.stream("GET", "/admin/live") as stream, asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", config.server.admin_port)
            writer.write(said)
            assert await reader.read() == b""
            writer.close()
            events = stream.aiter_lines()
            assert await anext(events) == "event: revision"
            Spool(spool_dir(config.server.run_dir)).append(decision(1, time_s=time.time()))
            while '"decisions":1' not in await anext(events):
                pass
        assert (await client.get("/healthz", headers={"x-long": "x" * 70_000})).status_code == 431
    assert "Traceback" not in caplog.text


async def test_a_trusted_proxy_tells_addresses_apart(tmp_path: Path) -> None:
    """A client behind a trusted proxy that fails too often blocks nobody else there, and others can't forge an address.
    """
    config = configured(tmp_path, master_key="master", port=free_port())
    async with controlled(config) as client:
        await eventually(lambda: client.get("/readyz"), lambda answer: answer.status_code == 200)

        async def failed(user: str, said: str) -> int:
            told = {"x-forwarded-for": said}
            return (await client.post("/admin/session", json={"user": user, "password": "x"}, headers=told)).status_code

        said = [await failed(f"user {n}", f"10.0.0.{n}, 203.0.113.1") for n in range(8)]
        assert (said[0], said[-1]) == (401, 429)
        assert await failed("user 9", "203.0.113.2") == 401


async def test_what_a_worker_appends_is_shipped_and_listed(tmp_path: Path) -> None:
    """Records go from the spool to the database and the admin API, and the rest is shipped at the end."""
    config = configured(tmp_path, port=free_port())
    spool = Spool(spool_dir(config.server.run_dir))
    spool.append(decision(1, time_s=time.time()))
    async with controlled(config) as client:
        listed = await eventually(
            lambda: client.get("/admin/decisions"), lambda answer: bool(answer.json().get("data"))
        )
        assert listed.json()["data"][0]["id"] == "dec_1"
        ready = (await client.get("/readyz")).json()
        assert (ready["status"], ready["database"]) == ("ready", "ok")
        spool.append(decision(2, time_s=NOON_S + 10**8))
        spool.close()
    store = open_store(config.storage.url)
    assert store.decision("dec_2") is not None
    assert list(spool.directory.glob("*.seg")) == []
    store.close()


async def test_what_no_row_can_hold_is_not_the_databases_fault(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    """PostgreSQL can't store NUL; the caller gets an error that isn't worth a retry."""
    url = postgres_server.new_database()
    migrate(url)
    async with controlled(configured(tmp_path, url=url, port=free_port())) as client:
        await eventually(lambda: client.get("/readyz"), lambda answer: answer.status_code == 200)
        said = await client.post("/admin/keys", json={"name": "a\0b"})
        assert (said.status_code, said.json()["error"]["code"]) == (422, "unsound")


async def test_a_server_whose_schema_is_behind_ends_it_with_the_command(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    """The control process never migrates a server's schema by itself, and names the command that does."""
    config = configured(tmp_path, url=postgres_server.new_database(), port=free_port())
    with pytest.raises(ConfigError, match="headgate migrate"):
        await serve_control(config, asyncio.Event())


async def test_a_database_that_is_away_at_start_is_waited_for(tmp_path: Path) -> None:
    """It serves, reports that it isn't ready, and ships once the database answers."""
    folder = tmp_path / "later"
    config = configured(tmp_path, url=f"sqlite:///{folder}/journal.db", port=free_port())
    Spool(spool_dir(config.server.run_dir)).append(decision(1, time_s=time.time()))
    async with controlled(config) as client:
        away = await eventually(lambda: client.get("/readyz"), lambda answer: bool(answer.json()["fault"]))
        assert away.status_code == 503
        for path in ("/", "/login", "/admin/decisions"):
            answer = await client.get(path)
            assert answer.status_code == 503 and "the database is away" in answer.text.lower(), (path, answer.text)
        assert (await client.get("/")).headers["refresh"] == "2"
        folder.mkdir()
        await eventually(lambda: client.get("/admin/decisions"), lambda answer: "dec_1" in answer.text)


async def test_the_process_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    """SIGTERM ships what is spooled and exits with status 0."""
    port = free_port()
    file = tmp_path / "headgate.toml"
    file.write_text(
        f'[server]\nadmin_port = {port}\nport = 0\nrun_dir = "{tmp_path}/run"\n'
        f'[storage]\nurl = "sqlite:///{tmp_path}/journal.db"\n'
    )
    command = [sys.executable, "-m", "gateway.serve.control", "--config", str(file)]
    process = subprocess.Popen(command, env={**os.environ})
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await eventually(lambda: client.get("/readyz"), lambda answer: answer.status_code == 200)
        spool = Spool(spool_dir(tmp_path / "run"))
        spool.append(decision(1, time_s=time.time()))  # an old one is forgotten
        spool.close()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()
    store = open_store(f"sqlite:///{tmp_path}/journal.db")
    assert store.decision("dec_1") is not None
    store.close()


def test_an_unusable_configuration_ends_it_with_one_line(tmp_path: Path) -> None:
    """That happens when only one of certificate and key was replaced and the control process starts again."""
    (file := tmp_path / "headgate.toml").write_text("[server]\nworkers = 0\n")
    command = [sys.executable, "-m", "gateway.serve.control", "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=150)
    assert done.returncode == 1 and done.stderr.startswith("server.workers: ")
    assert "Traceback" not in done.stderr


def test_shipping_state_is_shared_with_the_admin_api(tmp_path: Path) -> None:
    """Readiness reads the state that the shipper writes."""
    store = open_store(f"sqlite:///{tmp_path}/journal.db")
    shipper = Shipper(tmp_path / "spool", store.engine)
    admin = AdminServices(configured(tmp_path), store, shipper.state)
    Spool(tmp_path / "spool").append(decision(1))
    assert shipper.try_pass()
    assert admin.shipping.shipped == 1
    store.close()
