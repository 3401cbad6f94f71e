"""Logged answers with everything a replayed climb needs: scores, both costs, confidences, latencies, agreement.

Every model must have answered every query that is kept: a climb may ask any of them. Rows with a gap are dropped and
counted; a folder without confidences and without responses is refused, for a cascade would have nothing to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascade.agreement import agreements
from routers.estimators.base import Matrix
from routers.outcomes import DataError, Outcomes, read_outcomes


@dataclass(frozen=True, slots=True)
class Logged:
    """n queries by m models, without gaps in scores and costs."""

    data: Outcomes
    answers: tuple[tuple[str, ...], ...]
    """Response texts, (n, m); empty where the data has none."""
    agreement: Matrix
    """(n, m, m)."""
    dropped: int = 0
    """Rows that had a gap."""

    def rows(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> Logged:
        places = np.arange(len(self.answers))[kept].tolist()
        answers = tuple(self.answers[i] for i in places)
        return Logged(self.data.rows(kept), answers, self.agreement[kept], self.dropped)


def read_logged(folder: Path, tasks: Sequence[str] = ()) -> Logged:
    """The folder's complete rows, of those tasks where any are named. DataError where a cascade has nothing to read."""
    data = read_outcomes(folder)
    checked = np.where(np.isfinite(data.checked_cost_usd), data.checked_cost_usd, data.cost_usd)
    data = replace(data, checked_cost_usd=checked)
    answers = _answers(folder, data)
    if not np.isfinite(data.confidence).any() and not any(map(any, answers)):
        raise DataError(f"{folder}: neither confidence nor response: a cascade has nothing to read")
    whole = np.isfinite(data.scores).all(1) & np.isfinite(data.cost_usd).all(1)
    if tasks:
        whole &= np.isin(np.array(data.tasks), list(tasks))
    if not whole.any():
        raise DataError(f"{folder}: no query (of those tasks) was answered, with its cost, by every model")
    kept = np.flatnonzero(whole)
    texts = tuple(answers[i] for i in kept.tolist())
    table = np.stack([agreements(row) if any(row) else np.eye(len(row)) for row in texts])
    return Logged(data.rows(kept), texts, table, int((~whole).sum()))


def _answers(folder: Path, data: Outcomes) -> list[tuple[str, ...]]:
    from pyarrow.parquet import read_table

    row = {query_id: i for i, query_id in enumerate(data.query_ids)}
    column = {model: j for j, model in enumerate(data.models)}
    texts = [[""] * len(data.models) for _ in data.query_ids]
    table = read_table(folder / "outcomes.parquet")
    if "response" in table.column_names:
        cells = (table[name].to_pylist() for name in ("query_id", "model", "response"))
        for query_id, model, text in zip(*cells, strict=True):
            texts[row[str(query_id)]][column[str(model)]] = text or ""
    return [tuple(row) for row in texts]
