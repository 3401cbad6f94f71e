"""Nearest vectors within one partition, compared one by one; `cache.ivf` is for partitions that have grown large.

A conversation makes a partition of its own at every turn, so most partitions hold one vector: an empty index
weighs next to nothing and grows by a fifth at a time. Vectors are unit length, so their product is the cosine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numkong
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Bytes = NDArray[np.int8]
Labels = NDArray[np.int64]
Products = NDArray[np.float64]

_BLOCK = 32
"""Block length in the search for the largest of many numbers: a block is represented by its maximum."""


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


@dataclass(frozen=True, slots=True)
class Block:
    """Labelled vectors as they are kept: a byte a dimension, and what to multiply each row by."""

    labels: Labels
    rows: Bytes
    scales: Vector

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, which: NDArray[np.bool_] | NDArray[np.intp]) -> Block:
        """A block of those vectors alone."""
        return Block(self.labels[which], self.rows[which], self.scales[which])

    def ranked(self, vector: Vector, k: int) -> tuple[list[int], list[float]]:
        """The labels and cosines of the `k` nearest, nearest first, by all digits of the vector that is asked."""
        near = np.minimum((self.rows.astype(np.float32) @ vector) * self.scales, 1.0)
        order = np.argsort(-near, kind="stable")[:k]
        return self.labels[order].tolist(), near[order].tolist()


class FlatIndex:
    """Every vector, compared with every query.

    Vectors are kept as one byte a dimension, each with a scale of its own: a cosine is off by .0005 at most times and
    a search reads a quarter of the memory, which is what it costs where many tenants have an index each. Products
    of bytes are a processor's fastest; twice as many as are asked for are computed again from the vector's floats.
    """

    __slots__ = ("_labels", "_n", "_rows", "_scales")

    def __init__(self, dimension: int) -> None:
        self._n = 0
        self._labels: Labels = np.zeros(0, np.int64)
        self._rows: Bytes = np.zeros((0, dimension), np.int8)
        self._scales: Vector = np.zeros(0, np.float32)

    @classmethod
    def of(cls, block: Block) -> FlatIndex:
        """An index of what a block holds, which it takes over."""
        made = cls(0)
        made._n, made._labels, made._rows, made._scales = len(block), block.labels, block.rows, block.scales
        return made

    def __len__(self) -> int:
        return self._n

    def add(self, label: int, vector: Vector) -> None:
        """Add a unit vector under a new label."""
        self.put(label, *quantized(vector))

    def put(self, label: int, row: Bytes, scale: np.float32) -> None:
        """Add a vector as it is kept."""
        at = self._n
        if at == len(self._labels):
            more = at // 5 + 1
            self._labels, self._rows, self._scales = (
                np.concatenate([kept, np.zeros((more, *kept.shape[1:]), kept.dtype)])
                for kept in (self._labels, self._rows, self._scales)
            )
        self._labels[at], self._rows[at], self._scales[at] = label, row, scale
        self._n = at + 1

    def remove(self, label: int) -> None:
        """Remove a label; the last vector takes its place."""
        row, last = self._row(label), self._n - 1
        for kept in (self._labels, self._rows, self._scales):
            kept[row] = kept[last]
        self._n = last

    def search(self, vector: Vector, k: int) -> tuple[list[int], list[float]]:
        """The labels and cosines of the `k` nearest, nearest first."""
        if not self._n:
            return [], []
        near = self.products(quantized(vector)[0])
        return self.contents().pick(most(near, 2 * k)).ranked(vector, k)

    def products(self, row: Bytes) -> Products:
        """Each vector's product with a row of bytes."""
        found: Products = multiply(row[None], self._rows[: self._n])[0] * self._scales[: self._n]
        return found

    def at(self, place: int) -> tuple[np.int64, Bytes, np.float32]:
        """Label, row and scale at a place, counted from the end where it is negative."""
        row = place % self._n
        return self._labels[row], self._rows[row], self._scales[row]

    def contents(self) -> Block:
        """All vectors, as a view."""
        return Block(self._labels[: self._n], self._rows[: self._n], self._scales[: self._n])

    def kept(self, label: int) -> tuple[Bytes, np.float32]:
        """A copy of the row under a label, and its scale."""
        row = self._row(label)
        return self._rows[row].copy(), self._scales[row]

    def vector(self, label: int) -> Vector:
        """The vector under a label, as it was kept."""
        row, scale = self.kept(label)
        found: Vector = row * scale
        return found

    def gather(self, labels: list[int]) -> Vector:
        """The vectors of several labels, one a row."""
        at = (self._labels[: self._n] == np.array(labels, np.int64)[:, None]).argmax(1) if labels else []
        found: Vector = self._rows[at] * self._scales[at][:, None]
        return found

    def labels(self) -> list[int]:
        """All labels."""
        found: list[int] = self._labels[: self._n].tolist()
        return found

    def nbytes(self) -> int:
        """Bytes of vectors, scales and labels, those kept free included."""
        return self._rows.nbytes + self._scales.nbytes + self._labels.nbytes

    def _row(self, label: int) -> int:
        found = np.flatnonzero(self._labels[: self._n] == label)
        if not len(found):
            raise KeyError(label)
        return int(found[0])


def quantized(vector: Vector) -> tuple[Bytes, np.float32]:
    """A vector as one byte a dimension, and what to multiply them by."""
    scale = np.abs(vector).max() / np.float32(127.0) or np.float32(1.0)
    return np.rint(vector / scale).astype(np.int8), scale


def multiply(one: Bytes, other: Bytes) -> Products:
    """The products of two blocks' rows, exact: `(n, d), (m, d) -> (n, m)`."""
    found: Products = np.asarray(numkong.cdist(one, other, "dot"))
    return found


def most(values: Products, n: int) -> NDArray[np.intp]:
    """Indices of the `n` largest values, in no order."""
    blocks = len(values) // _BLOCK
    if blocks <= 2 * n:
        return _partitioned(values, n)
    tops = values[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(1)
    likely = np.flatnonzero(values >= np.partition(tops, blocks - n)[blocks - n])  # so many blocks hold one as large
    return likely[_partitioned(values[likely], n)]


def _partitioned(values: Products, n: int) -> NDArray[np.intp]:
    return np.argpartition(values, len(values) - n)[len(values) - n :] if n < len(values) else np.arange(len(values))


class ExternalIndex:
    """The index of a partition whose vectors are in Redis (`cache.vector_sets`): it only knows the labels."""

    def __init__(self, dimension: int) -> None:
        self._labels: set[int] = set()

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, label: int, vector: Vector) -> None:
        """Count a label in."""
        self._labels.add(label)

    def remove(self, label: int) -> None:
        """Count a label out."""
        self._labels.remove(label)

    def search(self, vector: Vector, k: int) -> tuple[list[int], list[float]]:
        """Finds nothing: the vectors are searched in Redis."""
        return [], []

    def gather(self, labels: list[int]) -> Vector:
        """No vectors."""
        return np.zeros((0, 0), np.float32)

    def nbytes(self) -> int:
        """What the vectors take here."""
        return 0
