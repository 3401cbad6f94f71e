"""Which outcomes to buy next, so that the best model is known after a small part of the table (Zhou et
al. 2024).

All models are asked the queries in one shared order, so that comparisons are paired; a model's mean is
adjusted for how easy its queries were for the others (an additive, rank-one completion of the table). The
next batch goes to the model with the highest upper confidence bound, until the leader's lower bound
clears every other's upper one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix

FIRST = 24
"""Queries that every model is asked before any is dropped."""
BATCH = 24
"""At least; one query in a hundred where there are more."""
WIDTH = 2.0
"""Standard errors in a confidence bound."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of the models so far."""

    mean: Matrix
    """Adjusted mean score per model."""
    error: Matrix
    """Its standard error; infinite where a model was not asked."""

    @property
    def leader(self) -> int:
        return int(np.where(np.isfinite(self.error), self.mean, -np.inf).argmax())

    @property
    def settled(self) -> bool:
        """The leader's lower bound is above every other model's upper bound."""
        rest = np.delete(self.mean + WIDTH * self.error, self.leader)
        return bool(self.mean[self.leader] - WIDTH * self.error[self.leader] > rest.max())


def standing(scores: Matrix) -> Standing:
    """From a table with gaps (NaN: not bought): means after a two-way additive fit, and their errors."""
    scores = scores[np.isfinite(scores).any(1)]
    seen = np.asarray(np.isfinite(scores))
    asked, answered = seen.sum(0), seen.sum(1)
    filled = np.where(seen, scores, 0.0)
    level = filled.sum(0) / np.maximum(asked, 1)
    for _ in range(4):
        ease = np.where(seen, filled - level, 0.0).sum(1) / (answered + 0.5)
        level = np.where(seen, filled - ease[:, None], 0.0).sum(0) / np.maximum(asked, 1)
    rest = np.where(seen, filled - ease[:, None] - level, 0.0)
    variance = ((rest**2).sum(0) + 0.25) / np.maximum(asked, 1)
    error = np.where(asked > 0, np.sqrt(variance / np.maximum(asked, 1)), np.inf)
    return Standing(level + ease.mean(), error)


def next_batch(scores: Matrix, order: NDArray[np.intp]) -> tuple[int, NDArray[np.intp]]:
    """The model to ask next and which queries: its first unasked ones in the shared order."""
    seen = np.asarray(np.isfinite(scores))
    asked = seen.sum(0)
    if asked.min() < FIRST:
        model = int(asked.argmin())
    else:
        now = standing(scores)
        bound = now.mean + WIDTH * now.error
        bound[asked >= len(scores)] = -np.inf
        runner_up = int(np.argsort(-bound)[1])
        model = now.leader if asked[now.leader] <= asked[runner_up] and asked[now.leader] < len(scores) else runner_up
        if not np.isfinite(bound[model]):
            model = int(bound.argmax())
    left = order[~seen[order, model]]
    return model, left[: max(BATCH, len(scores) // 100) if asked[model] else FIRST]


def found_best(truth: Matrix, share: float, seed: int = 0) -> tuple[int, float]:
    """Replays buying on a full table: the model named best and the share of cells that were bought."""
    order = np.asarray(np.random.default_rng(seed).permutation(len(truth)), np.intp)
    scores = np.full(truth.shape, np.nan)
    while np.isfinite(scores).mean() < share:
        model, rows = next_batch(scores, order)
        if not len(rows):
            break
        scores[rows, model] = truth[rows, model]
        if np.isfinite(scores).sum(0).min() >= FIRST and standing(scores).settled:
            break
    return standing(scores).leader, float(np.isfinite(scores).mean())
