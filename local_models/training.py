"""What trainings of a language model on questions and answers share: batches, the learning rate's course, the score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

IGNORED = -100
"""Target of a position that carries no loss."""
OnStep = Callable[[int, float], None]
"""Called after every step with its number and loss."""
Pair = tuple[list[int], list[int]]
"""Token ids of a question as the chat template writes it, and of its answer with the end token."""


def collate(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Inputs and targets (rows, time), padded on the right with token 0; only answers carry a loss."""
    length = max(len(prompt) + len(answer) for prompt, answer in pairs) - 1
    inputs = torch.zeros((len(pairs), length), dtype=torch.long)
    targets = torch.full((len(pairs), length), IGNORED)
    for row, (prompt, answer) in enumerate(pairs):
        ids = torch.tensor(prompt + answer)
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    return inputs, targets


def cosine_schedule(step: int, steps: int, warm_up: int) -> float:
    """Share of the learning rate at a step: a linear rise over `warm_up` steps times a half cosine down to 2 %."""
    return min(1.0, (step + 1) / warm_up) * max(0.02, 0.5 * (1 + math.cos(math.pi * step / steps)))


def exact_match(logits: Callable[[Tensor], Tensor], pairs: Sequence[Pair], batch: int = 64) -> float:
    """Share of questions whose whole greedy answer is the given one; NaN without any question. `logits` gives
    (rows, time, vocabulary) for token ids (rows, time).

    Computed with the given answer as input: greedy decoding is right exactly when every token's argmax is.
    """
    hits = 0
    with torch.inference_mode():
        for at in range(0, len(pairs), batch):
            inputs, targets = collate(pairs[at : at + batch])
            chosen = logits(inputs).argmax(-1)
            hits += int(((chosen == targets) | (targets == IGNORED)).all(-1).sum())
    return hits / len(pairs) if pairs else math.nan
