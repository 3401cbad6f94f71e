"""Risk-coverage curves: what share of answers may be given at what share of wrong ones, by how sure one is of each.

The measure of selective prediction (El-Yaniv & Wiener 2010; area under the curve after Geifman, Uziel & El-Yaniv 2019).
A curve tells how well a confidence ranks answers: its thresholds are set in hindsight, so it promises nothing; what
`cascade.calibrate.abstention` certifies does. Raw confidence knows more of some answers than the calibrated one: a
climb abstains before the last model is asked, so that nobody pays for an answer that is not given. Intervals are 95 %
percentile bootstraps over queries: the same resamples serve every split and every confidence, so differences are
paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix
from routers.evaluate import RESAMPLES, with_interval
from routers.intervals import resampled_counts

CALIBRATED, RAW, HINDSIGHT = "calibrated", "raw_confidence", "perfect"


@dataclass(frozen=True, slots=True)
class Given:
    """The answers of one split's test rows, (k,) each, and how sure they are by each confidence."""

    rows: NDArray[np.intp]
    """Rows of the log."""
    score: Matrix
    sure: Mapping[str, Matrix]
    """By the name of a confidence; NaN where it is unknown for an answer, which is then withheld first."""


def risk_coverage(
    splits: Sequence[Given], n: int, risks: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Coverage at each risk and the area under the curve, means over splits of a log of `n` rows: by each confidence,
    by a perfect one, and the risk without abstention. Calibrated beside raw confidence, where there is a raw one.
    """
    counts = resampled_counts(n, resamples, seed)
    weights = np.concatenate([np.ones((1, n)), counts])
    names = [name for name in splits[0].sure if all(np.isfinite(one.sure[name]).any() for one in splits)]
    found = {name: _mean_of([figures(one.sure[name], one.score, weights[:, one.rows], risks) for one in splits])
             for name in names}  # fmt: skip
    found[HINDSIGHT] = _mean_of([figures(one.score, one.score, weights[:, one.rows], risks) for one in splits])
    nothing = _mean_of([{"risk": 1.0 - _weighted(one.score, weights[:, one.rows])} for one in splits])
    if {CALIBRATED, RAW} <= found.keys():
        both = found[CALIBRATED], found[RAW]
        found[f"{CALIBRATED}_minus_{RAW}"] = {key: value - both[1][key] for key, value in both[0].items()}
    return {name: {key: with_interval(float(value[0]), value[1:].tolist()) for key, value in each.items()}
            for name, each in {**found, "no_abstention": nothing}.items()}  # fmt: skip


def figures(sure: Matrix, score: Matrix, weights: Matrix, risks: Sequence[float]) -> dict[str, Matrix]:
    """Highest coverage at each risk and the area under the curve, (b,) each, for rows of `weights` (b, k). Answers as
    sure as each other are given in no order: each as likely wrong as any of them.
    """
    sure = np.where(np.isfinite(sure), sure, -np.inf)
    order = np.argsort(-sure, kind="stable")
    fall = -sure[order]
    first, end = np.searchsorted(fall, fall, side="left"), np.searchsorted(fall, fall, side="right")
    drawn = weights[:, order]
    given, wrong = (np.pad(one.cumsum(1), ((0, 0), (1, 0))) for one in (drawn, drawn * (1.0 - score[order])))
    alike = np.maximum(given[:, end] - given[:, first], 1e-12)
    wrong = wrong[:, first] + (given[:, 1:] - given[:, first]) * (wrong[:, end] - wrong[:, first]) / alike
    given = given[:, 1:]
    risk = np.divide(wrong, given, out=np.zeros_like(given), where=given > 0)
    whole = drawn.sum(1)
    covered = {f"coverage_at_risk_{r:.2f}": np.where(risk <= r + 1e-9, given, 0.0).max(1) / whole for r in risks}
    return {**covered, "area": (drawn * risk).sum(1) / whole}


def _weighted(score: Matrix, weights: Matrix) -> Matrix:
    return np.asarray(weights @ score / weights.sum(1))


def _mean_of(splits: Sequence[Mapping[str, Matrix]]) -> dict[str, Matrix]:
    return {key: np.mean([one[key] for one in splits], axis=0) for key in splits[0]}
