"""What a bandit has seen of models, as sums, and what those sums say: a ridge regression on shared and own parts.

Sums over answers add up, so every replica keeps its own and reads the others' beside it: nothing is counted twice and
nothing is lost, whatever arrives when. Refuses sums of another shape than its own.
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
    """How far corrections may go, as ridge penalties; noise is the variance of one score around its mean."""

    shared: float = 20.0
    own: float = 400.0
    """Of each model's own slopes."""
    level: float = 5.0
    """Of each model's own mean: with noise .2 it may lie .2 off what the base expects."""
    noise: float = 0.2


@dataclass(slots=True)
class BanditState:
    """Sums over scored answers: (m, d + 1, d + 1) second moments of the query, (m, d + 1) moments with
    what the base router did not expect of quality and cost. The last entry of a query is 1.
    """

    models: tuple[str, ...]
    gram: Array
    quality: Array
    cost: Array
    squares: float = 0.0
    """Of unexpected quality, for the noise."""

    @classmethod
    def empty(cls, models: Sequence[str], dims: int) -> Self:
        m, d = len(models), dims + 1
        return cls(tuple(models), np.zeros((m, d, d)), np.zeros((m, d)), np.zeros((m, d)))

    @property
    def counts(self) -> Array:
        """Answers seen of each model, faded ones in part."""
        return np.asarray(self.gram[:, -1, -1])

    def learn(self, z: Array, model: str, quality: float, cost_usd: float = 0.0) -> None:
        """One scored answer: what its quality and cost were beyond what the base router expected."""
        j = self.place(model)
        self.gram[j] += np.outer(z, z)
        self.quality[j] += quality * z
        self.cost[j] += cost_usd * z
        self.squares += quality * quality

    def amend(self, z: Array, model: str, by: float) -> None:
        """The quality of an answer counted before turns out to be `by` higher."""
        self.quality[self.place(model)] += by * z

    def place(self, model: str) -> int:
        """The model's column; a new one is added."""
        if model not in self.models:
            self.models = (*self.models, model)
            for name in ("gram", "quality", "cost"):
                held = getattr(self, name)
                setattr(self, name, np.concatenate([held, np.zeros((1, *held.shape[1:]))]))
        return self.models.index(model)

    def fade(self, factor: float) -> None:
        """What was learnt so far counts only `factor` as much as what comes: for a world that drifts."""
        self.gram *= factor
        self.quality *= factor
        self.cost *= factor
        self.squares *= factor

    def merged(self, other: BanditState) -> BanditState:
        """The state that has seen the answers of both replicas."""
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
        """For an artefact or a shared store."""
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
        """ValueError where these are no sums over queries on `dims` axes."""
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
    """What a state says of each model: weights on the query (m, d + 1) and how unsure the model's own
    part is.
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
    place: Mapping[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "place", {model: j for j, model in enumerate(self.models)})

    def correction(self, z: Array) -> tuple[Array, Array, Array]:
        """Corrections of quality, its standard deviation, and cost, per model."""
        m, d = self.quality.shape
        spread = (self.covariance.reshape(m * d, d) @ z).reshape(m, d) @ z
        return self.quality @ z, np.sqrt(self.noise * np.maximum(spread, 0.0)), self.cost @ z


OWN_TRIED = (1.0, 0.25, 0.08, 0.025)
"""Of the stated penalty on own slopes."""
NOISE_COUNTS = 300.0
"""Answers that the stated noise counts as."""
CENTRED_COUNTS = 10.0
"""Queries that axes of mean zero and unit spread count as."""


def fitted(state: BanditState, shrink: Shrinkage) -> Posterior:
    """The posterior under the noise and the penalty on own slopes, at most the stated one, that the answers speak for.

    Their evidence (type-II likelihood: MacKay 1992, Bayesian interpolation) needs nothing but the sums. Few answers
    keep what was stated, for little can be read out of them; models that really differ by query free themselves.
    Penalties are on axes of mean zero and unit spread over the queries seen, wherever those lie on the axes given.
    """
    move = _centring(state)
    gram = move @ state.gram @ move.T
    moved = replace(state, gram=gram, quality=state.quality @ move.T, cost=state.cost @ move.T)
    tried = [replace(shrink, own=shrink.own * share) for share in OWN_TRIED]
    told = [_weighed(moved, posterior(moved, one), one) for one in tried]
    best = max(told, key=itemgetter(0))[1]
    return replace(
        best, quality=best.quality @ move, cost=best.cost @ move, covariance=move.T @ best.covariance @ move,
        common=best.common @ move, levels=np.sqrt(best.noise * best.covariance[:, -1, -1]),
    )  # fmt: skip


def _centring(state: BanditState) -> Array:
    """(d + 1, d + 1): takes axes to such of mean zero and unit spread; near the identity where few rows are known."""
    total = state.gram.sum(0)
    rows = float(total[-1, -1])
    share = rows / (rows + CENTRED_COUNTS)
    mean = share * total[-1, :-1] / max(rows, 1e-9)
    spread = np.diag(total)[:-1] / max(rows, 1e-9) - (total[-1, :-1] / max(rows, 1e-9)) ** 2
    scale = 1.0 / np.sqrt(np.maximum(share * spread + 1.0 - share, 0.01))
    move = np.diag(np.append(scale, 1.0))
    move[:-1, -1] = -mean * scale
    return np.asarray(move)


def _weighed(state: BanditState, told: Posterior, shrink: Shrinkage) -> tuple[float, Posterior]:
    """Log likelihood of what was unexpected, the own parts integrated out, up to what no penalty changes; and the
    posterior with its noise, which counts the stated one as so many answers more.
    """
    (m, d), c = state.quality.shape, told.common
    rows = float(state.counts.sum())
    left = state.quality - state.gram @ c
    explained = np.einsum("ki,kij,kj->", left, told.covariance, left) + float(
        ((2 * state.quality - state.gram @ c) @ c).sum()
    )
    missed = max(state.squares - explained + shrink.shared * float(c[:-1] @ c[:-1]), 1e-6 * state.squares)
    noise = (missed + NOISE_COUNTS * shrink.noise) / (rows + NOISE_COUNTS)
    width = float(np.linalg.slogdet(told.covariance)[1].sum()) + m * (d - 1) * log(shrink.own)
    return 0.5 * (width - (rows + NOISE_COUNTS) * log(noise)), replace(told, noise=noise)


def posterior(state: BanditState, shrink: Shrinkage) -> Posterior:
    """Ridge on shared plus own parts, solved by eliminating the own parts block by block."""
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
    return Posterior(state.models, quality, solved(state.cost)[0], covariance, shrink.noise, common, levels)
