"""Features of many texts at once, computed on arrays instead of objects: sums of token vectors, and counts of bytes.

The results are those of `StaticEmbedding` and `Featurizer` on one text, but for rounding; this is for jobs of a million
texts. The bytes of all texts lie in one array. Each stretch between blanks is identified by a hash (a polynomial over
its bytes and its length, modulo 2^64), under which the sum of its token vectors is remembered. No text is kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from routers.embedding import Matrix, StaticEmbedding

Bytes = NDArray[np.uint8]
Marks = NDArray[np.intp]
Numbers = NDArray[np.uint64]

CHUNK_CHARS = 1 << 17
"""Characters of the texts that are processed together, so that their arrays stay in the processor's cache."""
MEMO = 32_768
"""Stretches whose sums are remembered; 25 MB at 192 numbers each."""
_RADIX = 0x9E3779B97F4A7C15
_LENGTHS = 0xD1B54A32D192ED03
_BLANK = np.zeros(256, bool)
_BLANK[[ord(char) for char in map(chr, range(128)) if char.isspace()]] = True
_NOT_BYTES = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ud800-\udfff]")
"""Blanks outside ASCII and lone surrogates: a text with one of them can't be cut by its bytes alone."""


class Written:
    """Texts as UTF-8 bytes, each followed by a line feed."""

    def __init__(self, texts: Sequence[str]) -> None:
        parts = [text.encode("utf-8", "replace") for text in texts]
        self.blob = b"\n".join([*parts, b""])
        self.bytes: Bytes = np.frombuffer(self.blob, np.uint8)
        self.sizes = np.fromiter(map(len, parts), np.intp, len(parts)) + 1

    def kinds(self, table: Bytes, count: int) -> NDArray[np.float64]:
        """How many bytes of each kind every text has, shape (n, count). `table` gives the kind of each of the 256
        bytes.
        """
        own = np.repeat(np.arange(len(self.sizes)) * count, self.sizes)
        own += table.take(self.bytes)
        found = np.bincount(own, minlength=len(self.sizes) * count).reshape(-1, count).astype(np.float64)
        found[:, table[ord("\n")]] -= 1
        return found

    def stretches(self) -> tuple[Marks, Marks, Marks]:
        """Start and end of each stretch between blanks, and the index of the first stretch of each text, shape (n +
        1,).
        """
        blank = _BLANK.take(self.bytes)
        edge = np.flatnonzero(blank[1:] != blank[:-1]) + 1
        if len(blank) and not blank[0]:
            edge = np.concatenate([[0], edge])
        starts, ends = edge[::2], edge[1::2]
        return starts, ends, np.searchsorted(starts, np.concatenate([[0], np.cumsum(self.sizes)]))

    def numbers(self, starts: Marks, ends: Marks) -> Numbers:
        """The 64-bit hash of each stretch."""
        powers, inverse = _powers(max(CHUNK_CHARS, 1 << len(self.bytes).bit_length()))
        sums = np.zeros(len(self.bytes) + 1, np.uint64)
        np.cumsum(powers[: len(self.bytes)] * self.bytes, out=sums[1:])
        found: Numbers = (sums[ends] - sums[starts]) * inverse[starts]
        found += (ends - starts).astype(np.uint64) * np.uint64(_LENGTHS)
        found ^= found >> np.uint64(29)
        found *= np.uint64(_RADIX)
        return found


@cache
def _powers(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers of the radix and of its inverse, modulo 2^64."""
    found = []
    for base in (_RADIX, pow(_RADIX, -1, 1 << 64)):
        powers = np.full(count, base, np.uint64)
        powers[0] = 1
        found.append(np.cumprod(powers, dtype=np.uint64))
    return found[0], found[1]


class Places:
    """A hash table from hashes to indices with a few slots for each hash, searched for many hashes at once."""

    _WAYS = 4
    _BITS = 17
    """2^17 slots, four times as many as are ever filled, so that a hash hardly ever finds all its slots taken."""

    def __init__(self) -> None:
        self.count = 0
        self._numbers = np.zeros((1 << self._BITS) + self._WAYS, np.uint64)
        self._places = np.full((1 << self._BITS) + self._WAYS, -1, np.int32)

    def find(self, numbers: Numbers) -> NDArray[np.int32]:
        """The index of each hash; -1 where it has none."""
        slot = (numbers >> np.uint64(64 - self._BITS)).astype(np.intp)
        found = np.where(self._numbers[slot] == numbers, self._places[slot], -1)
        for way in range(1, self._WAYS):
            missed = np.flatnonzero(found < 0)
            if not len(missed):
                break
            there = slot[missed] + way
            found[missed] = np.where(self._numbers[there] == numbers[missed], self._places[there], -1)
        return found.astype(np.int32)

    def add(self, numbers: Numbers) -> None:
        """Give each of these new hashes the next index. A hash whose slots are all taken can't be found again."""
        for number, slot in zip(numbers.tolist(), (numbers >> np.uint64(64 - self._BITS)).tolist(), strict=True):
            way = next((way for way in range(self._WAYS) if self._places[slot + way] < 0), None)
            if way is not None:
                self._numbers[slot + way], self._places[slot + way] = number, self.count
            self.count += 1

    def clear(self) -> None:
        self._places[:] = -1
        self._numbers[:] = 0
        self.count = 0


class Sums:
    """Sums of the token vectors of many texts. Its memo is bounded, and it must be used by one thread at a time."""

    def __init__(self, embedding: StaticEmbedding) -> None:
        self._embedding = embedding
        self._places: Places | None = None
        self._vectors = np.zeros((0, embedding.dims), np.float32)

    @property
    def remembered(self) -> int:
        """Stretches whose sums are kept."""
        return 0 if self._places is None else self._places.count

    def of(self, texts: Sequence[str], written: Written, tail_words: int) -> tuple[Matrix, Matrix, Marks]:
        """For each text: the sum over its last `tail_words` stretches, the sum over those before, and the number of
        stretches.
        """
        tail, head, words = self._of_bytes(written, tail_words)
        for row, text in enumerate(texts):
            if not text.isascii() and _NOT_BYTES.search(text):
                embedding, stretches = self._embedding, text.split()
                tail[row] = embedding.total(embedding.joined(stretches[-tail_words:]))
                head[row] = embedding.total(embedding.joined(stretches[:-tail_words]))
                words[row] = len(stretches)
        return tail, head, words

    def _of_bytes(self, written: Written, tail_words: int) -> tuple[Matrix, Matrix, Marks]:
        from scipy.sparse import csr_array

        starts, ends, first = written.stretches()
        places = self._found(written, starts, ends)
        bounds = np.empty(2 * len(written.sizes) + 1, np.int32)
        bounds[::2] = first
        bounds[1::2] = np.maximum(first[:-1], first[1:] - tail_words)
        once = np.ones(len(places), np.float32)
        shape = (2 * len(written.sizes), len(self._vectors))
        sums = np.asarray(csr_array((once, places, bounds), shape=shape) @ self._vectors)
        return sums[1::2], sums[::2], np.diff(first)

    def _found(self, written: Written, starts: Marks, ends: Marks) -> NDArray[np.int32]:
        """The index of each stretch's sum in the memo; unknown stretches are added."""
        if self._places is None:
            self._places = Places()
        numbers = written.numbers(starts, ends)
        places = self._places.find(numbers)
        new = np.flatnonzero(places < 0)
        if not len(new):
            return places
        own, one, back = np.unique(numbers[new], return_index=True, return_inverse=True)
        if self._places.count + len(own) > MEMO and self._places.count:
            self._places.clear()
            return self._found(written, starts, ends)
        before = self._places.count
        cut = zip(starts[new[one]].tolist(), ends[new[one]].tolist(), strict=True)
        self._keep(before, self._embedding.totals([
            self._embedding.cut(written.blob[start:end].decode()) for start, end in cut
        ]))  # fmt: skip
        self._places.add(own)
        places[new] = before + back
        return places

    def _keep(self, before: int, vectors: Matrix) -> None:
        """Store vectors after the first `before` ones."""
        wanted = before + len(vectors)
        if wanted > len(self._vectors):
            larger = np.zeros((max(wanted, min(2 * len(self._vectors), MEMO)), vectors.shape[1]), np.float32)
            larger[:before] = self._vectors[:before]
            self._vectors = larger
        self._vectors[before:wanted] = vectors


def chunks(sizes: Iterable[int]) -> Iterator[slice]:
    """Slices of texts of those lengths, with at most CHUNK_CHARS characters each; a longer text is alone in its slice.
    """
    start = end = chars = 0
    for size in sizes:
        if end > start and chars + size > CHUNK_CHARS:
            yield slice(start, end)
            start, chars = end, 0
        chars, end = chars + size + 1, end + 1
    if end > start:
        yield slice(start, end)
