"""Promotions and roll-backs: what serves a route is always the step that the operator means."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from gateway.errors import CallerError
from gateway.journal.store import RouterVersion, open_store
from gateway.promote import Versions
from gateway.settings import change_settings, read_settings


@pytest.fixture
def versions(tmp_path: Path) -> Iterator[Versions]:
    """Versions a, b and c of the route `auto`, made in this order; none is live."""
    store = open_store(f"sqlite:///{tmp_path}/journal.db")
    for made_s, name in enumerate("abc"):
        store.save_router_version(RouterVersion("auto", name, float(made_s), "candidate", f"/{name}.safetensors"), "me")
    yield Versions(store, tmp_path / "run")
    store.close()


def live(versions: Versions) -> list[str]:
    return [one.version for one in versions.list("auto") if one.state == "live"]


@pytest.mark.parametrize(
    ("promoted", "back"),
    [("ab", "a"), ("ba", "b"), ("cab", "a"), ("aba", "b"), ("abcb", "c")],
)
def test_a_roll_back_serves_what_was_live_before(versions: Versions, tmp_path: Path, promoted: str, back: str) -> None:
    """By the order of promotions; when a version was made says nothing."""
    for version in promoted:
        versions.promote("auto", version, actor="me")
    found = versions.roll_back("auto", actor="me")
    assert found is not None and found.version == back
    assert live(versions) == [back]
    assert read_settings(tmp_path / "run").routers == {"auto": f"/{back}.safetensors"}


def test_roll_backs_go_all_the_way_to_the_configuration(versions: Versions, tmp_path: Path) -> None:
    """Each takes one step, never to a version that was rolled back, and the last one leaves no version live."""
    for version in "bca":
        versions.promote("auto", version, actor="me")
    steps = [versions.roll_back("auto", actor="me") for _ in range(3)]
    assert [step.version if step else None for step in steps] == ["c", "b", None]
    assert live(versions) == [] and read_settings(tmp_path / "run").routers == {}
    with pytest.raises(CallerError, match="no promoted version"):
        versions.roll_back("auto", actor="me")


def test_changes_of_settings_at_the_same_time_lose_none(tmp_path: Path) -> None:
    """Each reads what the one before has written, though all of them begin together."""
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
