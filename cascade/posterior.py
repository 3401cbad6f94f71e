"""Posterior cascade routing: after each answer, how likely is every model right, given all the evidence so far.

One logistic regression per state (which models answered, which evidence was read) and model, on the router's estimates,
the answers' confidences and their agreement, these weighed apart for each kind of question; then the best of keep, call
one model for good, or open one more, at an exchange rate of quality against money. It generalises cascade routing
(Dekoninck et al. 2025) by reading agreement and by asking what a further answer would be worth, not only what it would
cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

from cascade.confidence import CONFIDENCE_FLOOR
from cascade.kinds import kinds_in
from cascade.logistic import sigmoid

Matrix = NDArray[np.float64]
State = tuple[tuple[int, bool], ...]
"""The models that answered, by place, ascending; True: its evidence was read."""
Action = tuple[int, bool]
BEFORE = 3
"""Number of a head's columns that are known before any answer: 1, the model's own estimate, the mean of all estimates.
"""
OWN = 1
"""Index of the own estimate among them."""
NEVER = -1e9
"""Value of an option that is not available."""


@dataclass(frozen=True, slots=True)
class Space:
    """Which states a climb may reach."""

    models: tuple[str, ...]
    pool: tuple[int, ...]
    """Models that may be asked before the last one, ascending places."""
    depth: int
    """The most answers that are evaluated before the last call."""
    readings: tuple[bool, ...] = (True,)
    """Whether the evidence of answers is read. With (False, True) an answer may also be asked for without its evidence,
    which saves its price.
    """

    def states(self) -> list[State]:
        """All states, those of the fewest answers first."""
        found: list[State] = []
        for k in range(self.depth + 1):
            for places in combinations(self.pool, k):
                found += [tuple(zip(places, read, strict=True)) for read in product(self.readings, repeat=k)]
        return found

    def actions(self, state: State) -> list[Action]:
        """Answers that may be opened and looked at from this state."""
        if len(state) >= self.depth:
            return []
        answered = {j for j, _ in state}
        return [(j, read) for j in self.pool if j not in answered for read in self.readings]


def after(state: State, action: Action) -> State:
    return tuple(sorted((*state, action)))


@dataclass(frozen=True, slots=True)
class Scene:
    """What is known of n queries: the router's estimates, and the evidence that each answer gives."""

    prior: Matrix
    """Logit of the router's estimated quality, (n, m)."""
    shown: Matrix
    """(n, m, 2): p and -log(1 - p) of each answer's confidence; zero where unread."""
    agreement: Matrix
    """(n, m, m)."""

    def rows(self, kept: NDArray[np.intp]) -> Scene:
        return Scene(self.prior[kept], self.shown[kept], self.agreement[kept])


@dataclass(frozen=True, slots=True)
class Prices:
    """Expected dollars, (n, m): an answer alone, and one whose evidence is read."""

    answer: Matrix
    read: Matrix

    def rows(self, kept: NDArray[np.intp]) -> Prices:
        return Prices(self.answer[kept], self.read[kept])

    def of(self, actions: Sequence[Action]) -> Matrix:
        return np.stack([(self.read if read else self.answer)[:, j] for j, read in actions], 1)


def logit(p: Matrix) -> Matrix:
    bounded = np.minimum(np.maximum(p, 0.01), 0.99)
    return np.asarray(np.log(bounded / (1.0 - bounded)))


def shown(p: Matrix) -> Matrix:
    """Features of a confidence in [0, 1], with a last axis of 2; zeros for NaN."""
    known = np.clip(np.nan_to_num(p), 0.0, 1.0)
    return np.stack([known, np.where(np.isfinite(p), -0.5 * np.log(1.0 - known + CONFIDENCE_FLOOR), 0.0)], -1)


def design(state: State, j: int, scene: Scene, kinds: Matrix) -> Matrix:
    """Features of the probability that model j is right in a state, (n, d): those of every question, then the evidence
    once more for each kind of question.
    """
    columns = _columns(state, j, scene)
    evidence = columns[:, BEFORE:]
    apart = (evidence[:, None, :] * kinds[:, :, None]).reshape(len(columns), -1)
    return np.concatenate([columns, apart], 1)


def _columns(state: State, j: int, scene: Scene) -> Matrix:
    prior, seen, alike = scene.prior, scene.shown, scene.agreement
    read = dict(state)
    columns = [np.ones(len(prior)), prior[:, j], prior.mean(1)]
    if j in read:
        columns += _own(j, read[j], seen)
        for i, i_read in state:
            if i != j:
                columns += _other(alike[:, j, i], prior[:, i], seen[:, i, 1] if i_read else None)
        return np.stack(columns, 1)
    for i, i_read in state:
        columns += [*_own(i, i_read, seen), 0.5 * prior[:, i]]
    columns += [alike[:, i, k] for (i, _), (k, _) in combinations(state, 2)]
    return np.stack(columns, 1)


def _own(j: int, read: bool, seen: Matrix) -> list[Matrix]:
    return [seen[:, j, 0], seen[:, j, 1]] if read else []


def _other(alike: Matrix, prior: Matrix, sure: Matrix | None) -> list[Matrix]:
    """Features of another answer: its agreement, alone and times the other's estimate and confidence."""
    columns = [alike, prior * (1.0 - alike), prior * alike]
    return columns if sure is None else [*columns, alike * sure, (1.0 - alike) * sure]


def value_design(state: State, chances: Matrix) -> Matrix:
    """Features of the value of continuing from a state, (n, d)."""
    answered = [j for j, _ in state]
    others = [j for j in range(chances.shape[1]) if j not in answered]
    odds = logit(chances) / 3
    ahead = chances[:, others].max(1, keepdims=True, initial=0.0)
    columns = [np.ones_like(ahead), ahead, logit(ahead) / 3, odds[:, others]]
    if answered:
        best = chances[:, answered].max(1, keepdims=True)
        columns += [best, logit(best) / 3, best * best, ahead * best]
    if len(answered) > 1:
        columns.append(chances[:, answered])
    return np.concatenate(columns, 1)


def value_columns(state: State, models: int) -> int:
    """Columns of `value_design` in that state."""
    answered = len(state)
    return 3 + (4 if answered else 0) + (answered if answered > 1 else 0) + (models - answered)


@dataclass(frozen=True, slots=True)
class Posterior:
    """The fitted heads: for each state, one weight vector per model."""

    space: Space
    weights: Mapping[State, Sequence[Matrix]] = field(repr=False)
    kinds: Matrix = field(repr=False)
    """Weights of the classifier of question kinds, (1 + m, k); see `cascade.kinds`."""

    def chances(self, state: State, scene: Scene) -> Matrix:
        """P(right | all that is known) for every model, (n, m)."""
        if not state:
            return self.before(scene.prior)
        heads = self.weights[state]
        kinds, found, answered = kinds_in(self.kinds, scene.prior), np.empty_like(scene.prior), [j for j, _ in state]
        for j in answered:
            found[:, j] = design(state, j, scene, kinds) @ heads[j]
        others = [j for j in range(len(heads)) if j not in answered]
        if others:  # their features differ in their own estimate alone
            shared, weights = design(state, others[0], scene, kinds), np.stack([heads[j] for j in others], 1)
            shared[:, OWN] = 0.0
            found[:, others] = shared @ weights + scene.prior[:, others] * weights[OWN]
        return sigmoid(found)

    def before(self, prior: Matrix) -> Matrix:
        """The columns of `design` where no model has answered yet, for all models at once."""
        bias, own, mean = np.stack(self.weights[()], 1)
        return sigmoid(bias + own * prior + mean * prior.mean(1, keepdims=True))


@dataclass(frozen=True, slots=True)
class Rule:
    """An operating point: an exchange rate in quality points per dollar, and the value of continuing from each state at
    that rate.
    """

    rate: float
    ahead: Mapping[State, Matrix] = field(repr=False)
    """Weights (d, actions) of the worth after each action, before its price; only states that go on."""
    gains: Matrix | None = field(default=None, repr=False)
    """Weights (d, actions) of the logit of the chance that a climb which begins with each action ends right; None: the
    rule predicts nothing.
    """
    spends: Matrix | None = field(default=None, repr=False)
    """The same for what is paid after that first answer, as a share of the most expensive model's price for each answer
    that may follow.
    """

    def opened(self, space: Space, chances: Matrix, prices: Prices) -> tuple[Matrix, Matrix]:
        """What climbs that begin with each of the space's actions are expected to end with: the chance of a right
        answer, and all its dollars. (n, actions) each. ValueError where the rule predicts nothing.
        """
        if self.gains is None or self.spends is None:
            raise ValueError("this rule was fitted without what it foretells")
        actions, x = space.actions(()), value_design((), chances)
        after_usd = space.depth * prices.answer.max(1, keepdims=True) * sigmoid(x @ self.spends)
        return sigmoid(x @ self.gains), prices.of(actions) + after_usd

    def options(self, space: Space, state: State, chances: Matrix, prices: Prices) -> Matrix:
        """Worth of: keep the best answer; call each model for good (m); open each action. (n, 1 + m + a)."""
        answered = [j for j, _ in state]
        keep = chances[:, answered].max(1) if answered else np.full(len(chances), NEVER)
        final = chances - self.rate * prices.answer
        final[:, answered] = NEVER
        actions = space.actions(state)
        if not actions:
            return np.column_stack([keep, final])
        ahead = value_design(state, chances) @ self.ahead[state] - self.rate * prices.of(actions)
        return np.column_stack([keep, final, ahead])
