"""Which strategy to use for a query: a bandit whose arms are strategies.

An arm is a strategy (answer at once, verify, sample and vote ...), not a model. Its reward is the answer's score less a
price for each call after the first, so that of two equally good strategies the one with fewer calls wins (the reward of
accuracy and steps of MBA-RAG). The sums, the shrinkage and Thompson's computed chances are those of `routers.bandit`;
scores and steps are kept apart, so that a changed price needs no new evidence. An unknown arm is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from routers.bandit import thompson
from routers.bandit_state import Array, BanditState, Shrinkage
from routers.linear_bandit import LinearBandit
from routers.projection import Projection
from routers.select import drawn
from routers.types import Vector

EXPECTED = 0.6
"""Score expected of an arm before it has any evidence."""
LEAST_EXPLORATION = 0.02
"""Share of queries whose arm is drawn uniformly, where the route states none."""
BOLDNESS = 0.7


@dataclass(frozen=True, slots=True)
class Pick:
    """The arm that was drawn, and the probability of each."""

    arm: str
    propensity: float
    probabilities: dict[str, float]


REFIT_EVERY = 10
"""Answers between two fits of the posterior, which takes about a millisecond."""


class StrategyBandit(LinearBandit):
    """Chooses among the strategies of one route."""

    version, features_version = "strategies", ""
    """Fixed, because what is learned about a strategy holds whichever router chose the model."""

    def __init__(self, names: Sequence[str], projection: Projection, step_price: float, explore: float = 0.0) -> None:
        """`step_price`: score that one more call must gain; `explore`: share of queries with an arm drawn uniformly."""
        super().__init__(projection, BanditState.empty(names, projection.dims), Shrinkage(), REFIT_EVERY)
        self.names = tuple(names)
        self.step_price = step_price
        self.floor = explore or LEAST_EXPLORATION

    def choose(self, vector: Vector, draw: float, explore: bool = True) -> Pick:
        """`draw` in [0, 1). Without exploration the best arm has probability 1."""
        worth, sd = self.worth(vector)
        if explore:
            chances = (1.0 - self.floor) * thompson(worth, BOLDNESS * sd) + self.floor / len(worth)
        else:
            chances = np.zeros(len(worth))
            chances[int(worth.argmax())] = 1.0
        shares = chances.tolist()
        place = drawn(shares, draw)
        return Pick(self.names[place], shares[place], dict(zip(self.names, shares, strict=True)))

    def worth(self, vector: Vector) -> tuple[Array, Array]:
        """Expected score less the price of its steps, and the score's standard deviation, per arm."""
        posterior = self.posterior
        quality, sd, steps = posterior.correction(self.axes(vector))
        places = [posterior.place[name] for name in self.names]
        return EXPECTED + quality[places] - self.step_price * np.maximum(steps[places], 0.0), sd[places]

    def learn(self, vector: Vector, arm: str, score: float, calls: int) -> None:
        """Take in an arm's score on a query, and how many calls it made. ValueError: no arm of this name."""
        self._known(arm)
        self.state.learn(self.axes(vector), arm, score - EXPECTED, float(max(calls - 1, 0)))
        self._count_answer()

    def amend(self, vector: Vector, arm: str, before: float, after: float) -> None:
        """Replace the score of an answer learnt before."""
        self._known(arm)
        self.state.amend(self.axes(vector), arm, before - EXPECTED, after - EXPECTED)
        self._posterior = None

    def axes(self, vector: Vector) -> Array:
        """The query's projection and a constant 1; zeros and the 1 where its vector is of another kind."""
        if len(vector) != len(self.projection.mean_):
            return np.append(np.zeros(self.projection.dims), 1.0)
        return super().axes(vector)

    def _total(self) -> BanditState:
        total = super()._total()
        for name in self.names:  # a replica with an older file may know fewer, another one more
            total.place(name)
        return total

    def _known(self, arm: str) -> None:
        if arm not in self.names:
            raise ValueError(f"no strategy {arm!r} among {', '.join(self.names)}")
