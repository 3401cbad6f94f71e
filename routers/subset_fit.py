"""Estimates of a gate for a folder's queries: the fleet that `routers.subset` chooses from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from routers.cost import LogLinear
from routers.estimators.base import Matrix
from routers.features import shipped_featurizer
from routers.fit import described, fit_learned, out_of_fold, predicted
from routers.outcomes import DataError, Outcomes
from routers.registry import estimator_named
from routers.subset import Fleet


@dataclass(frozen=True, slots=True)
class SubsetRows:
    """A gate's estimates for some queries, and their observed outcomes."""

    expected: Fleet
    scores: Matrix
    spends: dict[str, Matrix]


def expected(data: Outcomes, name: str, most: int) -> tuple[SubsetRows, SubsetRows, tuple[str, ...]]:
    """Training rows with out-of-fold estimates, test rows with those of the gate, and the models. Raises DataError
    where there are fewer than two models, more than `most`, or rows of one split only.
    """
    if not 2 <= len(data.models) <= most:
        raise DataError(f"outcomes.parquet: {len(data.models)} models with a cost; from 2 to {most} are compared")
    featurizer, held = shipped_featurizer(), data.splits == "test"
    if not held.any() or held.all():
        raise DataError("queries.parquet: field split: rows of both splits are needed")
    train, test = data.rows(~held), data.rows(held)
    x, test_x = described(train, featurizer), described(test, featurizer)
    gate = fit_learned(estimator_named(name), train, x, featurizer.layout)
    quality, cost = out_of_fold(name, train, x, featurizer.layout)
    test_quality, test_cost = predicted(gate, test_x)
    own, other = {"cost_usd": cost}, {"cost_usd": test_cost}
    if np.isfinite(data.latency_s).all():
        z, test_z = (gate.projection.coordinates(rows) for rows in (x, test_x))
        latency = LogLinear().fit(z, train.latency_s)
        own["latency_s"], other["latency_s"] = latency.predict(z), latency.predict(test_z)
    rows = [
        SubsetRows(Fleet(found, spends), part.scores, {key: getattr(part, key) for key in spends})
        for part, found, spends in ((train, quality, own), (test, test_quality, other))
    ]
    return rows[0], rows[1], data.models
