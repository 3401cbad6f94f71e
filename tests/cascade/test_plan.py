"""A choice becomes a plan, or is refused with its reason."""

from __future__ import annotations

from math import inf, nan

import pytest

from cascade.plan import MAX_STEPS, plan_for
from cascade.types import PlanError
from routers.types import Choice, Estimate

PRICES = {"small": 1.0, "middle": 3.0, "large": 9.0, "spare": 2.0, "huge": 20.0}


def chose(model: str, quality: dict[str, float]) -> Choice:
    estimates = [Estimate(m, q, 0.1, PRICES[m]) for m, q in quality.items()]
    shares = {m: 1 / len(quality) for m in quality}
    return Choice(model, 1.0, shares, estimates, {}, "", "r@1", ranked=tuple(quality))


KNOWN = chose("small", {"small": 0.6, "large": 0.9, "middle": 0.8})


def test_none_asks_the_chosen_model_and_falls_back_in_rank():
    """Without a cascade the other models only stand in for a failure."""
    plan = plan_for(KNOWN, "none", PRICES, fallbacks=("spare",))
    assert [s.model for s in plan.steps] == ["small"]
    assert [s.model for s in plan.fallbacks] == ["large", "middle", "spare"]


def test_confidence_climbs_to_better_models_the_best_last():
    """Escalation goes to models expected to do better than the chosen one, in their order."""
    plan = plan_for(KNOWN, "confidence", PRICES, accept_at=0.8)
    assert [(s.model, s.accept_at) for s in plan.steps] == [("small", 0.8), ("middle", 0.8), ("large", -inf)]


def test_no_worse_model_is_escalated_to():
    """The best model chosen first is the only step; the others are fallbacks."""
    plan = plan_for(chose("large", {"small": 0.6, "large": 0.9}), "confidence", PRICES)
    assert [s.model for s in plan.steps] == ["large"] and [s.model for s in plan.fallbacks] == ["small"]


def test_without_opinions_the_dearer_models_stand_for_the_better():
    """A rule that estimates nothing still gives a chain, by price."""
    plan = plan_for(chose("small", {"small": nan, "middle": nan, "large": nan}), "confidence", PRICES)
    assert [s.model for s in plan.steps] == ["small", "middle", "large"]


def test_a_chain_is_no_longer_than_pays():
    """Of many better models the best are kept."""
    plan = plan_for(chose("small", dict(zip(PRICES, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))), "confidence", PRICES)
    assert len(plan.steps) == MAX_STEPS and plan.steps[-1].model == "huge"


def test_floors_may_differ_by_model():
    """Each model is held to its own floor; one not named gets the default."""
    plan = plan_for(KNOWN, "confidence", PRICES, accept_at={"small": 0.9})
    assert [s.accept_at for s in plan.steps] == [0.9, 0.5, -inf]


@pytest.mark.parametrize("floor", [0.0, -0.1, 1.01, nan, inf])
def test_a_floor_outside_its_range_is_refused(floor: float):
    """A floor is a probability above zero."""
    with pytest.raises(PlanError, match="accept_at"):
        plan_for(KNOWN, "confidence", PRICES, accept_at=floor)


@pytest.mark.parametrize("price", [None, nan, inf, -1.0])
def test_a_rung_without_price_is_refused(price: float | None):
    """A climb that can't be bounded isn't begun."""
    prices = {k: v for k, v in {**PRICES, "large": price}.items() if v is not None}
    with pytest.raises(PlanError, match="large"):
        plan_for(KNOWN, "confidence", prices)


def test_an_unknown_strategy_is_refused():
    """A misspelt cascade is an error, not a plan without one."""
    with pytest.raises(PlanError, match="confidance"):
        plan_for(KNOWN, "confidance", PRICES)
