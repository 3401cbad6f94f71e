"""Feature vectors of queries, computed before any model has answered, in microseconds.

A vector has three blocks: the meaning of the whole text, the meaning of its tail (prompts often begin with a template
and end with the question), and counts of its structure. Vectors are versioned, and a router refuses vectors of another
version than it learned from. No text is kept here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import log1p
from struct import Struct
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from routers import native
from routers.bulk import Sums, Written, chunks
from routers.embedding import IDS, StaticEmbedding, Vector, shipped_dims, shipped_embedding, unit, units
from routers.types import Query

log = logging.getLogger(__name__)
HEAD_CHARS = 3000
TAIL_CHARS = 5000
"""Of a longer text only the first HEAD_CHARS and the last TAIL_CHARS characters are read, so that the time is bounded.
"""
CHARS_PER_TOKEN = 4.0

_OPTIONS = ("\nB", "\nC", "\nD", "\n(B", "\n(C")
_CODE = ("```", "def ", "return", "import ", "()")
_MARKS = (b"?", b"\n", b":", b'"', b"_", b"{;", b"$\\^=+", b"0123456789", bytes(range(65, 91)), b" ",
          bytes(range(128, 256)))  # fmt: skip
_KINDS = bytes(next((kind for kind, marks in enumerate(_MARKS, 1) if byte in marks), 0) for byte in range(256))
"""The kind of each byte: 0 for none, else the index in _MARKS plus 1 (? newline : " _ code, maths, digits, capitals,
blanks, non-ASCII).
"""
_PLAIN = bytes(byte for byte in range(256) if not _KINDS[byte] or byte == ord(" "))
"""Bytes that are not counted one by one: those of no kind, and blanks, which are the most frequent."""
_EACH = tuple(bytes([kind]) for kind in range(len(_MARKS) + 1))
_PROOF = "Which of these, as\x1cit were:\nA) unbelievably 12.5 $x^2$?\n(B) def f_(): return {'a';}``` " * 4
"""A text that contains everything that is counted and is longer than a tail, for comparing C with Python."""
_FEW_MARKS = 64
"""Up to this many marks are counted in one loop; beyond it one `bytes.count` for each kind is faster."""
_TABLE = np.frombuffer(_KINDS, np.uint8)
STRUCTURE = 19
_PACKED = Struct(f"{STRUCTURE}f").pack
_FLOAT = np.dtype(np.float32)
_ID_BYTES = IDS().itemsize
TAIL_WORDS = 48
ENCODED = "encoder:"
"""Prefix of the versions of features whose meaning comes from a configured encoder."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The position of each block in a vector."""

    whole: slice
    tail: slice
    structure: slice
    dims: int

    def blocks(self) -> tuple[tuple[slice, float], ...]:
        """Each block with its spread in a projection, relative to that of the whole text's meaning."""
        return ((self.whole, 1.0), (self.tail, 0.5), (self.structure, 0.7))


class Asked(Protocol):
    """The fields of a request that features are computed from."""

    text: str
    input_tokens: int
    max_output_tokens: int | None
    turns: int
    tools: int
    images: int
    wants_json: bool


class Featurizer:
    """Turns a text and its structure into a `Query`. Its only state is a bounded memo of words and stretches."""

    _table: native.Table | None = None
    """Computes features in C; None where Python does."""

    def __init__(self, embedding: StaticEmbedding | None = None, tail_words: int = TAIL_WORDS) -> None:
        self._embedding = embedding or shipped_embedding()
        self._sums = Sums(self._embedding)
        self._tail_words = tail_words
        e = self._embedding.dims
        ends = 2 * e + STRUCTURE
        self.layout = Layout(slice(0, e), slice(e, 2 * e), slice(2 * e, ends), ends)
        self.version = _version(e, tail_words)
        self._table = self._proven(native.opened(self._embedding, tail_words, ends))

    @property
    def dims(self) -> int:
        return self.layout.dims

    def describe(
        self,
        text: str,
        *,
        input_tokens: int | None = None,
        max_output_tokens: int | None = None,
        turns: int = 1,
        tools: int = 0,
        images: int = 0,
        wants_json: bool = False,
        task: str = "",
    ) -> Query:
        """The query as routers see it. `input_tokens` are those of the whole prompt; None estimates them from this
        text.
        """
        n = len(text)
        tokens = round(n / CHARS_PER_TOKEN) + 1 if input_tokens is None else input_tokens
        ends = ends_of(text)
        if self._table is None:
            vector = self._vector(ends, n, tokens, turns, tools, images, wants_json)
        else:
            cut = native.HERE if ends.isascii() else self._cut(ends)
            vector = self._table.vector(ends, cut, n, tokens, turns, tools, images, wants_json)
        return Query(ends, vector, self.version, tokens, max_output_tokens, turns, tools, images, wants_json, task)

    def _vector(
        self, text: str, chars: int, tokens: int, turns: int, tools: int, images: int, wants_json: bool
    ) -> Vector:
        meaning, words = self._meaning(text)
        structure = _PACKED(
            *_structure(text, words),
            log1p(chars) / 4, log1p(tokens) / 4, log1p(turns) / 4,
            tools if tools < 4 else 4.0, images if images < 4 else 4.0, wants_json,
        )  # fmt: skip
        return np.frombuffer(bytearray(meaning + structure), _FLOAT)

    def _proven(self, table: native.Table | None) -> native.Table | None:
        """The native table; None where its features differ from Python's."""
        if table is not None:
            sizes = len(_PROOF), 7, 3, 2, 5, True
            found, right = table.vector(_PROOF, native.HERE, *sizes), self._vector(_PROOF, *sizes)
            if not np.allclose(found, right, atol=1e-5):
                log.warning("features in C are off by %.1e; Python finds them", float(np.abs(found - right).max()))
                return None
        return table

    def _cut(self, text: str) -> native.Cut:
        """The word pieces of a text that C can't cut itself, and their counts."""
        stretches, joined = text.split(), self._embedding.joined
        head, tail = joined(stretches[: -self._tail_words]), joined(stretches[-self._tail_words :])
        pieces = head + tail
        return pieces, len(pieces) // _ID_BYTES, len(head) // _ID_BYTES, len(stretches)

    def vectors(self, asked: Sequence[Asked]) -> NDArray[np.float32]:
        """The vectors that `describe` gives, but for rounding, shape (n, dims), in a sixth of the time for many
        requests. Not thread-safe.
        """
        found = np.zeros((len(asked), self.layout.dims), np.float32)
        texts = [ends_of(one.text) for one in asked]
        for rows in chunks(map(len, texts)):
            part, written = texts[rows], Written(texts[rows])
            words = self._meanings(part, written, found[rows])
            kinds = written.kinds(_TABLE, len(_MARKS) + 1)
            found[rows, self.layout.structure] = _structures(asked[rows], part, words, kinds)
        return found

    def query_of(self, asked: Asked, vector: Vector) -> Query:
        """The query of a request whose vector was computed by `vectors`."""
        return Query(
            ends_of(asked.text), vector, self.version, asked.input_tokens, asked.max_output_tokens, asked.turns,
            asked.tools, asked.images, asked.wants_json,
        )  # fmt: skip

    def embed(self, text: str) -> Vector:
        """The unit vector of the text's meaning alone, which a semantic cache compares."""
        return self._embedding.embed(text)

    def _meaning(self, text: str) -> tuple[bytes, int]:
        """The first two blocks as bytes, and the number of stretches between blanks."""
        embedding, words = self._embedding, self._tail_words
        stretches = text.split()
        if len(stretches) <= words:
            return unit(embedding.total(embedding.joined(stretches))).tobytes() * 2, len(stretches)
        tail = embedding.total(embedding.joined(stretches[-words:]))
        whole = tail + embedding.total(embedding.joined(stretches[:-words]))
        return unit(whole).tobytes() + unit(tail).tobytes(), len(stretches)

    def _meanings(self, texts: Sequence[str], written: Written, found: NDArray[np.float32]) -> NDArray[np.intp]:
        """Fill the first two blocks of every row of `found`; returns the number of stretches of each text."""
        tail, head, words = self._sums.of(texts, written, self._tail_words)
        found[:, self.layout.tail] = units(tail)
        found[:, self.layout.whole] = units(tail + head)
        return words


class Encoded(Featurizer):
    """Features whose meaning comes from another encoder, for the whole text only. It is as slow as that encoder, so it
    must not run on an event loop.
    """

    def __init__(self, encode: Callable[[str], Vector], dims: int, id: str) -> None:
        """`encode` returns unit vectors of length `dims`; `id` names the encoder in the version, because vectors of two
        encoders must not be mixed.
        """
        self._encode = encode
        ends = dims + STRUCTURE
        self.layout = Layout(slice(0, dims), slice(dims, dims), slice(dims, ends), ends)
        self.version = f"{ENCODED}{id}-{dims}-{STRUCTURE}.2"

    def embed(self, text: str) -> Vector:
        vector = np.asarray(self._encode(text), np.float32)
        if vector.shape != (self.layout.whole.stop,):
            raise ValueError(f"the encoder gave a vector of shape {vector.shape}, not ({self.layout.whole.stop},)")
        return vector

    def _meaning(self, text: str) -> tuple[bytes, int]:
        return self.embed(text).tobytes(), len(text.split())

    def _meanings(self, texts: Sequence[str], written: Written, found: NDArray[np.float32]) -> NDArray[np.intp]:
        for row, text in enumerate(texts):
            found[row, self.layout.whole] = self.embed(text)
        return np.array([len(text.split()) for text in texts], np.intp)


def ends_of(text: str) -> str:
    """The part of a text that is read."""
    return text if len(text) <= HEAD_CHARS + TAIL_CHARS else f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"


def _structure(text: str, words: int) -> tuple[float, ...]:
    """Shares of characters and counts of marks of code, maths and choices, each scaled to about 1."""
    raw = text.encode("utf-8", "replace")
    _, asks, lines, colons, quotes, scores, code, maths, digits, capitals, _, foreign = _counted(raw)
    n, blanks, options = len(raw) or 1, raw.count(b" "), 0
    for sign in _CODE:
        if sign in text:
            code += text.count(sign)
    if lines:
        for sign in _OPTIONS:
            options += text.count(sign)
    share = 5.0 / n
    return (
        asks / 5 if asks < 20 else 4.0, lines / 5 if lines < 20 else 4.0, colons / 5 if colons < 20 else 4.0,
        quotes / 5 if quotes < 20 else 4.0, scores / 5 if scores < 20 else 4.0, code / 5 if code < 20 else 4.0,
        maths / 10 if maths < 40 else 4.0, options / 5 if options < 20 else 4.0,
        digits * share, capitals * share, blanks * share, foreign * share, n / (words or 1) / 10,
    )  # fmt: skip


def _counted(raw: bytes) -> list[int]:
    """How many bytes there are of each kind; plain ones are not counted."""
    marks = raw.translate(_KINDS, _PLAIN)
    if len(marks) > _FEW_MARKS:
        return list(map(marks.count, _EACH))
    found = [0] * len(_EACH)
    for kind in marks:
        found[kind] += 1
    return found


def _structures(
    asked: Sequence[Asked], texts: Sequence[str], words: NDArray[np.intp], kinds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The structure blocks of many requests, sizes included, shape (n, STRUCTURE)."""
    chars = np.maximum(kinds.sum(1), 1.0)
    kinds[:, 6] += [sum(map(text.count, _CODE)) for text in texts]
    options = [sum(map(text.count, _OPTIONS)) if "\n" in text else 0 for text in texts]
    found = np.empty((len(texts), STRUCTURE))
    found[:, :6] = kinds[:, 1:7] / 5
    found[:, 6] = kinds[:, 7] / 10
    found[:, 7] = np.array(options) / 5
    found[:, 8:12] = kinds[:, 8:] * (5.0 / chars)[:, None]
    found[:, 12] = chars / np.maximum(words, 1) / 10
    counts = [(len(one.text), one.input_tokens, one.turns) for one in asked]
    found[:, 13:16] = np.log1p(np.array(counts, np.float64).reshape(-1, 3)) / 4
    found[:, 16:] = np.array([(one.tools, one.images, one.wants_json) for one in asked]).reshape(-1, 3)
    most = [0, 1, 2, 3, 4, 5, 6, 7, 16, 17]
    found[:, most] = np.minimum(found[:, most], 4.0)
    return found


def _version(dims: int, tail_words: int) -> str:
    return f"static-{dims}-{tail_words}-{STRUCTURE}.2"


@cache
def shipped_featurizer() -> Featurizer:
    """The one featurizer of the process."""
    return Featurizer()


@cache
def shipped_version() -> str:
    """The version of the shipped featurizer, found without loading its table."""
    return _version(shipped_dims(), TAIL_WORDS)
