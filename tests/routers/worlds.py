"""Small synthetic worlds with known true values, and values that tests pass to routers."""

from __future__ import annotations

import numpy as np

from routers.estimators.base import Matrix, Training
from routers.types import Candidate, Query

SMALL = Candidate("small", 0.1, 0.4, context_tokens=8_000)
MIDDLE = Candidate("middle", 0.5, 2.0, context_tokens=32_000)
LARGE = Candidate("large", 3.0, 15.0, context_tokens=200_000)
POOL = (SMALL, MIDDLE, LARGE)
MODELS = ("small", "middle", "large")


def query(text: str = "What is the capital of France?", **known: object) -> Query:
    """A query without a meaningful vector."""
    return Query(text, np.zeros(4, np.float32), "none", **{"input_tokens": 20, **known})  # type: ignore[arg-type]


def world(n: int = 400, d: int = 8, seed: int = 0, missing: float = 0.0) -> tuple[Training, Matrix]:
    """Training rows and their true probabilities of success: `large` is best except where x[0] is high."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    logits = np.stack([-0.5 + 1.5 * x[:, 0], 0.4 + 0.3 * x[:, 1], 1.2 - 0.8 * x[:, 0]], 1)
    truth = 1.0 / (1.0 + np.exp(-logits))
    scores = (rng.random(truth.shape) < truth).astype(float)
    scores[rng.random(scores.shape) < missing] = np.nan
    tasks = ["easy" if first > 0 else "hard" for first in x[:, 0]]
    return Training(x, scores, tasks, MODELS, seed), truth
