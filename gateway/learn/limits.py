"""`headgate limits`: estimates from the journal how many tokens an answer of each model should be allowed.

An answer cut at its limit says only that more was needed, so shares of finished answers are product-limit estimates
(`routers.censored`). A limit's worth is the quality of answers that finish within it minus the price of the tokens,
spent on cut ones too, at the route's cost weight. Refuses to name a best limit from few answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gateway.journal.record import DecisionRecord
from gateway.learn.dataset import Log
from gateway.learn.gate import reference_of
from routers.censored import LimitArms
from routers.select import DEFAULT_COST_WEIGHT, exchange_rate
from routers.types import Candidate, Knobs

LEAST_ANSWERS = 50
SHORTEST = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """The estimates for one model."""

    model: str
    answers: int
    """Number of scored answers."""
    cut: int
    """Number of scored answers that reached their limit."""
    tokens: tuple[int, ...]
    finished: tuple[float, ...]
    """Share of answers that need no more than so many tokens."""
    worth: tuple[float, ...]
    """Quality minus the price of tokens, in quality points."""

    @property
    def best(self) -> int | None:
        """The best limit in tokens; None where there are too few answers."""
        return self.tokens[int(np.argmax(self.worth))] if self.answers >= LEAST_ANSWERS else None

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "best": self.best}


def limits_of(log: Log, candidates: list[Candidate], stated: Mapping[str, int], knobs: Knobs) -> list[Limits]:
    """Of every candidate that answered. `stated`: each model's own limit, in force where a request has none."""
    weight = DEFAULT_COST_WEIGHT if knobs.cost_weight is None else knobs.cost_weight
    rate = min(exchange_rate(weight), 1e3) / reference_of(log)
    found = []
    for one in candidates:
        seen = [
            (used, min(record.max_output_tokens or stated[one.model], stated[one.model]), score)
            for record, score in zip(log.records, log.score.tolist(), strict=True)
            if np.isfinite(score) and (used := _output_of(record, one.model))
        ]
        if seen:
            found.append(_told(one.model, seen, rate * one.output_usd_per_mtok / 1e6))
    return found


def _output_of(record: DecisionRecord, model: str) -> int:
    """Tokens of the answer; 0: that model did not give it."""
    if record.answered_model != model:
        return 0
    answer = record.answer_of(model)
    return 0 if answer is None else answer.usage.get("output", 0) + answer.usage.get("reasoning", 0)


def _told(model: str, seen: list[tuple[int, int, float]], price: float) -> Limits:
    """`seen`: tokens used, the limit they had, and the score."""
    most = max(used for used, _, _ in seen)
    grid = [SHORTEST]
    while grid[-1] <= most:
        grid.append(2 * grid[-1])
    arms, cut = LimitArms(np.array(grid, np.float64), price), 0
    for used, limit, score in seen:
        if used < limit:
            arms.learn(len(grid) - 1, used, score)
            continue
        cut += 1
        reached = int(np.searchsorted(grid, used, side="right")) - 1
        if reached >= 0:
            arms.learn(reached, float(grid[reached]), 0.0)
    within, worth = arms.within(), arms.values(width=0.0)
    return Limits(model, len(seen), cut, tuple(grid), tuple(within.tolist()), tuple(worth.tolist()))
