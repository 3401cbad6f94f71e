"""Replicas share what they serve, and one of them leads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gateway.config.settings import CanarySetting, Settings, change_settings, read_settings
from gateway.journal.schema import migrate, open_engine
from gateway.journal.store import Store
from gateway.replicas.leader import Leadership
from gateway.replicas.replica_sync import Overtaken, ReplicaSync
from tests.postgres_server import PostgresServer
from tests.until import until


@pytest.fixture
def database(postgres_server: PostgresServer) -> str:
    url = postgres_server.new_database()
    migrate(url)
    return url


@pytest.fixture
def replicas(database: str, tmp_path: Path) -> Iterator[list[tuple[ReplicaSync, Path]]]:
    """Three replicas, each with a run folder of its own."""
    made = []
    for name in ("one", "two", "three"):
        folder = tmp_path / name
        folder.mkdir()
        made.append((ReplicaSync(Store(open_engine(database)), folder), folder))
    yield made
    for together, _ in made:
        together._store.close()


def serve(folder: Path, route: str, artifact: str) -> None:
    def change(settings: Settings) -> Settings:
        routers = {**settings.routers, route: artifact}
        return msgspec.structs.replace(settings, routers={name: path for name, path in routers.items() if path})

    change_settings(folder, change)


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def served(folder: Path) -> dict[str, bytes]:
    return {route: Path(path).read_bytes() for route, path in read_settings(folder).routers.items()}


def test_a_promotion_reaches_every_replica_with_its_file(replicas: list[tuple[ReplicaSync, Path]]) -> None:
    """The artefact arrives before any setting names it; a roll-back arrives too."""
    (one, here), (two, there), (three, yonder) = replicas
    first, second = (write(here / f"routers/a/{name}.safetensors", name.encode()) for name in ("first", "second"))
    serve(here, "a", first)
    one.step()
    assert two.step() and served(there) == {"a": b"first"}
    assert not str(read_settings(there).routers["a"]).startswith(str(here))
    serve(here, "a", second)
    one.step()
    two.step()
    three.step()
    assert served(there) == served(yonder) == {"a": b"second"}
    serve(there, "a", "")
    two.step()
    one.step()
    three.step()
    assert served(here) == served(yonder) == {}
    assert not any(together.step() for together, _ in replicas)


def test_changes_of_several_replicas_at_once_all_count(replicas: list[tuple[ReplicaSync, Path]]) -> None:
    """Entries are merged one by one; a replica that was overtaken merges again; each version is stored once."""
    (one, here), (two, there), _ = replicas
    one.step()
    two.step()
    serve(here, "a", "cheapest")
    serve(there, "b", "weighted")
    canary = CanarySetting(write(there / "c.safetensors", b"c"), 0.1)
    change_settings(there, lambda settings: msgspec.structs.replace(settings, canaries={"b": canary}))
    base = two._latest()
    one.step()
    with pytest.raises(Overtaken):
        two._save({"routers": {"b": "weighted"}}, base[0])
    two.step()
    one.step()
    for folder in (here, there):
        settings = read_settings(folder)
        assert settings.routers == {"a": "cheapest", "b": "weighted"}
        assert settings.canaries["b"].share == 0.1
        assert Path(settings.canaries["b"].artifact).read_bytes() == b"c"


def test_what_stays_a_replicas_own_is_not_touched(replicas: list[tuple[ReplicaSync, Path]]) -> None:
    """Keys come from the database in another way, and are neither sent nor dropped here."""
    from gateway.keys import new_key

    (one, here), (two, there), _ = replicas
    _, record = new_key("app", 1.0)
    change_settings(there, lambda settings: msgspec.structs.replace(settings, keys=(record,)))
    serve(here, "a", "cheapest")
    one.step()
    two.step()
    one.step()
    assert read_settings(there).keys == (record,) and read_settings(here).keys == ()


def test_a_spoilt_artefact_changes_nothing(replicas: list[tuple[ReplicaSync, Path]]) -> None:
    """A file whose bytes don't match its checksum is refused, and the old setting stays."""
    (one, here), (two, there), _ = replicas
    serve(here, "a", write(here / "a.safetensors", b"good"))
    one.step()
    with one._store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE artifacts SET bytes = 'bad'")
    with pytest.raises(ValueError, match="not whole"):
        two.step()
    assert read_settings(there).routers == {}


async def test_one_leads_and_another_follows_it(database: str, tmp_path: Path) -> None:
    """At most one replica leads; when its connection ends, another does as soon as the server has noticed."""
    engines = [open_engine(database) for _ in range(2)]
    first, second = (Leadership(engine, tmp_path) for engine in engines)
    assert first.is_mine() and not second.is_mine() and first.is_mine()
    with engines[1].begin() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
        ).all()
    await until(lambda: not first.is_mine())
    await until(second.is_mine)
    assert not first.is_mine()
    second.give_up()
    await until(first.is_mine)
    first.give_up()
    for engine in engines:
        engine.dispose()


def test_beside_an_embedded_database_a_file_says_who_leads(tmp_path: Path) -> None:
    """Two control processes on one machine never both lead."""
    engine = open_engine(f"sqlite:///{tmp_path}/x.db")
    first, second = Leadership(engine, tmp_path), Leadership(engine, tmp_path)
    assert first.is_mine() and not second.is_mine()
    first.give_up()
    assert second.is_mine()
    second.give_up()
    engine.dispose()
