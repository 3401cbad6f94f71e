"""Any sequence of upstream behaviours under every strategy, on real sockets: each cascade ends once, within limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.plan import NAMES
from gateway.config.check import STEPWISE_ATTEMPTS
from tests.faults.test_climbs import CALM, MODELS, World, run, worlds

STRATEGIES = [name for name in NAMES if name != "none"]
CHECKS: list[dict[str, Any]] = [
    {},
    {"check": ["true"]},
    {"check": ["false"]},
    {"check": ["/no/such/program"]},
    {"check": ["sleep", "60"], "check_timeout_s": 0.05},
]


@st.composite
def climbing(draw: st.DrawFn) -> World:
    """A world whose route uses any strategy, with two or three models before its fallbacks."""
    world, strategy = draw(worlds()), draw(st.sampled_from(STRATEGIES))
    stepped = draw(st.integers(2, len(MODELS)))
    route = {
        **world.route,
        "cascade": strategy,
        "models": list(MODELS[:stepped]),
        "fallback": list(MODELS[stepped:]),
        "min_quality": 0.9,
        "measured_share": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "speculate": draw(st.booleans()),
        **draw(st.sampled_from(CHECKS)),
    }
    if strategy == "stepwise":
        route["max_attempts"] = STEPWISE_ATTEMPTS
    return replace(world, route=route)


@given(climbing())
@settings(CALM, max_examples=20)
def test_every_strategy_ends_once(world: World) -> None:
    """Every cascade ends once whatever upstreams do, with checks that hang and with models asked in parallel."""
    run(world)


@pytest.mark.slow
@given(climbing())
@settings(CALM, max_examples=600)
def test_every_strategy_ends_once_at_length(world: World) -> None:
    """The same with many more examples."""
    run(world)
