"""Keys and settings on their way to workers and replicas."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from gateway.admin.services import AdminServices
from gateway.config.settings import change_settings, read_settings
from gateway.config.types import Config, Secret, Server, Storage
from gateway.journal.record import KeyRecord
from gateway.journal.schema import migrate, open_engine
from gateway.journal.ship import ShipState
from gateway.journal.store import Store, open_store
from gateway.journal.tables import keys
from gateway.replicas.propagation import WHOLE_EVERY_S, Propagation
from gateway.serve import control
from tests.gateway.test_database_away import stopped
from tests.postgres_server import PostgresServer
from tests.until import PATIENCE_S


def services_at(folder: Path, store: Store) -> AdminServices:
    return AdminServices(Config(server=Server(run_dir=str(folder))), store, ShipState(), opened=True)


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[AdminServices]:
    config = Config(
        server=Server(run_dir=str(tmp_path / "run")), storage=Storage(url=Secret(f"sqlite:///{tmp_path}/journal.db"))
    )
    found = AdminServices(config, open_store(config.storage.url), ShipState(), opened=True)
    yield found
    found.store.close()


def key(name: str) -> KeyRecord:
    return KeyRecord(id=f"key_{name}", name=name, key_hash=f"hash-{name}", prefix="hg-", created_s=1.0)


def test_a_change_is_seen_and_nothing_else_is_looked_through(admin: AdminServices) -> None:
    """A new key, a revocation and a setting reach the workers' file at the next look; without a change nothing is read.
    """
    propagation = Propagation(admin, now=lambda: 0.0)
    while propagation.step():
        pass
    admin.store.add_key(key("ci"), "me")
    assert propagation.step() and [one.name for one in read_settings(admin.run_dir).keys] == ["ci"]
    admin.store.change_key("key_ci", lambda held: msgspec.structs.replace(held, revoked_s=2.0), "me")
    assert propagation.step() and read_settings(admin.run_dir).keys[0].revoked_s == 2.0
    admin.store.save_setting("route:auto", {"cost_weight": 0.5}, "me")
    assert propagation.step() and read_settings(admin.run_dir).overlay.routes == {"auto": {"cost_weight": 0.5}}
    change_settings(admin.run_dir, lambda settings: msgspec.structs.replace(settings, keys=()))
    assert propagation.step() and read_settings(admin.run_dir).keys
    while propagation.step():
        pass
    assert not propagation.step()


def test_what_no_audit_line_tells_of_is_found_a_little_later(admin: AdminServices) -> None:
    """A change made by hand in the database needs no restart."""
    now = 0.0
    propagation = Propagation(admin, now=lambda: now)
    admin.store.add_key(key("ci"), "me")
    while propagation.step():
        pass
    with admin.store.engine.begin() as connection:
        connection.execute(sa.delete(keys))
    assert not propagation.step() and read_settings(admin.run_dir).keys
    now = WHOLE_EVERY_S
    assert propagation.step() and not read_settings(admin.run_dir).keys


def test_a_replica_learns_what_another_made(postgres_server: PostgresServer, tmp_path: Path) -> None:
    """A key and a promotion on one replica reach the other after a look of each."""
    url = postgres_server.new_database()
    migrate(url)
    one, two = (services_at(tmp_path / name, Store(open_engine(url))) for name in ("one", "two"))
    here, there = Propagation(one), Propagation(two)
    here.step()
    there.step()
    one.store.add_key(key("ci"), "me")
    change_settings(one.run_dir, lambda settings: msgspec.structs.replace(settings, routers={"auto": "weighted"}))
    here.step()
    assert there.step()
    found = read_settings(two.run_dir)
    assert [one.name for one in found.keys] == ["ci"] and found.routers == {"auto": "weighted"}
    one.store.close()
    two.store.close()


def test_nothing_else_holds_it_up(admin: AdminServices, monkeypatch: pytest.MonkeyPatch) -> None:
    """While other work on the journal hangs, a key still reaches the workers."""
    hanging, over, ended = threading.Event(), threading.Event(), threading.Event()

    def hang(_: AdminServices) -> None:
        hanging.set()
        over.wait(PATIENCE_S)

    monkeypatch.setattr(control, "mark_batches", hang)
    threads = [threading.Thread(target=control._do_chores, args=(admin, ended))]
    threads.append(threading.Thread(target=Propagation(admin).run, args=(ended,)))
    for thread in threads:
        thread.start()
    try:
        assert hanging.wait(PATIENCE_S)
        admin.store.add_key(key("ci"), "me")
        patience = threading.Event()
        for _ in range(round(PATIENCE_S / 0.02)):
            if read_settings(admin.run_dir).keys:
                break
            patience.wait(0.02)
        assert read_settings(admin.run_dir).keys and not over.is_set()
    finally:
        over.set()
        ended.set()
        for thread in threads:
            thread.join()


def test_a_database_that_is_away_is_told_once(
    tmp_path: Path, postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not logged at every look: five lines a second would fill a disk during a long outage."""
    monkeypatch.setattr("gateway.replicas.propagation.LOOK_EVERY_S", 0.02)
    url = postgres_server.new_database()
    migrate(url)
    store, ended = open_store(url), threading.Event()
    propagation = Propagation(services_at(tmp_path, store))
    looking = threading.Thread(target=propagation.run, args=(ended,))
    try:
        with stopped(postgres_server):
            looking.start()
            until_logged(caplog, "settings wait: ")
            ended.wait(0.5)
        until_logged(caplog, "settings go on")
        assert sum("Connection refused" in line for line in caplog.messages) == 1
    finally:
        ended.set()
        looking.join()
        store.close()


def until_logged(caplog: pytest.LogCaptureFixture, words: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not any(words in line for line in caplog.messages):
        assert time.monotonic() < deadline, caplog.messages
        time.sleep(0.02)
