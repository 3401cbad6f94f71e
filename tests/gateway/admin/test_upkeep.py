"""What the control process computes beforehand costs little, however many routes there are."""

from __future__ import annotations

from msgspec.structs import replace
from sqlalchemy import event

from gateway.admin import upkeep
from gateway.admin.desk import Desk
from gateway.admin.upkeep import Seen
from gateway.config import RouteConfig
from tests.gateway.admin.traffic import explored, write


def test_routes_without_traffic_cost_no_question(desk: Desk) -> None:
    """A thousand more routes, as many statements: only those that decide anything are asked about, and all of them."""
    asked: list[str] = []
    event.listen(desk.store.engine, "before_cursor_execute", lambda *told: asked.append(told[2]))
    write(desk, *explored(40))
    first = steps(desk, {}, asked)
    idle = [RouteConfig(name=f"r{i}", models=["small"]) for i in range(1000)]
    desk.config = replace(desk.config, routes=[*desk.config.routes, *idle])
    desk._current = None
    seen: dict[str, Seen] = {}
    assert steps(desk, seen, asked) == first
    assert set(seen) == {"auto"}
    records = [replace(one, id=f"{one.id}x", route="r7") for one in explored(40) if one.id.startswith("dec_")]
    write(desk, *records)
    assert upkeep.step(desk, seen, 200.0) and set(seen) == {"auto", "r7"}


def steps(desk: Desk, seen: dict[str, Seen], asked: list[str]) -> int:
    """How many statements it takes to look the one route over, and then to find that nothing has come."""
    asked.clear()
    assert upkeep.step(desk, seen, 100.0) and upkeep.step(desk, seen, 101.0)  # the learning, then the frontier
    assert not upkeep.step(desk, seen, 102.0)
    return len(asked)


def test_what_takes_long_comes_seldom(desk: Desk) -> None:
    """A route that took half a second of CPU waits a hundred; one that took nothing, half a minute."""
    write(desk, *explored(40))
    quick, slow = {"auto": Seen(looked_s=100.0)}, {"auto": Seen(looked_s=100.0, took_s=0.5)}
    assert upkeep.step(desk, quick, 140.0) and quick["auto"].looked_s == 140.0
    assert quick["auto"].took_s > 0.0
    slow["auto"].frontier_s = 100.0
    assert not upkeep.step(desk, slow, 140.0) and upkeep.step(desk, slow, 201.0)
