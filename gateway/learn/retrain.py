"""Trains a candidate on all scored rounds of the journal; it is judged by twins, each trained on one half of the
queries.

A model whose scores have changed is only learnt from the rounds after the change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.learn.alarms import changes
from gateway.learn.dataset import Log, halves_of_queries, main_axes, training_data
from routers.estimators.base import Estimator, Training, folds, row_keys
from routers.estimators.linear import Linear
from routers.features import shipped_featurizer
from routers.fit import fit_learned
from routers.outcomes import DataError
from routers.plugin import PluginRouter
from routers.registry import estimator_named
from routers.select import Exploration

RIDGES = (3.0, 30.0, 300.0)


@dataclass(frozen=True, slots=True)
class Trained:
    router: PluginRouter
    checksum: str
    """Checksum of the training data."""
    rows: int
    models: tuple[str, ...]


def trained(log: Log, kind: str, version: str, explore: float) -> Trained:
    """Train a router on the log's scored rounds. Raises DataError where there are too few."""
    data, x = training_data(log)
    scored = [model for j, model in enumerate(data.models) if np.isfinite(data.scores[:, j]).any()]
    if len(scored) < 2:
        raise DataError(f"scores of {len(scored)} model(s); a router needs those of two or more")
    if not x.shape[1]:
        raise DataError("the journal has neither query vectors of this version nor texts")
    data = data.columns(scored)
    featurizer = shipped_featurizer()
    estimator = estimator_named(kind)
    if isinstance(estimator, Linear):
        estimator = tuned(data.scores, x, scored)
    learned = fit_learned(estimator, data, x, featurizer.layout)
    router = PluginRouter(kind, version, featurizer.version, learned, Exploration(floor=explore))
    return Trained(router, data.checksum(), len(x), data.models)


def tuned(scores: NDArray[np.float64], x: NDArray[np.float64], models: list[str]) -> Estimator:
    """The linear estimator whose ridge penalty predicts held-out scores best; the best one depends on the number of
    rounds.
    """
    z = main_axes(x, 64)
    z /= max(float(z[:, 0].std()), 1e-9)
    data = Training(z, scores, [""] * len(z), models)
    fold = folds(row_keys(z), 4, 0)

    def error(ridge: float) -> float:
        total = 0.0
        for part in range(4):
            held = fold == part
            guess, _ = Linear(ridge=ridge).fit(data.rows(~held)).predict(z[held])
            total += float(np.nansum((guess - scores[held]) ** 2))
        return total

    return Linear(ridge=min(RIDGES, key=error))


def lately(log: Log) -> tuple[Log, Log]:
    """The rounds to train on and those to judge on: a changed model's answers from before its change are left out of
    the first, all rounds from before the last change out of the second.
    """
    found = changes(log)
    if not found:
        return log, log
    stale = np.zeros(len(log), bool)
    for change in found:
        column = log.models.index(change.model)
        stale |= (log.action == column) & (np.arange(len(log)) < change.place)
    return log.rows(~stale), log.rows(np.arange(len(log)) >= max(change.place for change in found))


def twins(train: Log, judged: Log, kind: str, explore: float) -> tuple[PluginRouter, PluginRouter, NDArray[np.bool_]]:
    """Two routers, each trained on one half of the queries of `train`, and the rounds of `judged` on which the first
    may be judged; the second is judged on the others.
    """
    first, second = halves_of_queries(train), halves_of_queries(judged)
    one = trained(train.rows(~first), kind, "twin", explore).router
    two = trained(train.rows(first), kind, "twin", explore).router
    return one, two, second
