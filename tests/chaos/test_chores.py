"""The control process continues after an error of its own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gateway.admin.services import AdminServices
from gateway.config.load import parse
from gateway.journal.schema import migrate, open_engine
from gateway.journal.ship import ShipState
from gateway.journal.store import Store
from gateway.journal.write import write_records
from gateway.serve import control
from tests.gateway.journal.records import decision, feedback
from tests.live import table


def test_a_failed_chore_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error ends neither that chore nor the others."""
    config, problems = parse(table("http://127.0.0.1:1/v1", tmp_path, ["m"], {}), {"UP_KEY": "k"})
    assert config is not None, problems
    migrate(str(config.storage.url))
    admin = AdminServices(config, Store(open_engine(str(config.storage.url))), ShipState())
    ended, turns = threading.Event(), []

    def fails(_: AdminServices) -> None:
        turns.append(1)
        if len(turns) > 1:
            ended.set()
        raise TypeError("nobody foresaw this")

    monkeypatch.setattr(control, "CHORES_EVERY_S", 0.01)
    monkeypatch.setattr(control, "mark_batches", fails)
    control._do_chores(admin, ended)
    admin.store.close()
    assert len(turns) == 2


def test_old_decisions_are_deleted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two parts the other chores run, and writers get the database."""
    config, problems = parse(table("http://127.0.0.1:1/v1", tmp_path, ["m"], {}), {"UP_KEY": "k"})
    assert config is not None, problems
    migrate(str(config.storage.url))
    admin = AdminServices(config, Store(open_engine(str(config.storage.url))), ShipState())
    with admin.store.engine.begin() as connection:
        write_records(connection, [*map(decision, range(25)), *(feedback(number, 1.0) for number in range(25))])
    ended, left = threading.Event(), list[int]()

    def counts(_: AdminServices) -> None:
        with admin.store.engine.connect() as connection:
            tables = "SELECT (SELECT count(*) FROM decisions) + (SELECT count(*) FROM feedback)"
            left.append(connection.exec_driver_sql(tables).scalar_one())
        if len(left) == 5:
            ended.set()

    monkeypatch.setattr(control, "CHORES_EVERY_S", 0.01)
    monkeypatch.setattr(control, "FORGET_ROWS", 15)
    monkeypatch.setattr(control, "mark_batches", counts)
    control._do_chores(admin, ended)
    admin.store.close()
    assert left == [50, 35, 20, 5, 0]


def test_a_deletion_that_fails_is_soon_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not an hour later, when the next one would have been due."""
    config, problems = parse(table("http://127.0.0.1:1/v1", tmp_path, ["m"], {}), {"UP_KEY": "k"})
    assert config is not None, problems
    migrate(str(config.storage.url))
    admin = AdminServices(config, Store(open_engine(str(config.storage.url))), ShipState())
    refuse = "CREATE TRIGGER refuse BEFORE DELETE ON decisions BEGIN SELECT RAISE(ABORT, 'not now'); END"
    with admin.store.engine.begin() as connection:
        write_records(connection, [decision(1)])
        connection.exec_driver_sql(refuse)
    ended, left = threading.Event(), list[int]()

    def counts(_: AdminServices) -> None:
        with admin.store.engine.begin() as connection:
            left.append(connection.exec_driver_sql("SELECT count(*) FROM decisions").scalar_one())
            if len(left) == 2:
                connection.exec_driver_sql("DROP TRIGGER refuse")
        if len(left) == 3:
            ended.set()

    monkeypatch.setattr(control, "CHORES_EVERY_S", 0.01)
    monkeypatch.setattr(control, "FORGET_AGAIN_S", 0.0)
    monkeypatch.setattr(control, "mark_batches", counts)
    control._do_chores(admin, ended)
    admin.store.close()
    assert left == [1, 1, 0]
