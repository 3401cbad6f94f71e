"""What a posterior cascade has to beat, at operating points chosen by the same rule on the same training rows; each may
be trained to serve as well.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cascade.frugal import Chosen, FrugalCascade, Scorer, chains, choose, own_chances
from cascade.logs import Logged
from cascade.planner import cheapest
from cascade.posterior import Matrix, Posterior
from cascade.posterior_fit import cheapest_matching, fit_posterior, rates_for
from cascade.rows import EstimatedRows, TrainingSettings, space_of
from cascade.types import Limits, Plan, Step
from cascade.verified import Pair, VerifiedCascade, fit_pairs, walked
from routers.estimators.base import folds
from routers.outcomes import DataError

SHARES = (1.0, 0.99, 0.97, 0.95, 0.9)
"""Of the best single model's quality: what operators are likeliest to ask for."""


def router_alone(taught: EstimatedRows, tested: EstimatedRows, target: float, tolerance: float) -> tuple[float, float]:
    """Cost and quality on test rows of routing before generation, by estimated quality minus rate times cost."""
    rates = rates_for(float(taught.paid.answer.mean(0).max()))
    points = np.array([_routed(taught, rate) for rate in rates])
    return _routed(tested, rates[cheapest_matching(points, target, tolerance)])


def _routed(part: EstimatedRows, rate: float) -> tuple[float, float]:
    pick = np.argmax(1.0 / (1.0 + np.exp(-part.scene.prior)) - rate * part.prices.answer, 1)
    rows = np.arange(len(pick))
    return float(part.paid.answer[rows, pick].mean()), float(part.scores[rows, pick].mean())


def frugal_chain(taught: EstimatedRows, setting: TrainingSettings, target: float) -> tuple[Posterior, Chosen]:
    """FrugalGPT's list and thresholds: the cheapest chain that reaches the target with a cross-fitted scorer."""
    posterior, found = _chains(taught, setting)
    return posterior, choose(found, quality=target)


def frugal_cascade(taught: EstimatedRows, setting: TrainingSettings) -> FrugalCascade:
    """To serve: the cheapest chain for each share of the best single model's quality."""
    posterior, found = _chains(taught, setting)
    best = float(taught.scores.mean(0).max())
    chains = dict.fromkeys(choose(found, quality=share * best) for share in SHARES)
    return FrugalCascade(posterior, tuple(chains), best, taught.typical)


def _chains(taught: EstimatedRows, setting: TrainingSettings) -> tuple[Posterior, list[Chosen]]:
    """The scorer, and every chain with what it does by cross-fitted scores."""
    space = replace(space_of(taught, setting), depth=1, readings=(True,))
    chances = np.full(taught.scores.shape, np.nan)
    fold = folds(taught.logged.data.texts, setting.folds, setting.seed)
    for k in range(setting.folds):
        held = np.flatnonzero(fold == k)
        rest = taught.rows(np.flatnonzero(fold != k))
        chances[held] = own_chances(fit_posterior(space, rest.scene, rest.scores, rest.tasks), taught.scene.rows(held))
    found = list(chains(chances, taught.scores, taught.paid.answer, taught.paid.read))
    return fit_posterior(space, taught.scene, taught.scores, taught.tasks), found


def frugal_plans(posterior: Posterior, chain: Chosen, part: EstimatedRows) -> list[Plan]:
    """One climb per row: a plain chain whose confidence is the learned scorer."""
    names = [posterior.space.models[j] for j in chain.models]
    steps = (*(Step(m, at) for m, at in zip(names, chain.accept_at, strict=False)), Step(names[-1]))
    prior: Matrix = part.scene.prior
    return [
        Plan(steps, limits=Limits(), confidence=Scorer(posterior, prior[row : row + 1]))
        for row in range(len(part.scores))
    ]


def verified_cascade(logged: Logged) -> VerifiedCascade:
    """AutoMix to serve: the cheapest pair for each share. DataError where no draft has a confidence."""
    pairs = _pairs(logged)
    if not pairs:
        raise DataError("nothing to verify: no model with confidences has a more expensive one beside it")
    best = float(logged.data.scores.mean(0).max())
    return VerifiedCascade(tuple(dict.fromkeys(cheapest(pairs, share * best) for share in SHARES)), best)


def verified_alone(taught: EstimatedRows, tested: EstimatedRows, target: float) -> tuple[float, float] | None:
    """Cost and quality on test rows of the cheapest verified draft that reaches the target on training rows; None where
    no draft has a confidence.
    """
    pairs, data = _pairs(taught.logged), tested.logged.data
    if not pairs:
        return None
    pair = cheapest(pairs, target)
    i, j = (data.models.index(name) for name in (pair.draft, pair.escalate))
    shares = np.exp(np.minimum(data.confidence[:, i], 0.0))
    score, cost_usd = walked(
        pair.rule, shares, data.scores[:, i], data.scores[:, j], data.checked_cost_usd[:, i], data.cost_usd[:, j]
    )
    return float(cost_usd.mean()), float(score.mean())


def _pairs(logged: Logged) -> list[Pair]:
    data = logged.data
    return list(fit_pairs(data.models, data.confidence, data.scores, data.cost_usd, data.checked_cost_usd))
