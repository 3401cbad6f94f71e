"""A choice becomes a plan or is refused with a reason."""

from __future__ import annotations

from math import inf, nan

import pytest

from cascade.plan import MAX_STEPS, NAMES, plain_plan, plan_for
from cascade.types import Limits, Outcome, PlanError
from routers.types import Choice, Estimate
from tests.cascade.playbook import driven, outcome_of

PRICES = {"small": 1.0, "middle": 3.0, "large": 9.0, "spare": 2.0, "huge": 20.0}


def chose(model: str, quality: dict[str, float]) -> Choice:
    estimates = [Estimate(m, q, 0.1, PRICES[m]) for m, q in quality.items()]
    shares = {m: 1 / len(quality) for m in quality}
    return Choice(model, 1.0, shares, estimates, {}, "", "r@1", ranked=tuple(quality))


KNOWN = chose("small", {"small": 0.6, "large": 0.9, "middle": 0.8})


def test_none_asks_the_chosen_model_and_falls_back_by_rank() -> None:
    """Without a cascade the other models answer only after a failure."""
    plan = plan_for(KNOWN, "none", PRICES, fallbacks=("spare",))
    assert [s.model for s in plan.steps] == ["small"]
    assert [s.model for s in plan.fallbacks] == ["large", "middle", "spare"]


def test_a_plan_of_one_model_is_made_once_and_bounds_no_cost() -> None:
    """It equals the plan without a cascade except for prices. It refuses a limit on the cost, which needs prices."""
    plan = plain_plan("small", (*KNOWN.ranked, "spare"), Limits(), 1)
    assert plan is plain_plan("small", (*KNOWN.ranked, "spare"), Limits(), 1)
    assert plan == plan_for(KNOWN, "none", dict.fromkeys((*PRICES, "spare"), 0.0), fallbacks=("spare",))
    with pytest.raises(PlanError, match="cost"):
        plain_plan("small", KNOWN.ranked, Limits(max_cost_usd=1.0), 1)


def test_confidence_escalates_to_better_models() -> None:
    """Escalation goes to the models with a higher expected quality than the chosen one, in ascending order."""
    plan = plan_for(KNOWN, "confidence", PRICES, accept_at=0.8)
    assert [(s.model, s.accept_at) for s in plan.steps] == [("small", 0.8), ("middle", 0.8), ("large", -inf)]


def test_no_worse_model_is_escalated_to() -> None:
    """If the best model is chosen first it is the only step, and the others are fallbacks."""
    plan = plan_for(chose("large", {"small": 0.6, "large": 0.9}), "confidence", PRICES)
    assert [s.model for s in plan.steps] == ["large"] and [s.model for s in plan.fallbacks] == ["small"]


def test_without_estimates_price_stands_for_quality() -> None:
    """A rule has no estimates, so the chain is ordered by price."""
    plan = plan_for(chose("small", {"small": nan, "middle": nan, "large": nan}), "confidence", PRICES)
    assert [s.model for s in plan.steps] == ["small", "middle", "large"]


def test_a_chain_has_a_maximum_length() -> None:
    """Of many better models only the best are kept."""
    plan = plan_for(chose("small", dict(zip(PRICES, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True))), "confidence", PRICES)
    assert len(plan.steps) == MAX_STEPS and plan.steps[-1].model == "huge"


def test_thresholds_may_differ_by_model() -> None:
    """Each model has its own threshold; a model without one gets the default."""
    plan = plan_for(KNOWN, "confidence", PRICES, accept_at={"small": 0.9})
    assert [s.accept_at for s in plan.steps] == [0.9, 0.5, -inf]


@pytest.mark.parametrize("floor", [0.0, -0.1, 1.01, nan, inf])
def test_a_threshold_outside_its_range_is_refused(floor: float) -> None:
    """A threshold is a probability above 0."""
    with pytest.raises(PlanError, match="accept_at"):
        plan_for(KNOWN, "confidence", PRICES, accept_at=floor)


@pytest.mark.parametrize("price", [None, nan, inf, -1.0])
def test_a_rung_without_price_is_refused(price: float | None) -> None:
    """A climb whose cost can't be bounded isn't begun."""
    prices = {k: v for k, v in {**PRICES, "large": price}.items() if v is not None}
    with pytest.raises(PlanError, match="large"):
        plan_for(KNOWN, "confidence", prices)


def test_an_unknown_strategy_is_refused() -> None:
    """A misspelt cascade raises an error instead of planning without one."""
    with pytest.raises(PlanError, match="confidance"):
        plan_for(KNOWN, "confidance", PRICES)


CHAT = [{"role": "user", "content": "What are the advantages of trains?"}]


@pytest.mark.parametrize("name", NAMES)
def test_every_named_cascade_answers(name: str) -> None:
    """Each strategy's plan ends with an answer if every model answers."""
    plan = plan_for(KNOWN, name, PRICES, messages=CHAT, limits=Limits(max_attempts=20))
    verdict, _ = driven(plan, lambda rung: outcome_of(rung, "1. one\n2. two", -0.01))
    assert verdict.kept is not None
    assert verdict.spent_usd <= sum(step.worst_cost_usd for step in plan.steps)


@pytest.mark.parametrize("name", NAMES)
def test_every_named_cascade_survives_a_failing_model(name: str) -> None:
    """If the chosen model fails, another one answers."""
    plan = plan_for(KNOWN, name, PRICES, messages=CHAT, limits=Limits(max_attempts=20), retries=0)
    down = lambda rung: Outcome("small", "connect") if rung.model == "small" else outcome_of(rung, "x", -0.01)  # noqa: E731
    verdict, _ = driven(plan, down)
    assert verdict.kept is not None and verdict.model != "small"


def test_one_model_needs_no_agreement() -> None:
    """With one eligible model its answer is returned."""
    plan = plan_for(chose("large", {"large": 0.9}), "agreement", PRICES)
    assert plan.strategy is None and [s.model for s in plan.steps] == ["large"]


def test_agreement_asks_two_cheap_models_and_escalates_to_the_best() -> None:
    """The two cheapest are asked in parallel, and the best one if they disagree."""
    plan = plan_for(KNOWN, "agreement", PRICES)
    texts = {"small": "7", "middle": "8", "large": "9"}
    verdict, asked = driven(plan, lambda rung: outcome_of(rung, texts[rung.model]))
    assert [r.model for r in asked] == ["small", "middle", "large"] and verdict.model == "large"


def test_a_question_without_points_gets_no_skeleton() -> None:
    """A maths question is answered directly and may stream."""
    chat = [{"role": "user", "content": "Solve 3x = 9"}]
    assert plan_for(KNOWN, "skeleton", PRICES, messages=chat).strategy is None
