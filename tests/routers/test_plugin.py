from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.cost import LogLinear
from routers.estimators.linear import Linear
from routers.plugin import Learned, PluginRouter
from routers.projection import Projection
from routers.select import Exploration
from routers.types import Candidate, Knobs, Query, Router, Undecided
from tests.routers.worlds import LARGE, MIDDLE, MODELS, POOL, SMALL, query, world

DATA, TRUTH = world(2_000)


def learned() -> Learned:
    projection = Projection(8).fit(DATA.x)
    data = replace(DATA, x=projection.apply(DATA.x).astype(float))
    cost = np.outer(np.exp(0.2 * DATA.x[:, 2]), [1e-5, 1e-4, 1e-3])
    return Learned(MODELS, projection, Linear().fit(data), LogLinear().fit(data.x, cost), reference_usd=1e-3)


LEARNED = learned()


def router(explore: float = 0.0) -> Router:
    return PluginRouter("linear", "1", "v", LEARNED, Exploration(floor=explore))


def query_at(x: np.ndarray, **known: object) -> Query:
    return Query("", x.astype(np.float32), "v", **{"input_tokens": 100, **known})  # type: ignore[arg-type]


HARD = np.array([-2.0, 0, 0, 0, 0, 0, 0, 0])
EASY = -HARD
UNPRICED = tuple(Candidate(model) for model in MODELS)


def test_the_best_model_changes_with_the_query() -> None:
    """With quality alone, hard queries go to the large model and easy ones to the small one."""
    knobs = Knobs(cost_weight=0.0)
    assert router().choose(query_at(HARD), POOL, knobs, 0.5).model == "large"
    assert router().choose(query_at(EASY), POOL, knobs, 0.5).model == "small"


def test_a_higher_cost_weight_never_costs_more() -> None:
    """The expected cost of the choice never rises with the cost weight."""
    costs = []
    for weight in np.linspace(0, 1, 11):
        choice = router().choose(query_at(HARD), POOL, Knobs(cost_weight=float(weight)), 0.5)
        costs.append(next(e.cost_usd for e in choice.estimates if e.model == choice.model))
    assert costs == sorted(costs, reverse=True)


def test_estimates_are_near_the_truth() -> None:
    """The estimated quality is the fitted mean, with a standard deviation."""
    choice = router().choose(query_at(HARD), POOL, Knobs(), 0.5)
    assert [e.quality for e in choice.estimates] == pytest.approx([0.03, 0.6, 0.94], abs=0.15)
    assert all(0 < e.quality_sd < 0.2 for e in choice.estimates)


def test_a_candidate_without_a_price_has_the_learned_cost() -> None:
    """Offline data has costs and no prices."""
    choice = router().choose(query_at(EASY), UNPRICED, Knobs(), 0.5)
    assert [e.cost_usd for e in choice.estimates] == pytest.approx([1e-5, 1e-4, 1e-3], rel=0.1)


def test_an_unknown_model_gets_the_prior() -> None:
    """A model that was not in training is estimated by its price, with the prior's wide deviation."""
    new = Candidate("new", 3.0, 15.0)
    choice = router().choose(query_at(EASY), (*POOL, new), Knobs(), 0.5)
    assert choice.estimates[-1].quality_sd > 3 * choice.estimates[0].quality_sd
    assert 0 < choice.estimates[-1].quality < 1


def test_features_of_another_version_are_undecided() -> None:
    """The route falls back instead of reading numbers with another meaning."""
    with pytest.raises(Undecided, match="features"):
        router().choose(replace(query_at(EASY), features_version="w"), POOL, Knobs(), 0.5)


def test_max_cost_excludes_by_expectation() -> None:
    """A model whose expected cost is above the limit is excluded with its reason; without an eligible model the router
    is undecided.
    """
    choice = router().choose(query_at(HARD), POOL, Knobs(cost_weight=0.0, max_cost_usd=0.001), 0.5)
    assert choice.model == "middle"
    assert choice.excluded == {"large": "expected to cost more than max_cost_usd"}
    with pytest.raises(Undecided, match="max_cost_usd"):
        router().choose(query_at(HARD), POOL, Knobs(max_cost_usd=2e-5), 0.5)


def test_a_long_queue_is_avoided() -> None:
    """The expected wait counts against `max_latency_s` where the latency is known."""
    busy = replace(LARGE, queue_s=9.0)
    knobs = Knobs(cost_weight=0.0, max_latency_s=2.0)
    choice = router().choose(query_at(HARD), (SMALL, MIDDLE, busy), knobs, 0.5)
    assert choice.model == "middle"
    assert "queue" in choice.excluded["large"]


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1), st.floats(0, 1))
def test_the_propensity_is_that_of_the_drawn_model(draw: float, weight: float, floor: float) -> None:
    """Whichever model is drawn, the recorded propensity is the probability stated for it."""
    choice = router(floor).choose(query_at(EASY), POOL, Knobs(cost_weight=weight), draw)
    assert choice.propensity == choice.probabilities[choice.model] > 0
    assert sum(choice.probabilities.values()) == pytest.approx(1.0)
    assert set(choice.ranked) == set(MODELS)


def test_untrained_it_routes_by_price() -> None:
    """Without an artefact no vector is read, and a higher price stands for a higher quality."""
    blank = PluginRouter("knn", "0", "v")
    assert blank.choose(query(), POOL, Knobs(cost_weight=0.0), 0.5).model == "large"
    assert blank.choose(query(), POOL, Knobs(cost_weight=1.0), 0.5).model == "small"
