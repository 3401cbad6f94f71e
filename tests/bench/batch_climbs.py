"""A trained cascade in the job bench: trained on training rows, planned as the product plans it, replayed on outcomes.

Only data with evidence (confidences or texts of every answer) and the same rows and models as the router's can be
climbed; of other data `evidence_of` is None and the job asks single models.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.logs import Logged, read_logged
from cascade.planner import PlanRequest
from cascade.replay import LoggedModels, replayed
from cascade.routing import RoutedCascade
from cascade.rows import TrainingSettings, estimated_parts
from cascade.train import routed_cascade, train
from cascade.types import Limits
from gateway.batch.climbs import with_climbs
from gateway.batch.program import Objective
from gateway.batch.types import Arm, Estimates
from routers.outcomes import DataError, Outcomes
from routers.types import Choice, Estimate

Matrix = NDArray[np.float64]


def evidence_of(folder: Path, rows: Outcomes) -> Logged | None:
    """The answers behind these rows, in their order."""
    try:
        logged = read_logged(folder)
    except DataError:
        return None
    place = {query: row for row, query in enumerate(logged.data.query_ids)}
    if logged.data.models != rows.models or any(query not in place for query in rows.query_ids):
        return None
    return logged.rows(np.array([place[query] for query in rows.query_ids]))


@dataclass(frozen=True)
class Climbs:
    """A cascade that the training rows taught, beside the test rows' answers."""

    cascade: RoutedCascade
    tested: Logged
    read_usd: Matrix
    """Expected cost of test answers with their evidence, (n, m)."""

    @classmethod
    def taught(cls, logged: Logged, x: Matrix, train_rows: NDArray[np.bool_]) -> Climbs:
        setting = TrainingSettings(folds=2)  # only the held-out curve, which jobs don't read, is made by folds
        known, asked = estimated_parts(logged, x, train_rows, setting)
        return cls(routed_cascade(train(known, setting), known), asked.logged, asked.prices.read)

    def widen(self, job: Estimates, budget_usd: float) -> Estimates:
        """The job with arms that climb."""
        named = tuple(Arm(name) for name in self.tested.data.models)
        read = np.maximum(self.read_usd, job.cost_usd).astype(np.float32)
        return with_climbs(_renamed(job, named), self.cascade, budget_usd, Objective(), read_usd=read)

    def outcomes(self, job: Estimates, arm: NDArray[np.int16]) -> tuple[Matrix, Matrix]:
        """Dollars paid and score of every test row, each by its arm."""
        data, rows = self.tested.data, np.arange(len(arm))
        column = [data.models.index(one.model) for one in job.arms]
        own = np.array(column)[arm]
        paid, score = data.cost_usd[rows, own].copy(), data.scores[rows, own].copy()
        for row in np.flatnonzero([job.arms[place].rule >= 0 for place in arm]).tolist():
            paid[row], score[row] = self._climbed(job, row, job.arms[arm[row]])
        return paid, score

    def _climbed(self, job: Estimates, row: int, arm: Arm) -> tuple[float, float]:
        data = self.tested.data
        told = [
            Estimate(model, float(job.quality[row, j]), 0.0, float(job.cost_usd[row, j]))
            for j, model in enumerate(data.models)
        ]
        chances = {one.model: 1.0 for one in told}
        choice = Choice(arm.model, 1.0, chances, tuple(told), {}, "planned", "batch@1", data.models)
        worst = dict.fromkeys(data.models, float(np.nanmax(data.checked_cost_usd)))
        request = PlanRequest(choice, worst, Limits(max_attempts=4))
        plan = self.cascade.plan_from(request, arm.model, self.cascade.rules[arm.rule])
        verdict = replayed(plan, LoggedModels(self.tested, row))
        return verdict.spent_usd, float(data.scores[row, data.models.index(verdict.model)])


def _renamed(job: Estimates, arms: tuple[Arm, ...]) -> Estimates:
    parts: dict[str, Any] = job.arrays()
    return Estimates(arms=arms, **parts)
