"""The joint assignment keeps every limit, is close to the optimum, and reports what is impossible."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array

from gateway.batch.assign import assign, replan
from gateway.batch.dual import least_load
from gateway.batch.exact import Searched, exact
from gateway.batch.program import BARE, NEVER, Objective, Program, hardened, program_of
from gateway.batch.types import UNASSIGNED, Arm, Assignment, Capacity, Estimates, Impossible
from tests.gateway.batch.planned import capacities, estimates, range_usd

Arms = NDArray[np.int16] | None
DEADLINE_S = 100.0


def budget_of(given: Estimates, share: float) -> float:
    least, most = range_usd(given)
    return least + share * (most - least)


def uses(
    given: Estimates, found: Assignment, budget_usd: float, deadline_s: float, limits: tuple[Capacity, ...]
) -> float:
    """The largest share of a limit that is used."""
    program = program_of(given, budget_usd, deadline_s, limits)
    return float(program.uses(program.tally(found.arm)).max())


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 60), st.integers(1, 6), st.integers(0, 10_000), st.floats(0.0, 1.2), st.booleans())
def test_every_limit_is_kept_and_no_barred_arm_answers(
    n: int, arms: int, seed: int, share: float, limited: bool
) -> None:
    """An assignment never exceeds a limit, and uses only arms that may answer."""
    job = estimates(n, arms, seed)
    deadline_s, limits = (DEADLINE_S, capacities(job, DEADLINE_S)) if limited else (math.inf, ())
    budget = budget_of(job, share) * (1 + 1e-6)
    try:
        found = assign(job, budget, deadline_s=deadline_s, capacities=limits)
    except Impossible as impossible:
        assert limited
        program = program_of(job, budget, deadline_s, limits)
        assert exact(program).arm is None
        assert impossible.least_budget_usd > budget or impossible.least_deadline_s > deadline_s
        return
    assert uses(job, found, budget, deadline_s, limits) <= 1.0 + 1e-9
    assert np.isfinite(job.cost_usd[np.arange(n), found.arm]).all()
    assert found.cost_usd == pytest.approx(float(job.cost_usd[np.arange(n), found.arm].sum(dtype=float)))
    assert found.quality <= found.bound + 1e-9


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_small_job_is_assigned_optimally(seed: int, limited: bool) -> None:
    """On 40 prompts the quality is HiGHS's optimum within a tenth of a percent, and the bound is no lower."""
    job = estimates(40, 5, seed)
    deadline_s, limits = (DEADLINE_S, capacities(job, DEADLINE_S)) if limited else (math.inf, ())
    budget = budget_of(job, 0.4)
    found = assign(job, budget, deadline_s=deadline_s, capacities=limits, objective=BARE)
    best = exact(program_of(job, budget, deadline_s, limits))
    assert best.arm is not None and best.ended
    assert found.quality >= best.bound * 0.999
    assert found.bound >= best.bound - 1e-4


def test_a_search_without_a_node_knows_nothing() -> None:
    """It finds no assignment, no bound and no proof; infeasibility is still a proof."""
    job = estimates(100, 6, 2)
    limits = capacities(job, DEADLINE_S)
    assert exact(program_of(job, budget_of(job, 0.3), DEADLINE_S, limits), nodes=0) == (None, math.inf, False)
    assert exact(program_of(job, budget_of(job, -0.1), DEADLINE_S, limits), nodes=0) == (None, math.inf, True)


def test_an_unfinished_search_keeps_the_fast_assignment_and_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    job = estimates(40, 5, 1)
    limits = capacities(job, DEADLINE_S)
    budget = budget_of(job, 0.4)
    whole = assign(job, budget, deadline_s=DEADLINE_S, capacities=limits, objective=BARE)
    asked: list[int] = []

    def cut(program: Program, *, gap: float) -> Searched:
        asked.append(len(program))
        return exact(program, nodes=0, gap=gap)

    monkeypatch.setattr("gateway.batch.assign.exact", cut)
    found = assign(job, budget, deadline_s=DEADLINE_S, capacities=limits, objective=BARE)
    assert asked == [40]
    assert uses(job, found, budget, DEADLINE_S, limits) <= 1.0 + 1e-9
    assert found.quality <= whole.quality
    assert found.bound == pytest.approx(whole.bound)


def test_the_better_of_both_assignments_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that was cut short may be worse than the fast way."""
    job = estimates(40, 5, 1)
    limits = capacities(job, DEADLINE_S)
    budget = budget_of(job, 0.4)

    def seen(arm: Arms) -> Assignment:
        searched = Searched(arm, math.inf, ended=False)
        monkeypatch.setattr("gateway.batch.assign.exact", lambda program, gap: searched)
        return assign(job, budget, deadline_s=DEADLINE_S, capacities=limits, objective=BARE)

    fast = seen(None)
    unfunded = np.where(np.isfinite(job.cost_usd), -job.cost_usd, -np.inf).argmax(1).astype(np.int16)
    assert (seen(unfunded).arm == fast.arm).all()


@pytest.mark.parametrize("limited", [False, True])
def test_a_plan_does_not_depend_on_the_machines_speed(limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Branch and bound is limited by its number of nodes and not by time."""
    told: list[set[str]] = []
    real = scipy.optimize.milp

    def milp(*parts: Any, options: dict[str, Any], **named: Any) -> Any:
        told.append(set(options))
        return real(*parts, options=options, **named)

    monkeypatch.setattr(scipy.optimize, "milp", milp)
    job = estimates(40, 5, 1)
    limits = capacities(job, DEADLINE_S) if limited else ()
    assign(job, budget_of(job, 0.4), deadline_s=DEADLINE_S if limited else math.inf, capacities=limits)
    with pytest.raises(Impossible):
        assign(job, budget_of(job, -0.1), deadline_s=DEADLINE_S, capacities=limits)
    assert all(options == {"node_limit", "mip_rel_gap"} for options in told)
    assert told


def relaxed(program: Program) -> float:
    """The optimum if prompts may be split between arms, which the fast way approaches."""
    rows, arms = np.nonzero(program.worth > NEVER / 2)
    once = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(program), len(rows)))
    found = scipy.optimize.linprog(
        -program.worth[rows, arms].astype(np.float64), A_eq=once, b_eq=np.ones(len(program)),
        A_ub=program.use_of(rows, arms).T, b_ub=np.ones(len(program.names)), bounds=(0, 1), method="highs",
    )  # fmt: skip
    return -float(found.fun) if found.success else -np.inf


def test_answers_of_equal_worth_are_assigned_at_any_budget() -> None:
    """All right answers are worth the same, and their costs differ by less than float32 can tell apart in the worth."""
    job = estimates(300, 9, 1, barred=0.0)
    right = np.random.default_rng(1).random(job.quality.shape) < 0.8
    job = replace(job, quality=right.astype(np.float32), cost_usd=job.cost_usd[:, ::-1].copy())  # descending
    for share in np.geomspace(1e-3, 0.5, 60):
        budget = budget_of(job, float(share))
        assert assign(job, budget, objective=BARE).cost_usd <= budget * (1 + 1e-6)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("limited", [False, True])
def test_the_bound_meets_the_linear_program(share: float, limited: bool) -> None:
    """On 2,000 prompts the dual bound is HiGHS's optimum with split prompts, and the gap is worth a few prompts."""
    job = estimates(2_000, 8, 3)
    deadline_s, limits = (DEADLINE_S, capacities(job, DEADLINE_S)) if limited else (math.inf, ())
    budget = budget_of(job, share)
    found = assign(job, budget, deadline_s=deadline_s, capacities=limits, objective=BARE)
    best = relaxed(program_of(job, budget, deadline_s, limits))
    assert found.bound == pytest.approx(best, rel=2e-4)
    assert found.bound >= best - 1e-3
    assert found.gap <= 0.5
    assert found.gap_share < 0.001


def test_a_cautious_plan_states_its_gap_on_predicted_quality() -> None:
    """Caution lowers predicted quality. The bound is that without caution, and the gap is below one percent."""
    job = estimates(3_000, 6, 5)
    budget = budget_of(job, 0.4)
    bold, careful = (assign(job, budget, objective=objective) for objective in (BARE, Objective(caution=0.5)))
    assert careful.bound >= bold.quality - 1e-6
    assert careful.quality <= bold.quality + 1e-6
    assert careful.gap_share < 0.01


def test_more_money_is_never_worse() -> None:
    """Predicted quality rises with the budget."""
    job = estimates(400, 6, 2)
    found = [assign(job, budget_of(job, share), objective=BARE).quality for share in np.linspace(0.0, 1.1, 12) + 1e-6]
    assert all(more >= less - 0.05 for less, more in pairwise(found))
    assert found[-1] > found[0]


def test_a_large_budget_buys_the_best_arms() -> None:
    """Every prompt gets its best arm, and of equally good ones the cheaper."""
    job = estimates(50, 4, 1, barred=0.0)
    twins = replace(job, quality=np.tile(job.quality[:, :1], (1, 4)))
    found = assign(twins, 1e9, objective=Objective(caution=0.0))
    assert (found.arm == twins.cost_usd.argmin(1)).all()
    assert found.gap == pytest.approx(0.0, abs=1e-3)


def test_floors_bind_each_prompt() -> None:
    """No prompt goes to an arm below its floor, even where that would save money."""
    job = estimates(200, 6, 4, barred=0.0)
    floor = np.where(np.arange(200) % 3 == 0, job.quality.max(1) * 0.95, 0.0).astype(np.float32)
    strict = replace(job, floor=floor)
    least = float(np.where(strict.quality >= floor[:, None], strict.cost_usd, np.inf).min(1).sum(dtype=float))
    found = assign(strict, least * 1.001)
    assert (strict.quality[np.arange(200), found.arm] >= floor).all()


def test_free_arms_need_no_budget() -> None:
    """A budget of zero is kept by arms that cost nothing."""
    job = estimates(30, 3, 0, barred=0.0)
    cost = job.cost_usd.copy()
    cost[:, 1] = 0.0
    found = assign(replace(job, cost_usd=cost), 0.0)
    assert (found.arm == 1).all()
    assert found.cost_usd == 0.0


def test_an_impossible_budget_names_the_least_that_would_do() -> None:
    """It is the cost of the cheapest arms, and with it the job can be planned."""
    job = estimates(300, 5, 6)
    least, _ = range_usd(job)
    with pytest.raises(Impossible) as caught:
        assign(job, least * 0.7)
    assert caught.value.least_budget_usd == pytest.approx(least, rel=0.01)
    assert "budget" in caught.value.message
    assert assign(job, caught.value.least_budget_usd * 1.01).shortfall == 0


def test_an_impossible_deadline_names_the_least_that_would_do() -> None:
    """No budget makes the deadline possible; with the longer one that the error names the job can be planned."""
    job = estimates(900, 5, 6)
    limits = capacities(job, DEADLINE_S, 0.4)
    with pytest.raises(Impossible) as caught:
        assign(job, 1e6, deadline_s=DEADLINE_S, capacities=limits)
    longer_s = caught.value.least_deadline_s
    assert DEADLINE_S < longer_s < 10 * DEADLINE_S
    assert math.isinf(caught.value.least_budget_usd)
    assign(job, 1e6, deadline_s=longer_s * 1.02, capacities=limits)
    with pytest.raises(Impossible):
        assign(job, 1e6, deadline_s=longer_s * 0.97, capacities=limits)


def test_the_least_load_is_the_linear_programs() -> None:
    """With all limits multiplied by slightly more than it branch and bound finds a plan, with slightly less none."""
    job = estimates(200, 5, 8)
    limits = capacities(job, DEADLINE_S)
    program = program_of(job, budget_of(job, 0.05), DEADLINE_S, limits)
    load = least_load(program)

    def widened(share: float) -> Program:
        return replace(program, weights=program.weights / share)

    assert exact(widened(load * 1.01)).arm is not None
    assert exact(widened(load * 0.99)) == (None, math.inf, True)


def test_a_prompt_that_no_arm_may_answer_is_the_callers_error() -> None:
    """Such prompts must be reported line by line before."""
    job = estimates(5, 2, 0, barred=0.0)
    cost = job.cost_usd.copy()
    cost[3] = np.inf
    with pytest.raises(ValueError, match="the first is 3"):
        assign(replace(job, cost_usd=cost), 1.0)


def test_a_batch_endpoint_is_used_only_if_it_is_done_in_time() -> None:
    """It has half the price, and is not used if the deadline is earlier."""
    job = estimates(20, 2, 0, barred=0.0)
    arms = (job.arms[0], Arm("m0", via="batch", window_s=86_400.0))
    half = replace(
        job, arms=arms, quality=np.tile(job.quality[:, :1], (1, 2)), quality_sd=np.tile(job.quality_sd[:, :1], (1, 2)),
        cost_usd=np.column_stack([job.cost_usd[:, 0], job.cost_usd[:, 0] / 2]),
    )  # fmt: skip
    assert (assign(half, 10.0).arm == 1).all()
    assert assign(half, 10.0).finish_s == 86_400.0
    assert (assign(half, 10.0, deadline_s=3_600.0).arm == 0).all()


def test_an_answer_that_takes_longer_than_the_deadline_is_none() -> None:
    """Slow arms aren't used; if all are too slow, the least deadline is the time of the fastest one."""
    job = estimates(30, 2, 0, barred=0.0)
    slow = replace(job, latency_s=np.tile(np.array([[2.0, 50.0]], np.float32), (30, 1)))
    assert (assign(slow, 10.0, deadline_s=10.0).arm == 0).all()
    with pytest.raises(Impossible) as caught:
        assign(slow, 10.0, deadline_s=1.0)
    assert caught.value.least_deadline_s == pytest.approx(2.0, rel=0.01)


def test_a_price_per_dollar_replaces_a_budget() -> None:
    """Without a budget quality is weighed against cost for each prompt alone, as on a live route."""
    job = estimates(100, 5, 9)
    found = assign(job, math.inf, objective=replace(BARE, usd_price=2_000.0))
    worth = np.where(np.isfinite(job.cost_usd), job.quality - 2_000.0 * job.cost_usd, -np.inf)
    assert (found.arm == worth.argmax(1)).all()
    assert found.gap == pytest.approx(0.0, abs=1e-3)


# -- replanning


def test_replanning_assigns_only_the_rest() -> None:
    """Other prompts stay unassigned; the budget is what is left."""
    job = estimates(200, 5, 3)
    rest = np.arange(50, 150)
    budget = budget_of(job.rows(rest), 0.5)
    found = replan(job, rest, budget)
    assert (found.arm[:50] == UNASSIGNED).all() and (found.arm[150:] == UNASSIGNED).all()
    assert (found.arm[rest] != UNASSIGNED).all()
    assert found.shortfall == 0
    assert found.cost_usd <= budget * (1 + 1e-9)
    assert found.quality == pytest.approx(assign(job.rows(rest), budget).quality, rel=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_replanning_with_too_little_answers_as_many_as_possible(share: float) -> None:
    """Nothing is raised: the rest is reported as a shortfall, and nearly as many are answered as the budget allows."""
    job = estimates(200, 4, 5)
    cheapest = np.sort(job.cost_usd.min(1))
    budget = share * float(cheapest.sum(dtype=float))
    found = replan(job, np.arange(200), budget)
    answered = 200 - found.shortfall
    assert found.cost_usd <= budget * (1 + 1e-9)
    most = int((np.cumsum(cheapest, dtype=float) <= budget).sum())
    assert answered >= 0.9 * most
    assert answered == int((found.arm != UNASSIGNED).sum())


def test_replanning_nothing_is_empty() -> None:
    found = replan(estimates(10, 2, 0), np.array([], np.intp), 1.0)
    assert (found.arm == UNASSIGNED).all()
    assert (found.quality, found.cost_usd, found.shortfall) == (0.0, 0.0, 0)


def test_replanning_leaves_prompts_without_an_arm() -> None:
    """Such a prompt is part of the shortfall, and the others are answered."""
    job = estimates(10, 2, 0, barred=0.0)
    cost = job.cost_usd.copy()
    cost[3] = np.inf
    found = replan(replace(job, cost_usd=cost), np.arange(10), 10.0)
    assert found.shortfall == 1
    assert found.arm[3] == UNASSIGNED


def test_an_assignment_is_repeatable_and_changes_nothing() -> None:
    job = estimates(300, 5, 2)
    before = {name: array.copy() for name, array in job.arrays().items()}
    limits = capacities(job, DEADLINE_S)
    first, second = (assign(job, budget_of(job, 0.3), deadline_s=DEADLINE_S, capacities=limits) for _ in range(2))
    assert (first.arm == second.arm).all()
    assert all((job.arrays()[name] == array).all() for name, array in before.items())


def test_large_jobs_start_from_a_sample_and_end_with_all_rows() -> None:
    """50,000 prompts under five limits: every limit is kept, and the gap is below a tenth of a percent."""
    job = estimates(50_000, 6, 1)
    limits = capacities(job, DEADLINE_S)
    budget = budget_of(job, 0.3)
    found = assign(job, budget, deadline_s=DEADLINE_S, capacities=limits)
    assert uses(job, found, budget, DEADLINE_S, limits) <= 1.0 + 1e-9
    assert found.gap_share < 0.01


def test_long_answers_are_partly_refunded() -> None:
    """The refund is proportional to the cost beyond the arm's mean, up to three means; barred arms stay barred."""
    some = estimates(400, 3, 5, barred=0.1)
    bare = program_of(some, 1.0, math.inf, (), objective=BARE)
    found = hardened(bare, usd_price=10.0, share=0.5)
    able = bare.worth > NEVER / 2
    mean = np.where(able, bare.cost, 0).sum(0) / able.sum(0)
    expected = 0.5 * 10.0 * np.clip(bare.cost - mean, -mean, 2 * mean)
    np.testing.assert_allclose((found.worth - bare.worth)[able], expected[able], rtol=1e-3, atol=1e-6)
    assert (found.worth[~able] == NEVER).all() and found.cost is bare.cost
