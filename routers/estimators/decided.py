"""The ensemble with the weights whose decisions buy the most quality for the money.

An estimate that is closer to the scores need not decide better: only the few models on the frontier matter, and the
queries on which they differ. So weights are compared by the quality-cost frontier (AIQ) that they reach on training
rows that the members did not see, and the best few are averaged, because the best alone was partly lucky. Without
costs, or where too few rows have a score and a cost of every model, the ensemble's own weights stay. Training takes
four times as long as the ensemble's; prediction takes as long. Batch jobs, whose prompts compete for one budget, are
planned with stacked weights (`routers.estimators.stacked`): on splits of the training rows of two sets that was worth
.0005 and .0016 of quality at equal spend.
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
"""With fewer rows weights are not compared."""
MOST_ROWS = 6000
"""The most rows that weights are compared on."""
SHARES = 4
"""Weights that are compared are multiples of 1 / SHARES."""
KEPT = 5
"""Number of the best weights that are averaged."""
DECADE = 10 / 3
"""Exchange rates between quality and cost that are tried for each power of ten."""


class Decided(Ensemble):
    """An ensemble whose `fit` learns the weights, which sum to one."""

    kind = "decided"

    def fit(self, data: Training) -> Self:
        known = self._comparable(data)
        if known is not None:
            predicted = self.out_of_fold(known)
            self.weights = _weighed(known, predicted)
            self.job_weights, self.job_stretch = stacked(predicted, known.scores, self.weights)
        super().fit(data)
        return self

    def _comparable(self, data: Training) -> Training | None:
        """At most `MOST_ROWS` of the rows on which every model has a score and a cost; None where they are too few."""
        if data.costs is None:
            return None
        rows = np.flatnonzero((np.isfinite(data.scores) & np.isfinite(data.costs)).all(1))
        if len(rows) < LEAST_ROWS:
            return None
        return data.rows(rows[:: -(-len(rows) // MOST_ROWS)])


def _weighed(data: Training, predicted: Sequence[Matrix]) -> tuple[float, ...]:
    """The mean of the best weights, by the AIQ of the members' out-of-fold predictions, (n, m) each."""
    assert data.costs is not None
    cost = _costs_out_of_fold(data, data.costs)
    bench = evaluate.Bench(data.scores, data.costs, int(data.scores.mean(0).argmax()))
    alone, rates = bench.singles(), evaluate.rates_for(data.costs, DECADE)
    mixtures = list(_mixtures(len(predicted)))
    reached = []
    for mixture in mixtures:
        quality = np.asarray(sum(share * part for share, part in zip(mixture, predicted, strict=True)))
        points = evaluate.swept(quality, cost, bench, rates).points()
        reached.append(evaluate.figures(points, alone, bench.best, 1.0)["aiq"])
    best = np.argsort(reached)[-KEPT:]
    return tuple(np.mean([mixtures[place] for place in best.tolist()], axis=0).tolist())


def _costs_out_of_fold(data: Training, costs: Matrix) -> Matrix:
    """Predicted cost of every row, (n, m), by a fit on the other folds."""
    fold, predicted = folds(row_keys(data.x), FOLDS, data.seed), np.zeros_like(costs)
    for part in range(FOLDS):
        held = fold == part
        predicted[held] = LogLinear().fit(data.x[~held], costs[~held]).predict(data.x[held])
    return predicted


def _mixtures(members: int) -> Iterator[tuple[float, ...]]:
    """Every set of weights that are multiples of 1 / SHARES and sum to one."""
    for shares in product(range(SHARES + 1), repeat=members):
        if sum(shares) == SHARES:
            yield tuple([share / SHARES for share in shares])
