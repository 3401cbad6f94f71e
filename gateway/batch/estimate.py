"""Estimates each model's quality, cost and latency on each prompt, by the router of the prompt's route, in bulk.

A learned router's estimators process a whole block of prompts in a few matrix products. A router without quality
estimates (rules, weights, price) still decides which models may answer; their quality is the prior by price that an
untrained router uses. Models that may not answer (context, tools, images, knobs) are excluded as for a live request.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.batch.read import Request
from gateway.batch.types import Floats
from gateway.embedders import EmbeddingFailed
from gateway.pinned import bare_query, merge
from gateway.routes import Route
from gateway.wire.request import Described
from routers import prior
from routers.bandit import Bandit
from routers.canary import Canary
from routers.eligible import TYPICAL_OUTPUT_TOKENS, exclusion
from routers.estimators.general import General
from routers.features import Featurizer
from routers.plugin import Learned, PluginRouter
from routers.simple import TOO_EXPENSIVE
from routers.types import Candidate, Knobs, Query, Router, Undecided

log = logging.getLogger("headgate.batch")

LEARNED_QUALITY_SHIFT, GUESSED_QUALITY_SHIFT = 0.02, 0.1
"""Standard error that all quality predictions of one model share: of a model that the router was trained on (measured
on held-out rows of its training data), and of one whose price alone is known (an assumption).
"""
LEARNED_COST_SHIFT, GUESSED_COST_SHIFT = 0.05, 0.5
"""Standard error that all cost predictions of one model share, as a share of the cost: where output lengths were
learnt, and where they are assumed.
"""

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Forecasts:
    """Estimates for a block of prompts and every model of the configuration: matrices (prompts, models)."""

    quality: Floats
    quality_sd: Floats
    cost_usd: Floats
    """Infinite where the model may not answer."""
    output_tokens: Floats
    latency_s: Floats
    learned: NDArray[np.bool_]
    """Whether the quality was learnt in training, shape (models,)."""
    measured: NDArray[np.bool_]
    """Whether the output lengths were learnt in training, shape (models,)."""
    refused: tuple[str, ...]
    """Per prompt: why no model may answer it; empty where at least one may."""

    def rows(self, kept: NDArray[np.intp]) -> Forecasts:
        """The estimates of these prompts only."""
        matrices = {name: getattr(self, name)[kept] for name in MATRICES}
        refused = tuple(self.refused[row] for row in kept.tolist())
        return Forecasts(**matrices, learned=self.learned, measured=self.measured, refused=refused)


@dataclass(frozen=True, slots=True)
class _Block:
    """Prompts of one route, with the inputs of its router."""

    route: Route
    described: Sequence[Described]
    reader: Featurizer | None
    """The featurizer whose vectors the router was trained on; None where it reads no vectors."""
    vectors: Floats | None
    """Vectors of all prompts, shape (n, dims); None where the router reads none, or they could not be made."""
    knobs: Sequence[Knobs]
    candidates: Sequence[Candidate]

    def query(self, row: int) -> Query:
        """One prompt as a router sees it."""
        if self.reader is None or self.vectors is None:
            return bare_query(self.described[row])
        return self.reader.query_of(self.described[row], self.vectors[row])


def forecasts(
    requests: Sequence[Request], models: Sequence[str], featurizer: Featurizer, embedder: Featurizer | None = None
) -> Forecasts:
    """Estimates for every request, in the order of `models`. `embedder` makes the vectors for routers that were trained
    on them; without its vectors such a router is not used, as for live traffic.
    """
    shape = (len(requests), len(models))
    matrices = {name: np.full(shape, np.nan, np.float32) for name in MATRICES}
    matrices["cost_usd"][:] = np.inf
    learned, measured = np.zeros(len(models), bool), np.zeros(len(models), bool)
    refused = [""] * len(requests)
    place = {model: j for j, model in enumerate(models)}
    for rows in _by_route(requests):
        block = _block([requests[i] for i in rows], [featurizer, *([embedder] if embedder is not None else [])])
        columns = [place[candidate.model] for candidate in block.candidates]
        parts, known, lengths = _estimated(block)
        for name in MATRICES:
            matrices[name][np.ix_(rows, columns)] = parts[name]
        _bar(block, matrices, refused, rows, columns)
        learned[columns] |= known
        measured[columns] |= lengths
    return Forecasts(**matrices, learned=learned, measured=measured, refused=tuple(refused))


MATRICES = ("quality", "quality_sd", "cost_usd", "output_tokens", "latency_s")


def _by_route(requests: Sequence[Request]) -> list[list[int]]:
    """Rows of the requests of each route, as narrowed by the request's options."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, request in enumerate(requests):
        rows.setdefault((request.route.name, request.route.scope), []).append(row)
    return list(rows.values())


def _block(requests: Sequence[Request], featurizers: Sequence[Featurizer]) -> _Block:
    route = requests[0].route
    version = route.router.features_version if route.router is not None else ""
    reader = next((one for one in featurizers if one.version == version), None)
    described = [request.call.described for request in requests]
    knobs = [
        merge(route.knobs, request.call.options.knobs) if request.call.options.stated else route.knobs
        for request in requests
    ]
    candidates = [model.candidate for model in route.models]
    return _Block(route, described, reader, _vectors(described, reader), knobs, candidates)


def _vectors(described: Sequence[Described], reader: Featurizer | None) -> Floats | None:
    if reader is None:
        return None
    try:
        return reader.vectors(described)
    except EmbeddingFailed as error:
        log.warning("%s", error)
        return None


# -- quality, tokens, cost, latency


def _estimated(block: _Block) -> tuple[dict[str, Matrix], NDArray[np.bool_], NDArray[np.bool_]]:
    """Matrices (prompts, candidates), and which candidates' quality and output lengths were learnt."""
    router = block.route.router
    plug = _plug_in(router)
    m = len(block.candidates)
    if plug is None or plug.learned is None or block.vectors is None:
        quality = np.tile(prior.expected(block.candidates), (len(block.described), 1))
        parts = _priced(block, quality, np.full(quality.shape, prior.PRIOR_SD), None, None)
        return parts, np.zeros(m, bool), np.zeros(m, bool)
    learned = plug.learned
    z = learned.projection.apply(block.vectors).astype(np.float64)
    places = np.array([learned.place.get(candidate.model, -1) for candidate in block.candidates])
    known = places >= 0
    quality, sd = _quality(learned, z, places, known, block.candidates)
    trusted = known & (not isinstance(learned.quality, General) or bool(known.all()))
    tokens = _picked(learned.output_tokens, z, places, known)
    cost = _picked(learned.cost, z, places, known)
    parts = _priced(block, quality, sd, tokens, cost)
    if learned.latency is not None:
        first, each = learned.latency.first_s_[places], learned.latency.per_token_s_[places]
        parts["latency_s"] = np.where(known, first + each * parts["output_tokens"], np.nan)
    if isinstance(router, Bandit):
        _correct(router, block, parts)
    lengths = known & np.isfinite(tokens).any(0) if tokens is not None else np.zeros(m, bool)
    return parts, trusted, lengths


def _plug_in(router: Router | None) -> PluginRouter | None:
    """The learned router, also as a canary's incumbent or a bandit's base; None where the router is not a learned one.
    """
    if isinstance(router, Canary):
        return _plug_in(router.incumbent)
    if isinstance(router, Bandit):
        return router.base
    return router if isinstance(router, PluginRouter) else None


def _quality(
    learned: Learned, z: Matrix, places: NDArray[np.intp], known: NDArray[np.bool_], candidates: Sequence[Candidate]
) -> tuple[Matrix, Matrix]:
    skills = prior.skills(candidates)
    shape = (len(z), len(candidates))
    if isinstance(learned.quality, General) and not known.all():
        easy = learned.quality.easiness(z)
        return 1.0 / (1.0 + np.exp(-easy[:, None] - skills)), np.full(shape, prior.PRIOR_SD)
    quality, sd = np.tile(prior.expected(candidates), (len(z), 1)), np.full(shape, prior.PRIOR_SD)
    if known.any():
        mean, deviation = learned.quality.for_jobs().predict(z)
        quality[:, known], sd[:, known] = mean[:, places[known]], deviation[:, places[known]]
    return quality, sd


def _picked(estimator: Any, z: Matrix, places: NDArray[np.intp], known: NDArray[np.bool_]) -> Matrix | None:
    """The estimator's values by candidate, NaN for models that it was not trained on; None without an estimator."""
    if estimator is None:
        return None
    values = np.full((len(z), len(places)), np.nan)
    values[:, known] = estimator.predict(z)[:, places[known]]
    return values


def _priced(
    block: _Block, quality: Matrix, sd: Matrix, tokens: Matrix | None, learnt: Matrix | None
) -> dict[str, Matrix]:
    """The estimates with output tokens capped by what the request allows, and their price. `learnt` holds learnt costs,
    used for models whose configured price is 0.
    """
    inputs = np.array([one.input_tokens for one in block.described], float)[:, None]
    most = np.array([one.max_output_tokens or np.inf for one in block.described], float)[:, None]
    expected = np.full(quality.shape, TYPICAL_OUTPUT_TOKENS) if tokens is None else tokens
    expected = np.minimum(np.where(np.isfinite(expected), expected, TYPICAL_OUTPUT_TOKENS), most)
    into, out = (
        np.array([getattr(candidate, name) for candidate in block.candidates]) / 1e6
        for name in ("input_usd_per_mtok", "output_usd_per_mtok")
    )
    expected = expected * np.array([one.n for one in block.described], float)[:, None]
    cost = inputs * into + expected * out
    if learnt is not None:
        cost = np.where((into == 0) & (out == 0) & np.isfinite(learnt), learnt, cost)
    waits = np.array([candidate.queue_s for candidate in block.candidates])
    return {
        "quality": quality, "quality_sd": sd, "cost_usd": cost, "output_tokens": expected,
        "latency_s": np.full(quality.shape, np.nan) + waits,
    }  # fmt: skip


def _correct(bandit: Bandit, block: _Block, parts: dict[str, Matrix]) -> None:
    """Add the bandit's corrections of its base router, prompt by prompt."""
    assert block.vectors is not None
    models = [candidate.model for candidate in block.candidates]
    for row, vector in enumerate(block.vectors):
        quality, sd, cost = bandit.correction(vector, models)
        parts["quality"][row] = np.clip(parts["quality"][row] + quality, 0.0, 1.0)
        parts["quality_sd"][row] = sd
        parts["cost_usd"][row] = np.maximum(parts["cost_usd"][row] + cost, 0.0)


# -- who may answer


def _bar(
    block: _Block, matrices: dict[str, Floats], refused: list[str], rows: Sequence[int], columns: Sequence[int]
) -> None:
    """Set the cost of models that may not answer to infinity, and note the reasons in `refused` where none may."""
    chooses = block.route.router is not None and _plug_in(block.route.router) is None
    room = min((one.context_tokens for one in block.candidates if one.context_tokens), default=sys.maxsize)
    for place, (row, described, knobs) in enumerate(zip(rows, block.described, block.knobs, strict=True)):
        plain = _plain(described, knobs, room)
        if plain and not chooses:
            continue
        query = block.query(place)
        reasons: dict[str, str] = {}
        for column, candidate in zip(columns, block.candidates, strict=True) if not plain else ():
            reason = exclusion(query, candidate, knobs) or _over(matrices, row, column, knobs)
            if reason:
                reasons[candidate.model] = reason
                matrices["cost_usd"][row, column] = np.inf
        if len(reasons) == len(columns):
            refused[row] = "; ".join(f"{model}: {reason}" for model, reason in reasons.items())
        elif chooses:
            _keep_chosen(block, query, knobs, matrices["cost_usd"], row, columns)


def _plain(described: Described, knobs: Knobs, least_context: int) -> bool:
    """Whether nothing about this request can exclude a model."""
    if described.tools or described.images or described.wants_json:
        return False
    if knobs.max_cost_usd is not None or knobs.max_latency_s is not None:
        return False
    return described.input_tokens + (described.max_output_tokens or 0) + 16 <= least_context


def _over(matrices: dict[str, Floats], row: int, column: int, knobs: Knobs) -> str:
    if knobs.max_cost_usd is not None and matrices["cost_usd"][row, column] > knobs.max_cost_usd:
        return TOO_EXPENSIVE
    if knobs.max_latency_s is not None and matrices["latency_s"][row, column] > knobs.max_latency_s:
        return "expected to take longer than max_latency_s"
    return ""


def _keep_chosen(
    block: _Block, query: Query, knobs: Knobs, cost: Floats, row: int, columns: Sequence[int]
) -> None:
    """Set the cost of the models that a router without estimates would never choose to infinity."""
    assert block.route.router is not None
    try:
        chosen = block.route.router.choose(query, block.candidates, knobs, 0.5).probabilities
    except Undecided:
        chosen = {block.route.default_model: 1.0}
    for column, candidate in zip(columns, block.candidates, strict=True):
        if chosen.get(candidate.model, 0.0) <= 0.0:
            cost[row, column] = np.inf
