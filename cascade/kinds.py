"""Classifies the kind of a question from the router's estimates, by what was learned from the task labels of logged
rows.

A confidence of .9 means one thing for a choice among letters and another for a free answer, so the posterior weighs
evidence separately for each kind. No label is needed while serving: the estimated quality of the models reveals the
kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cascade.logistic import Matrix, logistic, sigmoid

LEAST_ROWS = 100
"""Least rows of a task that is a kind of its own. Tasks with fewer rows form one kind together, if together they have
as many.
"""
MOST_KINDS = 8
PENALTY = 1.0


def fit_kinds(prior: Matrix, tasks: Sequence[str]) -> Matrix:
    """One penalised logistic regression per kind on the logits of estimated quality, (1 + m, k); k is 0 where the
    rows are all of one kind.
    """
    labels = kinds_of(tasks)
    names = sorted(set(labels))
    if len(names) < 2:
        return np.zeros((1 + prior.shape[1], 0))
    x, labelled = np.column_stack([np.ones(len(prior)), prior]), np.array(labels)
    return np.stack([logistic(x, (labelled == name).astype(float), PENALTY) for name in names], 1)


def kinds_of(tasks: Sequence[str]) -> list[str]:
    """Each row's kind: its task, or "" for tasks that are too rare."""
    counted = [(task, rows) for task, rows in Counter(tasks).most_common(MOST_KINDS) if rows >= LEAST_ROWS]
    common = {task for task, _ in counted}
    rare = len(tasks) - sum(rows for _, rows in counted)
    if rare < LEAST_ROWS and counted:  # too few for a kind of their own: they join the commonest
        return [task if task in common else counted[0][0] for task in tasks]
    return [task if task in common else "" for task in tasks]


def kinds_in(weights: Matrix, prior: Matrix) -> Matrix:
    """Share of each kind, (n, k), rows summing to 1."""
    if not weights.shape[1]:
        return np.zeros((len(prior), 0))
    likely = sigmoid(weights[0] + prior @ weights[1:])
    return np.asarray(likely / likely.sum(1, keepdims=True))
