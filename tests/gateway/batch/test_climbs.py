"""A trained cascade in a job: its climbs are predicted, planned where they gain, and run as planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cascade.artifact import load_cascade, save_cascade
from cascade.posterior import logit
from cascade.routing import RoutedCascade
from cascade.rows import EstimatedRows, TrainingSettings
from cascade.train import routed_cascade, train
from gateway.batch.assign import assign
from gateway.batch.climbs import cascade_of, climbing, with_climbs
from gateway.batch.forecast import CostRatios
from gateway.batch.plan import PlanOptions, plan_job
from gateway.batch.program import Objective
from gateway.batch.types import Arm, Estimates, Plan
from tests.cascade.worlds import COSTS_USD, LEVELS, MODELS, part
from tests.gateway.batch.made import carried, chat, plan
from tests.gateway.batch.planned import plan_context
from tests.live import live

DEFAULT_OBJECTIVE = Objective()


@pytest.fixture(scope="module")
def rows() -> EstimatedRows:
    return part(600, seed=3)


@pytest.fixture(scope="module")
def cascade(rows: EstimatedRows) -> RoutedCascade:
    return routed_cascade(train(rows, TrainingSettings(estimate_folds=2, folds=2)), rows)


def job(n: int = 200) -> Estimates:
    """A job in which every prompt has the models' mean estimates."""
    matrix = np.ones((n, 3), np.float32)
    return Estimates(
        tuple(map(Arm, MODELS)), matrix * np.array(LEVELS, np.float32), matrix * 0.02,
        matrix * np.array(COSTS_USD, np.float32), matrix * 9, matrix,
        np.full(n, 20, np.float32), np.zeros(n, np.float32), np.full(3, 0.02, np.float32),
        np.full(3, 0.1, np.float32),
    )  # fmt: skip


def test_the_cost_and_quality_of_climbs_are_predicted(rows: EstimatedRows, cascade: RoutedCascade) -> None:
    """Over the training rows, climbs by each first model cost and score what was predicted for them on average."""
    space = cascade.posterior.space
    chances = cascade.posterior.before(rows.scene.prior)
    for rule in (cascade.rules[4], cascade.rules[-6]):
        gains, spends = rule.opened(space, chances, rows.prices)
        for at, (j, _) in enumerate(space.actions(())):
            state = ((j, True),)
            inner = cascade.posterior.chances(state, rows.scene)
            pick = rule.options(space, state, inner, rows.prices).argmax(1)
            last = np.where(pick == 0, j, pick - 1)
            places = np.arange(len(pick))
            again = np.where(pick == 0, 0.0, rows.paid.answer[places, last])
            assert spends[:, at].mean() == pytest.approx((rows.paid.read[:, j] + again).mean(), rel=0.03)
            assert gains[:, at].mean() == pytest.approx(rows.scores[places, last].mean(), abs=0.03)


def test_a_rules_prediction_is_stored_in_its_file(cascade: RoutedCascade, tmp_path: Path) -> None:
    """Read back, it predicts the same. A rule without a prediction says so, and its cascade isn't planned with."""
    save_cascade(tmp_path / "c.safetensors", cascade, version="1")
    again = load_cascade(tmp_path / "c.safetensors")
    assert isinstance(again, RoutedCascade)
    np.testing.assert_array_equal(again.rules[3].gains, cascade.rules[3].gains)
    np.testing.assert_array_equal(again.rules[3].spends, cascade.rules[3].spends)
    old = replace(cascade, rules=[replace(rule, gains=None, spends=None) for rule in cascade.rules])
    save_cascade(tmp_path / "old.safetensors", old, version="1")
    read = load_cascade(tmp_path / "old.safetensors")
    assert climbing(again) is again and climbing(read) is None
    with pytest.raises(ValueError, match="foretells"):
        old.rules[0].opened(old.posterior.space, logit(np.full((1, 3), 0.5)), part(1).prices)


def test_climbs_improve_a_plan(cascade: RoutedCascade) -> None:
    """At a budget between the cheapest and the best model they raise the expected quality within the budget."""
    plain, budget_usd = job(), 200 * 1.2e-4
    wide = with_climbs(plain, cascade, budget_usd, DEFAULT_OBJECTIVE)
    assert [arm.label for arm in wide.arms[:3]] == list(MODELS)
    assert all(arm.label == f"{arm.model}, then better" and arm.rule >= 0 for arm in wide.arms[3:])
    alone, climbed = assign(plain, budget_usd), assign(wide, budget_usd)
    assert climbed.quality > alone.quality + 2 and climbed.cost_usd <= budget_usd
    assert (climbed.arm >= 3).mean() > 0.3


def test_prompts_that_some_model_may_not_answer_do_not_climb(cascade: RoutedCascade) -> None:
    """The cascade wasn't trained without that model; a job that lacks a model altogether has no climbs."""
    barred = job()
    barred.cost_usd[:50, 2] = np.inf
    wide = with_climbs(barred, cascade, 200 * 1.2e-4, DEFAULT_OBJECTIVE)
    assert np.isinf(wide.cost_usd[:50, 3:]).all() and np.isfinite(wide.cost_usd[50:, 3:]).all()
    other = replace(barred, arms=(*barred.arms[:2], Arm("unheard of")))
    assert with_climbs(other, cascade, 1.0, DEFAULT_OBJECTIVE) is other


def test_a_minimal_budget_buys_no_climb(cascade: RoutedCascade) -> None:
    """If the budget is the cheapest model's cost, no arm is added."""
    plain = job()
    assert with_climbs(plain, cascade, float(plain.cost_usd[:, 0].sum()) * 1.0001, DEFAULT_OBJECTIVE) is plain


async def test_a_planned_climb_escalates_unsure_answers(
    cascade: RoutedCascade, tmp_path: Path
) -> None:
    """The first model is the plan's; a sure answer is kept, an unsure one escalated, and each call is paid for once."""
    save_cascade(tmp_path / "c.safetensors", cascade, version="1")
    unsure, sure = {"text": "B", "logprob": -2.5}, {"text": "A", "logprob": -0.001}
    models = [
        {"name": name, "logprobs": True, "output_usd_per_mtok": usd * 1e5}
        for name, usd in zip(MODELS, COSTS_USD, strict=True)
    ]
    route = {"name": "auto", "models": list(MODELS), "router": "cheapest", "cascade": str(tmp_path / "c.safetensors")}
    scripts = {"small": [sure, unsure] * 2, "middle": [{"text": "A"}], "large": [{"text": "A"}]}
    table = with_climbs(job(4), cascade, 4 * 1.2e-4, DEFAULT_OBJECTIVE)
    place = next(i for i, arm in enumerate(table.arms) if (arm.model, arm.rule >= 0) == ("small", True))
    bodies = [chat("auto", f"which {number}?", max_tokens=8) for number in range(4)]
    async with live(tmp_path, scripts=scripts, models=models, routes=[route]) as gateway:
        made = plan(tmp_path / "plan", bodies, table, budget_usd=0.05)
        made = replace(made, assignment=replace(made.assignment, arm=np.full(4, place, np.int16)))
        made.save(tmp_path / "plan")
        done = await carried(gateway.services, Plan.load(tmp_path / "plan"), tmp_path, concurrency=1)
        tries = [[one.model for one in (await gateway.decision(item.decision_id)).attempts]
                 for item in done.jobs.items(done.job.id)]  # fmt: skip
    assert [attempts[0] for attempts in tries] == ["small"] * 4
    assert [len(attempts) for attempts in tries] == [1, 2, 1, 2]
    assert len(done.output) == 4 and done.errors == [] and done.spent_usd <= 0.05


def test_a_job_is_planned_with_its_routes_cascade(cascade: RoutedCascade, tmp_path: Path) -> None:
    """`cascade` adds the climbs of a job's only route; there are none without it, or if the route has a quality floor.
    """
    save_cascade(tmp_path / "c.safetensors", cascade, version="1")
    models = [
        {"name": name, "provider": "up", "logprobs": True, "output_usd_per_mtok": usd * 1e4}
        for name, usd in zip(MODELS, COSTS_USD, strict=True)
    ]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"".join(chat("auto", f"which {number}?", max_tokens=200) + b"\n" for number in range(40)))
    routes = [{"name": "auto", "models": list(MODELS), "cascade": str(tmp_path / "c.safetensors")}]
    context = plan_context(tmp_path, models=models, routes=routes)
    options = PlanOptions(budget_usd=40 * 1.2e-4, frontier_points=3, cascade=True)
    found = plan_job(path, tmp_path / "plan", options, context)
    assert cascade_of(context.book.find("auto")) is not None
    assert any(arm.rule >= 0 for arm in found.estimates.arms)
    assert Plan.load(tmp_path / "plan").estimates.arms == found.estimates.arms
    plain = plan_job(path, tmp_path / "plain", replace(options, cascade=False), context)
    assert all(arm.rule < 0 for arm in plain.estimates.arms)
    promised = plan_context(tmp_path, models=models, routes=[{**routes[0], "most_wrong": 0.2}])
    assert cascade_of(promised.book.find("auto")) is None


def test_the_cost_of_climbs_does_not_correct_single_answers() -> None:
    """What climbs cost beyond their prediction doesn't change the first model's own price."""
    arms = [Arm("small"), Arm("small", rule=2)]
    cost_ratios = CostRatios(arms)
    for _ in range(50):
        cost_ratios.add(arms[1].paid_as, 2.0, 1.0)
        cost_ratios.add(arms[0].paid_as, 1.0, 1.0)
    alone, climbed = cost_ratios.ratios().tolist()
    assert alone == pytest.approx(1.0, abs=0.05) and climbed == pytest.approx(2.0, abs=0.1)
