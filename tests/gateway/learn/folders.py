"""Outcome folders written by tests: texts whose words determine which model is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EASY = ["add two small numbers", "name the colour of the sky", "count the apples in a basket"]
HARD = ["prove the theorem about prime ideals", "derive the quantum field equation", "solve the nonlinear integral"]
COSTS = {"small": 1e-5, "middle": 1e-4, "large": 1e-3}


def right(model: str, hard: bool) -> float:
    return {"small": 0.9 - 0.7 * hard, "middle": 0.88 - 0.4 * hard, "large": 0.9 - 0.1 * hard}[model]


def write_folder(
    folder: Path,
    n: int = 240,
    seed: int = 0,
    models: tuple[str, ...] = ("small", "middle", "large"),
    priced: bool = True,
) -> Path:
    """Queries of two kinds, 70 % in train; `small` is as good as `large` on the easy ones."""
    rng = np.random.default_rng(seed)
    queries: dict[str, list[Any]] = {"query_id": [], "text": [], "task": [], "split": []}
    outcomes: dict[str, list[Any]] = {"query_id": [], "model": [], "score": [], "cost_usd": []}
    for i in range(n):
        hard = bool(rng.random() < 0.5)
        queries["query_id"].append(f"q{i}")
        queries["text"].append(f"{(HARD if hard else EASY)[int(rng.integers(3))]} number {int(rng.integers(100))}")
        queries["task"].append("hard" if hard else "easy")
        queries["split"].append("train" if i % 10 < 7 else "test")
        for model in models:
            outcomes["query_id"].append(f"q{i}")
            outcomes["model"].append(model)
            outcomes["score"].append(float(rng.random() < right(model, hard)))
            outcomes["cost_usd"].append(COSTS[model] * (1 + rng.random()))
    if not priced:
        del outcomes["cost_usd"]
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(queries), folder / "queries.parquet")
    pq.write_table(pa.table(outcomes), folder / "outcomes.parquet")
    return folder
