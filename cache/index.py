"""Nearest vectors within one partition, exactly.

A conversation makes a partition of its own at every turn, so most partitions hold one vector: an empty index
weighs next to nothing and grows by a fifth at a time. Vectors are unit length, so their product is the cosine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]

_LEAST_ROWS = 4
_MOST_CHUNKS = 8
"""Chunks are joined to one when there are more: a search costs a product per chunk."""


class FlatIndex:
    """Every vector, compared with every query."""

    __slots__ = ("_chunks", "_dimension", "_labels", "_rows")

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._chunks: list[NDArray[np.float32]] = []
        self._labels: list[int] = []
        self._rows: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, label: int) -> bool:
        return label in self._rows

    def add(self, label: int, vector: Vector) -> None:
        """Add a unit vector under a new label."""
        row = len(self._labels)
        if row == sum(map(len, self._chunks)):
            self._grow(row)
        self._labels.append(label)
        self._rows[label] = row
        self._place(row)[:] = vector

    def remove(self, label: int) -> None:
        """Remove a label; the last vector takes its place."""
        row = self._rows.pop(label)
        last = len(self._labels) - 1
        if row != last:
            self._place(row)[:] = self._place(last)
            self._labels[row] = self._labels[last]
            self._rows[self._labels[row]] = row
        self._labels.pop()

    def search(self, vector: Vector, k: int) -> tuple[list[int], list[float]]:
        """The labels and cosines of the `k` nearest, nearest first."""
        n = len(self._labels)
        if not n:
            return [], []
        parts = [chunk @ vector for chunk in self._chunks]
        near = (parts[0] if len(parts) == 1 else np.concatenate(parts))[:n]
        if n > k:
            top = np.argpartition(near, n - k)[n - k :]
            order = top[np.argsort(-near[top], kind="stable")]
        else:
            order = np.argsort(-near, kind="stable")
        return [self._labels[row] for row in order], near[order].tolist()

    def vector(self, label: int) -> Vector:
        """The vector under a label."""
        return self._place(self._rows[label])

    def labels(self) -> list[int]:
        """All labels."""
        return list(self._labels)

    def nbytes(self) -> int:
        """Bytes of vectors, those kept free included."""
        return sum(chunk.nbytes for chunk in self._chunks)

    def _place(self, row: int) -> Vector:
        for chunk in self._chunks:
            if row < len(chunk):
                place: Vector = chunk[row]
                return place
            row -= len(chunk)
        raise IndexError(row)

    def _grow(self, rows: int) -> None:
        if len(self._chunks) == _MOST_CHUNKS:
            self._chunks = [np.concatenate(self._chunks)]
        more = max(_LEAST_ROWS, rows // 5)
        self._chunks.append(np.zeros((more, self._dimension), np.float32))
