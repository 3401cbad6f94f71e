"""How well two questions are told apart outside of any stream: labelled pairs, learnt on other questions."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from cache.guard import contradiction
from cache.judge import Floats
from cache.words import Vocabulary, read

Pair = tuple[str, str, bool]


@dataclass(frozen=True, slots=True)
class PairFigures:
    """Shares of test pairs that may be served at a precision of .90, and areas under the ROC curve."""

    pairs: int
    cosine_share: float
    learned_share: float
    cosine_auc: float
    learned_auc: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


def judge_pairs(pairs: list[Pair], vectors: dict[str, NDArray[np.float32]], *, seed: int) -> PairFigures:
    """Learn on the pairs of one half of the questions and measure on those of the other.

    Questions that any chain of pairs joins are on the same side, so that none is seen on both.
    """
    from sklearn.metrics import roc_auc_score

    side = _sides(pairs, seed)
    train = [pair for pair in pairs if side[pair[0]]]
    test = [pair for pair in pairs if not side[pair[0]]]
    vocabulary = Vocabulary()
    for pair in train:
        vocabulary.learn(read(pair[0]))
        vocabulary.learn(read(pair[1]))
    right = np.array([pair[2] for pair in train], bool)
    truth = np.array([pair[2] for pair in test], bool)
    if min(right.sum(), (~right).sum(), truth.sum(), (~truth).sum()) < 10:
        raise ValueError("too few pairs of either kind to learn from and to measure on")
    cosine = np.array([vectors[one] @ vectors[other] for one, other, _ in test])
    by_vector, by_vector_test = _by_vectors(_products(train, vectors), right, _products(test, vectors))
    scores = _learned(
        np.column_stack([_features(train, vectors, vocabulary), by_vector]),
        right,
        np.column_stack([_features(test, vectors, vocabulary), by_vector_test]),
        seed,
    )
    return PairFigures(
        pairs=len(test),
        cosine_share=share_at_precision(cosine, truth, 0.9),
        learned_share=share_at_precision(scores, truth, 0.9),
        cosine_auc=float(roc_auc_score(truth, cosine)),
        learned_auc=float(roc_auc_score(truth, scores)),
    )


def _sides(pairs: list[Pair], seed: int) -> dict[str, bool]:
    parent: dict[str, str] = {}

    def root(text: str) -> str:
        while parent.setdefault(text, text) != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    for one, other, _ in pairs:
        parent[root(one)] = root(other)
    return {text: _heads(root(text), seed) for text in list(parent)}


def _heads(text: str, seed: int) -> bool:
    return hashlib.blake2b(f"{seed} {text}".encode(), digest_size=1).digest()[0] < 128


def _products(pairs: list[Pair], vectors: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """In which directions two vectors agree and differ, dimension by dimension."""
    one = np.array([vectors[pair[0]] for pair in pairs])
    other = np.array([vectors[pair[1]] for pair in pairs])
    scale = np.float32(one.shape[1] ** 0.5)
    return np.hstack([one * other * scale**2, np.abs(one - other) * scale])


def _by_vectors(
    train: NDArray[np.float32], right: NDArray[np.bool_], test: NDArray[np.float32], folds: int = 3
) -> tuple[Floats, Floats]:
    """A linear score of the products: of each training row by a model that has not seen it."""
    from sklearn.linear_model import LogisticRegression

    def fitted(rows: NDArray[np.intp]) -> LogisticRegression:
        return LogisticRegression(C=0.01, max_iter=60, tol=1e-3).fit(train[rows], right[rows])

    fold = np.arange(len(train)) * folds // len(train)
    scores = np.zeros(len(train))
    for number in range(folds):
        held = fold == number
        scores[held] = fitted(np.flatnonzero(~held)).decision_function(train[held])
    return scores, fitted(np.arange(len(train))).decision_function(test)


def share_at_precision(scores: Floats, truth: NDArray[np.bool_], precision: float) -> float:
    """The largest share of pairs, best first, that is right this often."""
    order = np.argsort(-scores, kind="stable")
    reached = np.cumsum(truth[order]) / np.arange(1, len(order) + 1)
    within = np.flatnonzero(reached >= precision)
    return float((within[-1] + 1) / len(order)) if len(within) else 0.0


def _features(pairs: list[Pair], vectors: dict[str, NDArray[np.float32]], vocabulary: Vocabulary) -> Floats:
    rows = []
    for one, other, _ in pairs:
        ours, theirs = read(one), read(other)
        objection = contradiction(one, other, ours, theirs) is not None
        there = vocabulary.compare(ours, theirs, dict.fromkeys(theirs.content, 3))
        back = vocabulary.compare(theirs, ours, dict.fromkeys(ours.content, 3))
        cosine = float(vectors[one] @ vectors[other])
        rows.append([cosine, float(objection), *there[:9], *np.add(there[9:], back[9:]), len(ours.tokens)])
    return np.array(rows)


def _learned(train: Floats, right: NDArray[np.bool_], test: Floats, seed: int) -> Floats:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(max_iter=300, learning_rate=0.06, random_state=seed)
    scores: Floats = model.fit(train, right).predict_proba(test)[:, 1]
    return scores
