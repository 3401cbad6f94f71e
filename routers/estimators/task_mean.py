"""Each model's mean score on the query's task, shrunk toward its overall mean: a baseline that is given the task's
name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from routers.estimators.base import Estimator, Matrix, Training, observed_mean, packed, task_table, unpacked


class TaskMean(Estimator):
    """A table of means, each shrunk by `prior_count` pseudo-observations. A query whose task is unknown, or was not in
    the training rows, gets the overall mean.
    """

    kind = "task-mean"
    PARAMETERS = ("prior_count",)
    LEARNED = ("names_", "table_", "deviation_")

    def __init__(self, prior_count: float = 10.0) -> None:
        self.prior_count = prior_count

    def fit(self, data: Training) -> Self:
        return self.fit_matrix(data.scores, data.tasks)

    def fit_matrix(self, scores: Matrix, tasks: Sequence[str]) -> Self:
        """As `fit`, from any quantity per query and model, such as costs."""
        names, table, count = task_table(scores, tasks, self.prior_count)
        overall = observed_mean(scores, min(self.prior_count, 4.0))
        total = np.isfinite(scores).sum(0)
        self.names_ = packed(names)
        self.table_ = np.vstack([table, overall])
        self.deviation_ = 0.5 / np.sqrt(np.vstack([count + self.prior_count, total + self.prior_count]))
        return self

    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        names = unpacked(self.names_)
        place = {name: i for i, name in enumerate(names)}
        rows = [place.get(task, len(names)) for task in tasks or [""] * len(x)]
        return self.table_[rows], self.deviation_[rows]
