"""The plug-in router (CARROT): estimate every candidate's quality and cost, then let the knobs choose.

One router serves any trade-off at request time, for estimates do not depend on the knobs. Models that the
artefact never saw get a prior by price; a router with no artefact at all lives on that prior until it is
trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from routers import prior
from routers.compiled import Compiled
from routers.cost import Latency, LogLinear
from routers.eligible import eligible
from routers.estimators.base import Estimator
from routers.estimators.ensemble import Ensemble
from routers.estimators.general import General
from routers.projection import Projection
from routers.select import Exploration, Forecast, chosen, probabilities, utilities
from routers.simple import TYPICAL_OUTPUT_TOKENS
from routers.types import Candidate, Choice, Knobs, Query, Undecided, Vector

TYPICAL_INPUT_TOKENS = 500.0
CACHED_PRICE = 0.1
"""Share of the input price that a token in the prefix cache still costs, about as providers charge."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What training left behind; arrays in the order of `models`."""

    models: tuple[str, ...]
    projection: Projection
    quality: Estimator
    cost: LogLinear | None = None
    """Dollars per call, where data names costs without prices."""
    output_tokens: LogLinear | None = None
    latency: Latency | None = None
    reference_usd: float = 0.0
    """Mean cost of the dearest model on the training rows; 0: take it from the candidates' prices."""
    place: Mapping[str, int] = field(init=False, default_factory=dict)
    compiled: Compiled | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", {model: j for j, model in enumerate(self.models)})
        if isinstance(self.quality, Ensemble):
            object.__setattr__(self, "compiled", Compiled(self.projection, self.quality, self.cost))

    def estimate(self, vector: Vector) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Quality, its deviation and the cost of one query; costs are empty where none was learnt."""
        if self.compiled is not None:
            return self.compiled.estimate(vector)
        z = self.projection.apply(vector)[None].astype(np.float64)
        mean, deviation = self.quality.predict(z)
        cost = np.zeros(0) if self.cost is None else self.cost.predict(z)[0]
        return mean[0], deviation[0], cost


class Table:
    """A list of candidates as arrays in its order: prices, queues, places in what was learnt, and the
    prior.
    """

    def __init__(self, kept: Sequence[Candidate], place: Mapping[str, int]) -> None:
        self.kept = kept
        self.models = [c.model for c in kept]
        cached = 1.0 - (1.0 - CACHED_PRICE) * np.array([c.cached_share for c in kept])
        self.input_usd = np.array([c.input_usd_per_mtok for c in kept]) / 1e6 * cached
        self.output_usd = np.array([c.output_usd_per_mtok for c in kept]) / 1e6
        self.free = (self.input_usd == 0) & (self.output_usd == 0)
        self.some_free = bool(self.free.any())
        self.queue_s = np.array([c.queue_s for c in kept])
        self.prior, self.prior_sd = prior.expected(kept), np.full(len(kept), prior.PRIOR_SD)
        self.typical_tokens = np.full(len(kept), TYPICAL_OUTPUT_TOKENS)
        self.unknown = np.full(len(kept), np.nan)
        self._index = np.array([place.get(model, -1) for model in self.models])
        self._known = self._index >= 0
        self.all_known = bool(self._known.all())

    def pick(self, learnt: NDArray[np.float64], otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
        """From values per trained model to values per candidate."""
        if self.all_known:
            return np.asarray(learnt[self._index])
        return np.where(self._known, learnt[self._index], otherwise)


class PluginRouter:
    """Chooses by estimated quality and cost; exploration probabilities are exact."""

    def __init__(
        self,
        name: str,
        version: str,
        features_version: str,
        learned: Learned | None = None,
        exploration: Exploration | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.features_version = features_version
        self.learned = learned
        self.exploration = exploration or Exploration()
        self._label = f"{name}@{version}"
        self._table: Table | None = None

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        kept, excluded = eligible(query, candidates, knobs)
        forecast = self.forecast(query, kept)
        if knobs.max_cost_usd is not None or knobs.max_latency_s is not None:
            forecast, excluded = within(forecast, knobs, excluded)
        worth = utilities(forecast, knobs, self._reference_usd(kept))
        chances = probabilities(worth, self.exploration, knobs.explore)
        return chosen(forecast, worth, chances, draw, excluded, self._label)

    def forecast(self, query: Query, kept: Sequence[Candidate]) -> Forecast:
        """Estimates of those candidates. Undecided where the query's features are of another version."""
        table = self._table_of(kept)
        if self.learned is None:
            quality, sd, tokens = table.prior, table.prior_sd, table.typical_tokens
            latency = cost = table.unknown
        else:
            quality, sd, tokens, latency, cost = self._learned(self.learned, query, table)
        tokens = np.minimum(tokens, query.max_output_tokens or np.inf)
        spent = query.input_tokens * table.input_usd + tokens * table.output_usd
        if table.some_free:
            spent = np.where(table.free & np.isfinite(cost), cost, spent)
        return Forecast(table.models, quality, sd, spent, latency + table.queue_s, tokens)

    def _table_of(self, kept: Sequence[Candidate]) -> Table:
        """The same candidates come again and again: what follows from them alone is worked out once."""
        if self._table is None or self._table.kept != kept:
            self._table = Table(kept, self.learned.place if self.learned is not None else {})
        return self._table

    def _learned(self, learned: Learned, query: Query, table: Table) -> tuple[NDArray[np.float64], ...]:
        """Quality, its sd, output tokens, latency and cost; the prior where a model is unknown."""
        if query.features_version != self.features_version:
            raise Undecided(f"features {query.features_version!r}, the router reads {self.features_version!r}")
        if isinstance(learned.quality, General) and not table.all_known:
            z = learned.projection.apply(query.vector)[None].astype(np.float64)
            guess = prior.expected(table.kept, -float(learned.quality.easiness(z)[0]))
            return guess, table.prior_sd, table.typical_tokens, table.unknown, table.unknown
        mean, deviation, spent = learned.estimate(query.vector)
        quality = table.pick(mean, table.prior)
        sd = table.pick(deviation, table.prior_sd)
        tokens = table.typical_tokens
        if learned.output_tokens is not None:
            z = learned.projection.apply(query.vector)[None].astype(np.float64)
            expected = table.pick(learned.output_tokens.predict(z)[0], table.unknown)
            tokens = np.where(np.isfinite(expected), expected, tokens)
        latency = cost = table.unknown
        if learned.latency is not None:
            latency = table.pick(learned.latency.first_s_, table.unknown)
            latency = latency + table.pick(learned.latency.per_token_s_, table.unknown) * tokens
        if len(spent):
            cost = table.pick(spent, table.unknown)
        return quality, sd, tokens, latency, cost

    def _reference_usd(self, kept: Sequence[Candidate]) -> float:
        """What one cost unit of the cost weight is: a call of the dearest candidate, as this traffic's
        calls are where every candidate was trained on, else a typical one.
        """
        learned = self.learned
        if learned is not None and learned.reference_usd > 0 and all(c.model in learned.place for c in kept):
            return learned.reference_usd
        dearest = max(
            TYPICAL_INPUT_TOKENS * c.input_usd_per_mtok + TYPICAL_OUTPUT_TOKENS * c.output_usd_per_mtok for c in kept
        )
        if dearest > 0 or self.learned is None:
            return dearest / 1e6
        return self.learned.reference_usd


def within(forecast: Forecast, knobs: Knobs, excluded: dict[str, str]) -> tuple[Forecast, dict[str, str]]:
    """Without the models expected to break a bound on money (never chosen) or on time (chosen if nothing
    else).

    Undecided where every model is expected to cost more than `max_cost_usd`.
    """
    kept = np.ones(len(forecast.models), bool)
    if knobs.max_cost_usd is not None:
        kept &= forecast.cost_usd <= knobs.max_cost_usd
        reason = "expected to cost more than max_cost_usd"
        excluded = excluded | {m: reason for m, k in zip(forecast.models, kept, strict=True) if not k}
        if not kept.any():
            raise Undecided("no candidate within max_cost_usd", excluded)
    if knobs.max_latency_s is not None:
        timely = kept & ~(forecast.latency_s > knobs.max_latency_s)
        if timely.any():
            late = kept & ~timely
            excluded = excluded | {
                m: "expected to take longer than max_latency_s"
                for m, is_late in zip(forecast.models, late, strict=True)
                if is_late
            }
            kept = timely
    return _only(forecast, kept), excluded


def _only(forecast: Forecast, kept: NDArray[np.bool_]) -> Forecast:
    if kept.all():
        return forecast
    return Forecast(
        [m for m, k in zip(forecast.models, kept, strict=True) if k],
        forecast.quality[kept],
        forecast.quality_sd[kept],
        forecast.cost_usd[kept],
        forecast.latency_s[kept],
        forecast.output_tokens[kept],
    )
