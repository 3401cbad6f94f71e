"""Nearest vectors within one partition: exactly while they are few, by a graph when they are many.

A conversation makes a partition of its own at every turn, so most partitions hold one vector: an empty index
weighs next to nothing and grows by a fifth at a time. Vectors are unit length, so their product is the cosine.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Bytes = NDArray[np.int8]

_LEAST_ROWS = 4
_MOST_CHUNKS = 8
"""Chunks are joined to one when there are more: a search costs a product per chunk."""
_BLOCK = 512
"""Rows that are turned into floats at a time."""


class Index(Protocol):
    """The nearest of labelled unit vectors."""

    def __len__(self) -> int: ...

    def add(self, label: int, vector: Vector) -> None:
        """Add a unit vector under a new label."""
        ...

    def remove(self, label: int) -> None:
        """Remove a label."""
        ...

    def search(self, vector: Vector, k: int) -> tuple[list[int], list[float]]:
        """The labels and cosines of the `k` nearest, nearest first."""
        ...

    def gather(self, labels: list[int]) -> Vector:
        """The vectors of labels that a search has just found, one a row."""
        ...

    def nbytes(self) -> int:
        """Bytes of vectors and what is kept beside them."""
        ...


class FlatIndex:
    """Every vector, compared with every query.

    Vectors are kept as one byte a dimension, each with a scale of its own: a cosine is off by .0005 at most times and
    a search reads a quarter of the memory, which is what it costs where many tenants have an index each.
    """

    __slots__ = ("_chunks", "_dimension", "_labels", "_rows", "_scales")

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._chunks: list[Bytes] = []
        self._scales = np.zeros(0, np.float32)
        self._labels: list[int] = []
        self._rows: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def __contains__(self, label: int) -> bool:
        return label in self._rows

    def add(self, label: int, vector: Vector) -> None:
        """Add a unit vector under a new label."""
        row = len(self._labels)
        if row == len(self._scales):
            self._grow(row)
        self._labels.append(label)
        self._rows[label] = row
        self._place(row)[:], self._scales[row] = quantized(vector)

    def remove(self, label: int) -> None:
        """Remove a label; the last vector takes its place."""
        row = self._rows.pop(label)
        last = len(self._labels) - 1
        if row != last:
            self._place(row)[:] = self._place(last)
            self._scales[row] = self._scales[last]
            self._labels[row] = self._labels[last]
            self._rows[self._labels[row]] = row
        self._labels.pop()

    def search(self, vector: Vector, k: int) -> tuple[list[int], list[float]]:
        """The labels and cosines of the `k` nearest, nearest first."""
        n = len(self._labels)
        if not n:
            return [], []
        parts = [part.astype(np.float32) @ vector for chunk in self._chunks for part in _blocks(chunk)]
        near = (parts[0] if len(parts) == 1 else np.concatenate(parts))[:n] * self._scales[:n]
        np.minimum(near, 1.0, out=near)
        if n > k:
            top = np.argpartition(near, n - k)[n - k :]
            order = top[np.argsort(-near[top], kind="stable")]
        else:
            order = np.argsort(-near, kind="stable")
        return [self._labels[row] for row in order], near[order].tolist()

    def vector(self, label: int) -> Vector:
        """The vector under a label, as it was kept."""
        row = self._rows[label]
        found: Vector = self._place(row) * self._scales[row]
        return found

    def gather(self, labels: list[int]) -> Vector:
        """The vectors of several labels, one a row."""
        return np.array([self.vector(label) for label in labels])

    def labels(self) -> list[int]:
        """All labels."""
        return list(self._labels)

    def nbytes(self) -> int:
        """Bytes of vectors, those kept free included."""
        return sum(chunk.nbytes for chunk in self._chunks) + self._scales.nbytes

    def _place(self, row: int) -> Bytes:
        for chunk in self._chunks:
            if row < len(chunk):
                place: Bytes = chunk[row]
                return place
            row -= len(chunk)
        raise IndexError(row)

    def _grow(self, rows: int) -> None:
        if len(self._chunks) == _MOST_CHUNKS:
            self._chunks = [np.concatenate(self._chunks)]
        more = max(_LEAST_ROWS, rows // 5)
        self._chunks.append(np.zeros((more, self._dimension), np.int8))
        self._scales = np.concatenate([self._scales, np.zeros(more, np.float32)])


def quantized(vector: Vector) -> tuple[Bytes, np.float32]:
    """A vector as one byte a dimension, and what to multiply them by."""
    scale = np.abs(vector).max() / np.float32(127.0) or np.float32(1.0)
    return np.rint(vector / scale).astype(np.int8), scale


def _blocks(chunk: Bytes) -> list[Bytes]:
    """A chunk in parts that fit the processor's cache as floats."""
    return [chunk] if len(chunk) <= _BLOCK else [chunk[at : at + _BLOCK] for at in range(0, len(chunk), _BLOCK)]


class GraphIndex:
    """A navigable small-world graph (usearch HNSW, one byte a dimension) with the newest vectors beside it.

    Vectors are added to a flat index, which answers exactly, and move into the graph in `settle`, a batch at a
    time and in another thread if the caller likes: a look-up never waits for the graph to be built. A place that was
    removed is used again by the next vector, so a graph in which entries come and go does not grow.
    """

    def __init__(self, dimension: int, tail: FlatIndex | None = None) -> None:
        from usearch.index import Index

        usearch: Any = Index
        self._dimension = dimension
        self._graph = usearch(
            ndim=dimension, metric="cos", dtype="i8", connectivity=16, expansion_add=96, expansion_search=64
        )
        self._settled: set[int] = set()
        self._tail = tail or FlatIndex(dimension)
        self._lock = threading.Lock()
        """Held through a search and never through a build: neither the tail nor the room may move under one."""
        self._settling = threading.Lock()

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
            graph = self._graph.search(quantized(vector)[0], k, threads=1)
        found = dict(zip(map(int, graph.keys), (1.0 - graph.distances).tolist(), strict=True))
        found = {label: cosine for label, cosine in found.items() if label in self._settled}
        found |= zip(labels, near, strict=True)
        best = sorted(found, key=lambda label: -found[label])[:k]
        return best, [found[label] for label in best]

    def gather(self, labels: list[int]) -> Vector:
        """The vectors of several labels, one a row."""
        return np.array([self._vector(label) for label in labels])

    def settle(self, batch: int = 256) -> bool:
        """Move up to `batch` of the newest vectors into the graph; whether there are more. One thread at a time."""
        with self._settling:
            room = self._graph.capacity - len(self._graph)
            with self._lock:
                labels = self._tail.labels()[: min(batch, room) or 1]
                vectors = np.array([quantized(self._tail.vector(label))[0] for label in labels])
                if labels and not room:  # the graph makes room by moving what a search would be reading
                    self._build(labels, vectors)
            if labels and room:
                self._build(labels, vectors)
            self._hand_over(labels)
        return len(self._tail) > 0

    def _build(self, labels: list[int], vectors: Bytes) -> None:
        self._graph.add(np.array(labels, np.uint64), vectors, threads=1)

    def _hand_over(self, labels: list[int]) -> None:
        """Take out of the tail what the graph now has, and out of the graph what was removed meanwhile."""
        with self._lock:
            kept = [label for label in labels if label in self._tail]
            self._settled.update(kept)
            for label in kept:
                self._tail.remove(label)
        for gone in set(labels) - set(kept):
            self._graph.remove(gone)

    @property
    def unsettled(self) -> int:
        """How many vectors are compared one by one until `settle` moves them."""
        return len(self._tail)

    def nbytes(self) -> int:
        """Bytes of vectors and graph."""
        return int(self._graph.memory_usage) + self._tail.nbytes()

    def labels(self) -> list[int]:
        """All labels."""
        return [*self._settled, *self._tail.labels()]

    def _vector(self, label: int) -> Vector:
        with self._lock:
            if label in self._tail:
                return self._tail.vector(label)
        kept: Vector = self._graph.get(label).astype(np.float32)
        unit: Vector = kept / np.sqrt(kept @ kept)
        return unit
