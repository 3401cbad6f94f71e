"""The rules that the learned one is measured against: a fixed threshold, and vCache's threshold per entry."""

from __future__ import annotations

import math
import random

import numpy as np

from cache.acceptance import fit_logistic
from cache.judge import Floats

_TABLE = {6: 0.0354, 7: 0.0283, 8: 0.0264, 9: 0.0213, 10: 0.0194, 11: 0.0126, 12: 0.0114, 48: 0.0151}
"""Variance of the threshold where right and wrong are separable, by number of observations (vCache)."""
_EPSILONS = np.linspace(1e-6, 1 - 1e-6, 50)


class StaticRule:
    """Serve at a cosine of `threshold` or more."""

    inserts_always = True

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def serves(self, label: int, cosine: float) -> bool:
        """Whether the nearest entry is served."""
        return cosine >= self.threshold

    def observe(self, label: int, cosine: float, right: bool) -> None:
        """A fixed threshold learns nothing."""


class EntryRule:
    """vCache (Schroeder et al., arXiv 2502.03771, algorithm 1): each entry learns its own threshold.

    It bounds P(wrong answer served) over all requests by `delta`, given a sigmoid of the cosine per entry.
    Written from the paper's mathematics; entries are inserted only where the nearest one's answer was wrong.
    """

    inserts_always = False

    def __init__(self, delta: float, rng: random.Random) -> None:
        if not 0.0 < delta < 1.0:
            raise ValueError(f"delta must be in (0, 1), not {delta}")
        self._delta = delta
        self._rng = rng
        self._seen: dict[int, list[tuple[float, bool]]] = {}
        self._fits: dict[int, tuple[float, float, float]] = {}

    def serves(self, label: int, cosine: float) -> bool:
        """Whether the nearest entry is served, by a draw that explores as often as the bound asks."""
        if len(self._seen.get(label, ())) < 4:
            return False
        if label not in self._fits:
            self._fits[label] = self._fit(label)
        slope, threshold, variance = self._fits[label]
        return self._rng.random() > self._explore(cosine, slope, threshold, variance)

    def observe(self, label: int, cosine: float, right: bool) -> None:
        """Take in whether the nearest entry's answer was right."""
        self._seen.setdefault(label, []).append((cosine, right))
        self._fits.pop(label, None)

    def _explore(self, cosine: float, slope: float, threshold: float, variance: float) -> float:
        """tau = min over eps of 1 - delta / (1 - (1 - eps) L(s, t'(eps), g)): the share to explore."""
        quantiles = _normal_quantile(1 - _EPSILONS)
        above = np.clip(threshold + quantiles * math.sqrt(variance), 0, 1)
        alpha = (1 - _EPSILONS) / (1 + np.exp(-np.clip(slope * (cosine - above), -50, 50)))
        return float(np.min(1 - self._delta / np.maximum(1 - alpha, 1e-12)))

    def _fit(self, label: int) -> tuple[float, float, float]:
        seen = [(0.0, False), (1.0, True), *self._seen[label]]
        near = np.array([cosine for cosine, _ in seen])
        right = np.array([float(good) for _, good in seen])
        design = np.column_stack([np.ones(len(near)), near])
        fitted = fit_logistic(design, right, np.ones(len(near)), l2=1e-4, rounds=40)
        bias = float(fitted[0])
        slope = max(float(fitted[1]), 1e-6)
        threshold = min(1.0, max(0.0, -bias / slope))
        if near[right == 1].min() > near[right == 0].max():
            return slope, threshold, _TABLE[max(n for n in _TABLE if n <= max(6, len(seen)))]
        return slope, threshold, _delta_method(design, bias, slope)


def _delta_method(design: Floats, bias: float, slope: float) -> float:
    p = 1 / (1 + np.exp(-np.clip(design @ np.array([bias, slope]), -30, 30)))
    bend = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
    gradient = np.array([-1 / slope, bias / slope**2])
    return min(max(float(gradient @ np.linalg.solve(bend, gradient)), 0.0), 1.0)


def _normal_quantile(p: Floats) -> Floats:
    from scipy.special import ndtri

    quantile: Floats = ndtri(p)
    return quantile
