"""Which outcomes to buy next, so that the best model is found from a small part of the table (Zhou et al. 2024). All
models are asked the queries in one shared order, so that comparisons are paired; a model's mean is adjusted for how
easy its queries were for the others (an additive completion of the table, where theirs is a product of rank one). The
next batch goes to the leader or to the model with the highest upper confidence bound of the others, whichever was asked
less (LUCB, Kalyanakrishnan et al. 2012), until the leader's lower bound clears every other's upper one.
`routers.bench.probing` shows it beside the published algorithms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix

FIRST = 24
"""Queries that every model is asked before any model is dropped."""
BATCH = 24
"""At least; one query in a hundred where there are more."""
WIDTH = 2.0
"""Standard errors in a confidence bound."""


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Adjusted mean scores and standard errors of the models, (m,) each."""

    mean: Matrix
    """Adjusted mean score per model."""
    error: Matrix
    """Its standard error; infinite where a model was not asked."""

    @property
    def leader(self) -> int:
        return int(np.where(np.isfinite(self.error), self.mean, -np.inf).argmax())

    @property
    def settled(self) -> bool:
        """Whether the leader's lower bound is above every other model's upper bound."""
        rest = np.delete(self.mean + WIDTH * self.error, self.leader)
        return bool(self.mean[self.leader] - WIDTH * self.error[self.leader] > rest.max())


def leaderboard(scores: Matrix) -> Leaderboard:
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
    return Leaderboard(level + ease.mean(), error)


def next_batch(scores: Matrix, order: NDArray[np.intp]) -> tuple[int, NDArray[np.intp]]:
    """The model to ask next, and its first unasked queries in the shared order."""
    seen = np.asarray(np.isfinite(scores))
    asked = seen.sum(0)
    model = int(asked.argmin()) if asked.min() < FIRST else _contested(leaderboard(scores), asked, len(scores))
    left = order[~seen[order, model]]
    return model, left[: max(BATCH, len(scores) // 100) if asked[model] else FIRST]


def _contested(now: Leaderboard, asked: NDArray[np.intp], most: int) -> int:
    """The leader or its closest rival, whichever was asked less; a model that was asked all queries is passed over."""
    open_ = asked < most
    bound = np.where(open_, now.mean + WIDTH * now.error, -np.inf)
    bound[now.leader] = -np.inf
    rival = int(bound.argmax())
    if not open_[rival]:
        return now.leader
    return now.leader if open_[now.leader] and asked[now.leader] <= asked[rival] else rival


def planned(scores: Matrix, order: NDArray[np.intp], cells: int) -> list[tuple[int, NDArray[np.intp]]]:
    """Batches (model, queries) to buy without looking at their outcomes in between, of at most `cells` outcomes in all.

    A planned outcome is assumed to be its model's mean. Planning stops early once every model was asked its first
    queries, or the leader is settled, because what to buy next then depends on the outcomes.
    """
    assumed, batches, left = scores.copy(), [], cells
    least = min(FIRST, len(scores))
    first = bool(np.isfinite(scores).sum(0).min() < least)
    while left > 0 and np.isnan(assumed).any():
        asked = np.isfinite(assumed).sum(0)
        if asked.min() >= least and (first or leaderboard(assumed).settled):
            break
        model, rows = next_batch(assumed, order)
        rows = rows[: min(left, FIRST - asked[model])] if first else rows[:left]
        assumed[rows, model] = leaderboard(assumed).mean[model] if asked[model] else 0.5
        batches.append((model, rows))
        left -= len(rows)
    return batches


def shared_order(scores: Matrix, seed: int = 0) -> NDArray[np.intp]:
    """An order of the queries for all models: those that most models answered first, since comparisons are paired;
    otherwise random.
    """
    chance = np.random.default_rng(seed).permutation(len(scores))
    answered = np.isfinite(scores).sum(1)[chance]
    return np.asarray(chance[np.argsort(-answered, kind="stable")], np.intp)
