"""Corrects reported shares for the errors of the judge (Rogan and Gladen 1978).

A judge calls a cached answer right or wrong, and sometimes errs. Its two error rates are estimated on pairs whose truth
is known and subtracted from what it reports; their own uncertainty is added to the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Z95_ONE_SIDED = 1.645
"""One-sided 95 %."""


@dataclass(frozen=True, slots=True)
class JudgeError:
    """Error rates of a judge, measured on `n_same` equal and `n_other` different pairs of answers."""

    false_wrong: float = 0.0
    """Share of equal pairs called different."""
    false_right: float = 0.0
    """Share of different pairs called equal."""
    n_same: int = 0
    n_other: int = 0

    def __post_init__(self) -> None:
        if not (self.false_wrong >= 0 and self.false_right >= 0 and self.false_wrong + self.false_right < 0.9):
            raise ValueError("a judge that errs this often says nothing")

    @classmethod
    def measured(cls, on_same: list[bool], on_other: list[bool]) -> JudgeError:
        """From the verdicts ("right") on pairs known to be equal, and on pairs known to be different."""
        return cls(
            _share(on_same.count(False), len(on_same)),
            _share(on_other.count(True), len(on_other)),
            len(on_same),
            len(on_other),
        )

    def called_wrong(self, share: float) -> float:
        """The share that the judge calls wrong where a share `share` is wrong."""
        return self.false_wrong + (1.0 - self.false_wrong - self.false_right) * share

    def correct(self, share: Floats, upper: Floats) -> tuple[Floats, Floats]:
        """The true share of wrong answers and its upper bound, from the share that the judge called wrong and its upper
        bound.
        """
        sharpness = 1.0 - self.false_wrong - self.false_right
        true_share = np.clip((share - self.false_wrong) / sharpness, 0.0, 1.0)
        doubt = np.square(Z95_ONE_SIDED * _sd(self.false_wrong, self.n_same) * (1 - true_share))
        doubt = doubt + np.square(Z95_ONE_SIDED * _sd(self.false_right, self.n_other) * true_share)
        width = np.sqrt(np.square(upper - share) + doubt) / sharpness
        return true_share, np.minimum(true_share + width, 1.0)


def _share(count: int, n: int) -> float:
    return count / n if n else 0.0


def _sd(share: float, n: int) -> float:
    """Standard error of a share; 0 where it was stated and not measured (n is 0)."""
    return math.sqrt((share * (1 - share) + 1 / n) / n) if n else 0.0
