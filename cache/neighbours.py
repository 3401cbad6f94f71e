"""The nearest entries of a question, their vote for an answer, and the features of that vote."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.classes import AnswerClass
from cache.words import WORD_FEATURES, Vocabulary, Wording

_SHARPNESS = 12.0
"""A neighbour's vote falls by e for each 1/12 of cosine."""
FEATURES = 15 + WORD_FEATURES
"""Number of features of the learned rule."""


class Item:
    """A cached question: the key of its answer, and its class."""

    __slots__ = ("_class", "entry_id", "expires_s", "key", "label", "partition", "tenant", "text")

    def __init__(
        self, label: int, entry_id: str, key: bytes, tenant: str, partition: bytes, text: str, expires_s: float
    ) -> None:
        self.label = label
        self.entry_id = entry_id
        self.key = key
        self.tenant = tenant
        self.partition = partition
        self.text = text
        self.expires_s = expires_s
        self._class = AnswerClass()

    @property
    def answer_class(self) -> AnswerClass:
        """The class it is of by now."""
        return self._class.root()

    def belong(self, answer_class: AnswerClass, wording: Wording) -> None:
        """Move an item from its class to another."""
        old = self.answer_class
        if old is not answer_class.root():
            if old.size:
                old.part(wording)
            answer_class.root().join(wording)
            self._class = answer_class


@dataclass(slots=True)
class Neighbours:
    """The nearest items, nearest first, and their vote."""

    items: list[Item]
    near: list[float]
    classes: list[AnswerClass]
    best: AnswerClass
    best_vote: float
    """Share of the votes for the best class."""
    second: AnswerClass | None
    second_vote: float
    crowd: float = 0.0
    """Mean cosine of the items to each other."""
    kin: float = 0.0
    """The same among those of the best class; the nearest's own cosine where there is but one."""

    def of_best(self) -> list[tuple[Item, float]]:
        """The items of the best class with their cosines."""
        return [(i, s) for i, s, c in zip(self.items, self.near, self.classes, strict=True) if c is self.best]

    def first_of(self, answer_class: AnswerClass) -> Item:
        """The nearest item of a class."""
        return self.items[self.classes.index(answer_class)]


def vote(items: list[Item], near: list[float], vectors: NDArray[np.float32] | None = None) -> Neighbours:
    """Let the nearest items vote for their classes; `vectors`: where they lie, one a row.

    How near they are to each other tells what "near" means there: a question that lies farther from them than they
    from each other is likely a new one (the idea of the local outlier factor, Breunig et al. 2000).
    """
    classes = [item.answer_class for item in items]
    votes: dict[int, float] = {}
    for answer_class, cosine in zip(classes, near, strict=True):
        vote = math.exp(_SHARPNESS * (cosine - near[0]))
        votes[id(answer_class)] = votes.get(id(answer_class), 0.0) + vote
    total = sum(votes.values())
    ranked = sorted({id(c): c for c in classes}.values(), key=lambda c: -votes[id(c)])
    second = ranked[1] if len(ranked) > 1 else None
    share = votes[id(ranked[0])] / total
    second_share = votes[id(second)] / total if second else 0.0
    found = Neighbours(items, near, classes, ranked[0], share, second, second_share)
    if vectors is not None:
        rows = [row for row, answer_class in enumerate(classes) if answer_class is ranked[0]]
        found.crowd = _mean_cosine(vectors, near[0])
        found.kin = found.crowd if len(rows) == len(near) else _mean_cosine(vectors[rows], near[rows[0]])
    return found


def _mean_cosine(vectors: NDArray[np.float32], alone: float) -> float:
    """Mean cosine of unit vectors to each other."""
    n = len(vectors)
    if n == 1:
        return alone
    total = vectors.sum(0)
    return (float(total @ total) - n) / (n * (n - 1))


def features(
    found: Neighbours,
    cosine: float,
    asked: Wording,
    held: Wording,
    vocabulary: Vocabulary,
    k: int,
    *,
    pair_score: float = 0.0,
) -> list[float]:
    """Features of a candidate of the best class at `cosine`, (FEATURES,); `pair_score`: the score that a pair rule
    gives it.
    """
    of_best = [s for s, c in zip(found.near, found.classes, strict=True) if c is found.best]
    others = [s for s, c in zip(found.near, found.classes, strict=True) if c is not found.best]
    best = found.best
    vote = found.best_vote
    return [
        cosine,
        cosine - (others[0] if others else found.near[-1]),
        len(of_best) / k,
        vote,
        sum(found.near) / len(found.near),
        math.log1p(best.size),
        math.log((best.right + 1) / (best.wrong + 1)),
        sum(of_best) / k,
        cosine * cosine,
        vote * vote,
        cosine * vote,
        float(best.right == 0),
        found.crowd,
        found.kin,
        *vocabulary.compare(asked, held, best.words),
        pair_score,
    ]
