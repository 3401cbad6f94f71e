"""A mean over rounds and how far it may lie from the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean over rounds with its 95 % half width by Student's t, for rounds are few; of one there is none."""
    from scipy.stats import t

    n, half = len(values), math.nan
    if n > 1:
        half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return {"value": float(np.mean(values)), "half_width": half}


def times(more: Sequence[float], less: Sequence[float]) -> dict[str, float]:
    """`spread` of each round's ratio."""
    return spread((np.array(more) / np.array(less)).tolist())


def shown(figure: dict[str, float], unit: str = ".2f") -> str:
    """A figure as a table shows it."""
    return f"{figure['value']:{unit}} (+-{figure['half_width']:{unit}})"
