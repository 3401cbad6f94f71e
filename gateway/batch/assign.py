"""Who answers what: one joint assignment under a budget, a deadline, rate limits and floors.

Lagrange relaxation prices money and capacity (gateway/batch/dual.py), the few prompts left between two arms are
rounded (gateway/batch/rounding.py), and the dual bounds what any other assignment could have more. Small jobs whose
gap is worth it are solved exactly. Pure: the same estimates and limits give the same assignment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gateway.batch.dual import all_prices, least_load, money_price, sampled
from gateway.batch.exact import exact
from gateway.batch.program import NEVER, Array, Program, Rows, program_of
from gateway.batch.rounding import Draft, rounded
from gateway.batch.types import UNASSIGNED, Assignment, Capacity, Estimates, Impossible

_EXACT_CELLS = 4_000
"""A job of at most that many prompts times arms is worth the exact way."""
_EXACT_GAP = 1e-3
_ANSWERED = 10.0
"""What it is worth to answer at all, where not every prompt can be answered: more than any answer's quality."""
_HALVINGS = 30


def assign(
    estimates: Estimates,
    budget_usd: float,
    *,
    deadline_s: float = math.inf,
    capacities: Sequence[Capacity] = (),
) -> Assignment:
    """Every prompt gets an arm, so that the sum of predicted qualities is as large as the limits allow.

    Impossible where no assignment keeps them, with the least budget and the least deadline that would do; prompts
    that no arm may answer must have been taken out before (ValueError).
    """
    program = program_of(estimates, budget_usd, deadline_s, capacities)
    nobody = (program.worth <= NEVER / 2).all(1)
    if nobody.any():
        if (np.isfinite(estimates.cost_usd) & (estimates.quality >= estimates.floor[:, None])).any(1).all():
            raise _impossible(estimates, budget_usd, deadline_s, capacities)
        raise ValueError(f"{int(nobody.sum())} prompt(s) that no arm may answer; the first is {int(nobody.argmax())}")
    draft, bound = _solved(program)
    if not draft.fits:
        raise _impossible(estimates, budget_usd, deadline_s, capacities)
    return _assignment(program, draft, bound, budget_usd, _finish_s(estimates, draft.arm, capacities))


def replan(
    estimates: Estimates,
    rest: Rows,
    budget_usd: float,
    *,
    deadline_s: float = math.inf,
    capacities: Sequence[Capacity] = (),
) -> Assignment:
    """The same for the rows `rest`, with what is left of money and time. Where that is too little for all of them,
    as many as possible are answered; the others, and those outside `rest`, are UNASSIGNED.
    """
    arm = np.full(len(estimates), UNASSIGNED, np.int16)
    if not len(rest):
        return Assignment(arm, 0.0, 0.0, 0.0, {}, 0.0, 0.0)
    program = program_of(estimates, budget_usd, deadline_s, capacities, rest)
    bound, draft = 0.0, None
    if not (program.worth <= NEVER / 2).all(1).any():
        draft, bound = _solved(program)
    if draft is None or not draft.fits:
        draft, bound = _solved(_optional(program))
        draft.arm[draft.arm == program.worth.shape[1]] = UNASSIGNED
        bound -= _ANSWERED * int((draft.arm != UNASSIGNED).sum())
        draft.program = program
    arm[rest] = draft.arm
    finish_s = _finish_s(estimates, arm, capacities)
    return replace(_assignment(program, draft, bound, budget_usd, finish_s), arm=arm)


def _solved(program: Program) -> tuple[Draft, float]:
    """An assignment and the bound on its worth."""
    prices = money_price(program)
    draft = rounded(program, prices)
    others = program.uses(program.decide(prices))[1:]
    if (others > 1.0).any():
        prices = all_prices(program, prices)
        draft = rounded(program, prices)
    bound = program.bound(program.decide(prices), prices)
    missed = 1.0 if not draft.fits else (bound - program.tally(draft.arm).worth) / max(abs(bound), 1e-9)
    if missed > _EXACT_GAP and program.worth.size <= _EXACT_CELLS and least_load(program) <= 1.0 + 1e-9:
        best = exact(program)
        if best is not None:
            uses = program.uses(program.tally(best[0]))
            return Draft(program, prices, best[0], np.minimum(uses, 1.0)), min(bound, best[1])
    return draft, bound


def _optional(program: Program) -> Program:
    """The same with one more arm: no answer, which costs nothing and is worth less than any answer."""
    zero = np.zeros((len(program), 1), np.float32)
    worth = np.where(program.worth > NEVER / 2, program.worth + np.float32(_ANSWERED), program.worth)
    weights = np.concatenate([program.weights, np.zeros((*program.weights.shape[:2], 1))], axis=2)
    wider = [np.concatenate([part, zero], axis=1) for part in (worth, program.cost, program.output, program.seconds)]
    return Program(wider[0], wider[1], wider[2], wider[3], program.input, weights, program.names)


def _assignment(program: Program, draft: Draft, bound: float, budget_usd: float, finish_s: float) -> Assignment:
    decision = program.tally(draft.arm)
    prices = dict(zip(program.names, draft.prices.tolist(), strict=True))
    return Assignment(
        arm=draft.arm,
        quality=decision.worth,
        cost_usd=float(decision.totals[1].sum()),
        usd_price=prices.pop("budget") / budget_usd if 0 < budget_usd < math.inf else 0.0,
        capacity_prices=prices,
        bound=bound,
        finish_s=finish_s,
        shortfall=int((draft.arm == UNASSIGNED).sum()),
    )


def _finish_s(estimates: Estimates, arm: NDArray[np.int16], capacities: Sequence[Capacity]) -> float:
    """Seconds until the busiest capacity is through, and at least the longest window of a provider's batch."""
    used = np.unique(arm[arm != UNASSIGNED])
    windows: float = max((estimates.arms[a].window_s for a in used.tolist()), default=0.0)
    if not capacities:
        return windows
    program = program_of(estimates, math.inf, 1.0, capacities)
    return float(max(windows, program.uses(program.tally(arm))[1:].max()))


def _impossible(
    estimates: Estimates, budget_usd: float, deadline_s: float, capacities: Sequence[Capacity]
) -> Impossible:
    """What would be possible, found on a sample of a large job."""

    def load(budget: float, deadline: float) -> float:
        program = sampled(program_of(estimates, budget, deadline, capacities), most=4_000)
        return math.inf if (program.worth <= NEVER / 2).all(1).any() else least_load(program)

    cheapest = float(np.where(_allowed(estimates), estimates.cost_usd, np.inf).min(1).sum(dtype=np.float64))
    least_usd = _least(lambda usd: load(usd, deadline_s), cheapest, max(budget_usd, cheapest))
    least_s = math.inf
    if cheapest <= budget_usd and math.isfinite(deadline_s):
        longest_s = max(deadline_s, *(arm.window_s for arm in estimates.arms))
        least_s = _least(lambda s: load(budget_usd, s), deadline_s, longest_s)
    ways = [f"a budget of ${least_usd:,.4g}"] if math.isfinite(least_usd) else []
    ways += [f"a deadline of {least_s:,.0f} s"] if math.isfinite(least_s) else []
    return Impossible(
        f"no assignment keeps ${budget_usd:,.4g} and {_spoken(deadline_s)}; "
        + (f"possible with {' or '.join(ways)}" if ways else "both budget and deadline are too small"),
        least_usd,
        least_s,
    )


def _allowed(estimates: Estimates) -> NDArray[np.bool_]:
    return np.isfinite(estimates.cost_usd) & (estimates.quality >= estimates.floor[:, None])


def _least(load: Callable[[float], float], low: float, high: float) -> float:
    """The least limit, at `low` or above, at which the load is bearable; infinite where none is."""
    if load(low) <= 1.0:
        return low
    low, high = max(low, 1e-9), max(high, 1e-9)
    for _ in range(_HALVINGS):
        if load(high) <= 1.0:
            break
        low, high = high, high * 4.0
    else:
        return math.inf
    while high / low > 1.002:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if load(middle) <= 1.0 else (middle, high)
    return high


def _spoken(deadline_s: float) -> str:
    return f"a deadline of {deadline_s:,.0f} s" if math.isfinite(deadline_s) else "no deadline"


__all__ = ["Array", "assign", "replan"]
