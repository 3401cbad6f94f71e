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
"""Of Thompson's draws; see `drawn_spread`."""

NODES = 16
_NODES: Array = np.array([NormalDist().inv_cdf((i + 0.5) / NODES) for i in range(NODES)])
"""Of a standard normal draw, equally likely."""


def thompson(mean: Array, sd: Array) -> Array:
    """P(this model's draw is the highest), for independent normal draws: by quadrature over its own draw."""
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
    """Standard deviation of Thompson's draws: nearly as wide as a model's level is unsure, and `boldness` times what
    the query adds to it.

    Levels are settled by trying, soon. Slopes of every model on every axis are not, and drawn at their full width they
    would have all models tried for ever on a difference that few queries show.
    """
    level = np.minimum(levels, sd) ** 2
    return np.asarray(np.sqrt(BOLDNESS_OF_LEVEL**2 * level + boldness**2 * (sd**2 - level)))


def _normal_cdf(z: Array) -> Array:
    """Phi to .0003, which only moves where exploration goes: the propensity is what is then drawn from."""
    return np.asarray(0.5 * (1.0 + np.tanh(z * (0.7978845608 + 0.0356774081 * z * z))))


REFIT_EVERY = 20
"""Answers between two fits of the posterior, which takes about two milliseconds."""


class Bandit(LinearBandit):
    """A router that corrects a base router by what came of its choices."""

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
        """`boldness`: see `drawn_spread`; `half_life`: after so many answers one counts half, 0: never."""
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
        """The base router's, corrected. Undecided as the base is."""
        found = self.base.forecast(query, kept)
        quality, sd, cost = self.correction(query.vector, found.models)
        return replace(
            found,
            quality=[min(max(q + more, 0.0), 1.0) for q, more in zip(found.quality, quality, strict=True)],
            quality_sd=sd,
            cost_usd=[max(usd + more, 0.0) for usd, more in zip(found.cost_usd, cost, strict=True)],
        )

    def correction(self, vector: Vector, models: Sequence[str]) -> tuple[Numbers, Numbers, Numbers]:
        """Quality, its deviation and cost beyond the base router's, in the order of `models`."""
        z, told = self.axes(vector), self.posterior
        unsure = sqrt(told.noise * (1.0 / self.shrink.level + float(z[:-1] @ z[:-1]) / self.shrink.own))
        quality, sd, cost = (part.tolist() for part in told.correction(z))
        places = [told.place.get(model, -1) for model in models]
        return (
            [0.0 if j < 0 else quality[j] for j in places],
            [unsure if j < 0 else sd[j] for j in places],
            [0.0 if j < 0 else cost[j] for j in places],
        )

    def spread(self, forecast: Forecast) -> Array:
        """Standard deviation of Thompson's draws, in the forecast's order."""
        told = self.posterior
        unsure = sqrt(told.noise / self.shrink.level)
        places = [told.place.get(model, -1) for model in forecast.models]
        levels = np.array([unsure if j < 0 else told.levels[j] for j in places])
        return drawn_spread(np.array(forecast.quality_sd), levels, self.boldness)

    def chances(self, worth: Numbers, spread: Array, explore: bool) -> Numbers:
        """Probabilities over the eligible models, by this bandit's rule."""
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
        self._count_answer()

    def amend(self, query: Query, model: str, by: float) -> None:
        """An answer learnt before was worth so much more (or less) than was said then."""
        self.state.amend(self.axes(query.vector), model, by)
        self._posterior = None


def main_axes(projection: Projection, vectors: Array, dims: int = 16) -> Projection:
    """The projection's first axes, each of unit spread over those vectors: what shrinkage is measured in."""
    spread = np.maximum(projection.apply(vectors)[:, :dims].std(0), 1e-6)
    return Projection().restore({"mean_": projection.mean_, "axes_": projection.axes_[:, :dims] / spread})


def learnt_axes(projection: Projection, ridge: Linear, dims: int = 16) -> Projection:
    """The axes where the vectors are gone: their spread is read off the ridge that was fitted on them."""
    squares = 1.0 / np.diag(ridge.covariance_)[:dims] - ridge.ridge
    spread = np.sqrt(np.maximum(squares / squares.max(), 1e-6))
    axes = (projection.axes_[:, :dims] / spread).astype(np.float32)
    return Projection().restore({"mean_": projection.mean_, "axes_": axes})
