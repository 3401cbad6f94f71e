"""The control process goes on after a fault of its own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gateway import control
from gateway.admin.desk import Desk
from gateway.config_load import parse
from gateway.journal.schema import migrate, open_engine
from gateway.journal.ship import ShipState
from gateway.journal.store import Store
from tests.live import table


def test_a_chore_that_fails_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw ends neither that chore nor the others."""
    config, problems = parse(table("http://127.0.0.1:1/v1", tmp_path, ["m"], {}), {"UP_KEY": "k"})
    assert config is not None, problems
    migrate(str(config.storage.url))
    desk = Desk(config, Store(open_engine(str(config.storage.url)), keep_days=30), ShipState())
    ended, turns = threading.Event(), []

    def fails(_: Desk) -> None:
        turns.append(1)
        if len(turns) > 1:
            ended.set()
        raise TypeError("nobody foresaw this")

    monkeypatch.setattr(control, "CHORES_EVERY_S", 0.01)
    monkeypatch.setattr(control, "mark_batches", fails)
    control._do_chores(desk, ended)
    desk.store.close()
    assert len(turns) == 2
