"""Nearest vectors among very many: an inverted file (IVF), cells of neighbours of which a search reads the nearest few.

Inverted lists with short ones, as in SPANN (Chen et al., NeurIPS 2021), kept good while vectors come and go as in
SPFresh (Xu et al., SOSP 2023, the LIRE protocol): a cell that grows too large is split in two, and whoever lies
near the new centres moves to the one that is now nearest. Nothing is ever rebuilt as a whole and nothing waits for
another thread: an addition is one comparison with the centres, for it and for two that have been there longer, and
every fiftieth or so costs a split. A graph of all vectors (usearch's HNSW) was measured beside it at 100,000: it found
as many in three times the time, with 1.7 times the memory and several times the work of adding, and its library brings
down a process that loads onnxruntime later.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import count, islice

import numpy as np
from numpy.typing import NDArray

from cache.index import Block, Bytes, FlatIndex, Vector, most, multiply, quantized

_LARGEST = 128
"""Vectors of a cell before it is split."""
_SMALLEST = 8
"""A cell with fewer left is given up to its neighbours."""
_READ_DIMENSIONS = 6912
"""Wide vectors take longer to compare, so fewer cells of them are read: 18 of 384 dimensions, 36 of 192."""
_READ_LEAST = 12
_READ_ONE_OF = 390
"""And one cell more for each so many that there are."""
_AROUND = 16
"""Cells around a split whose vectors may lie nearer to a new centre."""
_SAMPLE = 512
"""Vectors that tell where a cell's two halves lie."""
_ROUNDS = 5
_LOOKED_AT = 2
"""Vectors that are looked at again with each one added."""


class IvfIndex:
    """Vectors in cells of at most some hundreds, nearly always found where a full search would find them."""

    def __init__(self, first: FlatIndex) -> None:
        """Take over a flat index, which becomes the first cell and is split as others are added."""
        self._numbers = count()
        self._cells: dict[int, FlatIndex] = {}
        self._centres: FlatIndex | None = None
        """One vector a cell, under the cell's number."""
        self._homes: dict[int, int] = {}
        """Each label's cell."""
        self._crowded: set[int] = set()
        self._walk = self._in_turn()
        if len(first):
            self._open(first.contents())

    def __len__(self) -> int:
        return len(self._homes)

    def add(self, label: int, vector: Vector) -> None:
        """Add a unit vector under a new label; two others are looked at again, and at most one cell is split."""
        row, scale = quantized(vector)
        if self._centres is None:
            self._open(Block(np.array([label]), row[None], np.array([scale])))
            return
        old = {known for known in islice(self._walk, _LOOKED_AT) if known in self._homes}
        kept = {known: self._cells[self._homes[known]].kept(known) for known in old}
        nearest = self._nearest_to_each(np.array([row, *(old_row for old_row, _ in kept.values())]))
        self._put(label, row, scale, nearest[0])
        for (known, (old_row, old_scale)), number in zip(kept.items(), nearest[1:], strict=True):
            if number != self._homes[known] and number in self._cells:
                self.remove(known)
                self._put(known, old_row, old_scale, number)
        if self._crowded:
            self._split(self._crowded.pop())

    def remove(self, label: int) -> None:
        """Remove a label."""
        number = self._homes.pop(label)
        cell = self._cells[number]
        cell.remove(label)
        if not len(cell) or (len(cell) < _SMALLEST and len(self._cells) > 1):
            self._dissolve(number)

    def search(self, vector: Vector, k: int) -> tuple[list[int], list[float]]:
        """The labels and cosines of the `k` nearest that are found, nearest first."""
        if self._centres is None:
            return [], []
        row = quantized(vector)[0]
        reads = max(_READ_LEAST, _READ_DIMENSIONS // len(row)) + len(self._cells) // _READ_ONE_OF
        read = [self._cells[number] for number in self._nearest(row, reads)]
        near = [cell.products(row) for cell in read]
        ends = np.cumsum([len(part) for part in near])
        best = most(np.concatenate(near), 2 * k)
        cells = np.searchsorted(ends, best, "right")
        places = best - ends[cells]  # counted from each cell's end
        return _together([read[cell] for cell in cells.tolist()], places.tolist()).ranked(vector, k)

    def gather(self, labels: list[int]) -> Vector:
        """The vectors of several labels, one a row."""
        return np.array([self._cells[self._homes[label]].vector(label) for label in labels])

    def labels(self) -> list[int]:
        """All labels."""
        return list(self._homes)

    def nbytes(self) -> int:
        """Bytes of vectors, centres and the table of who is where."""
        centres = self._centres.nbytes() if self._centres is not None else 0
        return sum(cell.nbytes() for cell in self._cells.values()) + centres + sys.getsizeof(self._homes)

    def _nearest(self, row: Bytes, n: int) -> list[int]:
        """The numbers of the `n` cells whose centres lie nearest, in no order."""
        assert self._centres is not None
        found: list[int] = self._centres.contents().labels[most(self._centres.products(row), n)].tolist()
        return found

    def _nearest_to_each(self, rows: Bytes) -> list[int]:
        """The number of the cell whose centre lies nearest to each row."""
        assert self._centres is not None
        there = self._centres.contents()
        found: list[int] = there.labels[(multiply(rows, there.rows) * there.scales).argmax(1)].tolist()
        return found

    def _put(self, label: int, row: Bytes, scale: np.float32, number: int) -> None:
        cell = self._cells[number]
        cell.put(label, row, scale)
        self._homes[label] = number
        if len(cell) > _LARGEST:
            self._crowded.add(number)

    def _in_turn(self) -> Iterator[int]:
        """The labels of one cell after another, over and over; some are gone by the time they are reached."""
        while True:
            for number in list(self._cells):
                if number in self._cells:
                    yield from self._cells[number].labels()

    def _open(self, block: Block) -> int:
        """Make a cell of a block; its number."""
        number = next(self._numbers)
        self._cells[number] = FlatIndex.of(block)
        self._homes.update(dict.fromkeys(block.labels.tolist(), number))
        if self._centres is None:
            self._centres = FlatIndex(block.rows.shape[1])
        self._centres.add(number, _mean(block))
        if len(block) > _LARGEST:
            self._crowded.add(number)
        return number

    def _close(self, number: int) -> Block:
        """Take a cell apart; what it held, which nobody holds until a cell is made of it."""
        assert self._centres is not None
        self._centres.remove(number)
        self._crowded.discard(number)
        if not len(self._centres):
            self._centres = None
        return self._cells.pop(number).contents()

    def _dissolve(self, number: int) -> None:
        left = self._close(number)
        if len(left):
            homes = self._nearest_to_each(left.rows)
            for label, row, scale, home in zip(left.labels.tolist(), left.rows, left.scales, homes, strict=True):
                self._put(label, row, scale, home)

    def _split(self, number: int) -> None:
        block = self._close(number)
        side = _halves(block)
        made = [self._open(block.pick(side)), self._open(block.pick(~side))]
        if len(block) <= 2 * _LARGEST:
            self._settle(made)

    def _settle(self, made: list[int]) -> None:
        """Let whoever is in the new cells or near them move to the centre that is nearest now."""
        assert self._centres is not None
        centre = quantized(self._centres.vector(made[0]))[0]
        numbers = sorted({*made, *self._nearest(centre, _AROUND + 2)})
        blocks = [self._cells[number].contents() for number in numbers]
        centres = [quantized(self._centres.vector(number)) for number in numbers]
        everyone = _joined(blocks)
        at = np.repeat(np.arange(len(numbers)), [len(block) for block in blocks])
        near = multiply(everyone.rows, np.array([row for row, _ in centres])) * [scale for _, scale in centres]
        nearest = near.argmax(1)
        for place in sorted({*at[nearest != at].tolist(), *nearest[nearest != at].tolist()}):
            self._close(numbers[place])
            there = everyone.pick(nearest == place)
            if len(there):
                self._open(there)


def _together(cells: list[FlatIndex], places: list[int]) -> Block:
    """One vector of each of several cells."""
    picked = [cell.at(place) for cell, place in zip(cells, places, strict=True)]
    labels, rows, scales = zip(*picked, strict=True)
    return Block(np.array(labels), np.array(rows), np.array(scales))


def _joined(blocks: list[Block]) -> Block:
    return Block(
        np.concatenate([block.labels for block in blocks]),
        np.concatenate([block.rows for block in blocks]),
        np.concatenate([block.scales for block in blocks]),
    )


def _mean(block: Block) -> Vector:
    """The direction of a block's mean."""
    return _unit(block.scales @ block.rows.astype(np.float32))


def _unit(vector: Vector) -> Vector:
    made: Vector = vector / max(float(np.sqrt(vector @ vector)), 1e-9)
    return made


def _halves(block: Block) -> NDArray[np.bool_]:
    """Which vectors lie on one side of a block; never all, never none (two means, by cosine)."""
    some = block.pick(np.linspace(0, len(block) - 1, min(len(block), _SAMPLE)).astype(int))
    vectors = some.rows * some.scales[:, None]
    one = vectors[np.argmin(vectors @ _mean(some))]
    other = vectors[np.argmin(vectors @ one)]
    for _ in range(_ROUNDS):
        side = vectors @ one > vectors @ other
        if side.all() or not side.any():
            break
        one, other = _unit(vectors[side].mean(0)), _unit(vectors[~side].mean(0))
    (first, first_scale), (second, second_scale) = quantized(one), quantized(other)
    near = multiply(block.rows, np.array([first, second])) * [first_scale, second_scale]
    found: NDArray[np.bool_] = near[:, 0] > near[:, 1]
    return np.arange(len(block)) % 2 == 0 if found.all() or not found.any() else found
