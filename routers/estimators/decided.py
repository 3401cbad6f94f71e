"""The ensemble with the say of each member learnt by what it decides: which mixtures buy most quality for money.

An estimate that is closer to the scores need not decide better: what counts are the few models on the frontier and the
queries where they differ. So mixtures are compared by the quality-cost frontier (AIQ) that they reach on training rows
which their members did not see, and the best few of them are averaged, for the best alone is lucky. Without costs, or
where too few rows were scored by all models, the ensemble's own weights stay. It takes four times as long to train and
no longer to ask. Jobs, whose prompts compete for one budget, are planned by the members stacked as they foretell
scores: on splits of the training rows of two sets that was worth .0005 and .0016 of quality at equal spend.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Self

import numpy as np

from routers import evaluate
from routers.cost import LogLinear
from routers.estimators.base import Matrix, Training, folds, row_keys
from routers.estimators.ensemble import FOLDS, Ensemble
from routers.estimators.stacked import stacked

LEAST_ROWS = 300
MOST_ROWS = 6000
"""More are not needed to compare mixtures."""
SHARES = 4
"""A member's say is a multiple of 1 / SHARES."""
KEPT = 5
DECADE = 10 / 3
"""Exchange rates tried to each power of ten."""


class Decided(Ensemble):
    """Weights sum to one."""

    kind = "decided"

    def fit(self, data: Training) -> Self:
        known = self._comparable(data)
        if known is not None:
            told = self.foretold(known)
            self.weights = _weighed(known, told)
            self.job_weights, self.job_stretch = stacked(told, known.scores, self.weights)
        super().fit(data)
        return self

    def _comparable(self, data: Training) -> Training | None:
        """Rows on which every model was scored and priced; None: too few."""
        if data.costs is None:
            return None
        rows = np.flatnonzero((np.isfinite(data.scores) & np.isfinite(data.costs)).all(1))
        if len(rows) < LEAST_ROWS:
            return None
        return data.rows(rows[:: -(-len(rows) // MOST_ROWS)])


def _weighed(data: Training, told: Sequence[Matrix]) -> tuple[float, ...]:
    assert data.costs is not None
    cost = _costs_foretold(data, data.costs)
    bench = evaluate.Bench(data.scores, data.costs, int(data.scores.mean(0).argmax()))
    alone, rates = bench.singles(), evaluate.rates_for(data.costs, DECADE)
    mixtures = list(_mixtures(len(told)))
    reached = []
    for mixture in mixtures:
        quality = np.asarray(sum(share * part for share, part in zip(mixture, told, strict=True)))
        points = evaluate.swept(quality, cost, bench, rates).points()
        reached.append(evaluate.figures(points, alone, bench.best, 1.0)["aiq"])
    best = np.argsort(reached)[-KEPT:]
    return tuple(np.mean([mixtures[place] for place in best.tolist()], axis=0).tolist())


def _costs_foretold(data: Training, costs: Matrix) -> Matrix:
    """Predicted costs of every row, by what was fitted on the other folds."""
    fold, told = folds(row_keys(data.x), FOLDS, data.seed), np.zeros_like(costs)
    for part in range(FOLDS):
        held = fold == part
        told[held] = LogLinear().fit(data.x[~held], costs[~held]).predict(data.x[held])
    return told


def _mixtures(members: int) -> Iterator[tuple[float, ...]]:
    """Every way to share out a say of one."""
    for shares in product(range(SHARES + 1), repeat=members):
        if sum(shares) == SHARES:
            yield tuple([share / SHARES for share in shares])
