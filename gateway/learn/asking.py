"""Suggests decisions to label: those whose score would be most informative about the model that answered.

The information of a label for a linear model of a model's scores is `log(1 + x' A^-1 x)` nats, where A has the
regularised moments of the labelled queries (D-optimal design; Fedorov 1972). It is weighted by how close the choice
was, because only then can a better estimate change it. Decisions are chosen one by one, each as if those before were
labelled already, so that near-copies of one query don't fill the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log1p

import numpy as np
from numpy.typing import NDArray

from gateway.learn.dataset import Log
from routers.ope import Array

DIMS = 16
RIDGE = 3.0
CLOSE = 0.15
"""Difference of two models' expected quality at which a choice is half as open as a tie."""


@dataclass(frozen=True, slots=True)
class LabelSuggestion:
    """One decision to be labelled."""

    place: int
    """Index in the log."""
    gain: float
    information: float
    closeness: float
    """1: a tie; near 0: clear."""


def to_label(log: Log, known: NDArray[np.bool_], count: int, *, latest: int = 2000) -> list[LabelSuggestion]:
    """The best suggestions first. `known` (n,): whether a decision has feedback; scores by automatic checks don't
    count.
    """
    x = np.nan_to_num(np.concatenate([log.covariates(DIMS), np.ones((len(log), 1))], 1))
    inverse = [_inverse(x[(log.action == j) & known]) for j in range(len(log.models))]
    open_ = np.flatnonzero(~known)[-latest:]
    near = closeness(log)[open_]
    spread = np.nan_to_num([x[i] @ inverse[log.action[i]] @ x[i] for i in open_.tolist()])
    suggestions: list[LabelSuggestion] = []
    for _ in range(min(count, len(open_))):
        gains = np.log1p(np.maximum(spread, 0.0)) * near
        best = int(gains.argmax())
        i, j = int(open_[best]), int(log.action[open_[best]])
        learns = log1p(max(0.0, float(spread[best])))
        suggestions.append(LabelSuggestion(i, float(gains[best]), learns, float(near[best])))
        direction = inverse[j] @ x[i]
        shrunk = 1.0 + float(x[i] @ direction)
        mine = log.action[open_] == j
        spread[mine] -= (x[open_[mine]] @ direction) ** 2 / shrunk
        inverse[j] = inverse[j] - np.outer(direction, direction) / shrunk
        near[best] = -1.0
    return suggestions


def closeness(log: Log) -> Array:
    """Of the two best expectations of every round, in (0, 1]; 1 where the router expects nothing of two models."""
    found = np.ones(len(log))
    for i, record in enumerate(log.records):
        known = sorted((one.quality for one in record.candidates if one.quality is not None), reverse=True)
        if len(known) > 1:
            found[i] = CLOSE / (CLOSE + known[0] - known[1])
    return found


def _inverse(x: Array) -> Array:
    return np.asarray(np.linalg.inv(x.T @ x + RIDGE * np.eye(x.shape[1])), np.float64)
