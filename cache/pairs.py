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
    """Learn on two thirds of the questions and measure on pairs of the others.

    A pair belongs to a side when both questions do, so no question is seen on both.
    """
    from sklearn.metrics import roc_auc_score

    train = [pair for pair in pairs if _side(pair[0], seed) and _side(pair[1], seed)]
    test = [pair for pair in pairs if not _side(pair[0], seed) and not _side(pair[1], seed)]
    vocabulary = Vocabulary()
    for pair in train:
        vocabulary.learn(read(pair[0]))
        vocabulary.learn(read(pair[1]))
    right = np.array([pair[2] for pair in train])
    truth = np.array([pair[2] for pair in test])
    cosine = np.array([vectors[one] @ vectors[other] for one, other, _ in test])
    scores = _learned(_features(train, vectors, vocabulary), right, _features(test, vectors, vocabulary), seed)
    return PairFigures(
        pairs=len(test),
        cosine_share=share_at_precision(cosine, truth, 0.9),
        learned_share=share_at_precision(scores, truth, 0.9),
        cosine_auc=float(roc_auc_score(truth, cosine)),
        learned_auc=float(roc_auc_score(truth, scores)),
    )


def share_at_precision(scores: Floats, truth: NDArray[np.bool_], precision: float) -> float:
    """The largest share of pairs, best first, that is right this often."""
    order = np.argsort(-scores, kind="stable")
    reached = np.cumsum(truth[order]) / np.arange(1, len(order) + 1)
    within = np.flatnonzero(reached >= precision)
    return float((within[-1] + 1) / len(order)) if len(within) else 0.0


def _side(text: str, seed: int) -> bool:
    return hashlib.blake2b(f"{seed} {text}".encode(), digest_size=4).digest()[0] < 170


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
