"""`headgate probe`: which outcomes to buy next, so that the best model is known after a small part of the table.

Reads a folder whose table has gaps; a model without any outcome may be named too. Refuses to guess what an outcome will
be: where the next purchase depends on this one the plan ends, and is asked for again with the answers.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from routers.outcomes import DataError, read_outcomes
from routers.probing import Leaderboard, leaderboard, planned, shared_order


@dataclass(frozen=True, slots=True)
class Plan:
    """The present leaderboard of the models, and the outcomes to buy, in order."""

    models: tuple[str, ...]
    asked: tuple[int, ...]
    known: Leaderboard
    cells: tuple[tuple[str, str], ...]
    """(query_id, model)."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON. A model that nobody asked has neither mean nor error."""
        told = zip(self.models, self.asked, self.known.mean.tolist(), self.known.error.tolist(), strict=True)
        wanted = [model for _, model in self.cells]
        return {
            "models": {
                model: {
                    "asked": n, "mean": mean if n else None, "error": error if n else None,
                    "buy": wanted.count(model),
                }
                for model, n, mean, error in told
            },
            "leader": self.models[self.known.leader],
            "settled": self.known.settled,
            "outcomes": len(self.cells),
        }  # fmt: skip

    def write(self, path: Path) -> None:
        """A CSV file of `query_id,model`."""
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("query_id", "model"), *self.cells])


def plan_of(folder: Path, models: Sequence[str] = (), cells: int = 100, seed: int = 0) -> Plan:
    """The next outcomes to buy, at most `cells`, of these models (default: all of the data), on queries that are not
    for testing. Raises DataError where there are fewer than two models.
    """
    data = read_outcomes(folder, unanswered=True)
    data = data.rows(data.splits != "test")
    names = tuple(models) or data.models
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"models: {', '.join(names)}: two or more different ones are needed")
    scores = np.full((len(data.texts), len(names)), np.nan)
    for j, name in enumerate(names):
        if name in data.models:
            scores[:, j] = data.scores[:, data.models.index(name)]
    if not np.isfinite(scores).any():
        raise DataError("outcomes.parquet: none of these models was asked a query that is not for testing")
    batches = planned(scores, shared_order(scores, seed), cells)
    wanted = tuple((data.query_ids[i], names[j]) for j, rows in batches for i in rows.tolist())
    return Plan(names, tuple(np.isfinite(scores).sum(0).tolist()), leaderboard(scores), wanted)
