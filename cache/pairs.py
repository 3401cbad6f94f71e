"""How well two questions are told apart outside of any stream: labelled pairs, learnt on other questions."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from cache.judge import Floats
from cache.pair_rule import Pair, fit_pair_rule, groups


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
    """Learn a pair rule on the pairs of one half of the questions and measure on those of the other.

    Questions that any chain of pairs joins are on the same side, so that none is seen on both.
    """
    from sklearn.metrics import roc_auc_score

    learnt_from = [_heads(group, seed) for group in groups(pairs)]
    train = [pair for pair, ours in zip(pairs, learnt_from, strict=True) if ours]
    test = [pair for pair, ours in zip(pairs, learnt_from, strict=True) if not ours]
    truth = np.array([pair[2] for pair in test], bool)
    if min(truth.sum(), (~truth).sum()) < 10:
        raise ValueError("too few pairs of either kind to measure on")
    rule = fit_pair_rule(train, cosines(train, vectors), embedder="", seed=seed)
    cosine = cosines(test, vectors)
    scores = np.array([rule.score(one, other, near) for (one, other, _), near in zip(test, cosine, strict=True)])
    return PairFigures(
        pairs=len(test),
        cosine_share=share_at_precision(cosine, truth, 0.9),
        learned_share=share_at_precision(scores, truth, 0.9),
        cosine_auc=float(roc_auc_score(truth, cosine)),
        learned_auc=float(roc_auc_score(truth, scores)),
    )


def cosines(pairs: list[Pair], vectors: dict[str, NDArray[np.float32]]) -> Floats:
    """Cosines of each pair's vectors, which are of unit length."""
    return np.array([float(vectors[one] @ vectors[other]) for one, other, _ in pairs])


def _heads(text: str, seed: int) -> bool:
    return hashlib.blake2b(f"{seed} {text}".encode(), digest_size=1).digest()[0] < 128


def share_at_precision(scores: Floats, truth: NDArray[np.bool_], precision: float) -> float:
    """The largest share of pairs, best first, that is right this often."""
    order = np.argsort(-scores, kind="stable")
    reached = np.cumsum(truth[order]) / np.arange(1, len(order) + 1)
    within = np.flatnonzero(reached >= precision)
    return float((within[-1] + 1) / len(order)) if len(within) else 0.0
