"""FrugalGPT: an ordered list of models, a learned scorer of (query, answer), thresholds, all under a budget.

The scorer is the posterior's own head: P(right | router's estimate, confidence). Lists of up to three models by rising
cost and thresholds on a grid of quantiles are searched for the highest training quality within the budget (Chen et al.
2023, section 3). The result is a plain chain, chosen for each share of quality that an operator may ask for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from math import inf

import numpy as np
from numpy.typing import NDArray

from cascade.confidence import RAW
from cascade.planner import PlanRequest, Typical, cheapest
from cascade.posterior import Matrix, Posterior, Scene, logit, shown
from cascade.types import Evidence, Plan, Step

GRID = 13
"""Thresholds tried for each model but the last."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A chain and what it scored and cost on the rows it was chosen on."""

    models: tuple[int, ...]
    accept_at: tuple[float, ...]
    """Thresholds of all models but the last, whose answer is always kept."""
    quality: float
    cost_usd: float


def own_chances(posterior: Posterior, scene: Scene) -> Matrix:
    """P(right | its own evidence) of every model in the pool, (n, m); NaN for others."""
    found = np.full(scene.prior.shape, np.nan)
    for j in posterior.space.pool:
        found[:, j] = posterior.chances(((j, True),), scene)[:, j]
    return found


def chains(chances: Matrix, scores: Matrix, answer_usd: Matrix, read_usd: Matrix, longest: int = 3) -> Iterator[Chosen]:
    """Every chain of the pool by rising cost with every threshold of the grid."""
    price = answer_usd.mean(0)
    pool = [j for j in np.argsort(price).tolist() if np.isfinite(chances[:, j]).all()]
    grids = {j: np.quantile(chances[:, j], np.linspace(0, 1, GRID)) for j in pool}
    for length in range(1, longest + 1):
        for models in combinations(pool, length):
            for accept_at in product(*(grids[j].tolist() for j in models[:-1])):
                quality, cost = run(models, accept_at, chances, scores, answer_usd, read_usd)
                yield Chosen(models, accept_at, float(quality.mean()), float(cost.mean()))


def run(
    models: tuple[int, ...],
    accept_at: tuple[float, ...],
    chances: Matrix,
    scores: Matrix,
    answer_usd: Matrix,
    read_usd: Matrix,
) -> tuple[Matrix, Matrix]:
    """Score and cost of one chain on every row: read steps pay for their evidence, the last one does not."""
    n = len(scores)
    quality, cost, on = np.zeros(n), np.zeros(n), np.ones(n, bool)
    for j, least in zip(models[:-1], accept_at, strict=True):
        cost += np.where(on, read_usd[:, j], 0.0)
        kept: NDArray[np.bool_] = on & (chances[:, j] >= least)
        quality[kept] = scores[kept, j]
        on = on & ~kept
    last = models[-1]
    cost += np.where(on, answer_usd[:, last], 0.0)
    quality[on] = scores[on, last]
    return quality, cost


def choose(found: list[Chosen], *, budget_usd: float = inf, quality: float = inf) -> Chosen:
    """The best within the budget or, with a finite `quality`, the cheapest that reaches it. ValueError for none."""
    within = [one for one in found if one.cost_usd <= budget_usd]
    if not within:
        raise ValueError(f"no chain costs at most ${budget_usd:g} a request")
    return cheapest(within, quality)


@dataclass(frozen=True, slots=True)
class Scorer:
    """The learned scorer as a plan's confidence, for one query's estimates."""

    posterior: Posterior
    prior: Matrix

    def __call__(self, model: str, evidence: Evidence) -> float:
        raw = RAW(model, evidence)
        j = self.posterior.space.models.index(model)
        if raw != raw or raw == 0.0 or ((j, True),) not in self.posterior.weights:
            return raw
        seen = np.full(self.prior.shape, np.nan)
        seen[0, j] = raw
        scene = Scene(self.prior, shown(seen), np.eye(self.prior.shape[1])[None])
        return float(self.posterior.chances(((j, True),), scene)[0, j])


@dataclass(frozen=True, slots=True)
class FrugalCascade:
    """Chains with learned thresholds, for a gateway that plans climbs by them."""

    posterior: Posterior
    chains: Sequence[Chosen]
    """The cheapest for each of several shares of the best single model's quality."""
    best_single: float
    typical: Typical
    writes: bool = field(default=False, init=False)

    def least_chance(self, share: float, risk: float) -> float:
        """Always infinite: this cascade has no calibrated probability of an answer, so it can't abstain."""
        return inf

    def plan(self, request: PlanRequest, share: float = 1.0, most_wrong: float | None = None) -> Plan:
        """A plan by the chain for that share, without the models that can't be asked; the chosen model alone where none
        is left.
        """
        models = self.posterior.space.models
        chain = cheapest(self.chains, share * self.best_single)
        gone = request.absent(models)
        listed = [(models[j], at) for j, at in zip(chain.models, (*chain.accept_at, -inf), strict=True)]
        steps = [Step(m, at, request.worst_cost_usd[m]) for m, at in listed if m not in gone]
        steps[-1:] = [request.step(steps[-1].model if steps else request.choice.model)]
        prior = logit(np.array([[e.quality for e in request.estimates(self.typical)]]))
        spare = request.stand_ins([step.model for step in steps])
        return Plan(tuple(steps), spare, request.limits, request.retries, confidence=Scorer(self.posterior, prior))
