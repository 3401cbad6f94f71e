"""Any sequence of upstream behaviours while small questions are asked together: each ends once, within bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.faults.test_climbs import CALM, World, run, worlds


@st.composite
def gathering(draw: st.DrawFn) -> World:
    """A world whose route may ask its plain questions in one call; streams and other surfaces stay alone."""
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
    """Whatever becomes of the call they share: an answer or an error each, their money and their time."""
    run(world)


@pytest.mark.slow
@given(gathering())
@settings(CALM, max_examples=400)
def test_every_gathered_question_ends_once_at_length(world: World) -> None:
    """The long form."""
    run(world)
