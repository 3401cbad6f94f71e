"""`headgate keep`: which few models serve the queries of a folder best within cost, latency and memory.

Subsets are chosen on training rows by out-of-fold estimates (`routers.subset`); what they were worth is read from the
test rows, where their outcomes are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import Matrix
from routers.intervals import half_width
from routers.outcomes import DataError, read_outcomes
from routers.subset import Limits, NoSubset, SubsetChoice, gated, judged, kept
from routers.subset_fit import SubsetRows, expected

Vector = NDArray[np.float64]

FLEET_MOST = 256
"""Most models to choose from."""


@dataclass(frozen=True, slots=True)
class SubsetLimits:
    """The limits that loaded models must keep."""

    most: int
    """Most models at once; subsets of one, two, ... models are shown."""
    means: Mapping[str, float]
    """`cost_usd`, `latency_s`: most per query, on average."""
    sizes: Mapping[str, float]
    """Memory of every model, in any one unit; empty: it does not matter."""
    memory: float = inf


@dataclass(frozen=True, slots=True)
class Subset:
    """The best subset of its size."""

    models: tuple[str, ...]
    expected: float
    """Mean quality by the estimates it was chosen by."""
    spent: dict[str, float]
    """Mean per query on the test rows, estimated where it is not known."""
    quality: float | None
    """Mean on the test rows whose outcome is known; None where these are less than half."""
    against_all: float | None
    """Quality minus that of all models loaded."""
    half_width: float | None
    """95 % half width of `against_all`."""


def subsets_of(folder: Path, estimator: str, wanted: SubsetLimits) -> list[Subset]:
    """The best subset of every size, of the models that have a price. DataError where the data does not tell,
    NoSubset where none keeps the limits.
    """
    data = read_outcomes(folder)
    priced = np.isfinite(data.cost_usd)
    mean = np.where(priced, data.cost_usd, 0.0).sum(0) / np.maximum(priced.sum(0), 1)
    cheap_first = np.argsort(mean, kind="stable")  # of models that are worth as much, the first is kept
    data = data.columns([data.models[j] for j in cheap_first.tolist() if priced[:, j].any()])
    train, test, models = expected(data, estimator, FLEET_MOST)
    for name in wanted.means:
        if name not in train.expected.spends:
            raise DataError(f"outcomes.parquet: {name} is not known of every outcome, so it can't be limited")
    fleet = replace(train.expected, memory=_memory(models, wanted))
    every = judged(fleet, Limits(len(models), wanted.means), range(len(models)))
    found: list[Subset] = []
    for size in range(1, min(wanted.most, len(models)) + 1):
        try:
            choice = kept(fleet, Limits(size, wanted.means, wanted.memory))
        except NoSubset:
            continue
        if every is not None and (not found or len(choice.models) > len(found[-1].models)):
            found.append(_told(choice, every, test, models))
    if not found:
        many = f"{wanted.most} or fewer of {len(models)} models"
        raise NoSubset(f"no subset of {many} keeps these limits: raise one of them")
    return found


def _memory(models: Sequence[str], wanted: SubsetLimits) -> Vector | None:
    if not wanted.sizes:
        if wanted.memory < inf:
            raise DataError("a memory limit needs every model's size: --sizes NAME=GB,...")
        return None
    unknown = [name for name in models if name not in wanted.sizes]
    if unknown:
        raise DataError(f"--sizes: nothing is said of {', '.join(unknown)}")
    return np.array([wanted.sizes[name] for name in models])


def _told(choice: SubsetChoice, whole: SubsetChoice, test: SubsetRows, models: Sequence[str]) -> Subset:
    rows = np.arange(len(test.scores))
    picks, every = (gated(one, test.expected.quality, test.expected.spends) for one in (choice, whole))
    score, gap = test.scores[rows, picks], test.scores[rows, picks] - test.scores[rows, every]
    there = np.isfinite(gap)
    score, gap, known = score[there], gap[there], there.mean() >= 0.5 and there.sum() > 1
    spent = {name: _known_or(spend, test.expected.spends[name])[rows, picks] for name, spend in test.spends.items()}
    return Subset(
        tuple(models[j] for j in choice.models), choice.worth,
        {name: float(spend.mean()) for name, spend in spent.items()},
        float(score.mean()) if known else None,
        float(gap.mean()) if known else None,
        half_width(gap) if known else None,
    )  # fmt: skip


def _known_or(known: Matrix, estimated: Matrix) -> Matrix:
    return np.where(np.isfinite(known), known, estimated)


def as_table(found: Sequence[Subset]) -> str:
    """A line per size."""
    lines = []
    for one in found:
        spent = "  ".join(f"{name} {value:.3g}" for name, value in one.spent.items())
        gap = "" if one.against_all is None else f"  {one.against_all:+.4f} +- {one.half_width:.4f} against all loaded"
        worth = f"expected {one.expected:.4f}" if one.quality is None else f"quality {one.quality:.4f}"
        lines.append(f"{len(one.models)}: {worth}{gap}  {spent}  {', '.join(one.models)}")
    return "\n".join(lines)


def as_dicts(found: Sequence[Subset]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(one) for one in found]
