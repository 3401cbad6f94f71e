"""The nearest neighbours among a stream's questions, computed once for all orders in which they are asked.

A replay asks the same questions fifty times over; only who is there already changes. With every question's nearest
ranked beforehand a search is a walk along one row, and finds exactly what comparing all vectors would find.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

_DEPTH = 512
_SHALLOW = 48
_BLOCK = 512


class Ranking:
    """Each question's nearest others: `others[i]` and `cosines[i]`, nearest first."""

    def __init__(self, vectors: Vectors, others: NDArray[np.int32], cosines: Vectors) -> None:
        self.vectors = vectors
        self.others = others
        self.cosines = cosines

    @classmethod
    def of(cls, vectors: Vectors, folder: Path | None = None, depth: int = _DEPTH) -> Ranking:
        """Rank all of unit vectors; kept in `folder` between runs."""
        digest = hashlib.blake2b(vectors.tobytes(), digest_size=8).hexdigest()
        file = folder / f"ranked-{digest}-{depth}.npz" if folder is not None else None
        if file is not None and file.exists():
            kept = np.load(file)
            return cls(vectors, kept["others"], kept["cosines"])
        parts = [_nearest(vectors, start, depth) for start in range(0, len(vectors), _BLOCK)]
        made = cls(vectors, np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts]))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, others=made.others, cosines=made.cosines)
        return made


def _nearest(vectors: Vectors, start: int, depth: int) -> tuple[NDArray[np.int32], Vectors]:
    near = vectors[start : start + _BLOCK] @ vectors.T
    near[np.arange(len(near)), np.arange(start, start + len(near))] = -2.0
    k = min(depth, len(vectors) - 1)
    top = np.argpartition(near, len(vectors) - k, axis=1)[:, len(vectors) - k :]
    cosines = np.take_along_axis(near, top, 1)
    order = np.argsort(-cosines, axis=1, kind="stable")
    return np.take_along_axis(top, order, 1).astype(np.int32), np.take_along_axis(cosines, order, 1)


class RankedIndex:
    """An index over a ranking, for a replay that says in `asked` which question it is at."""

    def __init__(self, ranking: Ranking) -> None:
        self.asked = 0
        self._ranking = ranking
        self._label_of = np.full(len(ranking.vectors), -1, np.int64)
        self._row_of: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, label: int) -> bool:
        return label in self._row_of

    def add(self, label: int, vector: Vectors) -> None:
        """Add the question now asked."""
        self._label_of[self.asked] = label
        self._row_of[label] = self.asked

    def remove(self, label: int) -> None:
        """Remove a label."""
        self._label_of[self._row_of.pop(label)] = -1

    def search(self, vector: Vectors, k: int) -> tuple[list[int], list[float]]:
        """The labels and cosines of the `k` nearest of the question now asked."""
        others, cosines = self._ranking.others[self.asked], self._ranking.cosines[self.asked]
        for depth in (_SHALLOW, len(others)):
            labels = self._label_of[others[:depth]]
            there = np.flatnonzero(labels >= 0)[:k]
            if len(there) == min(k, len(self._row_of)):
                return labels[there].tolist(), cosines[there].tolist()
        present = np.flatnonzero(self._label_of >= 0)
        near = self._ranking.vectors[present] @ vector
        order = np.argsort(-near, kind="stable")[:k]
        return self._label_of[present[order]].tolist(), near[order].tolist()

    def gather(self, labels: list[int]) -> Vectors:
        """The vectors of several labels, one a row."""
        rows: Vectors = self._ranking.vectors[[self._row_of[label] for label in labels]]
        return rows

    def labels(self) -> list[int]:
        """All labels."""
        return list(self._row_of)

    def nbytes(self) -> int:
        """Bytes of the vectors, which all replays share."""
        return int(self._ranking.vectors.nbytes)
