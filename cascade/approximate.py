"""A small model of a big one's answers, for a narrow route that asks the same kind of thing all day.

Where a route's answers come from a short list (labels, yes or no, a department), a multinomial regression on query
vectors learns them from the big model's logged answers and stands in the cascade as its cheapest rung (FrugalGPT's LLM
approximation, Chen et al. 2023). It refuses routes whose answers are not a short list, and says how sure it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from cascade.agreement import answer_key
from cascade.types import Evidence

Matrix = NDArray[np.float64]
MOST_ANSWERS = 64
LEAST_OF_EACH = 5
NARROW = 0.9
"""Share of the logged answers that the short list must cover."""


class NotNarrow(ValueError):
    """The route's answers are too many or too few to be learnt as a list."""


@dataclass(frozen=True, slots=True)
class Approximation:
    """Weights (d + 1, answers), and the answers as the big model words them."""

    answers: tuple[str, ...]
    weights: Matrix

    def answer(self, vector: NDArray[np.floating]) -> tuple[str, float]:
        """The likeliest answer and its probability."""
        p = _softmax(np.append(1.0, vector) @ self.weights)
        best = int(p.argmax())
        return self.answers[best], float(p[best])

    def evidence(self, vector: NDArray[np.floating]) -> Evidence:
        """As a rung's answer: its probability stands where a language model's log-probability would."""
        text, p = self.answer(vector)
        return Evidence(mean_logprob=log(max(p, 1e-12)), min_logprob=log(max(p, 1e-12)), output_tokens=1, text=text)


def approximate(vectors: Matrix, answers: Sequence[str], penalty: float = 1.0, steps: int = 200) -> Approximation:
    """Learnt from the big model's logged answers. NotNarrow where they are no short list."""
    keys = [str(answer_key(text)) for text in answers]
    counts = Counter(keys)
    listed = [key for key, count in counts.most_common(MOST_ANSWERS) if count >= LEAST_OF_EACH]
    if len(listed) < 2:
        raise NotNarrow(f"{len(listed)} answers were seen {LEAST_OF_EACH} times or more; two are needed")
    covered = sum(counts[key] for key in listed) / len(keys)
    if covered < NARROW:
        raise NotNarrow(f"the {len(listed)} commonest answers cover {covered:.0%} of the log, less than {NARROW:.0%}")
    place = {key: i for i, key in enumerate(listed)}
    kept = np.array([key in place for key in keys])
    target = np.zeros((int(kept.sum()), len(listed)))
    target[np.arange(len(target)), [place[key] for key in keys if key in place]] = 1.0
    x = np.column_stack([np.ones(len(target)), vectors[kept]])
    wording = tuple(answers[keys.index(key)].strip() for key in listed)
    return Approximation(wording, _descend(x, target, penalty, steps))


def _descend(x: Matrix, target: Matrix, penalty: float, steps: int) -> Matrix:
    """Penalised multinomial regression by accelerated gradient steps of the Lipschitz size."""
    ridge = np.full((x.shape[1], 1), penalty)
    ridge[0] = 1e-3
    rate = 1.0 / (0.5 * float(np.linalg.eigvalsh(x.T @ x)[-1]) + penalty)
    w = ahead = np.zeros((x.shape[1], target.shape[1]))
    for step in range(steps):
        moved = ahead - rate * (x.T @ (_softmax(x @ ahead) - target) + ridge * ahead)
        ahead = moved + (step / (step + 3.0)) * (moved - w)
        w = moved
    return np.asarray(w)


def _softmax(z: Matrix) -> Matrix:
    shifted = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))
