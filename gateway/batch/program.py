"""The assignment as a linear program, evaluated in bulk: which arms the prompts choose at given prices of the limits.

    maximise  sum_i worth[i, x_i]   over arms x_i,   subject to   sum_i use_k[i, x_i] <= 1   for every limit k

Uses are shares of a limit (money over the budget, tokens over what fits before the deadline), so limits of any unit
are treated alike. With a price p_k >= 0 on each limit every prompt decides alone, and

    D(p) = sum_i max_a (worth[i, a] - sum_k p_k use_k[i, a]) + sum_k p_k

is no less than the worth of any assignment within the limits (Lagrange relaxation). A use is linear in five things: a
call, its cost, its tokens in and out and its seconds, so no matrix per limit is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.batch.types import Capacity, Estimates, Floats

Array = NDArray[np.float64]
Rows = NDArray[np.intp]

CALLS, MONEY, INPUT, OUTPUT, SECONDS = range(5)
NEVER = np.float32(-1e30)
"""The worth of an arm that may not answer."""
CAUTION = 0.0
"""Standard errors subtracted from each quality estimate. On splits of the training rows of two data sets, 0.25 was no
better than 0, and more was worse: routers with a learnt stretch (`routers.estimators.stacked`) are well calibrated.
"""
HARDNESS = 0.2
"""A prompt whose answer is expected to be long is harder than its quality estimates say, and should not be sent to a
cheap model for its cost alone. So this share of the price of the cost beyond its model's mean is not counted. Chosen on
training rows, where 0 to 0.3 were alike for estimates with a learnt stretch, and 0.2 to 0.3 better for those without.
"""
_CHUNK = 16_384
"""Rows evaluated together: they fit into the processor's cache."""


class Decision(NamedTuple):
    """The choices of all prompts together, at some prices or of a given assignment."""

    arm: NDArray[np.int16]
    totals: Array
    """Shape (5, arms): calls, dollars, tokens in, tokens out and seconds of each arm."""
    worth: float
    value: float
    """Sum over prompts of the chosen arm's worth less its price."""


@dataclass(frozen=True)
class Program:
    """The linear program: matrices (rows, arms), where a row is a prompt."""

    worth: Floats
    """NEVER where the arm may not answer."""
    cost: Floats
    """Dollars; 0 where the arm may not answer."""
    output: Floats
    """Output tokens."""
    seconds: Floats
    """Latency; 0 where it is unknown, never NaN."""
    input: Floats
    """Input tokens, shape (rows,)."""
    weights: Array
    """Share of each limit that one call, dollar, input token, output token or second uses, shape (limits, 5, arms)."""
    names: tuple[str, ...]
    """Names of the limits."""

    def __len__(self) -> int:
        return len(self.worth)

    def rows(self, kept: Rows) -> Program:
        """The program of these prompts only, under the same limits."""
        return Program(
            self.worth[kept], self.cost[kept], self.output[kept], self.seconds[kept], self.input[kept],
            self.weights, self.names,
        )  # fmt: skip

    def scaled(self, share: float) -> Program:
        """The same rows under limits multiplied by `share`: what a sample of the rows may use."""
        weights = self.weights / share
        return Program(self.worth, self.cost, self.output, self.seconds, self.input, weights, self.names)

    def priced(self, prices: Array, part: slice) -> Floats:
        """The price of every arm's uses for the rows of `part`, shape (rows, arms)."""
        each: Floats = np.asarray(np.tensordot(prices, self.weights, 1), np.float32)
        price: Floats = self.cost[part] * each[MONEY]
        price += each[CALLS]
        if each[OUTPUT].any():
            price += self.output[part] * each[OUTPUT]
        if each[SECONDS].any():
            price += self.seconds[part] * each[SECONDS]
        if each[INPUT].any():
            price += self.input[part, None] * each[INPUT]
        return price

    def values(self, prices: Array, part: slice) -> Floats:
        """Worth less price of every arm for the rows of `part`, shape (rows, arms)."""
        price = self.priced(prices, part)
        return np.subtract(self.worth[part], price, out=price)

    def parts(self) -> Iterator[slice]:
        """All rows, in slices that fit into the processor's cache."""
        for start in range(0, len(self), _CHUNK):
            yield slice(start, min(start + _CHUNK, len(self)))

    def decide(self, prices: Array) -> Decision:
        """Every prompt's best arm at the prices, which have shape (limits,)."""
        n, arms = self.worth.shape
        arm = np.empty(n, np.int16)
        totals = np.zeros((5, arms))
        worth = value = 0.0
        for part in self.parts():
            values = self.values(prices, part)
            best = values.argmax(1)
            arm[part] = best
            value += float(np.take_along_axis(values, best[:, None], 1).sum(dtype=np.float64))
            worth += self._add(totals, best, part)
        return Decision(arm, totals, worth, value)

    def tally(self, arm: NDArray[np.int16]) -> Decision:
        """The decision that a given assignment amounts to, with `value` equal to `worth`; rows of a negative arm are
        left out.
        """
        totals = np.zeros((5, self.worth.shape[1]))
        worth = 0.0
        for part in self.parts():
            worth += self._add(totals, arm[part].astype(np.intp), part)
        return Decision(arm, totals, worth, worth)

    def _add(self, totals: Array, best: Rows, part: slice) -> float:
        """Add the rows' uses to `totals`, and return the sum of their worth."""
        rows = np.flatnonzero(best >= 0)
        best, rows, arms = best[rows], rows + part.start, self.worth.shape[1]
        totals[CALLS] += np.bincount(best, minlength=arms)
        totals[INPUT] += np.bincount(best, self.input[rows], arms)
        for place, matrix in ((MONEY, self.cost), (OUTPUT, self.output), (SECONDS, self.seconds)):
            totals[place] += np.bincount(best, matrix[rows, best], arms)
        return float(self.worth[rows, best].sum(dtype=np.float64))

    def uses(self, decision: Decision) -> Array:
        """Share of each limit used, shape (limits,)."""
        return np.asarray(np.tensordot(self.weights, decision.totals, 2))

    def bound(self, decision: Decision, prices: Array) -> float:
        """D(prices): no assignment within the limits is worth more."""
        return decision.value + float(prices.sum())

    def use_of(self, rows: Rows, arm: NDArray[np.intp]) -> Array:
        """Share of each limit used by answering row i by arm i, shape (len(rows), limits)."""
        things = np.stack([
            np.ones(len(rows)), self.cost[rows, arm], self.input[rows], self.output[rows, arm], self.seconds[rows, arm],
        ])  # fmt: skip
        return np.asarray(np.einsum("ktr,tr->rk", self.weights[:, :, arm], things))


@dataclass(frozen=True, slots=True)
class Objective:
    """How the worth of an answer follows from its predicted quality and cost."""

    caution: float = CAUTION
    """Standard errors that are subtracted from the predicted quality."""
    hardness: float = HARDNESS
    """Share of the price of an answer's cost beyond its model's mean that is not counted."""
    usd_price: float = 0.0
    """Quality points that a dollar is worth even where the budget isn't used up."""
    thrift: float = 1e-5
    """Quality points that the mean answer's cost is worth: decides ties in favour of the cheaper arm."""


BARE = Objective(caution=0.0, hardness=0.0, thrift=0.0)


def program_of(
    estimates: Estimates,
    budget_usd: float,
    deadline_s: float,
    capacities: Sequence[Capacity],
    rows: Rows | slice = slice(None),
    objective: Objective = BARE,
) -> Program:
    """The program of the prompts `rows`. Money is always the first limit; capacities are left out where there is no
    deadline.
    """
    own = estimates.rows(rows)
    names, weights = ["budget"], [_money(len(own.arms), budget_usd)]
    for capacity in capacities if math.isfinite(deadline_s) else ():
        names.append(capacity.name)
        weights.append(_weights(capacity, len(own.arms), capacity.per_s * deadline_s))
    barred = ~allowed(own, deadline_s)
    cost: Floats = np.where(barred, np.float32(0), own.cost_usd)
    worth: Floats = own.quality
    if objective.caution:
        worth = worth - np.float32(objective.caution) * own.quality_sd
    usd_price = objective.usd_price + _thrifty(objective, cost, barred)
    if usd_price:
        worth = worth - np.float32(usd_price) * cost
    return Program(
        np.asarray(np.where(barred, NEVER, worth), np.float32),
        cost,
        own.output_tokens,
        np.nan_to_num(own.latency_s),
        own.input_tokens,
        np.array(weights),
        tuple(names),
    )


def hardened(program: Program, usd_price: float, share: float) -> Program:
    """The program with the given share of the price of each cost beyond its arm's mean added to the worth. The excess
    counts up to twice the mean, because larger costs are those of long prompts rather than of long answers.
    """
    able = program.worth > NEVER / 2
    mean = program.cost.sum(0, dtype=np.float64) / np.maximum(able.sum(0), 1)
    refund = np.float32(share * usd_price)
    worth = np.empty_like(program.worth)
    for part in program.parts():
        beyond = program.cost[part] - mean.astype(np.float32)
        np.clip(beyond, -mean, 2.0 * mean, out=beyond)
        worth[part] = np.where(able[part], program.worth[part] + refund * beyond, NEVER)
    return replace(program, worth=worth)


def _thrifty(objective: Objective, cost: Floats, barred: NDArray[np.bool_]) -> float:
    """The objective's `thrift` in quality points per dollar."""
    if not objective.thrift:
        return 0.0
    mean = float(cost.sum(dtype=np.float64)) / max(barred.size - int(barred.sum()), 1)
    return objective.thrift / mean if mean > 0 else 0.0


def allowed(estimates: Estimates, deadline_s: float = math.inf) -> NDArray[np.bool_]:
    """Which arms may answer which prompts, shape (n, arms): able to, at or above the floor, and in time."""
    timely = np.array([arm.window_s <= deadline_s for arm in estimates.arms])
    able = np.isfinite(estimates.cost_usd) & (estimates.quality >= estimates.floor[:, None])
    return np.asarray(able & timely)


def _money(arms: int, budget_usd: float) -> Array:
    weights = np.zeros((5, arms))
    weights[MONEY] = 1.0 / max(budget_usd, 1e-12)
    return weights


def _weights(capacity: Capacity, arms: int, room: float) -> Array:
    weights = np.zeros((5, arms))
    stated = ((CALLS, capacity.requests), (INPUT, capacity.input_tokens),
              (OUTPUT, capacity.output_tokens), (SECONDS, capacity.seconds))  # fmt: skip
    for place, values in stated:
        if values:
            weights[place] = np.array(values) / max(room, 1e-12)
    return weights
