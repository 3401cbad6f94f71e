"""Any sequence of upstream behaviours while small questions share upstream calls: each ends once, within its limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.test_climbs import CALM, World, run, worlds


@st.composite
def gathering(draw: st.DrawFn) -> World:
    """A world whose route may combine plain questions in one call, but no streams and no other surfaces."""
    world = draw(worlds())
    route = {
        **world.route,
        "cascade": "none",
        "gather_ms": draw(st.sampled_from([5, 50])),
        "gather_most": draw(st.integers(2, 3)),
        "retries": draw(st.integers(1, 2)),
        "max_attempts": draw(st.integers(2, 5)),
    }
    others = st.tuples(st.sampled_from(["chat", "messages"]), st.booleans())
    asks = [("chat", False)] * draw(st.integers(2, 4)) + draw(st.lists(others, max_size=1))
    return replace(world, route=route, asks=asks)


@given(gathering())
@settings(CALM, max_examples=20)
def test_every_gathered_question_ends_once(world: World) -> None:
    """Whatever happens to the shared call, each question ends with an answer or an error, within its cost and time."""
    run(world)


@pytest.mark.slow
@given(gathering())
@settings(CALM, max_examples=400)
def test_every_gathered_question_ends_once_at_length(world: World) -> None:
    """The same with many more examples."""
    run(world)
