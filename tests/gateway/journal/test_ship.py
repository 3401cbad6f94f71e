from __future__ import annotations

import random
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import sqlalchemy as sa

from gateway.errors import HeadgateError
from gateway.journal.frames import framed
from gateway.journal.lookup import find_chain, find_decision, find_response, spend_since
from gateway.journal.record import ResponseRecord
from gateway.journal.schema import migrate, open_engine
from gateway.journal.search import DecisionFilter, search
from gateway.journal.ship import Shipper
from gateway.journal.spool import Spool
from gateway.journal.store import Store
from gateway.journal.tables import decisions
from gateway.journal.write import write_records
from tests.gateway.journal.records import NOON_S, decision, feedback
from tests.postgres_server import PostgresServer


def stored_ids(store: Store) -> set[str]:
    with store.engine.connect() as connection:
        return set(connection.execute(sa.select(decisions.c.id)).scalars())


def requests_counted(store: Store) -> int:
    return sum(row["requests"] for row in store.stats(0, NOON_S + 10**9, step_s=86400))


def test_records_are_shipped_once_and_finished_segments_deleted(tmp_path: Path, store: Store) -> None:
    """A live segment stays; a finished one is deleted after its commit."""
    spool, shipper = Spool(tmp_path), Shipper(tmp_path, store.engine)
    spool.append(decision(1))
    assert shipper.ship_all() == 1
    assert len(list(tmp_path.glob("*.seg"))) == 1
    spool.append(decision(2))
    spool.append(feedback(2, 1.0))
    spool.close()
    assert shipper.ship_all() == 2
    assert shipper.ship_all() == 0
    assert list(tmp_path.glob("*.seg")) == []
    assert stored_ids(store) == {"dec_1", "dec_2"}
    assert store.feedback(decision_id="dec_2")[0]["score"] == 1.0
    assert shipper.state.waiting_bytes == 0


def test_waiting_records_are_those_not_yet_stored(tmp_path: Path, store: Store) -> None:
    """A live segment that was shipped completely leaves none; while the database is away all new ones wait."""
    spool, shipper = Spool(tmp_path), Shipper(tmp_path, store.engine)
    spool.append(decision(1))
    assert shipper.try_pass() and shipper.state.waiting_bytes == 0
    before = segment_bytes(tmp_path)
    shipper._engine = sa.create_engine(f"sqlite:///{tmp_path}/no/such/folder.db")
    for _ in range(2):
        spool.append(decision(2))
        assert not shipper.try_pass() and shipper.state.waiting_bytes == segment_bytes(tmp_path) - before > 0


def segment_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.seg"))


def test_small_reads_ship_records_larger_than_a_read(tmp_path: Path, store: Store) -> None:
    """A record longer than the read size is shipped, and not taken for damage."""
    spool = Spool(tmp_path)
    for number in range(5):
        spool.append(decision(number, prompt_text="x" * 5000 * number))
    spool.close()
    shipper = Shipper(tmp_path, store.engine, read_bytes=1000)
    assert shipper.ship_all() == 5
    assert shipper.state.quarantined == 0


def test_damaged_and_foreign_records_are_set_aside(tmp_path: Path, store: Store) -> None:
    """A flipped byte, garbage, a foreign record and one of a later release are written to .bad, and the rest is
    shipped.
    """
    spool = Spool(tmp_path)
    for number in range(3):
        spool.append(decision(number))
    spool.close()
    (segment,) = tmp_path.glob("*.seg")
    content = bytearray(segment.read_bytes())
    content[20] ^= 0xFF
    stranger = framed(msgspec.msgpack.encode({"t": "decision.9", "id": "x"}))
    segment.write_bytes(bytes(content) + b"garbage" + stranger + framed(b"\xc1") + b"torn tail")
    shipper = Shipper(tmp_path, store.engine)
    assert shipper.ship_all() == 2
    assert stored_ids(store) == {"dec_1", "dec_2"}
    assert shipper.state.quarantined == 4 + 1
    set_aside = segment.with_suffix(".bad").read_bytes()
    assert b"garbage" in set_aside
    assert stranger in set_aside  # framed, so that a later release can ship it
    assert not segment.exists()


@pytest.mark.parametrize(
    "poison",
    [{"time_s": float("nan")}, {"cost_nanousd": 2**63}, {"time_s": 1e300}],
)
def test_a_record_that_no_row_can_hold_is_set_aside(tmp_path: Path, store: Store, poison: dict[str, Any]) -> None:
    """The rest of its batch is shipped, and no counter includes it."""
    spool = Spool(tmp_path)
    for record in (decision(1), decision(2, **poison), decision(3)):
        assert spool.append(record)
    spool.close()
    shipper = Shipper(tmp_path, store.engine)
    assert shipper.ship_all() == 2
    assert stored_ids(store) == {"dec_1", "dec_3"}
    assert requests_counted(store) == 2
    assert len(list(tmp_path.glob("*.bad"))) == 1


def test_one_shipper_works_on_a_folder(tmp_path: Path, store: Store) -> None:
    """A second one does nothing until the first has ended."""
    spool = Spool(tmp_path)
    spool.append(decision(1))
    first, second = Shipper(tmp_path, store.engine), Shipper(tmp_path, store.engine)
    assert first.ship_all() == 1
    spool.append(decision(2))
    assert second.ship_all() == 0
    first.close()
    assert second.ship_all() == 1


def read_acknowledged(process: subprocess.Popen[str], least: int) -> list[str]:
    """Kills the process after it has acknowledged `least` records; returns all that it acknowledged."""
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(least)]
    process.kill()
    rest = process.stdout.read().split("\n")
    process.wait()
    return lines + [line for line in rest[:-1] if line]


def test_no_acknowledged_record_is_missing_after_kill_9(tmp_path: Path, store: Store) -> None:
    """Two workers are killed while a shipper ships: each acknowledged record is stored once."""
    folder = tmp_path / "spool"
    folder.mkdir()
    shipper, stop = Shipper(folder, store.engine), threading.Event()
    thread = threading.Thread(target=shipper.run, args=(stop,), kwargs={"pause_s": 0.005})
    thread.start()
    module = ["-m", "tests.gateway.journal.appender", str(folder)]
    workers = [
        subprocess.Popen([sys.executable, *module, name], stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    acknowledged = [id for worker in workers for id in read_acknowledged(worker, 600)]
    stop.set()
    thread.join()
    shipper.ship_all()
    assert len(acknowledged) >= 1200
    assert set(acknowledged) <= stored_ids(store)
    assert requests_counted(store) == len(stored_ids(store)) <= len(acknowledged) + 2
    assert list(folder.glob("*.seg")) == []
    shipper.close()


def test_a_killed_shipper_neither_loses_nor_repeats(
    tmp_path: Path, store: Store, database_url: str
) -> None:
    """It is killed again and again at random points; in the end each record is stored and counted exactly once."""
    spool = Spool(tmp_path, segment_bytes=100_000)
    rng = random.Random(7)
    module = [sys.executable, "-m", "tests.gateway.journal.ship_process", str(tmp_path), database_url]
    killed_midway = 0
    for round_number in range(4):
        for number in range(500):
            spool.append(decision(round_number * 500 + number))
        process = subprocess.Popen(module, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        select.select([], [], [], rng.random() * 0.08)  # the moment of the kill varies
        process.kill()
        process.wait()
        process.stdout.close()
        killed_midway += len(stored_ids(store)) < (round_number + 1) * 500
    spool.close()
    Shipper(tmp_path, store.engine).ship_all()
    assert killed_midway
    assert stored_ids(store) == {f"dec_{number}" for number in range(2000)}
    assert requests_counted(store) == 2000
    assert sum(row["requests"] for row in store.spend_since(0)) == 2000
    assert list(tmp_path.glob("*.seg")) == []


@pytest.mark.parametrize("step", ["write_records", "_set_shipped_bytes", "unlink"])
def test_a_fault_at_any_step_of_a_batch_is_survived(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whether the step failed before or after it took effect, after the next pass each record is counted once."""
    spool = Spool(tmp_path)
    for number in range(3):
        spool.append(decision(number))
    spool.close()

    def fail_after(real: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any) -> None:
            if step != "unlink":
                real(*arguments)
            raise sa.exc.OperationalError("lost", {}, Exception())

        return failing

    if step == "unlink":
        monkeypatch.setattr(Path, "unlink", fail_after(Path.unlink))
    else:
        monkeypatch.setattr(
            f"gateway.journal.ship.{step}", fail_after(getattr(sys.modules[Shipper.__module__], step))
        )
    shipper = Shipper(tmp_path, store.engine)
    assert not shipper.try_pass()
    assert "lost" in shipper.state.fault
    monkeypatch.undo()
    assert shipper.try_pass()
    assert stored_ids(store) == {"dec_0", "dec_1", "dec_2"}
    assert requests_counted(store) == 3
    assert list(tmp_path.glob("*.seg")) == []


def test_a_database_outage_loses_nothing(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    """While the server is down records wait in the spool and can be found there; then they are shipped."""
    url = postgres_server.new_database()
    migrate(url)
    store = Store(open_engine(url))
    spool, shipper = Spool(tmp_path), Shipper(tmp_path, store.engine)
    spool.append(decision(1))
    assert shipper.try_pass()
    postgres_server.stop()
    try:
        for number in range(2, 6):
            assert spool.append(decision(number))
        assert not shipper.try_pass()
        assert shipper.state.fault
    finally:
        postgres_server.start()
    assert shipper.try_pass(), shipper.state.fault
    assert stored_ids(store) == {f"dec_{number}" for number in range(1, 6)}
    assert requests_counted(store) == 5
    store.close()


async def test_a_decision_is_found_before_and_after_it_is_shipped(tmp_path: Path, store: Store) -> None:
    """It is found by any of its ids, in the spool and in the store, and never by another tenant."""
    spool, shipper = Spool(tmp_path), Shipper(tmp_path, store.engine)
    spool.append(decision(1))
    for _ in range(2):
        for id in ("dec_1", "req_1", "chatcmpl-1"):
            assert find_decision(lambda: store, tmp_path, id) == decision(1)
            assert find_decision(lambda: store, tmp_path, id, tenant="other") is None
        assert find_decision(lambda: store, tmp_path, "dec_2") is None
        shipper.ship_all()


async def test_a_spooled_decision_is_found_while_the_database_is_away(tmp_path: Path) -> None:
    """A decision that isn't in a spool gets 503 then, not 404."""
    store = Store(open_engine(f"sqlite:///{tmp_path}/missing/journal.db"))
    spool = Spool(tmp_path)
    spool.append(decision(1))
    assert find_decision(lambda: store, tmp_path, "dec_1") == decision(1)
    with pytest.raises(HeadgateError) as away:
        find_decision(lambda: store, tmp_path, "dec_2")
    assert away.value.status == 503


async def test_a_deleted_response_is_gone_at_once(tmp_path: Path, store: Store) -> None:
    """A deletion that is still in the spool hides the stored response."""
    spool, shipper = Spool(tmp_path), Shipper(tmp_path, store.engine)
    made = ResponseRecord(id="resp_1", time_s=1.0, tenant="acme", output=b"{}")
    spool.append(made)
    assert find_response(lambda: store, tmp_path, "resp_1", "acme") == made
    assert find_response(lambda: store, tmp_path, "resp_1", "other") is None
    shipper.ship_all()
    assert find_response(lambda: store, tmp_path, "resp_1", "acme") == made
    spool.append(ResponseRecord(id="resp_1", time_s=2.0, tenant="acme", deleted=True))
    assert find_response(lambda: store, tmp_path, "resp_1", "acme") is None
    shipper.ship_all()
    assert find_response(lambda: store, tmp_path, "resp_1", "acme") is None


def test_a_deletion_hides_a_response_that_is_shipped_later(tmp_path: Path, store: Store) -> None:
    """The spool of the worker that deletes may be shipped before that of the worker that made the response."""
    maker, deleter = Spool(tmp_path / "here"), Spool(tmp_path / "there")
    maker.append(ResponseRecord(id="resp_1", time_s=1.0, tenant="acme", output=b"{}"))
    deleter.append(ResponseRecord(id="resp_1", time_s=2.0, tenant="acme", deleted=True))
    Shipper(tmp_path / "there", store.engine).ship_all()
    assert find_response(lambda: store, tmp_path / "here", "resp_1", "acme") is None
    assert find_chain(lambda: store, tmp_path / "here", "resp_1", "acme") == []
    Shipper(tmp_path / "here", store.engine).ship_all()
    assert find_response(lambda: store, tmp_path / "here", "resp_1", "acme") is None


def test_a_chain_is_found_wherever_its_turns_are(tmp_path: Path, store: Store) -> None:
    """They may be in the store and in spools; deleted turns are included, and a missing one ends the chain."""

    def turn(number: int, **changes: Any) -> ResponseRecord:
        previous = f"resp_{number - 1}" if number else ""
        told = {"id": f"resp_{number}", "time_s": float(number), "tenant": "acme", "previous_response_id": previous}
        return ResponseRecord(**{**told, **changes})

    stored, spool = [turn(0), turn(1), turn(4), turn(6)], Spool(tmp_path)
    with store.engine.begin() as connection:
        write_records(connection, stored)
    for number in (2, 3, 5):
        spool.append(turn(number))
    spool.append(ResponseRecord(id="resp_3", time_s=9.0, tenant="acme", deleted=True))
    spool.append(ResponseRecord(id="resp_4", time_s=9.0, tenant="acme", deleted=True))

    def found(id: str, tenant: str = "acme") -> list[str]:
        return [one.id for one in find_chain(lambda: store, tmp_path, id, tenant)]

    assert found("resp_6") == [f"resp_{number}" for number in range(6, -1, -1)]
    assert found("resp_4") == found("resp_3") == found("resp_6", "other") == []
    spool.append(turn(10))
    spool.append(turn(11))
    assert found("resp_11") == ["resp_11", "resp_10"]
    spool.append(turn(20, previous_response_id="resp_21"))
    spool.append(turn(21))
    assert found("resp_21") == ["resp_21", "resp_20", "resp_21"]


def test_restored_spend_counts_spooled_and_stored_once(tmp_path: Path, store: Store) -> None:
    """A restarted worker's ledger includes all spending, wherever its record is."""
    spool, shipper = Spool(tmp_path), Shipper(tmp_path, store.engine)
    totals = []
    for number in range(4):
        spool.append(decision(number))
        spool.append(decision(100 + number, key_id="key_2", cost_nanousd=7))
        spool.append(decision(200 + number, time_s=NOON_S - 7200))
        if number == 1:
            shipper.ship_all()
        rows = spend_since(store, tmp_path, NOON_S)
        totals.append({row["key_id"]: row["cost_nanousd"] for row in rows})
    assert totals == [{"key_1": 1000 * n, "key_2": 7 * n} for n in (1, 2, 3, 4)]


def test_the_list_shows_what_was_shipped(tmp_path: Path, store: Store) -> None:
    """A record goes from a worker's append to the dashboard's list."""
    spool = Spool(tmp_path)
    spool.append(decision(1))
    Shipper(tmp_path, store.engine).ship_all()
    (row,) = search(store, DecisionFilter(), None, 100).rows
    assert (row["id"], row["answered_model"], row["cost_nanousd"]) == ("dec_1", "small", 1000)


def test_a_read_only_database_is_left(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    """A connection from before a failover may lead to a standby: nothing is lost, and the next pass connects to the new
    primary.
    """
    url = postgres_server.new_database()
    migrate(url)
    name = url.rpartition("/")[2]
    engine, spool = open_engine(url), Spool(tmp_path)
    shipper = Shipper(tmp_path, engine)

    def reads_only(whether: str) -> None:
        with psycopg.connect(url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {whether}'.encode())

    reads_only("on")
    for number in range(3):
        spool.append(decision(number))
    assert not shipper.try_pass() and "read-only" in shipper.state.fault
    reads_only("off")
    assert shipper.try_pass(), shipper.state.fault
    assert shipper.state.shipped == 3
    shipper.close()
    engine.dispose()
    spool.close()
