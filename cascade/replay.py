"""Replays climbs on logged answers: what they would have kept, paid and waited for.

Charges what the data says was paid: the self-check's price where a rung's confidence was read, the answer's alone where
it was not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from msgspec import structs

from cascade.climb import climb
from cascade.logs import Logged
from cascade.types import Evidence, Outcome, Plan, Rung, Verdict

NO_JITTER = 0.0


@dataclass(frozen=True, slots=True)
class LoggedModels:
    """Answers rungs for one query from the log."""

    logged: Logged
    row: int

    def answer(self, rung: Rung, elapsed_s: float) -> Outcome:
        """The rung's outcome, with those of the rungs beside it; they end together with the slowest."""
        first, *rest = (self._one(one, elapsed_s) for one in (rung, *rung.beside))
        ended_s = max(outcome.elapsed_s for outcome in (first, *rest))
        return structs.replace(first, elapsed_s=ended_s, beside=tuple(rest))

    def _one(self, rung: Rung, elapsed_s: float) -> Outcome:
        data, j = self.logged.data, self.logged.data.models.index(rung.model)
        paid = data.checked_cost_usd if rung.reads_confidence else data.cost_usd
        latency_s = float(np.nan_to_num(data.latency_s[self.row, j]))
        logprob = float(data.confidence[self.row, j]) if rung.reads_confidence else float("nan")
        return Outcome(
            rung.model,
            evidence=Evidence(logprob, logprob, text=self.logged.answers[self.row][j]),
            cost_usd=float(paid[self.row, j]),
            elapsed_s=elapsed_s + rung.delay_s + latency_s,
            latency_s=latency_s,
        )


def replayed(plan: Plan, models: LoggedModels) -> Verdict:
    """Climb one logged query to its verdict."""
    climbing, outcome = climb(plan, repeat(NO_JITTER)), None
    while True:
        try:
            rung = climbing.send(outcome) if outcome else next(climbing)
        except StopIteration as stop:
            verdict: Verdict = stop.value
            return verdict
        elapsed_s = outcome.elapsed_s if outcome else 0.0
        outcome = models.answer(rung, elapsed_s)


@dataclass(frozen=True, slots=True)
class Replayed:
    """Means over replayed queries."""

    score: float
    cost_usd: float
    latency_s: float
    calls: float
    answered: float
    """Share of queries with an answer kept."""


def replay_all(plans: Sequence[Plan], logged: Logged) -> Replayed:
    """One plan per row of the log; an abstention scores nothing."""
    places = {model: j for j, model in enumerate(logged.data.models)}
    scores, costs, waits, calls = [], [], [], []
    for row, plan in enumerate(plans):
        verdict = replayed(plan, LoggedModels(logged, row))
        scores.append(np.nan if verdict.kept is None else logged.data.scores[row, places[verdict.model]])
        costs.append(verdict.spent_usd)
        waits.append(verdict.outcomes[-1].elapsed_s if verdict.outcomes else 0.0)
        calls.append(verdict.attempts)
    kept = np.isfinite(scores)
    return Replayed(
        score=float(np.where(kept, scores, 0.0).mean()),
        cost_usd=float(np.mean(costs)),
        latency_s=float(np.mean(waits)),
        calls=float(np.mean(calls)),
        answered=float(kept.mean()),
    )
