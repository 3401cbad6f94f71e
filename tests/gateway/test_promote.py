"""Promotions and roll-backs: the version that serves a route is always the one that the operator means."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
import typer
from typer.testing import CliRunner

from gateway.commands.learn import add_to
from gateway.config.settings import change_settings, read_settings
from gateway.errors import CallerError
from gateway.journal.schema import migrate
from gateway.journal.store import RouterVersion, open_store
from gateway.journal.tables import artifacts
from gateway.learn.shadow import begin_canary
from gateway.promote import Versions
from routers.artifact import load_artifact
from routers.registry import DEFAULT_ARTIFACT
from tests.gateway.learn.folders import write_folder
from tests.postgres_server import PostgresServer


@pytest.fixture
def versions(tmp_path: Path) -> Iterator[Versions]:
    """Versions a, b and c of the route `auto`, made in this order; none is live."""
    store = open_store(f"sqlite:///{tmp_path}/journal.db")
    for made_s, name in enumerate("abc"):
        path = tmp_path / f"{name}.safetensors"
        path.symlink_to(DEFAULT_ARTIFACT)
        store.save_router_version(RouterVersion("auto", name, float(made_s), "candidate", str(path)), "me")
    yield Versions(store, tmp_path / "run")
    store.close()


def live(versions: Versions) -> list[str]:
    return [one.version for one in versions.list("auto") if one.state == "live"]


@pytest.mark.parametrize(
    ("promoted", "back"),
    [("ab", "a"), ("ba", "b"), ("cab", "a"), ("aba", "b"), ("abcb", "c")],
)
def test_a_roll_back_serves_what_was_live_before(versions: Versions, tmp_path: Path, promoted: str, back: str) -> None:
    """The order of promotions counts, not the times at which versions were made."""
    for version in promoted:
        versions.promote("auto", version, actor="me")
    found = versions.roll_back("auto", actor="me")
    assert found is not None and found.version == back
    assert live(versions) == [back]
    assert read_settings(tmp_path / "run").routers == {"auto": str(tmp_path / f"{back}.safetensors")}


def test_roll_backs_go_all_the_way_to_the_configuration(versions: Versions, tmp_path: Path) -> None:
    """Each goes one step back, never to a version that was rolled back, and the last one leaves no version live."""
    for version in "bca":
        versions.promote("auto", version, actor="me")
    steps = [versions.roll_back("auto", actor="me") for _ in range(3)]
    assert [step.version if step else None for step in steps] == ["c", "b", None]
    assert live(versions) == [] and read_settings(tmp_path / "run").routers == {}
    with pytest.raises(CallerError, match="no promoted version"):
        versions.roll_back("auto", actor="me")


@pytest.mark.parametrize("step", ["promote another", "promote it", "roll back", "roll back to the configuration"])
def test_who_promotes_or_rolls_back_decides_over_every_request(versions: Versions, tmp_path: Path, step: str) -> None:
    """A canary of the route ends and keeps no share of the requests."""
    promoted = "b" if step.endswith("configuration") else "ab"
    for version in promoted:
        versions.promote("auto", version, actor="me")
    chosen = versions.find("auto", "c")
    begin_canary(str(tmp_path / "run"), "auto", chosen, 0.2)
    versions._mark(chosen, "canary", "me")
    if step.startswith("promote"):
        versions.promote("auto", "c" if step == "promote it" else "a", actor="me")
    else:
        versions.roll_back("auto", actor="me")
    assert read_settings(tmp_path / "run").canaries == {}
    assert versions.find("auto", "c").state == ("live" if step == "promote it" else "candidate")


@pytest.mark.parametrize(
    ("asked", "meant"), [("3fa1", "3fa1c0de"), ("3fa1c0de99", "3fa1c0de99"), ("3fa1c0de", "3fa1c0de")]
)
def test_a_version_is_meant_by_its_name_or_enough_of_it(
    versions: Versions, tmp_path: Path, asked: str, meant: str
) -> None:
    """A whole name is that version even if another begins so; three characters never stand for a version."""
    path = str(tmp_path / "a.safetensors")
    named = [meant] if asked == "3fa1" else ["3fa1c0de", "3fa1c0de99"]
    for name in named:
        versions._store.save_router_version(RouterVersion("auto", name, 9.0, "candidate", path), "me")
    assert versions.find("auto", asked).version == meant
    for short in ("", "3", "3fa"):
        with pytest.raises(CallerError, match="no single version"):
            versions.promote("auto", short, actor="me")


def test_a_version_whose_file_is_gone_is_never_served(versions: Versions, tmp_path: Path) -> None:
    """Its promotion is refused and changes nothing; a roll-back skips it."""
    for version in "cab":
        versions.promote("auto", version, actor="me")
    (tmp_path / "a.safetensors").unlink()
    with pytest.raises(CallerError, match=r"a can't be served: .*a\.safetensors: no such file"):
        versions.promote("auto", "a", actor="me")
    assert live(versions) == ["b"]
    back = versions.roll_back("auto", actor="me")
    assert back is not None and live(versions) == [back.version] == ["c"]


def test_a_lost_version_comes_back_from_what_replicas_share(versions: Versions, tmp_path: Path) -> None:
    """The database has the artefacts promoted on any replica, so a promotion restores the file on this machine."""
    store, content = open_store(f"sqlite:///{tmp_path}/journal.db"), DEFAULT_ARTIFACT.read_bytes()
    checksum = sha256(content).hexdigest()
    store.save_router_version(RouterVersion("auto", "d", 9.0, "candidate", "/elsewhere.safetensors", checksum), "me")
    with store.engine.begin() as connection:
        connection.execute(sa.insert(artifacts), {"checksum": checksum, "time_s": 1.0, "bytes": content})
    versions.promote("auto", "d", actor="me")
    served = Path(read_settings(tmp_path / "run").routers["auto"])
    assert served.is_relative_to(tmp_path / "run") and served.read_bytes() == content
    assert [path.name for path in served.parent.iterdir()] == [served.name]
    store.close()


REPLICA = """
import sys
from gateway.errors import CallerError
from gateway.journal.store import open_store
from gateway.promote import Versions
versions = Versions(open_store(sys.argv[1]), sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    version, _, before = line.strip().partition(" ")
    try:
        print(versions.promote("auto", version, actor="me", instead=before).version, flush=True)
    except CallerError as refused:
        print(refused.code, flush=True)
"""


def test_of_two_replicas_that_promote_at_one_moment_one_does(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    """Both expect the same version to be live; one of them is refused, and only the other's is live."""
    url = postgres_server.new_database()
    migrate(url)
    store = open_store(url)
    for name in "abcd":
        store.save_router_version(RouterVersion("auto", name, 1.0, "candidate", str(DEFAULT_ARTIFACT)), "me")

    def replica(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", REPLICA, url, str(folder)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with ExitStack() as stack:
        replicas = [stack.enter_context(replica(tmp_path / name)) for name in ("one", "two")]
        heard = [one.stdout.readline() for one in replicas if one.stdout]
        assert heard == ["ready\n"] * 2
        before = ""
        for wanted in ("ab", "cd") * 6:
            for one, version in zip(replicas, wanted, strict=True):
                assert one.stdin is not None
                one.stdin.write(f"{version} {before}\n")
                one.stdin.flush()
            said = [one.stdout.readline().strip() for one in replicas if one.stdout]
            (before,) = set(said) - {"conflict"}
            assert "conflict" in said and before in wanted
            assert [row.version for row in store.router_versions("auto") if row.state == "live"] == [before]
        for one in replicas:
            assert one.stdin is not None
            one.stdin.close()
    store.close()


def test_a_step_from_what_no_longer_serves_is_refused(versions: Versions, tmp_path: Path) -> None:
    """A promotion or roll-back that expects another live version changes nothing."""
    versions.promote("auto", "a", actor="me", instead="")
    for step in (lambda: versions.promote("auto", "b", actor="me", instead=""),
                 lambda: versions.roll_back("auto", actor="me", instead="b")):  # fmt: skip
        with pytest.raises(CallerError, match="a serves 'auto': it was changed meanwhile"):
            step()
    assert live(versions) == ["a"]
    assert read_settings(tmp_path / "run").routers == {"auto": str(tmp_path / "a.safetensors")}


def test_changes_of_settings_at_the_same_time_lose_none(tmp_path: Path) -> None:
    """Each change reads what the one before has written, although all begin together."""
    together = threading.Barrier(8)

    def add(route: str) -> None:
        change_settings(tmp_path, lambda now: msgspec.structs.replace(now, routers={**now.routers, route: "/a"}))

    def add_ten(name: str) -> None:
        together.wait()
        for turn in range(10):
            add(f"{name}{turn}")

    threads = [threading.Thread(target=add_ten, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settings = read_settings(tmp_path)
    assert len(settings.routers) == settings.version == 80
    assert change_settings(tmp_path, lambda now: now) is False


def test_a_version_says_what_its_artefact_was_trained_on(versions: Versions, tmp_path: Path) -> None:
    """It has the rows that `headgate train` wrote; two of the 42 ask the same as test rows."""
    folder, made = write_folder(tmp_path / "data", 60), tmp_path / "made.safetensors"
    app = typer.Typer()
    add_to(app)
    CliRunner().invoke(app, ["train", "--data", str(folder), "--router", "linear", "--out", str(made)])
    told = versions.add("auto", made, actor="me").metrics
    assert told == {"rows": 40, "data_checksum": load_artifact(made)[0].data_checksum}
