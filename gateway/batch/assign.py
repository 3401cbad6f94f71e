"""Decides which arm answers which prompt: one joint assignment under a budget, a deadline, rate limits and floors.

Lagrange relaxation prices money and capacity (gateway/batch/dual.py), the few prompts left between two arms are
rounded (gateway/batch/rounding.py), and the dual bounds how much better any other assignment could be. Small jobs with
a notable gap are solved exactly. Pure, without a clock: the same estimates and limits give the same assignment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gateway.batch.dual import all_prices, least_load, money_price, sampled
from gateway.batch.exact import exact
from gateway.batch.program import BARE, NEVER, Objective, Program, Rows, allowed, hardened, program_of
from gateway.batch.rounding import Draft, rounded
from gateway.batch.types import UNASSIGNED, Assignment, Capacity, Estimates, Impossible

DEFAULT_OBJECTIVE = Objective()
_EXACT_CELLS = 4_000
"""Jobs of at most so many prompts times arms may be solved exactly."""
_EXACT_GAP = 1e-3
"""Least gap, as a share of the worth, for which a job is solved exactly."""
_ANSWERED = 10.0
"""Worth of answering a prompt at all, where not every prompt can be answered: more than any answer's quality."""
_SAMPLE = 4_000
"""Prompts of a large job on which its least budget and deadline are searched."""
_MORE = 1.0 + 1e-3
"""The search for the least budget or deadline begins at the refused one times this."""
_HOPELESS = 1.03
"""Least load of a sample above which the whole job can't keep its limits either."""
_RISES = 12
"""Steps by which the search multiplies a limit by 8 before it gives up."""


def assign(
    estimates: Estimates,
    budget_usd: float,
    *,
    deadline_s: float = math.inf,
    capacities: Sequence[Capacity] = (),
    objective: Objective = DEFAULT_OBJECTIVE,
) -> Assignment:
    """Assign an arm to every prompt, so that the sum of predicted qualities is as large as the limits allow.

    Raises Impossible, with the least sufficient budget and deadline, where no assignment keeps the limits, and
    ValueError where no arm may answer some prompt: such prompts must be left out before.
    """
    orphans = ~allowed(estimates).any(1)
    if orphans.any():
        raise ValueError(f"no arm may answer {int(orphans.sum())} prompt(s); the first is {int(orphans.argmax())}")
    assignment = attempted(estimates, budget_usd, deadline_s=deadline_s, capacities=capacities, objective=objective)
    if assignment is None:
        raise _impossible(estimates, budget_usd, deadline_s, capacities)
    return assignment


def attempted(
    estimates: Estimates,
    budget_usd: float,
    *,
    deadline_s: float = math.inf,
    capacities: Sequence[Capacity] = (),
    objective: Objective = DEFAULT_OBJECTIVE,
) -> Assignment | None:
    """The assignment as `assign` makes it, or None where the limits can't be kept."""
    estimates = timely(estimates, deadline_s)
    program = program_of(estimates, budget_usd, deadline_s, capacities, objective=objective)
    if (program.worth <= NEVER / 2).all(1).any():
        return None
    draft = _solved(_hardened(program, budget_usd, objective))
    if not draft.fits:
        return None
    bare = program_of(estimates, budget_usd, deadline_s, capacities, objective=_plain(objective))
    finish_s = _finish_s(estimates, draft.arm, capacities)
    return _assignment(estimates, draft, _gap(bare, draft), budget_usd, finish_s)


def replan(
    estimates: Estimates,
    rest: Rows,
    budget_usd: float,
    *,
    deadline_s: float = math.inf,
    capacities: Sequence[Capacity] = (),
    objective: Objective = DEFAULT_OBJECTIVE,
) -> Assignment:
    """Assign arms to the rows `rest` only, with the money and time that are left. Where these don't suffice for all
    rows, as many as possible are assigned; the others, and those outside `rest`, are UNASSIGNED.
    """
    arm = np.full(len(estimates), UNASSIGNED, np.int16)
    if not len(rest):
        return Assignment(arm, 0.0, 0.0, 0.0, {}, 0.0, 0.0)
    program = program_of(estimates, budget_usd, deadline_s, capacities, rest, objective)
    bare = program_of(estimates, budget_usd, deadline_s, capacities, rest, _plain(objective))
    draft = None
    if not (program.worth <= NEVER / 2).all(1).any():
        draft = _solved(_hardened(program, budget_usd, objective))
    if draft is None or not draft.fits:
        draft = _solved(_optional(program))
        bare = _optional(bare)
    gap = _gap(bare, draft)
    arm[rest] = np.where(draft.arm == len(estimates.arms), UNASSIGNED, draft.arm)
    finish_s = _finish_s(estimates, arm, capacities)
    assignment = _assignment(estimates, replace(draft, arm=arm), gap, budget_usd, finish_s)
    return replace(assignment, shortfall=int((arm[rest] == UNASSIGNED).sum()))


def _plain(objective: Objective) -> Objective:
    """The objective of the stated bound: predicted quality, less money where it has a price."""
    return replace(BARE, usd_price=objective.usd_price)


def _hardened(program: Program, budget_usd: float, objective: Objective) -> Program:
    """The program in which the price of hard prompts is reduced. The price of money is found first, for a large job on
    a sample.
    """
    if not objective.hardness or not 0 < budget_usd < math.inf:
        return program
    price = float(money_price(sampled(program))[0]) / budget_usd
    return hardened(program, price, objective.hardness) if price > 0 else program


def _solved(program: Program) -> Draft:
    """An assignment and the prices that led to it. Where it breaks a limit (`fits` is false), none was found that
    doesn't.
    """
    prices = money_price(program)
    decision = program.decide(prices)
    uses = program.uses(decision)
    if uses[0] > 1.0:
        return Draft(program, prices, decision.arm, uses)
    if (uses > 1.0).any():
        if least_load(sampled(program, most=_SAMPLE), threshold=_HOPELESS) > _HOPELESS:
            return Draft(program, prices, decision.arm, uses)
        prices = all_prices(program, prices)
    draft = rounded(program, prices)
    if program.worth.size > _EXACT_CELLS:
        return draft
    gap_share = math.inf
    if draft.fits:
        gap_share = _gap(program, draft) / max(abs(program.tally(draft.arm).worth), 1e-9)
    if gap_share > _EXACT_GAP and least_load(program, threshold=1.0) <= 1.0 + 1e-9:
        return _better(draft, exact(program, gap=_EXACT_GAP / 2).arm)
    return draft


def _better(draft: Draft, arm: NDArray[np.int16] | None) -> Draft:
    """The result of branch and bound where it beats the draft, else the draft: a search that was cut short may have
    found less, or nothing.
    """
    if arm is None:
        return draft
    program = draft.program
    exact_tally = program.tally(arm)
    if draft.fits and program.tally(draft.arm).worth >= exact_tally.worth:
        return draft
    return Draft(program, draft.prices, arm, np.minimum(program.uses(exact_tally), 1.0))


def _gap(program: Program, draft: Draft) -> float:
    """The most by which the best assignment under the same limits can be worth more."""
    bound = program.bound(program.decide(draft.prices), draft.prices)
    return max(bound - program.tally(draft.arm).worth, 0.0)


def _optional(program: Program) -> Program:
    """The program with one more arm, "no answer", which costs nothing and is worth less than any answer."""
    zero = np.zeros((len(program), 1), np.float32)
    worth = np.where(program.worth > NEVER / 2, program.worth + np.float32(_ANSWERED), program.worth)
    weights = np.concatenate([program.weights, np.zeros((*program.weights.shape[:2], 1))], axis=2)
    wider = [np.concatenate([part, zero], axis=1) for part in (worth, program.cost, program.output, program.seconds)]
    return Program(wider[0], wider[1], wider[2], wider[3], program.input, weights, program.names)


def _assignment(
    estimates: Estimates, draft: Draft, gap: float, budget_usd: float, finish_s: float
) -> Assignment:
    rows = np.flatnonzero(draft.arm != UNASSIGNED)
    arm = draft.arm[rows]
    quality = float(estimates.quality[rows, arm].sum(dtype=np.float64))
    prices = dict(zip(draft.program.names, draft.prices.tolist(), strict=True))
    return Assignment(
        arm=draft.arm,
        quality=quality,
        cost_usd=float(estimates.cost_usd[rows, arm].sum(dtype=np.float64)),
        usd_price=prices.pop("budget") / budget_usd if 0 < budget_usd < math.inf else 0.0,
        capacity_prices=prices,
        bound=quality + gap,
        finish_s=finish_s,
    )


def _finish_s(estimates: Estimates, arm: NDArray[np.int16], capacities: Sequence[Capacity]) -> float:
    """Seconds that the busiest capacity needs, and at least the longest window of a provider's batch."""
    used = np.unique(arm[arm != UNASSIGNED])
    windows: float = max((estimates.arms[a].window_s for a in used.tolist()), default=0.0)
    if not capacities:
        return windows
    program = program_of(estimates, math.inf, 1.0, capacities)
    return float(max(windows, program.uses(program.tally(arm))[1:].max()))


def _impossible(
    estimates: Estimates, budget_usd: float, deadline_s: float, capacities: Sequence[Capacity]
) -> Impossible:
    least_usd = least_budget(estimates, deadline_s, capacities, budget_usd * _MORE)
    least_s = math.inf
    if cheapest_usd(estimates) <= budget_usd and math.isfinite(deadline_s):
        part, rates, share = _part(estimates, capacities)
        least_s = _least(lambda s: _possible(part, budget_usd * share, s, rates), deadline_s * _MORE)
    ways = [f"a budget of ${least_usd:,.4g}"] if math.isfinite(least_usd) else []
    ways += [f"a deadline of {least_s:,.0f} s"] if math.isfinite(least_s) else []
    return Impossible(
        f"no assignment keeps ${budget_usd:,.4g} and {_spoken(deadline_s)}; "
        + (f"possible with {' or '.join(ways)}" if ways else "both budget and deadline are too small"),
        least_usd,
        least_s,
    )


def cheapest_usd(estimates: Estimates, deadline_s: float = math.inf) -> float:
    """Cost of the job where every prompt goes to the cheapest arm that may answer it in time; rates are not considered.
    """
    return float(np.where(allowed(estimates, deadline_s), estimates.cost_usd, np.inf).min(1).sum(dtype=np.float64))


def least_budget(
    estimates: Estimates, deadline_s: float, capacities: Sequence[Capacity], at_least_usd: float = 0.0
) -> float:
    """Least expected cost at which the job can be done in time, to half a percent; infinite where no budget suffices.
    For a large job it is found on a sample.
    """
    low = max(cheapest_usd(timely(estimates, deadline_s), deadline_s), at_least_usd)
    if not math.isfinite(low):
        return math.inf
    part, capacities, share = _part(estimates, capacities)
    return _least(lambda usd: _possible(part, usd * share, deadline_s, capacities), low)


def _part(estimates: Estimates, capacities: Sequence[Capacity]) -> tuple[Estimates, Sequence[Capacity], float]:
    """A sample of a large job, the capacities that the sample may use, and its share of the job's prompts."""
    n = len(estimates)
    if n <= _SAMPLE:
        return estimates, capacities, 1.0
    share = _SAMPLE / n
    rows = np.sort(np.random.default_rng(0).choice(n, _SAMPLE, replace=False))
    return estimates.rows(rows), [replace(one, per_s=one.per_s * share) for one in capacities], share


def timely(estimates: Estimates, deadline_s: float) -> Estimates:
    """The estimates with infinite costs for answers whose own latency exceeds the deadline."""
    late = estimates.latency_s > deadline_s
    if not late.any():
        return estimates
    return replace(estimates, cost_usd=np.where(late, np.float32(np.inf), estimates.cost_usd))


def _possible(estimates: Estimates, budget_usd: float, deadline_s: float, capacities: Sequence[Capacity]) -> bool:
    program = program_of(timely(estimates, deadline_s), budget_usd, deadline_s, capacities)
    return not (program.worth <= NEVER / 2).all(1).any() and _bearable(program)


def _bearable(program: Program) -> bool:
    """Whether some assignment keeps the limits: for a small job a real one, for a large job perhaps a fractional one.
    """
    if least_load(program, threshold=1.0) > 1.0:
        return False
    return program.worth.size > _EXACT_CELLS or exact(program, gap=1.0).arm is not None


def _least(possible: Callable[[float], bool], low: float) -> float:
    """The least limit at or above `low` that makes the job possible; infinite where none was found."""
    low = max(low, 1e-9)
    if possible(low):
        return low
    high = low
    for _ in range(_RISES):
        low, high = high, high * 8.0
        if possible(high):
            break
    else:
        return math.inf
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if possible(middle) else (middle, high)
    return high


def _spoken(deadline_s: float) -> str:
    return f"a deadline of {deadline_s:,.0f} s" if math.isfinite(deadline_s) else "no deadline"
