"""The plug-in router (CARROT): estimate every candidate's quality and cost, then let the knobs choose.

One router serves any trade-off at request time, for estimates do not depend on the knobs. Models that the
artefact never saw get a prior by price; a router with no artefact at all lives on that prior until it is
trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from math import exp, inf, isfinite, nan

import numpy as np

from routers import prior
from routers.compiled import Expected, Fold, fold
from routers.cost import Latency, LogLinear
from routers.eligible import TYPICAL_OUTPUT_TOKENS, eligible
from routers.estimators.base import Estimator
from routers.estimators.general import General
from routers.projection import Projection
from routers.select import Exploration, Forecast, Numbers, chosen, probabilities, utilities
from routers.simple import TOO_EXPENSIVE
from routers.types import Candidate, Choice, Knobs, Query, Undecided, Vector

TYPICAL_INPUT_TOKENS = 500.0
MOST_POOLS = 64
"""Pools of models that are remembered, since requests may narrow a route in many ways."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What training learned; arrays are in the order of `models`."""

    models: tuple[str, ...]
    projection: Projection
    quality: Estimator
    cost: LogLinear | None = None
    """Dollars per call, for data that states costs but no prices."""
    output_tokens: LogLinear | None = None
    latency: Latency | None = None
    reference_usd: float = 0.0
    """Mean cost of the most expensive model on the training rows; 0: take it from the candidates' prices."""
    place: Mapping[str, int] = field(init=False, default_factory=dict)
    easy: tuple[Vector, float] | None = field(init=False, default=None)
    """Weights and offset of how many logits a query is easier than an average one, where the estimator knows that apart
    from the models.
    """

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", {model: j for j, model in enumerate(self.models)})
        if isinstance(self.quality, General):
            weights = self.projection.axes_.astype(np.float64) @ self.quality.easy_
            offset = -float(self.projection.mean_ @ weights)
            object.__setattr__(self, "easy", (weights.astype(np.float32), offset))

    def folded(self, models: Sequence[str]) -> Fold:
        """The estimates folded for those models; each of them must have been trained on."""
        places = [self.place[model] for model in models]
        return fold(self.projection, self.quality, self.cost, self.output_tokens, places)


class Pool:
    """The models of one pool with what was learned of them."""

    def __init__(self, models: Sequence[str], learned: Learned | None) -> None:
        self.models = list(models)
        place: Mapping[str, int] = learned.place if learned is not None else {}
        self.known = [i for i, model in enumerate(self.models) if model in place]
        self.all_known = len(self.known) == len(self.models)
        self.fold: Fold | None = None
        self.first_s: Numbers | None = None
        self.per_token_s: Numbers | None = None
        if learned is None or not self.known:
            return
        if learned.easy is None or self.all_known:
            self.fold = learned.folded([self.models[i] for i in self.known])
        if learned.latency is not None:
            index = [place[self.models[i]] for i in self.known]
            self.first_s = self.spread(learned.latency.first_s_[index].tolist(), self.unknown)
            self.per_token_s = self.spread(learned.latency.per_token_s_[index].tolist(), self.unknown)

    @property
    def unknown(self) -> Numbers:
        return [nan] * len(self.models)

    def spread(self, learnt: Numbers, otherwise: Numbers) -> Numbers:
        """Values of all models, from the values of the known ones and `otherwise` for the rest."""
        if self.all_known:
            return learnt
        values = otherwise.copy()
        for i, value in zip(self.known, learnt, strict=True):
            values[i] = value
        return values


class Table:
    """What follows from a list of candidates alone, in its order: prices, queues, priors and the pool."""

    def __init__(self, kept: Sequence[Candidate], pool: Pool) -> None:
        self.kept, self.pool, self.models = kept, pool, pool.models
        self.input_usd = [c.input_usd_per_mtok / 1e6 * (1.0 - (1.0 - c.cached_price) * c.cached_share) for c in kept]
        self.output_usd = [c.output_usd_per_mtok / 1e6 for c in kept]
        self.fees_usd = [c.web_searches * c.web_search_usd for c in kept]
        """Dollars of each answer's own web searches, whatever its tokens."""
        self.some_fees = any(self.fees_usd)
        prices = zip(self.input_usd, self.output_usd, self.fees_usd, strict=True)
        self.free = [not any(price) for price in prices]
        self.some_free = any(self.free)
        self.queue_s = [c.queue_s for c in kept]
        self.seen_s = [c.latency_s + c.queue_s if c.latency_s or c.queue_s else nan for c in kept]
        self.skills = prior.skills(kept).tolist()
        self.prior_sd = [prior.PRIOR_SD] * len(kept)
        self.typical_tokens = [TYPICAL_OUTPUT_TOKENS] * len(kept)
        self.highest_usd = max(
            (TYPICAL_INPUT_TOKENS * c.input_usd_per_mtok + TYPICAL_OUTPUT_TOKENS * c.output_usd_per_mtok) / 1e6 + fee
            for c, fee in zip(kept, self.fees_usd, strict=True)
        )

    def prior(self, easiness: float = 0.0) -> Numbers:
        """Prior mean quality of each candidate, by its price, on a query of that easiness (logits)."""
        return [1.0 / (1.0 + exp(min(-easiness - skill, 50.0))) for skill in self.skills]


class PluginRouter:
    """Chooses by estimated quality and cost, with exact exploration probabilities."""

    def __init__(
        self,
        name: str,
        version: str,
        features_version: str,
        learned: Learned | None = None,
        exploration: Exploration | None = None,
        taught_by: str = "",
    ) -> None:
        """`taught_by`: checksum of the training data, since two trainings may have the same version; empty for the
        shipped artefact.
        """
        self.name, self.taught_by = name, taught_by
        self.version = version
        self.features_version = features_version
        self.learned = learned
        self.exploration = exploration or Exploration()
        self._label = f"{name}@{version}"
        self._table: Table | None = None
        self._pools: dict[tuple[str, ...], Pool] = {}

    def choose(self, query: Query, candidates: Sequence[Candidate], knobs: Knobs, draw: float) -> Choice:
        kept, excluded = eligible(query, candidates, knobs)
        forecast = self.forecast(query, kept)
        if knobs.max_cost_usd is not None or knobs.max_latency_s is not None:
            forecast, excluded = within(forecast, knobs, excluded)
        worth = utilities(forecast, knobs, self._reference_usd(kept))
        chances = probabilities(worth, self.exploration, knobs.explore)
        return chosen(forecast, worth, chances, draw, excluded, self._label)

    def forecast(self, query: Query, kept: Sequence[Candidate]) -> Forecast:
        """Estimates of those candidates. Raises Undecided where the query's features are of another version."""
        table = self._table_of(kept)
        quality, sd, cost, tokens = self._expected(query, table)
        most, into = query.max_output_tokens or inf, query.input_tokens
        typical = TYPICAL_OUTPUT_TOKENS
        otherwise = typical if typical < most else most
        tokens = [most if n > most else n if n == n else otherwise for n in tokens] or [otherwise] * len(sd)
        output_usd = table.output_usd
        spent = [into * input_usd + tokens[i] * output_usd[i] for i, input_usd in enumerate(table.input_usd)]
        if table.some_fees:
            spent = [usd + fee for usd, fee in zip(spent, table.fees_usd, strict=True)]
        if table.some_free and cost:
            spent = [
                learnt if free and isfinite(learnt) else usd
                for free, learnt, usd in zip(table.free, cost, spent, strict=True)
            ]
        return Forecast(table.models, quality, sd, spent, self._latency_s(table, tokens), tokens)

    def _table_of(self, kept: Sequence[Candidate]) -> Table:
        """The table of those candidates, kept from the last request where they are the same."""
        table = self._table
        if table is None or table.kept != kept:
            table = self._table = Table(kept, self._pool_of(tuple([c.model for c in kept])))
        return table

    def _pool_of(self, models: tuple[str, ...]) -> Pool:
        pool = self._pools.get(models)
        if pool is None:
            if len(self._pools) >= MOST_POOLS:
                self._pools.clear()
            pool = self._pools[models] = Pool(models, self.learned)
        return pool

    def _expected(self, query: Query, table: Table) -> Expected:
        """Predictions for every candidate: the prior for an unknown model, empty lists for costs or lengths that were
        not learned.
        """
        learned, pool = self.learned, table.pool
        if learned is None:
            return Expected(table.prior(), table.prior_sd, [], [])
        if query.features_version != self.features_version:
            raise Undecided(f"features {query.features_version!r}, the router reads {self.features_version!r}")
        if learned.easy is not None and not pool.all_known:
            weights, offset = learned.easy
            return Expected(table.prior(float(weights.dot(query.vector)) + offset), table.prior_sd, [], [])
        if pool.fold is None:
            return Expected(table.prior(), table.prior_sd, [], [])
        found = pool.fold.estimate(query.vector, table.some_free)
        if pool.all_known:
            return found
        return Expected(
            pool.spread(found.quality, table.prior()),
            pool.spread(found.quality_sd, table.prior_sd),
            pool.spread(found.cost_usd, pool.unknown) if found.cost_usd else [],
            pool.spread(found.output_tokens, table.typical_tokens) if found.output_tokens else [],
        )

    def _latency_s(self, table: Table, tokens: Numbers) -> Numbers:
        """`first + per_token * tokens + queue` (idealised runtime); the recent latency where nothing was learnt; NaN
        where nothing is known at all.
        """
        pool = table.pool
        if pool.first_s is None or pool.per_token_s is None:
            return table.seen_s
        terms = zip(pool.first_s, pool.per_token_s, tokens, table.queue_s, table.seen_s, strict=True)
        return [seen if first != first else first + each * n + queue for first, each, n, queue, seen in terms]

    def _reference_usd(self, kept: Sequence[Candidate]) -> float:
        """Dollars of one unit of cost in the cost weight: the mean training call of the most expensive model where
        every candidate was trained on, else a typical call of the most expensive candidate.
        """
        learned, table = self.learned, self._table_of(kept)
        highest_usd = table.highest_usd
        if learned is not None and learned.reference_usd > 0 and (table.pool.all_known or highest_usd <= 0):
            return learned.reference_usd
        return highest_usd


def within(forecast: Forecast, knobs: Knobs, excluded: dict[str, str]) -> tuple[Forecast, dict[str, str]]:
    """The forecast without the models that are expected to break a bound, and the reasons. Models beyond the cost bound
    are always left out; models beyond the latency bound only while another one meets it. Raises Undecided where every
    model is expected to cost more than `max_cost_usd`.
    """
    kept = [True] * len(forecast.models)
    if knobs.max_cost_usd is not None:
        kept = [cost <= knobs.max_cost_usd for cost in forecast.cost_usd]
        excluded = excluded | {m: TOO_EXPENSIVE for m, k in zip(forecast.models, kept, strict=True) if not k}
        if not any(kept):
            raise Undecided("no candidate within max_cost_usd", excluded)
    if knobs.max_latency_s is not None:
        timely = [k and not latency > knobs.max_latency_s for k, latency in zip(kept, forecast.latency_s, strict=True)]
        if any(timely):
            excluded = excluded | {
                m: "expected to take longer than max_latency_s"
                for m, k, in_time in zip(forecast.models, kept, timely, strict=True)
                if k and not in_time
            }
            kept = timely
    return _only(forecast, kept), excluded


def _only(forecast: Forecast, kept: Sequence[bool]) -> Forecast:
    if all(kept):
        return forecast
    return Forecast(
        list(compress(forecast.models, kept)),
        list(compress(forecast.quality, kept)),
        list(compress(forecast.quality_sd, kept)),
        list(compress(forecast.cost_usd, kept)),
        list(compress(forecast.latency_s, kept)),
        list(compress(forecast.output_tokens, kept)),
    )
