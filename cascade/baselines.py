"""What a posterior cascade has to beat, at operating points chosen by the same rule on the same training rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cascade.frugal import Chosen, Scorer, chains, choose, own_chances
from cascade.posterior import Matrix, Posterior
from cascade.posterior_fit import cheapest_matching, fit_posterior, rates_for
from cascade.types import Limits, Plan, Step
from routers.estimators.base import folds

if TYPE_CHECKING:
    from cascade.evaluate import Part, Setting


def router_alone(taught: Part, tested: Part, target: float, tolerance: float) -> tuple[float, float]:
    """Cost and quality on test rows of routing before generation, by estimated quality minus rate times cost."""
    rates = rates_for(float(taught.paid.answer.mean(0).max()))
    points = np.array([_routed(taught, rate) for rate in rates])
    return _routed(tested, rates[cheapest_matching(points, target, tolerance)])


def _routed(part: Part, rate: float) -> tuple[float, float]:
    pick = np.argmax(1.0 / (1.0 + np.exp(-part.scene.prior)) - rate * part.prices.answer, 1)
    rows = np.arange(len(pick))
    return float(part.paid.answer[rows, pick].mean()), float(part.scores[rows, pick].mean())


def frugal_chain(taught: Part, setting: Setting, target: float) -> tuple[Posterior, Chosen]:
    """FrugalGPT's list and thresholds: the cheapest chain that reaches the target with a cross-fitted scorer."""
    from cascade.evaluate import space_of

    space = replace(space_of(taught, setting), depth=1, readings=(True,))
    chances = np.full(taught.scores.shape, np.nan)
    fold = folds(len(chances), setting.folds, setting.seed)
    for k in range(setting.folds):
        held = np.flatnonzero(fold == k)
        rest = taught.rows(np.flatnonzero(fold != k))
        chances[held] = own_chances(fit_posterior(space, rest.scene, rest.scores, rest.tasks), taught.scene.rows(held))
    found = list(chains(chances, taught.scores, taught.paid.answer, taught.paid.read))
    return fit_posterior(space, taught.scene, taught.scores, taught.tasks), choose(found, quality=target)


def frugal_plans(posterior: Posterior, chain: Chosen, part: Part) -> list[Plan]:
    """One climb per row: a plain chain whose confidence is the learned scorer."""
    names = [posterior.space.models[j] for j in chain.models]
    steps = (*(Step(m, at) for m, at in zip(names, chain.accept_at, strict=False)), Step(names[-1]))
    prior: Matrix = part.scene.prior
    return [
        Plan(steps, limits=Limits(), confidence=Scorer(posterior, prior[row : row + 1]))
        for row in range(len(part.scores))
    ]
