"""Domain router (MoDEM, Composition of Experts): a classifier of domains, and a table of each model's mean score per
domain.

A domain is a task. Where rows state the source that they were taken from, it is a task of one source, whose mean is
shrunk toward the task's. An estimate is the mean over the table by the classifier's probabilities, so that doubt about
the domain shrinks it toward the overall mean. The table (`table_`) may be edited without training the classifier again.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Self

import numpy as np

from routers.estimators.base import Estimator, Matrix, Training, packed, softmax, task_table, unpacked

LEAST_OF_SOURCE = 15
"""A task of one source with fewer rows is no domain of its own."""
MANY = 60
"""With more domains the classifier is fitted in fewer steps."""


class Domain(Estimator):
    """Multinomial logistic regression over the domains, with inverse penalty `strength`. Tasks with fewer than
    `least_rows` rows are one domain together. `prior_count` pseudo-observations shrink a task's mean toward the
    model's, `within_count` a domain's toward its task's.
    """

    kind = "domain"
    PARAMETERS = ("strength", "prior_count", "least_rows", "within_count")
    LEARNED = ("names_", "table_", "deviation_", "weights_", "intercept_")

    def __init__(
        self, strength: float = 9.0, prior_count: float = 10.0, least_rows: int = 8, within_count: float = 20.0
    ) -> None:
        self.strength = strength
        self.prior_count = prior_count
        self.least_rows = least_rows
        self.within_count = within_count

    def fit(self, data: Training) -> Self:
        tasks = self._merged(data.tasks)
        names, self.table_, count = task_table(data.scores, tasks, self.prior_count)
        behind = count + self.prior_count
        if data.sources:
            tasks, names, behind = self._refine(data, tasks, names)
        self.names_ = packed(names)
        self.deviation_ = 0.5 / np.sqrt(behind)
        d = data.x.shape[1]
        self.weights_, self.intercept_ = np.zeros((d, len(names))), np.zeros(len(names))
        if len(names) > 1:
            self._classify(data.x, np.array([names.index(task) for task in tasks]))
        return self

    def _refine(self, data: Training, tasks: list[str], names: list[str]) -> tuple[list[str], list[str], Matrix]:
        """Divide tasks by source, and make `table_` that of these domains. Returns each row's domain, the domains, and
        the number of observations behind each mean, pseudo-observations included.
        """
        pairs = list(zip(tasks, data.sources, strict=True))
        found = Counter(pairs)
        domains = [f"{task}|{source}" if found[task, source] >= LEAST_OF_SOURCE else task for task, source in pairs]
        task_of = dict(zip(domains, tasks, strict=True))
        finer = sorted(task_of)
        rows, seen = np.array([finer.index(domain) for domain in domains]), np.isfinite(data.scores)
        broad = self.table_[[names.index(task_of[domain]) for domain in finer]]
        beyond, behind = np.zeros_like(broad), np.full_like(broad, self.within_count)
        np.add.at(beyond, rows, np.where(seen, data.scores - broad[rows], 0.0))
        np.add.at(behind, rows, seen)
        self.table_ = broad + beyond / behind
        return domains, finer, behind

    def _merged(self, tasks: Sequence[str]) -> list[str]:
        """Each row's task; the empty name for tasks with fewer than `least_rows` rows."""
        found: dict[str, int] = {}
        for task in tasks:
            found[task] = found.get(task, 0) + 1
        return [task if found[task] >= self.least_rows else "" for task in tasks]

    def _classify(self, x: Matrix, labels: Matrix) -> None:
        from sklearn.linear_model import LogisticRegression

        many = len(self.intercept_) > MANY
        steps, tolerance = (60, 1e-2) if many else (150, 1e-3)
        model = LogisticRegression(C=self.strength, max_iter=steps, tol=tolerance)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the limit of steps is meant
            model.fit(x, labels)
        weights, intercept = model.coef_, model.intercept_
        if len(weights) == 1:
            weights, intercept = np.vstack([0 * weights, weights]), np.append(0.0, intercept)
        self.weights_, self.intercept_ = weights.T.copy(), intercept.copy()

    def shares(self, x: Matrix) -> Matrix:
        """Probability of each domain, (n, domains)."""
        return softmax(x @ self.weights_ + self.intercept_)

    def names(self) -> list[str]:
        return unpacked(self.names_)

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        share = self.shares(x)
        mean = share @ self.table_
        within = share @ (self.deviation_**2 + self.table_**2) - mean**2
        return mean, np.sqrt(np.maximum(within, 1e-8))
