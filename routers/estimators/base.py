"""The interface of quality estimators: they learn from a matrix of scores with gaps and predict a mean and its standard
deviation per model.

Constructors store parameters unchanged, learned arrays end in `_`, and `fit` returns self (scikit-learn's conventions).
Only arrays are learned, so that an artefact needs no pickle. Fitting may import scikit-learn; predicting needs only
numpy.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Rows = NDArray[np.floating[Any]]
"""Query vectors, (n, d), in float32 or float64."""


@dataclass(frozen=True, slots=True)
class Training:
    """Rows to learn from: vectors `x` (n, d), `scores` and `costs` (n, m) in the order of `models`, NaN where a model's
    answer was not observed. Raises ValueError where the shapes differ or no score was observed.
    """

    x: Matrix
    scores: Matrix
    tasks: Sequence[str]
    models: Sequence[str]
    seed: int = 0
    costs: Matrix | None = None
    sources: Sequence[str] = ()
    """A label of each row that is finer than its task; empty where there is none."""

    def __post_init__(self) -> None:
        n, m = self.scores.shape
        if len(self.x) != n or len(self.tasks) != n or len(self.models) != m:
            raise ValueError(
                f"{n} x {m} scores, but {len(self.x)} vectors, {len(self.tasks)} tasks and {len(self.models)} models"
            )
        if self.sources and len(self.sources) != n:
            raise ValueError(f"{n} rows, but {len(self.sources)} sources")
        if n == 0 or not np.isfinite(self.scores).any():
            raise ValueError("no score to learn from")

    def rows(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Training:
        """The training data of those rows alone."""
        places = np.arange(len(self.x))[index]
        tasks = [self.tasks[i] for i in places.tolist()]
        costs = None if self.costs is None else self.costs[places]
        sources = [self.sources[i] for i in places.tolist()] if self.sources else ()
        return Training(self.x[places], self.scores[places], tasks, self.models, self.seed, costs, sources)


class Estimator(ABC):
    """Predicts quality per model. Subclasses name their parameters and learned arrays for artefacts."""

    kind: ClassVar[str]
    PARAMETERS: ClassVar[tuple[str, ...]] = ()
    LEARNED: ClassVar[tuple[str, ...]] = ()
    COMPARED_ROWS: ClassVar[int] = 0
    """Training rows on which the scores of two models must differ, at least. With fewer, `fit` may learn nothing but
    each model's mean, so `routers.fit` refuses to train."""

    @abstractmethod
    def fit(self, data: Training) -> Self:
        """Learn from the observed scores."""

    @abstractmethod
    def predict(self, x: Matrix, tasks: Sequence[str] | None = None) -> tuple[Matrix, Matrix]:
        """Mean quality in [0, 1] and the standard deviation of that mean, both (n, m).

        `tasks` are given only where the task's name is known before the answer; most estimators don't read them.
        """

    def for_jobs(self) -> Estimator:
        """The estimator to plan batch jobs with. In a job the prompts compete for one budget, so the size of the
        differences between models matters, not only their order.
        """
        return self

    def parameters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.PARAMETERS}

    def state(self) -> dict[str, NDArray[Any]]:
        """Every learned array by name."""
        return {name: np.asarray(getattr(self, name)) for name in self.LEARNED}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Put learned arrays back. Raises KeyError with the name of a missing one."""
        for name in self.LEARNED:
            setattr(self, name, state[name])
        return self


def observed_mean(scores: Matrix, prior_count: float = 4.0) -> Matrix:
    """Mean score per model, shrunk toward the mean of all models by `prior_count` pseudo-observations."""
    seen = np.isfinite(scores)
    overall = float(scores[seen].mean())
    total = np.where(seen, scores, 0.0).sum(0)
    return np.asarray((total + prior_count * overall) / (seen.sum(0) + prior_count))


def compared(scores: Matrix) -> NDArray[np.bool_]:
    """Whether the scores of two models differ on a row, (n,)."""
    seen = np.isfinite(scores)
    return np.asarray(np.where(seen, scores, -np.inf).max(1) > np.where(seen, scores, np.inf).min(1))


def deviation_of_mean(mean: Matrix, counts: Matrix) -> Matrix:
    """Standard deviation of a mean of `counts` scores in [0, 1], as if each were 0 or 1; their variance is taken to be
    at least .01.
    """
    return np.asarray(np.sqrt(np.maximum(mean * (1 - mean), 0.01) / counts))


def unit(x: Matrix) -> Matrix:
    """Rows of unit length; a zero row stays zero."""
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9))


def softmax(logits: Matrix) -> Matrix:
    """Softmax of each row."""
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))


def folds(keys: Iterable[Hashable], k: int, seed: int) -> NDArray[np.intp]:
    """Fold number of each row, (n,), drawn at random. Rows with equal keys share a fold, because an estimator that
    learned from one of them has seen the others; with fewer than 2 k different keys, each row is drawn by itself.
    """
    first = firsts(keys)
    if len(np.unique(first)) < 2 * k:
        first = np.arange(len(first))
    return np.asarray(np.random.default_rng(seed).permutation(np.arange(len(first)) % k), np.intp)[first]


def firsts(keys: Iterable[Hashable]) -> NDArray[np.intp]:
    """The number of the first row with the same key, for each row, (n,)."""
    place: dict[Hashable, int] = {}
    return np.array([place.setdefault(key, row) for row, key in enumerate(keys)], np.intp)


def row_keys(x: Rows) -> Iterator[bytes]:
    """A key for each row. Rows that are equal to six decimals have the same key."""
    return (row.tobytes() for row in np.round(x, 6) + 0.0)


def parted(scores: Matrix, difficulty: Matrix | None = None) -> tuple[Matrix, Matrix]:
    """Split scores, after subtracting each model's mean, into a level per row (n,) and each model's deviation from it
    (n, m), which is NaN where nothing was observed.

    Only the deviation decides between models, so it may be regularised apart from the level. A row with one observation
    can't tell the two apart; its level is then `difficulty`, the level that was predicted for it (None: zero).
    """
    residual = scores - observed_mean(scores)
    seen = np.isfinite(residual)
    count = seen.sum(1)
    mean = np.where(seen, residual, 0.0).sum(1) / np.maximum(count, 1)
    alone = np.zeros(len(scores)) if difficulty is None else difficulty
    level = np.where(count >= 2, mean, alone)
    return level, residual - level[:, None]


def packed(names: Sequence[str]) -> NDArray[np.uint8]:
    """Names as an array of bytes, because artefacts hold arrays only."""
    return np.frombuffer(json.dumps(list(names)).encode(), np.uint8).copy()


def unpacked(array: NDArray[np.uint8]) -> list[str]:
    names: list[str] = json.loads(array.tobytes())
    return names


def task_table(scores: Matrix, tasks: Sequence[str], prior_count: float) -> tuple[list[str], Matrix, Matrix]:
    """The tasks' names (t), the mean score per task and model (t, m), shrunk toward the model's mean by `prior_count`
    pseudo-observations, and the number of observations behind each mean (t, m).
    """
    names = sorted(set(tasks))
    rows = np.array([names.index(task) for task in tasks])
    base = observed_mean(scores, min(prior_count, 4.0))
    seen = np.isfinite(scores)
    total = np.zeros((len(names), scores.shape[1]))
    count = np.zeros_like(total)
    np.add.at(total, rows, np.where(seen, scores, 0.0))
    np.add.at(count, rows, seen)
    return names, (total + prior_count * base) / (count + prior_count), count
