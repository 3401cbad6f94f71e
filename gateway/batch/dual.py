"""Finds the prices of money and capacity at which independent choices keep the limits: the dual of the assignment.

D(p) is convex, and every evaluation gives its subgradient, 1 - use. With money alone the best price is found by
bisection, where prompts that choose the same arm at both ends of the interval are not evaluated again. With several
limits a cutting-plane model is minimised within a trust region (Kelley's method, stabilised); large jobs start from a
sample's prices.
"""

from __future__ import annotations

import numpy as np

from gateway.batch.program import NEVER, Array, Decision, Program, Rows

SAMPLE = 20_000
_BISECTIONS = 60
_ROUNDS = 120
_DEAREST = 1e4
"""Largest initial price, per prompt: HiGHS treats larger numbers as infinite."""
_TOLERANCE = 1e-5
"""Relative tolerance of the bound: what further rounds gain is lost in rounding."""


def money_price(program: Program) -> Array:
    """Prices in which only money's is above zero: the least at which the budget is kept, if the cheapest arms keep it.
    """
    low = high = 0.0
    decision = program.decide(_money(program, high))
    while _spent(program, decision) > 1.0 and high < 1e7 * len(program):
        low, high = high, max(high * 16.0, len(program) * 1e-3)
        decision = program.decide(_money(program, high))
    price = _bisected(program, low, high, decision) if high > 0.0 else 0.0
    while price < high and _spent(program, program.decide(_money(program, price))) > 1.0:
        price = min(2.0 * price, high)  # where worths differ by less than float32 can show, a higher price may not save
    return _money(program, price)


def _bisected(program: Program, low: float, high: float, at_high: Decision) -> float:
    """The least price that keeps the budget, between `low`, which doesn't, and `high`, which does. `at_high` is the
    decision at `high`.
    """
    active, fixed = np.arange(len(program)), 0.0
    part, above = program, at_high.arm
    below = program.decide(_money(program, low)).arm
    for _ in range(_BISECTIONS):
        undecided = np.flatnonzero(below != above)
        if 2 * len(undecided) < len(active):
            settled = np.setdiff1d(np.arange(len(active)), undecided, assume_unique=True)
            fixed += float(part.use_of(settled, above[settled].astype(np.intp))[:, 0].sum())
            active, below, above = active[undecided], below[undecided], above[undecided]
            part = part.rows(undecided)
        if not len(active) or high - low <= 1e-9 * high:
            break
        middle = (low + high) / 2
        decision = part.decide(_money(part, middle))
        if fixed + _spent(part, decision) > 1.0:
            low, below = middle, decision.arm
        else:
            high, above = middle, decision.arm
    return high


def _money(program: Program, price: float) -> Array:
    prices = np.zeros(len(program.names))
    prices[0] = price
    return prices


def _spent(program: Program, decision: Decision) -> float:
    return float(program.uses(decision)[0])


def all_prices(program: Program, start: Array, seed: int = 0) -> Array:
    """Prices of every limit, searched from `start`. D at them is within a share `_TOLERANCE` of its minimum, unless the
    rounds run out first.
    """
    if len(program) <= 2 * SAMPLE:
        return Descent(program, start, reach=0.5).run(_ROUNDS)
    share = SAMPLE / len(program)
    rows = np.sort(np.random.default_rng(seed).choice(len(program), SAMPLE, replace=False))
    near = Descent(program.rows(rows).scaled(share), start * share, reach=0.5).run(_ROUNDS) / share
    return Descent(program, near, reach=0.02).run(_ROUNDS // 4)


class Descent:
    """Minimises D within a box around the best prices so far; the box grows and shrinks with its success."""

    def __init__(self, program: Program, start: Array, reach: float) -> None:
        self.program = program
        self._scale = float(len(program))
        self.best = np.minimum(np.asarray(start, np.float64), _DEAREST * self._scale)
        self._reach = reach * np.maximum(self.best, 0.02 * self._scale)
        self._prices: list[Array] = []
        self._slopes: list[Array] = []
        self._bounds: list[float] = []
        self.bound = self._look(self.best)

    def _look(self, prices: Array) -> float:
        """Evaluate D at the prices and add the cut to the model."""
        decision = self.program.decide(prices)
        bound = self.program.bound(decision, prices)
        self._prices.append(prices)
        self._slopes.append(1.0 - self.program.uses(decision))
        self._bounds.append(bound)
        return bound

    def run(self, rounds: int) -> Array:
        for _ in range(rounds):
            proposed, predicted = self._propose()
            gain = self.bound - predicted
            at_edge = bool((np.abs(proposed - self.best) >= 0.999 * self._reach).any())
            if gain <= _TOLERANCE * max(abs(self.bound), 1e-9):
                if not at_edge:
                    break
                self._reach *= 4.0
                continue
            bound = self._look(proposed)
            if bound <= self.bound - 0.1 * gain:
                self._reach *= 2.0 if at_edge else 1.0
                self.best, self.bound = proposed, bound
            else:
                self._reach *= 0.6
        return self.best

    def _propose(self) -> tuple[Array, float]:
        """The lowest point of the model within the box, and the model's value there."""
        from scipy.optimize import linprog

        limits, scale = len(self.best), self._scale
        slopes = np.array(self._slopes)
        heights = np.array(self._bounds) - np.einsum("jk,jk->j", slopes, np.array(self._prices))
        lowest, highest = np.maximum(self.best - self._reach, 0.0), self.best + self._reach
        solution = linprog(
            np.append(np.zeros(limits), 1.0),
            A_ub=np.column_stack([slopes, -np.ones(len(slopes))]),
            b_ub=-heights / scale,
            bounds=[*zip(lowest / scale, highest / scale, strict=True), (None, None)],
            method="highs",
        )
        if not solution.success:
            return self.best, self.bound
        return np.asarray(solution.x[:-1]) * scale, float(solution.x[-1]) * scale


def least_load(program: Program, rounds: int = 60, *, threshold: float | None = None) -> float:
    """A lower bound of the smallest s for which some (fractional) assignment uses at most the share s of every limit.

    Above 1, no assignment keeps the limits. The bound is the largest, over prices that sum to 1, of the total that all
    prompts pay when each chooses its cheapest arm. With a `threshold` the search stops as soon as it is known whether s
    is larger.
    """
    from scipy.optimize import linprog

    bare = Program(
        np.where(program.worth > NEVER / 2, np.float32(0), NEVER), program.cost, program.output, program.seconds,
        program.input, program.weights, program.names,
    )  # fmt: skip
    limits = len(program.names)
    prices, best, cuts = np.full(limits, 1.0 / limits), 0.0, []
    for _ in range(rounds):
        uses = bare.uses(bare.decide(prices))
        best = max(best, float(prices @ uses))
        cuts.append(np.append(-uses, 1.0))
        solution = linprog(
            np.append(np.zeros(limits), -1.0), A_ub=np.array(cuts), b_ub=np.zeros(len(cuts)),
            A_eq=[[*np.ones(limits), 0.0]], b_eq=[1.0], bounds=[(0, 1)] * limits + [(None, None)], method="highs",
        )  # fmt: skip
        most = -solution.fun if solution.success else best
        if most <= best * (1 + 1e-4) or (threshold is not None and (best > threshold or most <= threshold)):
            break
        prices = np.asarray(solution.x[:-1])
    return best


def sampled(program: Program, seed: int = 0, most: int = SAMPLE) -> Program:
    """A random sample of a large program, under limits of the same share; a small program is returned as it is."""
    if len(program) <= most:
        return program
    rows: Rows = np.sort(np.random.default_rng(seed).choice(len(program), most, replace=False))
    return program.rows(rows).scaled(most / len(program))
