"""A synthetic world of logged answers: easy and hard questions, a small and a large model, calibrated confidences."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cascade.agreement import agreements
from cascade.logs import Logged
from cascade.posterior import Prices, Scene, logit, shown
from cascade.rows import EstimatedRows
from routers.outcomes import Outcomes
from routers.types import Choice, Estimate

MODELS = ("small", "middle", "large")
COSTS_USD = (1e-5, 5e-5, 3e-4)
LEVELS = (0.55, 0.75, 0.9)
LETTERS = "ABCDE"
WORST = dict.fromkeys(MODELS, 1e-3)
"""The largest cost of an attempt on each model, in US dollars."""


def logged(n: int = 300, seed: int = 0, *, check_usd: float = 0.0) -> Logged:
    """Right answers are `A`, wrong ones another letter; right answers have a higher confidence."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    scores = (rng.random((n, 3)) < np.clip(np.array(LEVELS) + 0.6 * (0.5 - hard[:, None]), 0.02, 0.98)).astype(float)
    sure = np.where(scores > 0, rng.beta(8, 1.5, (n, 3)), rng.beta(4, 3, (n, 3)))
    answers = tuple(tuple("A" if s else LETTERS[1 + rng.integers(4)] for s in row) for row in scores)
    cost = np.tile(COSTS_USD, (n, 1)) * rng.uniform(0.8, 1.2, (n, 1))
    texts = tuple(f"{'hard' if h > 0.5 else 'easy'} question number {i}" for i, h in enumerate(hard))
    blank = np.full((n, 3), np.nan)
    data = Outcomes(
        tuple(f"q{i}" for i in range(n)), texts, ("quiz",) * n, np.array([""] * n), MODELS, scores, cost,
        cost + check_usd, blank, blank, np.tile((0.1, 0.3, 0.6), (n, 1)), np.log(sure), blank,
    )  # fmt: skip
    return Logged(data, answers, np.stack([agreements(row) for row in answers]))


def part(n: int = 300, seed: int = 0, check_usd: float = 0.0) -> EstimatedRows:
    """Logged rows with the models' mean scores as the router's estimates."""
    log = logged(n, seed, check_usd=check_usd)
    prior = logit(np.tile(log.data.scores.mean(0), (n, 1)))
    scene = Scene(prior, shown(np.exp(log.data.confidence)), log.agreement)
    return EstimatedRows(log, scene, Prices(log.data.cost_usd, log.data.checked_cost_usd))


def choice(*models: str) -> Choice:
    """A router's choice of the first of these models, with their true scores and costs as estimates."""
    estimates = [Estimate(m, LEVELS[MODELS.index(m)], 0.1, COSTS_USD[MODELS.index(m)]) for m in models]
    return Choice(models[0], 1.0, dict.fromkeys(models, 1 / len(models)), estimates, {}, "", "r@1", models)


def write(log: Logged, folder: Path) -> None:
    """Write outcome data in a user's format."""
    import pyarrow
    from pyarrow import parquet

    data = log.data
    queries = {"query_id": list(data.query_ids), "task": list(data.tasks), "text": list(data.texts)}
    queries["split"] = [str(split) for split in data.splits]
    cells = [(i, j) for i in range(len(data.query_ids)) for j in range(len(data.models))]
    outcomes = {
        "query_id": [data.query_ids[i] for i, _ in cells],
        "model": [data.models[j] for _, j in cells],
        "score": [float(data.scores[i, j]) for i, j in cells],
        "cost_usd": [float(data.checked_cost_usd[i, j]) for i, j in cells],
        "answer_cost_usd": [float(data.cost_usd[i, j]) for i, j in cells],
        "confidence": [float(data.confidence[i, j]) for i, j in cells],
        "response": [log.answers[i][j] for i, j in cells],
    }
    parquet.write_table(pyarrow.table(queries), folder / "queries.parquet")
    parquet.write_table(pyarrow.table(outcomes), folder / "outcomes.parquet")
