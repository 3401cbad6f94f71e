"""Nearest vectors within one partition: exactly while they are few, by a graph when they are many.

A conversation makes a partition of its own at every turn, so most partitions hold one vector: an empty index
weighs next to nothing and grows by a fifth at a time. Vectors are unit length, so their product is the cosine.
"""

from __future__ import annotations

import threading
from typing import Any

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


class GraphIndex:
    """A navigable small-world graph (usearch HNSW, half precision) with the newest vectors beside it.

    Vectors are added to a flat index, which answers exactly, and move into the graph in `settle`, a batch at a
    time and in another thread if the caller likes: a look-up never waits for the graph to be built.
    """

    def __init__(self, dimension: int, tail: FlatIndex | None = None) -> None:
        from usearch.index import Index

        usearch: Any = Index
        self._dimension = dimension
        self._graph = usearch(
            ndim=dimension, metric="ip", dtype="f16", connectivity=16, expansion_add=96, expansion_search=64
        )
        self._settled: set[int] = set()
        self._tail = tail or FlatIndex(dimension)
        self._lock = threading.Lock()
        """Held for microseconds: the tail must not move under a search."""

    def __len__(self) -> int:
        return len(self._settled) + len(self._tail)

    def __contains__(self, label: int) -> bool:
        return label in self._settled or label in self._tail

    def add(self, label: int, vector: Vector) -> None:
        """Add a unit vector under a new label."""
        with self._lock:
            self._tail.add(label, vector)

    def remove(self, label: int) -> None:
        """Remove a label; its place in the graph is used again."""
        with self._lock:
            if label in self._tail:
                self._tail.remove(label)
                return
            self._settled.remove(label)
        self._graph.remove(label)

    def search(self, vector: Vector, k: int) -> tuple[list[int], list[float]]:
        """The labels and cosines of the `k` nearest that are found, nearest first."""
        with self._lock:
            labels, near = self._tail.search(vector, k)
        if not self._settled:
            return labels, near
        graph = self._graph.search(vector, k, threads=1)
        found = dict(zip(map(int, graph.keys), (1.0 - graph.distances).tolist(), strict=True))
        found = {label: cosine for label, cosine in found.items() if label in self._settled}
        found |= zip(labels, near, strict=True)
        best = sorted(found, key=lambda label: -found[label])[:k]
        return best, [found[label] for label in best]

    def settle(self, batch: int = 256) -> bool:
        """Move up to `batch` of the newest vectors into the graph; whether there are more."""
        with self._lock:
            labels = self._tail.labels()[:batch]
            vectors = np.array([self._tail.vector(label) for label in labels])
        if not labels:
            return False
        self._graph.add(np.array(labels, np.uint64), vectors, threads=1)
        with self._lock:
            kept = [label for label in labels if label in self._tail]
            self._settled.update(kept)
            for label in kept:
                self._tail.remove(label)
        for gone in set(labels) - set(kept):
            self._graph.remove(gone)
        return len(self._tail) > 0

    def nbytes(self) -> int:
        """Bytes of vectors and graph."""
        return int(self._graph.memory_usage) + self._tail.nbytes()

    def labels(self) -> list[int]:
        """All labels."""
        return [*self._settled, *self._tail.labels()]
