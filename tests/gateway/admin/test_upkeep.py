"""Computing figures in advance costs little, however many routes there are."""

from __future__ import annotations

from msgspec.structs import replace
from sqlalchemy import event

from gateway.admin import upkeep
from gateway.admin.services import AdminServices
from gateway.admin.upkeep import Seen
from gateway.config.types import RouteConfig
from tests.gateway.admin.traffic import explored, write


def test_routes_without_traffic_cost_no_query(admin: AdminServices) -> None:
    """A thousand more routes need no more statements, and all routes with decisions are examined."""
    asked: list[str] = []
    event.listen(admin.store.engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    write(admin, *explored(40))
    first = steps(admin, {}, asked)
    idle = [RouteConfig(name=f"r{i}", models=["small"]) for i in range(1000)]
    admin.config = replace(admin.config, routes=[*admin.config.routes, *idle])
    admin._current = None
    seen: dict[str, Seen] = {}
    assert steps(admin, seen, asked) == first
    assert set(seen) == {"auto"}
    records = [replace(one, id=f"{one.id}x", route="r7") for one in explored(40) if one.id.startswith("dec_")]
    write(admin, *records)
    assert upkeep.step(admin, seen, 200.0) and set(seen) == {"auto", "r7"}


def steps(admin: AdminServices, seen: dict[str, Seen], asked: list[str]) -> int:
    """The number of statements for examining one route, and for finding that it has nothing new."""
    asked.clear()
    assert upkeep.step(admin, seen, 100.0) and upkeep.step(admin, seen, 101.0)  # the learning, then the frontier
    assert not upkeep.step(admin, seen, 102.0)
    return len(asked)


def test_expensive_figures_are_computed_rarely(admin: AdminServices) -> None:
    """A route that took half a second of CPU is examined after a hundred seconds, one that took nothing after half a
    minute.
    """
    write(admin, *explored(40))
    quick, slow = {"auto": Seen(checked_s=100.0)}, {"auto": Seen(checked_s=100.0, took_s=0.5)}
    assert upkeep.step(admin, quick, 140.0) and quick["auto"].checked_s == 140.0
    assert quick["auto"].took_s > 0.0
    slow["auto"].frontier_s = 100.0
    assert not upkeep.step(admin, slow, 140.0) and upkeep.step(admin, slow, 201.0)
