"""Trains cascades on logged answers, by name: cascade routing, FrugalGPT's chain, or AutoMix's verified drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from cascade.artifact import TrainedCascade
from cascade.baselines import SHARES, frugal_cascade, verified_cascade
from cascade.calibrate import RISKS, Refusal, abstention
from cascade.logs import Logged
from cascade.posterior import Matrix, Posterior, Rule
from cascade.posterior_fit import (
    Board,
    Walked,
    best_quality,
    cheapest_matching,
    fit_posterior,
    rates_for,
    solve,
    walk,
    with_forecasts,
)
from cascade.routing import RoutedCascade
from cascade.rows import EstimatedRows, TrainingSettings, estimated_parts, space_of
from routers.estimators.base import folds
from routers.features import shipped_featurizer
from routers.fit import described
from routers.outcomes import DataError

LEAST_ROWS = 60
PLANS = ("routing", "frugal", "verify")
"""Cascades that can be trained: posterior cascade routing, FrugalGPT's chain, AutoMix's verified drafts."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A posterior and its rules at every rate, with what each achieved on held-out training rows."""

    posterior: Posterior
    rules: Sequence[Rule]
    held_out: Matrix
    """(rates, 2): mean cost and quality on training rows that the rule never saw, by cross-fitting."""
    chances: Matrix
    """(rates, n): each rule's probability that its answer to each training row is right, by cross-fitting."""
    scores: Matrix
    """(rates, n): the score of that answer."""
    costs: Matrix
    """(rates, n): the cost of that answer."""
    best_single: float
    """Held-out quality of the single model that was best on the other folds: what a rule is to match."""
    single_usd: float
    """Its cost on the same rows."""


def train(part: EstimatedRows, setting: TrainingSettings) -> Trained:
    space = space_of(part, setting)
    reference = float(part.logged.data.cost_usd.mean(0).max())
    rates = rates_for(reference, setting.rates, setting.highest_rate)
    n = len(part.scores)
    costs, scores, chances = (np.zeros((len(rates), n)) for _ in range(3))
    fold, single = folds(part.logged.data.texts, setting.folds, setting.seed), np.zeros((2, n))
    for k in range(setting.folds):
        taught, held = part.rows(np.flatnonzero(fold != k)), part.rows(rows := np.flatnonzero(fold == k))
        best = int(taught.scores.mean(0).argmax())
        single[:, rows] = held.scores[:, best], held.paid.answer[:, best]
        fitted = fit_posterior(space, taught.scene, taught.scores, taught.tasks)
        for index, one in enumerate(_curve(fitted, taught, held, rates)):
            costs[index, rows], scores[index, rows] = one.cost_usd, one.score
            chances[index, rows] = one.chance
    posterior = fit_posterior(space, part.scene, part.scores, part.tasks)
    board = Board.of(posterior, part.scene)
    rules = [solve(board, part.prices, rate) for rate in rates]
    held_out = np.column_stack([costs.mean(1), scores.mean(1)])
    return Trained(posterior, rules, held_out, chances, scores, costs, float(single[0].mean()), float(single[1].mean()))


def _curve(posterior: Posterior, taught: EstimatedRows, held: EstimatedRows, rates: Sequence[float]) -> list[Walked]:
    board = Board.of(posterior, taught.scene)
    return walked(posterior, [solve(board, taught.prices, rate) for rate in rates], held)


def walked(posterior: Posterior, rules: Sequence[Rule], part: EstimatedRows) -> list[Walked]:
    """The outcome of every rule on those rows."""
    board, latency_s = Board.of(posterior, part.scene), np.nan_to_num(part.logged.data.latency_s)
    return [walk(rule, board, part.prices, part.paid, part.scores, latency_s) for rule in rules]


def routed_cascade(trained: Trained, part: EstimatedRows) -> RoutedCascade:
    """The cascade for a gateway. Of the rules it keeps every third, and those that operators are most likely to ask
    for.
    """
    wanted = {cheapest_matching(trained.held_out, share * trained.best_single) for share in SHARES}
    best = best_quality(trained.held_out, TrainingSettings().most_cost * trained.single_usd)
    kept = sorted(wanted | {best} | set(range(0, len(trained.rules), 3)))
    board = Board.of(trained.posterior, part.scene)
    rules = [with_forecasts(trained.rules[i], board, part.prices) for i in kept]
    sure = [[certified_threshold(trained, i, risk) for risk in RISKS] for i in kept]
    return RoutedCascade(
        trained.posterior, rules, trained.held_out[kept], trained.best_single, part.typical, np.array(sure)
    )


def certified_threshold(trained: Trained, index: int, risk: float) -> float:
    """How sure the rule at `index` must be of an answer so that at most that share of those given is wrong; infinite
    where the training rows can't tell.
    """
    found = abstention(trained.chances[index], trained.scores[index], risk)
    return inf if isinstance(found, Refusal) else found


def train_cascade(logged: Logged, setting: TrainingSettings, plan: str = "routing") -> TrainedCascade:
    """The cascade of that name, trained on all rows of the log. Raises DataError where there are too few rows, or no
    such cascade.
    """
    if plan not in PLANS:
        raise DataError(f"no cascade to train is called {plan!r}; known: {', '.join(PLANS)}")
    if len(logged.answers) < LEAST_ROWS:
        raise DataError(f"{len(logged.answers)} complete rows to train on; {LEAST_ROWS} or more are needed")
    if plan == "verify":
        return verified_cascade(logged)
    x = described(logged.data, shipped_featurizer())
    taught, _ = estimated_parts(logged, x, np.ones(len(x), bool), setting)
    return frugal_cascade(taught, setting) if plan == "frugal" else routed_cascade(train(taught, setting), taught)
