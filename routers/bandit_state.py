"""The sufficient statistics of a linear bandit, and the ridge regression that they determine, with a part shared by all
models and a part of each model.

The statistics are sums over answers. Every replica keeps its own and adds the others' when it reads them, so nothing is
counted twice or lost, in whatever order they arrive. Sums of another shape are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from operator import itemgetter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from routers.estimators.base import packed, unpacked

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shrinkage:
    """Ridge penalties on the corrections, in answers; `noise` is the prior variance of one score around its mean."""

    shared: float = 20.0
    own: float = 400.0
    """On each model's own slopes."""
    level: float = 5.0
    """On each model's own mean: with noise .2 its prior standard deviation is .2."""
    noise: float = 0.2


@dataclass(slots=True)
class BanditState:
    """Sums over scored answers of m models and queries z of d + 1 numbers, the last of which is 1. `gram` (m, d + 1, d
    + 1) sums z z^T; `quality` and `cost` (m, d + 1) sum z times what the base router did not expect of either.
    """

    models: tuple[str, ...]
    gram: Array
    quality: Array
    cost: Array
    squares: float = 0.0
    """Sum of squared unexpected quality, from which the noise is estimated."""

    @classmethod
    def empty(cls, models: Sequence[str], dims: int) -> Self:
        m, d = len(models), dims + 1
        return cls(tuple(models), np.zeros((m, d, d)), np.zeros((m, d)), np.zeros((m, d)))

    @property
    def counts(self) -> Array:
        """Number of answers seen of each model, (m,); forgotten ones count in part."""
        return np.asarray(self.gram[:, -1, -1])

    def learn(self, z: Array, model: str, quality: float, cost_usd: float = 0.0) -> None:
        """Add one scored answer, with its quality and cost beyond what the base router expected."""
        j = self.place(model)
        self.gram[j] += np.outer(z, z)
        self.quality[j] += quality * z
        self.cost[j] += cost_usd * z
        self.squares += quality * quality

    def amend(self, z: Array, model: str, before: float, after: float) -> None:
        """Replace the quality of an answer that was added before, beyond what the base router expected."""
        self.quality[self.place(model)] += (after - before) * z
        self.squares += after * after - before * before

    def place(self, model: str) -> int:
        """The model's column; a new one is added."""
        if model not in self.models:
            self.models = (*self.models, model)
            for name in ("gram", "quality", "cost"):
                held = getattr(self, name)
                setattr(self, name, np.concatenate([held, np.zeros((1, *held.shape[1:]))]))
        return self.models.index(model)

    def fade(self, factor: float) -> None:
        """Scale all that was learned by `factor`, so that later answers count more."""
        self.gram *= factor
        self.quality *= factor
        self.cost *= factor
        self.squares *= factor

    def merged(self, other: BanditState) -> BanditState:
        """A new state that has seen the answers of both."""
        both = BanditState(self.models, self.gram.copy(), self.quality.copy(), self.cost.copy(), self.squares)
        for model in other.models:
            both.place(model)
        to = [both.models.index(model) for model in other.models]
        both.gram[to] += other.gram
        both.quality[to] += other.quality
        both.cost[to] += other.cost
        both.squares += other.squares
        return both

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The sums by name, for an artefact or a shared store."""
        return {"gram": self.gram, "quality": self.quality, "cost": self.cost, "squares": np.array([self.squares])}

    @classmethod
    def restored(cls, models: Sequence[str], arrays: Mapping[str, NDArray[Any]]) -> Self:
        gram, quality, cost = (arrays[name].astype(np.float64) for name in ("gram", "quality", "cost"))
        return cls(tuple(models), gram, quality, cost, float(arrays["squares"][0]))

    def to_bytes(self) -> bytes:
        from safetensors.numpy import save

        data: bytes = save({**self.arrays(), "models": packed(self.models)})
        return data

    @classmethod
    def from_bytes(cls, data: bytes, dims: int) -> Self:
        """The state that `to_bytes` wrote. Raises ValueError where the bytes hold no sums over queries on `dims` axes.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(data)
            state = cls.restored(unpacked(arrays["models"]), arrays)
        except (SafetensorError, KeyError, IndexError) as error:
            raise ValueError(f"no sums of a bandit: {error}") from error
        m, d = len(state.models), dims + 1
        if state.gram.shape != (m, d, d) or state.quality.shape != (m, d) or state.cost.shape != (m, d):
            raise ValueError(f"sums over {state.gram.shape[-1] - 1} axes, not {dims}")
        return state


@dataclass(frozen=True, slots=True)
class Posterior:
    """The posterior that a state determines: weights on the query, (m, d + 1) each, and the covariance of each model's
    own part, (m, d + 1, d + 1), in units of the noise.
    """

    models: tuple[str, ...]
    quality: Array
    cost: Array
    covariance: Array
    noise: float
    common: Array
    """The part of `quality` that all models share, (d + 1,)."""
    levels: Array
    """Standard deviation of each model's own mean over the queries seen, (m,)."""
    log_volume: float
    """Logarithm of the determinant of the covariance of all weights, shared and own, in units of the noise."""
    place: Mapping[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", {model: j for j, model in enumerate(self.models)})

    def correction(self, z: Array) -> tuple[Array, Array, Array]:
        """Corrections of quality, its standard deviation, and cost, per model."""
        m, d = self.quality.shape
        spread = (self.covariance.reshape(m * d, d) @ z).reshape(m, d) @ z
        return self.quality @ z, np.sqrt(self.noise * np.maximum(spread, 0.0)), self.cost @ z


OWN_TRIED = (1.0, 0.25, 0.08, 0.025)
"""Shares of the stated penalty on own slopes that are compared by evidence."""
NOISE_COUNTS = 300.0
"""Number of answers that the stated noise counts as."""
CENTRED_COUNTS = 10.0
"""Number of queries that the prior belief in axes of mean zero and unit spread counts as."""


def fitted(state: BanditState, shrink: Shrinkage) -> Posterior:
    """The posterior under the noise and the penalty on own slopes that have the most evidence (type-II likelihood,
    MacKay 1992, Bayesian interpolation), which the sums alone determine.

    The penalty is at most the stated one. With few answers the stated values hold; where models really differ by query,
    the penalty falls. Penalties apply to axes that are moved to mean zero and unit spread over the queries seen.
    """
    move = _centring(state)
    gram = move @ state.gram @ move.T
    moved = replace(state, gram=gram, quality=state.quality @ move.T, cost=state.cost @ move.T)
    tried = [replace(shrink, own=shrink.own * share) for share in OWN_TRIED]
    weighed = [_weighed(moved, posterior(moved, one), one) for one in tried]
    best = max(weighed, key=itemgetter(0))[1]
    return replace(
        best, quality=best.quality @ move, cost=best.cost @ move, covariance=move.T @ best.covariance @ move,
        common=best.common @ move, levels=np.sqrt(best.noise * best.covariance[:, -1, -1]),
    )  # fmt: skip


def _centring(state: BanditState) -> Array:
    """Matrix (d + 1, d + 1) that moves the axes to mean zero and unit spread over the queries seen; near the identity
    while few were seen.
    """
    total = state.gram.sum(0)
    rows = float(total[-1, -1])
    share = rows / (rows + CENTRED_COUNTS)
    mean = share * total[-1, :-1] / max(rows, 1e-9)
    spread = np.diag(total)[:-1] / max(rows, 1e-9) - (total[-1, :-1] / max(rows, 1e-9)) ** 2
    scale = 1.0 / np.sqrt(np.maximum(share * spread + 1.0 - share, 0.01))
    move = np.diag(np.append(scale, 1.0))
    move[:-1, -1] = -mean * scale
    return np.asarray(move)


def _weighed(state: BanditState, fit: Posterior, shrink: Shrinkage) -> tuple[float, Posterior]:
    """Log evidence of the unexpected quality under those penalties, up to a constant, and the posterior with the noise
    estimated from the answers and the stated noise.
    """
    (m, d), c = state.quality.shape, fit.common
    rows = float(state.counts.sum())
    left = state.quality - state.gram @ c
    explained = np.einsum("ki,kij,kj->", left, fit.covariance, left) + float(
        ((2 * state.quality - state.gram @ c) @ c).sum()
    )
    penalty = shrink.shared * float(c[:-1] @ c[:-1]) + float(c[-1]) ** 2
    missed = max(state.squares - explained + penalty, 1e-6 * state.squares)
    noise = (missed + NOISE_COUNTS * shrink.noise) / (rows + NOISE_COUNTS)
    width = fit.log_volume + m * (d - 1) * log(shrink.own)
    return 0.5 * (width - (rows + NOISE_COUNTS) * log(noise)), replace(fit, noise=noise)


def posterior(state: BanditState, shrink: Shrinkage) -> Posterior:
    """The posterior under those penalties: ridge regression on shared and own parts, with the own parts eliminated
    block by block.
    """
    d = state.quality.shape[1]
    own = np.diag(np.append(np.full(d - 1, shrink.own), shrink.level))
    shared = np.diag(np.append(np.full(d - 1, shrink.shared), 1.0))
    covariance = np.asarray(np.linalg.inv(state.gram + own), np.float64)
    pulled = state.gram @ covariance
    left = shared + (state.gram - pulled @ state.gram).sum(0)

    def solved(moment: Array) -> tuple[Array, Array]:
        right = (moment - np.einsum("kij,kj->ki", pulled, moment)).sum(0)
        common = np.linalg.solve(left, right)
        own = np.einsum("kij,kj->ki", covariance, moment - state.gram @ common)
        return np.asarray(common + own), np.asarray(common)

    quality, common = solved(state.quality)
    levels = np.sqrt(shrink.noise * covariance[:, -1, -1])
    volume = float(np.linalg.slogdet(covariance)[1].sum() - np.linalg.slogdet(left)[1])
    return Posterior(state.models, quality, solved(state.cost)[0], covariance, shrink.noise, common, levels, volume)
