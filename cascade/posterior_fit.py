"""Fitting the posterior cascade: heads by penalised logistic regression, values by induction from the last call.

Everything here runs offline. The estimates in `Scene.prior` must be out of fold, or the heads learn to trust them too
much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from numpy.typing import NDArray

from cascade.kinds import fit_kinds, kinds_in
from cascade.logistic import logistic
from cascade.posterior import (
    Matrix,
    Posterior,
    Prices,
    Rule,
    Scene,
    Space,
    State,
    after,
    design,
    value_design,
)

HEAD_PENALTY = 1.0
VALUE_PENALTY = 3.0


def fit_posterior(space: Space, scene: Scene, scores: Matrix, tasks: Sequence[str] = ()) -> Posterior:
    """Heads for every state, from all rows; `tasks` labels the rows, where labels are known."""
    m, classifier = len(space.models), fit_kinds(scene.prior, tasks)
    kinds = kinds_in(classifier, scene.prior)
    heads = {
        state: [logistic(design(state, j, scene, kinds), scores[:, j], HEAD_PENALTY) for j in range(m)]
        for state in space.states()
    }
    return Posterior(space, heads, classifier)


@dataclass(frozen=True, slots=True)
class Board:
    """A posterior's chances in every state for given rows, computed once for all rates."""

    space: Space
    chances: dict[State, Matrix]

    @classmethod
    def of(cls, posterior: Posterior, scene: Scene) -> Board:
        space = posterior.space
        return cls(space, {state: posterior.chances(state, scene) for state in space.states()})


def solve(board: Board, prices: Prices, rate: float) -> Rule:
    """The worth of going on from every state at that rate, from the deepest states back to the empty one."""
    space, ahead = board.space, dict[State, Matrix]()
    worth: dict[State, Matrix] = {}
    for state in reversed(space.states()):
        chances = board.chances[state]
        actions = space.actions(state)
        if actions:
            x = value_design(state, chances)
            target = np.stack([worth[after(state, action)] for action in actions], 1)
            gram = x.T @ x + VALUE_PENALTY * np.eye(x.shape[1])
            ahead[state] = np.asarray(np.linalg.solve(gram, x.T @ target), np.float64)
        worth[state] = Rule(rate, ahead).options(space, state, chances, prices).max(1)
    return Rule(rate, ahead)


def with_forecasts(rule: Rule, board: Board, prices: Prices) -> Rule:
    """The rule with what it predicts of every first action: logistic regressions of where climbs on these rows end."""
    space, x = board.space, value_design((), board.chances[()])
    ends = [_end(rule, board, prices, after((), action), np.arange(len(x))) for action in space.actions(())]
    most = space.depth * prices.answer.max(1)
    gains = [logistic(x, chance, VALUE_PENALTY) for chance, _ in ends]
    shares = [np.divide(usd, most, out=np.zeros(len(x)), where=most > 0.0) for _, usd in ends]  # free models cost none
    spends = [logistic(x, np.minimum(share, 1.0), VALUE_PENALTY) for share in shares]
    return replace(rule, gains=np.stack(gains, 1), spends=np.stack(spends, 1))


def _end(
    rule: Rule, board: Board, prices: Prices, state: State, rows: NDArray[np.intp]
) -> tuple[Matrix, Matrix]:
    """The chance that a climb from that state ends right, as it is believed there, and the dollars it still spends."""
    space, chances, own = board.space, board.chances[state][rows], prices.rows(rows)
    m, answered = chances.shape[1], [j for j, _ in state]
    pick = rule.options(space, state, chances, own).argmax(1)
    chance, usd = chances[:, answered].max(1), np.zeros(len(rows))
    for j in range(m):
        last = pick == 1 + j
        chance[last], usd[last] = chances[last, j], own.answer[last, j]
    for index, action in enumerate(space.actions(state)):
        on = np.flatnonzero(pick == 1 + m + index)
        if len(on):
            chance[on], usd[on] = _end(rule, board, prices, after(state, action), rows[on])
            usd[on] += own.of([action])[on, 0]
    return chance, usd


@dataclass(frozen=True, slots=True)
class Walked:
    """Cost, score and latency of each query under one rule, (n,) each."""

    cost_usd: Matrix
    score: Matrix
    latency_s: Matrix
    calls: Matrix
    chance: Matrix
    """Probability, when the climb ended, that the kept answer is right."""
    model: NDArray[np.intp]
    """Column of the model whose answer was kept."""

    def means(self) -> tuple[float, float]:
        return float(self.cost_usd.mean()), float(self.score.mean())


def walk(rule: Rule, board: Board, prices: Prices, paid: Prices, scores: Matrix, latency_s: Matrix) -> Walked:
    """The rule on logged outcomes, all rows at once; `prices` is what it expects, `paid` what was charged."""
    n, m = scores.shape
    total = Walked(
        np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n), chance=np.zeros(n), model=np.zeros(n, np.intp)
    )
    waiting: dict[State, NDArray[np.intp]] = {(): np.arange(n)}
    while waiting:
        state, rows = waiting.popitem()
        chances = board.chances[state][rows]
        pick = rule.options(board.space, state, chances, prices.rows(rows)).argmax(1)
        answered = [j for j, _ in state]
        if answered:
            kept = rows[pick == 0]
            best = np.array(answered)[chances[pick == 0][:, answered].argmax(1)]
            total.score[kept] = scores[kept, best]
            total.chance[kept], total.model[kept] = chances[pick == 0, best], best
        for j in range(m):
            last = rows[pick == 1 + j]
            _charge(total, last, paid.answer[last, j], latency_s[last, j])
            total.score[last] = scores[last, j]
            total.chance[last], total.model[last] = chances[pick == 1 + j, j], j
        for index, action in enumerate(board.space.actions(state)):
            on = rows[pick == 1 + m + index]
            if len(on):
                j, read = action
                _charge(total, on, (paid.read if read else paid.answer)[on, j], latency_s[on, j])
                reached = after(state, action)
                waiting[reached] = np.concatenate([waiting.get(reached, on[:0]), on])
    return total


def _charge(total: Walked, rows: NDArray[np.intp], cost_usd: Matrix, latency_s: Matrix) -> None:
    total.cost_usd[rows] += cost_usd
    total.latency_s[rows] += latency_s
    total.calls[rows] += 1


def cheapest_matching(points: Matrix, target: float, tolerance: float = 0.0) -> int:
    """Index of the cheapest point that reaches the target, read off a curve smoothed over neighbouring rates.

    `points` are rows of (cost, quality) by rising rate. Where none reaches it, the point of highest quality.
    """
    smooth = _smoothed(points)
    reached = np.flatnonzero(smooth[:, 1] >= target - tolerance)
    return int(reached[smooth[reached, 0].argmin()]) if len(reached) else int(smooth[:, 1].argmax())


def _smoothed(points: Matrix) -> Matrix:
    padded = np.vstack([points[:1], points, points[-1:]])
    return np.asarray((padded[:-2] + 2.0 * padded[1:-1] + padded[2:]) / 4.0)


def best_quality(points: Matrix, most_usd: float = inf) -> int:
    """Index of the point of highest quality that costs no more than that; the cheapest where all cost more."""
    smooth = _smoothed(points)
    within = smooth[:, 0] <= most_usd
    return int(np.where(within, smooth[:, 1], -inf).argmax() if within.any() else smooth[:, 0].argmin())


HIGHEST_RATE = 10**0.4


def rates_for(reference_usd: float, points: int = 36, highest: float = HIGHEST_RATE) -> Sequence[float]:
    """Exchange rates worth trying, by rising rate: from quality only to `highest` points per reference cost."""
    return [0.0, *(np.geomspace(10**-2.6, highest, points - 1) / max(reference_usd, 1e-12)).tolist()]
