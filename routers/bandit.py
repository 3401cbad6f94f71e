"""A contextual bandit as a router: it learns from every answer that is scored.

Its estimate of quality is that of a base router (an offline artefact, or a prior by price) plus a correction that is
linear in the query's main axes. The correction of a model is the sum of a part shared by all models and a part of its
own. Both are shrunk toward zero, so that an answer of one model also teaches about the others.

What is learned are sums over answers: the states of several replicas add up, and old answers are forgotten by scaling
the sums down. Choice probabilities are computed and not estimated by sampling, so the propensity of a choice is exact,
also for Thompson sampling. Eligibility, bounds and knobs are those of the base router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import erf, sqrt
from statistics import NormalDist

import numpy as np

from routers.bandit_state import Array, BanditState, Shrinkage
from routers.eligible import eligible
from routers.estimators.linear import Linear
from routers.linear_bandit import LinearBandit
from routers.plugin import PluginRouter, within
from routers.projection import Projection
from routers.select import Exploration, Forecast, Numbers, chosen, utilities
from routers.select import probabilities as inverse_gap
from routers.types import Candidate, Choice, Knobs, Query, Vector

THOMPSON, SQUARE_CB, GREEDY = "thompson", "squarecb", "greedy"
RULES = (THOMPSON, SQUARE_CB, GREEDY)

BOLDNESS_OF_LEVEL, BOLDNESS = 0.8, 0.25
"""Shares of the posterior's standard deviation that Thompson's draws have; see `drawn_spread`."""

NODES = 16
_NODES: Array = np.array([NormalDist().inv_cdf((i + 0.5) / NODES) for i in range(NODES)])
"""Quadrature points of a standard normal draw, all of the same weight."""


def thompson(mean: Array, sd: Array) -> Array:
    """Probability of each model that its draw is the highest, for independent normal draws of those means and standard
    deviations; by quadrature over the model's own draw.
    """
    sd = np.maximum(sd, 1e-9)
    if len(mean) == 2:
        first = 0.5 * (1.0 + erf(float(mean[0] - mean[1]) / sqrt(2.0 * float(sd @ sd))))
        return np.array([first, 1.0 - first])
    own = mean[:, None] + sd[:, None] * _NODES
    below = _normal_cdf((own[:, :, None] - mean) / sd)
    below[np.arange(len(mean)), :, np.arange(len(mean))] = 1.0
    chances = below.prod(2).mean(1)
    return np.asarray(chances / chances.sum())


def drawn_spread(sd: Array, levels: Array, boldness: float) -> Array:
    """Standard deviation of Thompson's draws, narrower than the posterior's `sd`: the part of a model's level
    (`levels`) counts nearly in full, the part that the query adds counts by `boldness` only.

    A few answers settle a model's level. They don't settle its slope on every axis, and draws at the full width of
    those would keep all models being tried forever.
    """
    level = np.minimum(levels, sd) ** 2
    return np.asarray(np.sqrt(BOLDNESS_OF_LEVEL**2 * level + boldness**2 * (sd**2 - level)))


def _normal_cdf(z: Array) -> Array:
    """The normal distribution function to within .0003. The error only moves where exploration goes; propensities stay
    exact.
    """
    return np.asarray(0.5 * (1.0 + np.tanh(z * (0.7978845608 + 0.0356774081 * z * z))))


REFIT_EVERY = 20
"""Answers between two fits of the posterior, which takes about two milliseconds."""


class Bandit(LinearBandit):
    """A router that corrects the estimates of a base router by the outcomes of its choices."""

    features_version: str

    def __init__(
        self,
        base: PluginRouter,
        projection: Projection,
        state: BanditState | None = None,
        *,
        rule: str = SQUARE_CB,
        exploration: Exploration | None = None,
        boldness: float = BOLDNESS,
        shrink: Shrinkage | None = None,
        half_life: float = 0.0,
    ) -> None:
        """`boldness`: see `drawn_spread`. `half_life`: number of answers after which an answer counts half; 0: answers
        are never forgotten.
        """
        if rule not in RULES:
            raise ValueError(f"rule {rule!r} is unknown: one of {', '.join(RULES)}")
        state = state if state is not None else BanditState.empty((), projection.dims)
        super().__init__(projection, state, shrink or Shrinkage(), REFIT_EVERY)
        self.name, self.version = "bandit", f"{base.name}-{base.version}"
        self.base = base
        self.features_version = base.features_version
        self.rule, self.boldness, self.half_life = rule, boldness, half_life
        self.exploration = exploration or Exploration(floor=0.01)
        self._label = f"bandit@{self.version}"

    # -- deciding

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        kept, excluded = eligible(query, candidates, knobs)
        forecast = self.forecast(query, kept)
        if knobs.max_cost_usd is not None or knobs.max_latency_s is not None:
            forecast, excluded = within(forecast, knobs, excluded)
        worth = utilities(forecast, knobs, self.base._reference_usd(kept))
        chances = self.chances(worth, self.spread(forecast), knobs.explore)
        return chosen(forecast, worth, chances, draw, excluded, self._label)

    def forecast(self, query: Query, kept: Sequence[Candidate]) -> Forecast:
        """The base router's forecast, corrected. Raises Undecided where the base does."""
        found = self.base.forecast(query, kept)
        quality, sd, cost = self.correction(query.vector, found.models)
        return replace(
            found,
            quality=[min(max(q + more, 0.0), 1.0) for q, more in zip(found.quality, quality, strict=True)],
            quality_sd=sd,
            cost_usd=[max(usd + more, 0.0) for usd, more in zip(found.cost_usd, cost, strict=True)],
        )

    def correction(self, vector: Vector, models: Sequence[str]) -> tuple[Numbers, Numbers, Numbers]:
        """Corrections of quality, their standard deviations, and corrections of cost in dollars, in the order of
        `models`.
        """
        z, posterior = self.axes(vector), self.posterior
        unsure = sqrt(posterior.noise * (1.0 / self.shrink.level + float(z[:-1] @ z[:-1]) / self.shrink.own))
        quality, sd, cost = (part.tolist() for part in posterior.correction(z))
        places = [posterior.place.get(model, -1) for model in models]
        return (
            [0.0 if j < 0 else quality[j] for j in places],
            [unsure if j < 0 else sd[j] for j in places],
            [0.0 if j < 0 else cost[j] for j in places],
        )

    def spread(self, forecast: Forecast) -> Array:
        """Standard deviation of Thompson's draws, in the forecast's order."""
        posterior = self.posterior
        unsure = sqrt(posterior.noise / self.shrink.level)
        places = [posterior.place.get(model, -1) for model in forecast.models]
        levels = np.array([unsure if j < 0 else posterior.levels[j] for j in places])
        return drawn_spread(np.array(forecast.quality_sd), levels, self.boldness)

    def chances(self, worth: Numbers, spread: Array, explore: bool) -> Numbers:
        """Choice probabilities of the eligible models, by this bandit's rule."""
        k = len(worth)
        if not explore or k == 1 or self.rule == GREEDY:
            return inverse_gap(worth, Exploration(), False)
        if self.rule == SQUARE_CB:
            sharper = self.exploration.sharpness * np.sqrt(max(self.seen, 1) / 1000.0)
            return inverse_gap(worth, replace(self.exploration, sharpness=float(sharper)), True)
        floor = self.exploration.floor
        drawn_best = thompson(np.array(worth), spread)
        shares: Numbers = ((1.0 - floor) * drawn_best + floor / k).tolist()
        return shares

    # -- learning

    def update(
        self, query: Query, candidates: Sequence[Candidate], model: str, quality: float, cost_usd: float | None = None
    ) -> None:
        """Learn from one scored answer of `model`. `candidates` are those it was chosen among, because a prior by price
        depends on the other candidates.
        """
        expected_quality, expected_usd = self._expected(query, candidates, model)
        cost = 0.0 if cost_usd is None else cost_usd - expected_usd
        self.learn(query.vector, model, quality - expected_quality, cost)

    def learn(self, vector: Vector, model: str, quality: float, cost_usd: float = 0.0) -> None:
        """Learn from one answer. `quality` and `cost_usd` are what it had beyond the base router's estimate."""
        if self.half_life > 0:
            self.state.fade(0.5 ** (1.0 / self.half_life))
        self.state.learn(self.axes(vector), model, quality, cost_usd)
        self._count_answer()

    def amend(
        self, query: Query, candidates: Sequence[Candidate], model: str, before: float, after: float
    ) -> None:
        """Replace the quality of an answer learned before; `candidates` as in `update`."""
        expected, _ = self._expected(query, candidates, model)
        self.state.amend(self.axes(query.vector), model, before - expected, after - expected)
        self._posterior = None

    def _expected(self, query: Query, candidates: Sequence[Candidate], model: str) -> tuple[float, float]:
        """The base router's estimate of an answer's quality and cost in dollars."""
        found = self.base.forecast(query, candidates)
        j = list(found.models).index(model)
        return float(found.quality[j]), float(found.cost_usd[j])


def main_axes(projection: Projection, vectors: Array, dims: int = 16) -> Projection:
    """The projection's first axes, each scaled to a standard deviation of 1 over those vectors, for which the penalties
    of `Shrinkage` are stated.
    """
    spread = np.maximum(projection.apply(vectors)[:, :dims].std(0), 1e-6)
    return Projection().restore({"mean_": projection.mean_, "axes_": projection.axes_[:, :dims] / spread})


def learnt_axes(projection: Projection, ridge: Linear, dims: int = 16) -> Projection:
    """As `main_axes` where the vectors are gone: their spread is read off a ridge regression that was fitted on them.
    """
    squares = 1.0 / np.diag(ridge.covariance_)[:dims] - ridge.ridge
    spread = np.sqrt(np.maximum(squares / squares.max(), 1e-6))
    axes = (projection.axes_[:, :dims] / spread).astype(np.float32)
    return Projection().restore({"mean_": projection.mean_, "axes_": axes})
