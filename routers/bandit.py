"""Contextual bandits behind the contract of a router: they learn from every answer that is scored.

Quality is what the base router expects (an offline artefact, or a prior by price) plus a linear
correction in the query's main axes. A model's correction is one shared by all models plus its own, both
shrunk toward zero, so that an answer of one model teaches about the others and about the query's
difficulty: parameters are shared, the start is warm.

What is learnt are sums over answers, so the states of several replicas add up to one, and old answers fade by
multiplying them down. Probabilities are computed, never sampled to guess: the propensity of a choice is
exact, for Thompson sampling too. Refuses nothing that its base router decides: eligibility, bounds and
knobs are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routers.eligible import eligible
from routers.plugin import PluginRouter, within
from routers.projection import Projection
from routers.select import Exploration, Forecast, Numbers, chosen, utilities
from routers.select import probabilities as inverse_gap
from routers.types import Candidate, Choice, Knobs, Query, Vector

Array = NDArray[np.float64]
THOMPSON, SQUARE_CB, GREEDY = "thompson", "squarecb", "greedy"
RULES = (THOMPSON, SQUARE_CB, GREEDY)


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """How far corrections may go, as ridge penalties; noise is the variance of one score around its mean."""

    shared: float = 20.0
    own: float = 400.0
    """Of each model's own slopes."""
    level: float = 5.0
    """Of each model's own mean: with noise .2 it may lie .2 off what the base expects."""
    noise: float = 0.2


@dataclass(slots=True)
class State:
    """Sums over scored answers: (m, d + 1, d + 1) second moments of the query, (m, d + 1) moments with
    what the base router did not expect of quality and cost. The last entry of a query is 1.
    """

    models: tuple[str, ...]
    gram: Array
    quality: Array
    cost: Array
    squares: float = 0.0
    """Of unexpected quality, for the noise."""

    @classmethod
    def empty(cls, models: Sequence[str], dims: int) -> Self:
        m, d = len(models), dims + 1
        return cls(tuple(models), np.zeros((m, d, d)), np.zeros((m, d)), np.zeros((m, d)))

    @property
    def counts(self) -> Array:
        """Answers seen of each model, faded ones in part."""
        return np.asarray(self.gram[:, -1, -1])

    def learn(self, z: Array, model: str, quality: float, cost_usd: float = 0.0) -> None:
        """One scored answer: what its quality and cost were beyond what the base router expected."""
        j = self.place(model)
        self.gram[j] += np.outer(z, z)
        self.quality[j] += quality * z
        self.cost[j] += cost_usd * z
        self.squares += quality * quality

    def place(self, model: str) -> int:
        """The model's column; a new one is added."""
        if model not in self.models:
            self.models = (*self.models, model)
            for name in ("gram", "quality", "cost"):
                held = getattr(self, name)
                setattr(self, name, np.concatenate([held, np.zeros((1, *held.shape[1:]))]))
        return self.models.index(model)

    def fade(self, factor: float) -> None:
        """What was learnt so far counts only `factor` as much as what comes: for a world that drifts."""
        self.gram *= factor
        self.quality *= factor
        self.cost *= factor
        self.squares *= factor

    def merged(self, other: State) -> State:
        """Both replicas' answers."""
        both = State(self.models, self.gram.copy(), self.quality.copy(), self.cost.copy(), self.squares)
        for model in other.models:
            both.place(model)
        to = [both.models.index(model) for model in other.models]
        both.gram[to] += other.gram
        both.quality[to] += other.quality
        both.cost[to] += other.cost
        both.squares += other.squares
        return both

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For an artefact or a shared store."""
        return {"gram": self.gram, "quality": self.quality, "cost": self.cost, "squares": np.array([self.squares])}

    @classmethod
    def restored(cls, models: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Self:
        gram, quality, cost = (arrays[name].astype(np.float64) for name in ("gram", "quality", "cost"))
        return cls(tuple(models), gram, quality, cost, float(arrays["squares"][0]))


@dataclass(frozen=True, slots=True)
class Posterior:
    """What a state says of each model: weights on the query (m, d + 1) and how unsure the model's own
    part is.
    """

    models: tuple[str, ...]
    quality: Array
    cost: Array
    covariance: Array
    noise: float

    def correction(self, z: Array) -> tuple[Array, Array, Array]:
        """Of quality, its standard deviation, and of cost, per model."""
        spread = np.einsum("i,kij,j->k", z, self.covariance, z)
        return self.quality @ z, np.sqrt(self.noise * np.maximum(spread, 0.0)), self.cost @ z


def posterior(state: State, shrink: Shrinkage) -> Posterior:
    """Ridge on shared plus own parts, solved by eliminating the own parts block by block."""
    d = state.quality.shape[1]
    own = np.diag(np.append(np.full(d - 1, shrink.own), shrink.level))
    shared = np.diag(np.append(np.full(d - 1, shrink.shared), 1.0))
    covariance = np.asarray(np.linalg.inv(state.gram + own), np.float64)
    pulled = state.gram @ covariance
    left = shared + (state.gram - pulled @ state.gram).sum(0)

    def solved(moment: Array) -> Array:
        right = (moment - np.einsum("kij,kj->ki", pulled, moment)).sum(0)
        common = np.linalg.solve(left, right)
        return np.asarray(common + np.einsum("kij,kj->ki", covariance, moment - state.gram @ common))

    return Posterior(state.models, solved(state.quality), solved(state.cost), covariance, shrink.noise)


_NODES: Array = np.array([NormalDist().inv_cdf((i + 0.5) / 32) for i in range(32)])
"""Of a standard normal draw, equally likely."""


def thompson(mean: Array, sd: Array) -> Array:
    """P(this model's draw is the highest), for independent normal draws: by quadrature over its own draw."""
    sd = np.maximum(sd, 1e-9)
    own = mean[:, None] + sd[:, None] * _NODES
    below = _normal_cdf((own[:, :, None] - mean) / sd)
    below[np.arange(len(mean)), :, np.arange(len(mean))] = 1.0
    chances = below.prod(2).mean(1)
    return np.asarray(chances / chances.sum())


def _normal_cdf(z: Array) -> Array:
    """Phi to .0003, which only moves where exploration goes: the propensity is what is then drawn from."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.7978845608 * (z + 0.044715 * z**3))))


class Bandit:
    """A router that corrects a base router by what came of its choices."""

    features_version: str

    def __init__(
        self,
        base: PluginRouter,
        projection: Projection,
        state: State | None = None,
        *,
        rule: str = SQUARE_CB,
        exploration: Exploration | None = None,
        boldness: float = 0.4,
        shrink: Shrinkage | None = None,
        half_life: float = 0.0,
    ) -> None:
        """`boldness` scales Thompson's spread; `half_life`: after so many answers one counts half, 0:
        never.
        """
        if rule not in RULES:
            raise ValueError(f"rule {rule!r} is unknown: one of {', '.join(RULES)}")
        self.name, self.version = "bandit", base.version
        self.base, self.projection = base, projection
        self.features_version = base.features_version
        self.state = state if state is not None else State.empty((), projection.dims)
        self.rule, self.boldness, self.half_life = rule, boldness, half_life
        self.exploration = exploration or Exploration(floor=0.01)
        self.shrink = shrink or Shrinkage()
        self.seen = 0
        self._posterior: Posterior | None = None
        self._label = f"bandit@{base.version}"

    # -- deciding

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        kept, excluded = eligible(query, candidates, knobs)
        forecast = self.forecast(query, kept)
        if knobs.max_cost_usd is not None or knobs.max_latency_s is not None:
            forecast, excluded = within(forecast, knobs, excluded)
        worth = utilities(forecast, knobs, self.base._reference_usd(kept))
        chances = self.chances(worth, forecast.quality_sd, knobs.explore)
        return chosen(forecast, worth, chances, draw, excluded, self._label)

    def forecast(self, query: Query, kept: Sequence[Candidate]) -> Forecast:
        """The base router's, corrected. Undecided as the base is."""
        found = self.base.forecast(query, kept)
        quality, sd, cost = self.correction(query.vector, found.models)
        return replace(
            found,
            quality=np.clip(np.array(found.quality) + quality, 0.0, 1.0).tolist(),
            quality_sd=sd.tolist(),
            cost_usd=np.maximum(np.array(found.cost_usd) + cost, 0.0).tolist(),
        )

    def correction(self, vector: Vector, models: Sequence[str]) -> tuple[Array, Array, Array]:
        """Quality, its deviation and cost beyond the base router's, in the order of `models`."""
        z, told = self.axes(vector), self.posterior
        prior = float(np.sqrt(told.noise * (1.0 / self.shrink.level + z[:-1] @ z[:-1] / self.shrink.own)))
        quality, sd, cost = np.zeros(len(models)), np.full(len(models), prior), np.zeros(len(models))
        place = {model: j for j, model in enumerate(told.models)}
        known = [(i, place[model]) for i, model in enumerate(models) if model in place]
        if known:
            here, there = (list(part) for part in zip(*known, strict=True))
            moved = told.correction(z)
            quality[here], sd[here], cost[here] = (part[there] for part in moved)
        return quality, sd, cost

    def chances(self, worth: Numbers, sd: Numbers, explore: bool) -> Numbers:
        """Probabilities over the eligible models, by this bandit's rule."""
        k = len(worth)
        if not explore or k == 1 or self.rule == GREEDY:
            return inverse_gap(worth, Exploration(), False)
        if self.rule == SQUARE_CB:
            sharper = self.exploration.sharpness * np.sqrt(max(self.seen, 1) / 1000.0)
            return inverse_gap(worth, replace(self.exploration, sharpness=float(sharper)), True)
        floor = self.exploration.floor
        drawn_best = thompson(np.array(worth), self.boldness * np.array(sd))
        shares: Numbers = ((1.0 - floor) * drawn_best + floor / k).tolist()
        return shares

    # -- learning

    def update(
        self, query: Query, candidates: Sequence[Candidate], model: str, quality: float, cost_usd: float | None = None
    ) -> None:
        """That model's answer to that query was worth so much. `candidates` are those it was chosen among: what a
        prior by price expects of one depends on the others.
        """
        expected = self.base.forecast(query, candidates)
        j = list(expected.models).index(model)
        cost = 0.0 if cost_usd is None else cost_usd - float(expected.cost_usd[j])
        self.learn(query.vector, model, quality - float(expected.quality[j]), cost)

    def learn(self, vector: Vector, model: str, quality: float, cost_usd: float = 0.0) -> None:
        """`quality` and `cost_usd`: beyond what the base router expected."""
        if self.half_life > 0:
            self.state.fade(0.5 ** (1.0 / self.half_life))
        self.state.learn(self.axes(vector), model, quality, cost_usd)
        self.seen += 1
        if self.seen <= 200 or self.seen % 5 == 0:  # a posterior costs about half a millisecond
            self._posterior = None

    def axes(self, vector: Vector) -> Array:
        """The query on its main axes, and 1."""
        return np.append(self.projection.apply(vector).astype(np.float64), 1.0)

    @property
    def posterior(self) -> Posterior:
        if self._posterior is None:
            self._posterior = posterior(self.state, self.shrink)
        return self._posterior


def main_axes(projection: Projection, vectors: Array, dims: int = 16) -> Projection:
    """The projection's first axes, each of unit spread over those vectors: what shrinkage is measured in."""
    spread = np.maximum(projection.apply(vectors)[:, :dims].std(0), 1e-6)
    return Projection().restore({"mean_": projection.mean_, "axes_": projection.axes_[:, :dims] / spread})


class EpsilonGreedy:
    """The baseline that reads no query: the best mean so far, or any model with probability epsilon."""

    def __init__(self, models: int, epsilon: float = 0.5, least: float = 0.02) -> None:
        self.sums, self.counts = np.zeros(models), np.zeros(models)
        self.epsilon, self.least, self.seen = epsilon, least, 0

    def chances(self) -> Array:
        """Epsilon falls as 1 / (1 + t / 100); untried models come first."""
        k = len(self.sums)
        epsilon = max(self.least, self.epsilon / (1.0 + self.seen / 100.0))
        found = np.full(k, epsilon / k)
        mean = np.where(self.counts > 0, self.sums / np.maximum(self.counts, 1.0), np.inf)
        found[int(mean.argmax())] += 1.0 - epsilon
        return found

    def learn(self, model: int, reward: float) -> None:
        self.sums[model] += reward
        self.counts[model] += 1
        self.seen += 1
