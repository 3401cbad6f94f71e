from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from routers.canary import Canary
from routers.knob_override import KnobOverride
from routers.registry import open_router
from routers.types import Candidate, Choice, Knobs, Query

QUERY = Query("a question", np.zeros(0, np.float32), "", input_tokens=100)
CANDIDATES = [Candidate("cheap", 0.1, 0.1), Candidate("dear", 9.0, 9.0)]


class Echo:
    """A router that records the knobs that it was given."""

    name, version, features_version = "echo", "1", ""

    def __init__(self) -> None:
        self.asked: list[Knobs] = []

    def choose(self, query: Query, candidates: list[Candidate], knobs: Knobs, draw: float) -> Choice:
        self.asked.append(knobs)
        return open_router("cheapest").choose(query, candidates, knobs, draw)


weights = st.one_of(st.none(), st.sampled_from([0.0, 0.3, 0.5, 1.0]))


@settings(deadline=None)
@given(weights, weights, weights)
def test_the_requests_own_knobs_take_precedence(base: float | None, turned: float | None, own: float | None) -> None:
    """Only a knob that has the route's value is changed."""
    router = Echo()
    one = KnobOverride(router, Knobs(cost_weight=base), Knobs(cost_weight=turned))  # type: ignore[arg-type]
    one.choose(QUERY, CANDIDATES, Knobs(cost_weight=own, explore=False), 0.5)
    assert router.asked[0] == Knobs(cost_weight=turned if own == base else own, explore=False)


def test_its_decisions_are_marked() -> None:
    """The mark is the same for equal knobs, and another for others."""
    router, base = open_router("cheapest"), Knobs(cost_weight=0.5)
    one, same, other = (KnobOverride(router, base, Knobs(cost_weight=weight)) for weight in (0.9, 0.9, 0.1))
    assert one.suffix == same.suffix != other.suffix
    label = one.choose(QUERY, CANDIDATES, base, 0.5).router
    assert label == router.choose(QUERY, CANDIDATES, base, 0.5).router + one.suffix


def test_in_a_canary_the_mixtures_probabilities_are_kept() -> None:
    """The logged propensity is that of the mixture, whichever router decided."""
    router, base = open_router("weighted", weights={"cheap": 1.0, "dear": 1.0}), Knobs()
    canary = Canary(router, KnobOverride(router, base, Knobs(cost_weight=1.0)), 0.25)
    for draw in (0.1, 0.6):
        choice = canary.choose(QUERY, CANDIDATES, base, draw)
        assert abs(sum(choice.probabilities.values()) - 1.0) < 1e-12
        assert choice.propensity == choice.probabilities[choice.model]
