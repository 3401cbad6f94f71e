"""A route's daily budget is spent evenly: its purse raises the cost weight in time."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from gateway.config import RouteConfig
from gateway.pacing import Purses
from routers.types import Knobs
from tests.live import live

MODELS = (
    {"name": "small", "provider": "up", "input_usd_per_mtok": 0.1, "output_usd_per_mtok": 0.4},
    {"name": "large", "provider": "up", "input_usd_per_mtok": 20.0, "output_usd_per_mtok": 80.0},
)


def route(budget: float | None, **stated: object) -> RouteConfig:
    return RouteConfig(name="auto", models=["small", "large"], budget_usd_per_day=budget, **stated)  # type: ignore[arg-type]


async def test_a_paced_route_turns_to_the_cheap_model_in_time(tmp_path: Path) -> None:
    """The dear model answers while the purse is full; once its cost is settled the cheap one does; the record says
    which weight was in force.
    """
    routes = [{"name": "auto", "models": ["small", "large"], "budget_usd_per_day": 1.0}]
    async with live(tmp_path, models=MODELS, routes=routes) as gateway, httpx.AsyncClient() as client:
        seen = []
        for i in range(30):
            body = {
                "model": "auto",
                "messages": [{"role": "user", "content": f"tell me of {i} " * 40}],
                "max_tokens": 60,
            }
            answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body)
            record = await gateway.decision(answer.headers["x-headgate-decision-id"])
            seen.append((record.model, record.knobs["cost_weight"]))
        models, weights = zip(*seen, strict=True)
        assert models[0] == "large" and models[-1] == "small"
        assert weights[-1] > weights[0]
        assert 0.0 <= gateway.services.purses.fullness()["auto",] < 0.5


def test_a_weight_asked_for_is_never_lowered() -> None:
    """A full purse is no reason to spend more than the route or the request wants to."""
    clock = [0.0]
    purses = Purses(lambda: clock[0])
    purses.adopt([route(1.0)])
    clock[0] = 86_400.0
    assert purses.paced("auto", Knobs(cost_weight=0.9)).cost_weight == 0.9
    assert (purses.paced("auto", Knobs()).cost_weight or 1.0) < 0.2
    assert purses.paced("auto", Knobs(min_quality=0.9)) == Knobs(min_quality=0.9)
    assert purses.paced("other", Knobs()) == Knobs()


def test_a_purse_outlives_a_reload_unless_its_budget_changes() -> None:
    """New settings don't fill a purse again; another budget is another purse. Workers share the budget."""
    clock = [0.0]
    purses = Purses(lambda: clock[0], workers=2)
    purses.adopt([route(1.0), route(None)])
    purses.adopt([route(1.0)])
    purses.spend("auto", 10_000_000)
    before = purses.fullness()
    purses.adopt([route(1.0)])
    assert purses.fullness() == before == {("auto",): pytest.approx((0.025 - 0.01) / 0.05)}
    purses.adopt([route(2.0)])
    assert purses.fullness() == {("auto",): 0.5}


def test_another_budget_still_knows_when_requests_come() -> None:
    """The level begins anew; the day's shape is the traffic's, not the budget's."""
    clock = [0.0]
    purses = Purses(lambda: clock[0])
    purses.adopt([route(1.0)])
    for _ in range(500):
        purses.paced("auto", Knobs())
    clock[0] = 86_400.0
    purses.paced("auto", Knobs())
    purses.adopt([route(2.0)])
    purses.spend("auto", 200_000_000)
    assert purses.fullness() == {("auto",): 0.0}
    clock[0] += 3600.0
    purses.paced("auto", Knobs())
    assert purses.fullness()["auto",] > 0.5
