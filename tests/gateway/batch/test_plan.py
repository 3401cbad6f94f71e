"""A job planned from a file: the plan, its folder, and what is refused before anything is spent."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.batch.gather import Gathered
from gateway.batch.pilot import Observation, updated
from gateway.batch.plan import PlanContext, PlanOptions, live_price, plan_job, shares
from gateway.batch.read import ReadOptions
from gateway.batch.types import ARRAYS_FILE, PLAN_FILE, PROMPTS_FILE, BadJob, Impossible, Plan, PromptWriter
from gateway.errors import CallerError, UnknownModel
from tests.gateway.batch.planned import LARGE, MODELS, SMALL, plan_context

QUESTIONS = [f"What is {number} times {number}, and why?" for number in range(60)]


def batch(path: Path, texts: Sequence[str], **body: Any) -> Path:
    lines = [
        {"custom_id": f"row-{row}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "auto", "messages": [{"role": "user", "content": text}], **body}}
        for row, text in enumerate(texts)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def planned(folder: Path, texts: Sequence[str] = QUESTIONS, context: PlanContext | None = None, **options: Any) -> Plan:
    wanted = PlanOptions(**{"budget_usd": 0.02, "frontier_points": 4, **options})
    return plan_job(batch(folder / "in.jsonl", texts), folder / "plan", wanted, context or plan_context(folder))


def test_a_plan_answers_every_prompt_within_the_budget(tmp_path: Path) -> None:
    """Each prompt has an arm, the expected cost is within the budget, and the frontier extends in both directions."""
    plan = planned(tmp_path)
    assert len(plan.prompts) == 60
    assert (plan.assignment.arm >= 0).all()
    assert plan.assignment.cost_usd <= 0.02
    assert plan.chosen.cost_usd.value == pytest.approx(plan.assignment.cost_usd)
    assert plan.chosen.quality.value == pytest.approx(plan.assignment.quality / 60)
    assert plan.frontier[0].budget_usd < 0.02 < plan.frontier[-1].budget_usd
    assert plan.assignment.gap_share < 0.01
    assert sum(count for _, count, _, _ in shares(plan)) == 60


def test_a_plan_is_read_back_from_its_folder(tmp_path: Path) -> None:
    """Prompts, arrays and figures are unchanged, infinite limits included; the prompts' bodies are read from the input.
    """
    for deadline_s in (math.inf, 3_600.0):
        plan = planned(tmp_path, [*QUESTIONS, QUESTIONS[3]], deadline_s=deadline_s, metadata={"team": "a"})
        again = Plan.load(tmp_path / "plan")
        for name, array in plan.estimates.arrays().items():
            np.testing.assert_array_equal(again.estimates.arrays()[name], array)
        np.testing.assert_array_equal(again.assignment.arm, plan.assignment.arm)
        assert again.card() == plan.card()
        assert list(again.prompts) == list(plan.prompts)
        assert again.prompts[-1].custom_id == "row-59"
        assert [one.index for one in again.prompts[10:13]] == [10, 11, 12]
        assert again.duplicates[0].custom_id == "row-60" and again.duplicates[0].index == 3
    assert {path.name for path in (tmp_path / "plan").iterdir()} == {PLAN_FILE, ARRAYS_FILE, PROMPTS_FILE}


def test_a_plan_saved_elsewhere_includes_its_prompts(tmp_path: Path) -> None:
    """The folder alone is enough to run it."""
    planned(tmp_path).save(tmp_path / "copy")
    (tmp_path / "plan" / PROMPTS_FILE).unlink()
    assert Plan.load(tmp_path / "copy").prompts[0].text == QUESTIONS[0]


@pytest.mark.parametrize("content", [None, "{", '{"schema": 99}', "[]"])
def test_an_incomplete_plan_is_refused(tmp_path: Path, content: str | None) -> None:
    """The error is a message and no traceback."""
    if content is not None:
        (tmp_path / PLAN_FILE).write_text(content)
    with pytest.raises(BadJob, match="plan"):
        Plan.load(tmp_path)


def test_prompts_can_be_read_in_any_order_and_in_parallel(tmp_path: Path) -> None:
    """They can be read by number, from the end, as a slice, and all in order; beyond the end there is an IndexError."""
    writer = PromptWriter(tmp_path / "p.jsonl")
    for line in range(5):
        writer.add(line + 1, f"r{line}", "/v1/chat/completions", b'{"n": %d}' % line, f"t\n{line}", 0.5, "ref")
    prompts = writer.close()
    assert (prompts[3].body, prompts[-5].text, len(prompts)) == (b'{"n": 3}', "t\n0", 5)
    whole = iter(prompts)
    assert next(whole).line == 1
    assert prompts[4].line == 5
    assert next(whole).line == 2
    assert [one.reference for one in prompts[1:3]] == ["ref", "ref"]
    with pytest.raises(IndexError):
        prompts[5]


def test_all_bad_lines_are_reported_and_nothing_is_stored(tmp_path: Path) -> None:
    """Every problem has its line; no plan is saved."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'"fine"\n{broken\n"also fine"\n{"prompt": "x", "model": "nope"}\n')
    with pytest.raises(BadJob) as caught:
        plan_job(path, tmp_path / "plan", PlanOptions(budget_usd=1.0), plan_context(tmp_path))
    assert [(one.line, one.code) for one in caught.value.problems] == [(2, "invalid_json"), (4, "model_not_found")]
    assert "2 of 4" in caught.value.message
    assert not (tmp_path / "plan").exists()


def test_bad_lines_may_be_skipped(tmp_path: Path) -> None:
    """The plan has what it left out; a repeated id is bad on its second line."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b'{"id": "a", "prompt": "one"}\n{broken\n{"id": "a", "prompt": "two"}\n{"id": "b", "prompt": "three"}\n'
    )
    plan = plan_job(path, tmp_path / "plan", PlanOptions(budget_usd=1.0, skip_bad=True), plan_context(tmp_path))
    assert [prompt.custom_id for prompt in plan.prompts] == ["a", "b"]
    assert [(one.line, one.code) for one in plan.problems] == [(2, "invalid_json"), (3, "duplicate_custom_id")]
    assert Plan.load(tmp_path / "plan").problems == plan.problems


def test_an_input_of_only_bad_lines_is_refused(tmp_path: Path) -> None:
    """There is nothing to run, even if bad lines are skipped; blank lines don't count."""
    for content in (b"{\n[]\n", b"\n \n"):
        path = tmp_path / "in.jsonl"
        path.write_bytes(content)
        with pytest.raises(BadJob) as caught:
            plan_job(path, tmp_path / "plan", PlanOptions(budget_usd=1.0, skip_bad=True), plan_context(tmp_path))
        assert caught.value.problems[-1].code == "empty_file"


def test_impossible_budgets_and_deadlines_name_what_would_do(tmp_path: Path) -> None:
    """They are refused before anything is spent."""
    limited = plan_context(
        tmp_path, providers=[{"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9/v1", "rpm": 60}]
    )
    with pytest.raises(Impossible) as caught:
        planned(tmp_path, context=limited, budget_usd=1e-7)
    assert 1e-7 < caught.value.least_budget_usd < 0.02
    with pytest.raises(Impossible) as caught:
        planned(tmp_path, context=limited, deadline_s=30.0)
    assert caught.value.least_deadline_s == pytest.approx(60.0, rel=0.03)
    assert planned(tmp_path, context=limited, deadline_s=62.0).assignment.finish_s <= 62.0


@pytest.mark.parametrize(
    ("options", "error"),
    [({"budget_usd": -1.0}, CallerError), ({"budget_usd": math.nan}, CallerError), ({"deadline_s": 0.0}, CallerError),
     ({"reading": ReadOptions(route="nowhere")}, UnknownModel)],
)  # fmt: skip
def test_invalid_options_are_refused(tmp_path: Path, options: dict[str, Any], error: type[Exception]) -> None:
    """They are refused before the input is read."""
    with pytest.raises(error):
        planned(tmp_path, **options)


def test_without_a_budget_the_routes_cost_weight_applies(tmp_path: Path) -> None:
    """A route with a high cost weight spends less; each prompt has the live router's own choice."""
    costs = []
    for weight in (0.0, 0.8, 1.0):
        context = plan_context(tmp_path, routes=[{"name": "auto", "models": [SMALL, LARGE], "cost_weight": weight}])
        plan = planned(tmp_path, context=context, budget_usd=None)
        assert math.isinf(plan.budget_usd) and math.isinf(Plan.load(tmp_path / "plan").budget_usd)
        assert plan.chosen.budget_usd == pytest.approx(plan.assignment.cost_usd)
        costs.append(plan.assignment.cost_usd)
    assert costs[0] > costs[1] >= costs[2]
    assert plan.usd_price > 0
    assert set(plan.assignment.arm.tolist()) == {plan.estimates.cost_usd[0].argmin()}


def test_a_route_with_a_floor_and_no_budget_buys_the_cheapest_that_meets_it(tmp_path: Path) -> None:
    """The live route does the same."""
    free = planned(tmp_path).estimates.quality
    floor = float(np.sort(free[:, 0])[30])
    context = plan_context(tmp_path, routes=[{"name": "auto", "models": [SMALL, LARGE], "min_quality": floor}])
    plan = planned(tmp_path, context=context, budget_usd=None)
    meets = plan.estimates.quality >= floor - 1e-7
    expected = np.where(meets, plan.estimates.cost_usd, np.inf).argmin(1)
    assert (plan.assignment.arm == expected).all()
    assert 0 < (expected == 0).sum() < 60


def test_without_alternatives_there_is_no_exchange_rate(tmp_path: Path) -> None:
    """Free models, or lines that all name their model, leave nothing to trade."""
    models = [{"provider": "up", "name": name} for name in (SMALL, LARGE)]
    gathered: list[Gathered] = []

    def keep(found: Gathered) -> Any:
        gathered.append(found)
        return found.estimates, None

    context = plan_context(tmp_path, models=models)
    path = batch(tmp_path / "in.jsonl", QUESTIONS)
    plan_job(path, tmp_path / "plan", PlanOptions(), context, pilot=keep)
    assert live_price(gathered[0].estimates, gathered[0], context.book) == 0.0


def test_a_pilots_findings_and_cost_are_in_the_plan(tmp_path: Path) -> None:
    """Its cost is subtracted from the budget; its findings are in the estimates and in the report."""

    def pilot(gathered: Gathered) -> Any:
        usd = gathered.estimates.cost_usd
        seen = [Observation(row, 0, True, float(2 * usd[row, 0]), 10.0, 1.0, 1.0) for row in range(40)]
        return updated(gathered.estimates, seen)

    plain = planned(tmp_path)
    options = PlanOptions(budget_usd=0.02, frontier_points=3)
    plan = plan_job(tmp_path / "in.jsonl", tmp_path / "other", options, plan_context(tmp_path), pilot=pilot)
    assert plan.pilot is not None and plan.pilot.calls == plan.pilot.scored == 40
    assert plan.budget_usd == pytest.approx(0.02 - plan.pilot.cost_usd)
    np.testing.assert_allclose(plan.estimates.cost_usd[:, 0], 1.9 * plain.estimates.cost_usd[:, 0], rtol=0.06)
    assert (plan.estimates.quality[:, 0] > plain.estimates.quality[:, 0]).all()
    assert Plan.load(tmp_path / "other").pilot == plan.pilot


def test_a_floor_that_the_pilot_makes_impossible_is_reported(tmp_path: Path) -> None:
    """It is reported by line before anything else is spent; if skipped, such a prompt gets its best arm."""

    def pilot(gathered: Gathered) -> Any:
        seen = [Observation(row, arm, True, 1e-4, 10.0, 1.0, 0.0) for row in range(60) for arm in (0, 1)]
        return updated(gathered.estimates, seen)

    path, context = batch(tmp_path / "in.jsonl", QUESTIONS), plan_context(tmp_path)
    reading = ReadOptions(floor=0.3)
    with pytest.raises(BadJob) as caught:
        plan_job(path, tmp_path / "plan", PlanOptions(reading, 1.0), context, pilot=pilot)
    assert caught.value.problems[0].code == "floor_unreachable"
    plan = plan_job(path, tmp_path / "plan", PlanOptions(reading, 1.0, skip_bad=True), context, pilot=pilot)
    rows = np.arange(60)
    best = plan.estimates.quality.max(1)
    missed = best < 0.3
    assert missed.any()
    assert (plan.estimates.quality[rows, plan.assignment.arm] == best)[missed].all()


def test_batch_endpoints_and_samples_are_arms_of_the_plan(tmp_path: Path) -> None:
    """They are considered beside single live answers where requested or configured."""
    provider = {"name": "up", "kind": "openai", "base_url": "http://127.0.0.1:9/v1", "batch_discount": 0.5}
    context = plan_context(tmp_path, providers=[provider], models=[{"provider": "up", **model} for model in MODELS])
    plan = planned(tmp_path, context=context, samples=(2,))
    assert [arm.label for arm in plan.estimates.arms] == [
        SMALL, LARGE, f"{SMALL} x2", f"{LARGE} x2", f"{SMALL} (batch)", f"{LARGE} (batch)",
    ]  # fmt: skip
    assert {plan.estimates.arms[arm].via for arm in plan.assignment.arm.tolist()} >= {"batch"}
    hurried = planned(tmp_path, context=context, deadline_s=3_600.0)
    assert all(arm.via == "live" for arm in hurried.estimates.arms)
