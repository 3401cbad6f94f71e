"""A choice becomes a plan, or is refused with its reason."""

from __future__ import annotations

from math import inf, nan

import pytest

from cascade.plan import MAX_STEPS, NAMES, plan_for
from cascade.types import Limits, Outcome, PlanError
from routers.types import Choice, Estimate
from tests.cascade.playbook import driven, said

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


CHAT = [{"role": "user", "content": "What are the advantages of trains?"}]


@pytest.mark.parametrize("name", NAMES)
def test_every_named_cascade_answers(name: str):
    """Each name makes a plan that ends with an answer when every model says something."""
    plan = plan_for(KNOWN, name, PRICES, messages=CHAT, limits=Limits(max_attempts=20))
    verdict, _ = driven(plan, lambda rung: said(rung, "1. one\n2. two", -0.01))
    assert verdict.kept is not None
    assert verdict.spent_usd <= sum(step.worst_cost_usd for step in plan.steps)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_cascade_survives_a_failing_model(name: str):
    """The chosen model is down: another answers."""
    plan = plan_for(KNOWN, name, PRICES, messages=CHAT, limits=Limits(max_attempts=20), retries=0)
    down = lambda rung: Outcome("small", "connect") if rung.model == "small" else said(rung, "x", -0.01)  # noqa: E731
    verdict, _ = driven(plan, down)
    assert verdict.kept is not None and verdict.model != "small"


def test_one_model_leaves_no_room_for_a_second_opinion():
    """Agreement with nobody is the plain answer."""
    plan = plan_for(chose("large", {"large": 0.9}), "agreement", PRICES)
    assert plan.strategy is None and [s.model for s in plan.steps] == ["large"]


def test_agreement_asks_two_cheap_models_and_the_best_decides():
    """The two cheapest at once, the best on disagreement."""
    plan = plan_for(KNOWN, "agreement", PRICES)
    texts = {"small": "7", "middle": "8", "large": "9"}
    verdict, asked = driven(plan, lambda rung: said(rung, texts[rung.model]))
    assert [r.model for r in asked] == ["small", "middle", "large"] and verdict.model == "large"


def test_a_question_without_points_gets_no_skeleton():
    """Maths is answered plainly and may stream."""
    chat = [{"role": "user", "content": "Solve 3x = 9"}]
    assert plan_for(KNOWN, "skeleton", PRICES, messages=chat).strategy is None
