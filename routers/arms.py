"""Which way of answering a query deserves: strategies as the arms of a bandit that charges every step.

An arm is a strategy (answer at once, verify, sample and vote ...), not a model. What it is worth is the answer's score
less a price for each call beyond the first, even where the answer is right: a way that is as good with fewer steps
wins (MBA-RAG, the dynamic reward of accuracy and steps). The sums, the shrinkage and Thompson's computed chances are
those of `routers.bandit`; scores and steps are kept apart, so that another price needs no new evidence. Refuses an arm
it was not given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from routers.bandit import thompson
from routers.bandit_state import Array, BanditState, Posterior, Shrinkage, fitted
from routers.projection import Projection
from routers.select import drawn
from routers.types import Vector

EXPECTED = 0.6
"""Score that any arm is taken to get before it says otherwise."""
LEAST_EXPLORATION = 0.02
"""Share of queries whose arm is drawn evenly, where the route states none."""
BOLDNESS = 0.7


@dataclass(frozen=True, slots=True)
class Pick:
    """An arm and how probable each one was."""

    arm: str
    propensity: float
    probabilities: dict[str, float]


class Arms:
    """One route's strategies."""

    version, features_version = "strategies", ""
    """What is learnt of a strategy holds whatever router chose the model."""

    def __init__(self, names: Sequence[str], projection: Projection, step_price: float, explore: float = 0.0) -> None:
        """`step_price`: score that one more call must gain; `explore`: share of queries whose arm is drawn evenly."""
        self.names = tuple(names)
        self.projection = projection
        self.step_price = step_price
        self.floor = explore or LEAST_EXPLORATION
        self.shrink = Shrinkage()
        self.state = BanditState.empty(self.names, projection.dims)
        self.others: BanditState | None = None
        """Sums of other replicas, never added to our own."""
        self.seen = 0
        self._posterior: Posterior | None = None

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
        told = self.posterior
        quality, sd, steps = told.correction(self.axes(vector))
        places = [told.place[name] for name in self.names]
        return EXPECTED + quality[places] - self.step_price * np.maximum(steps[places], 0.0), sd[places]

    def learn(self, vector: Vector, arm: str, score: float, calls: int) -> None:
        """What that arm got on that query, with how many calls. ValueError: no arm of this name."""
        self._known(arm)
        self.state.learn(self.axes(vector), arm, score - EXPECTED, float(max(calls - 1, 0)))
        self.seen += 1
        if self.seen <= 20 or self.seen % 10 == 0:  # a posterior costs about a millisecond
            self._posterior = None

    def amend(self, vector: Vector, arm: str, by: float) -> None:
        """An answer learnt before was worth so much more (or less) than was said then."""
        self._known(arm)
        self.state.amend(self.axes(vector), arm, by)
        self._posterior = None

    def set_others(self, others: BanditState | None) -> None:
        """What other replicas have seen by now."""
        self.others = others
        self.seen = int(self._total().counts.sum())
        self._posterior = None

    def axes(self, vector: Vector) -> Array:
        """The query on its main axes, and 1; the 1 alone where no vector of this kind is known."""
        if len(vector) != len(self.projection.mean_):
            return np.append(np.zeros(self.projection.dims), 1.0)
        return np.append(self.projection.apply(vector).astype(np.float64), 1.0)

    @property
    def posterior(self) -> Posterior:
        if self._posterior is None:
            self._posterior = fitted(self._total(), self.shrink)
        return self._posterior

    def _total(self) -> BanditState:
        total = self.state if self.others is None else self.state.merged(self.others)
        for name in self.names:  # a replica with an older file may know fewer, another one more
            total.place(name)
        return total

    def _known(self, arm: str) -> None:
        if arm not in self.names:
            raise ValueError(f"no strategy {arm!r} among {', '.join(self.names)}")
