"""What is known of a query before any model has answered it, as numbers, in microseconds.

A vector is three blocks side by side: the meaning of the whole text, the meaning of its tail (prompts
often end in the question and begin with a template), and structure. Vectors are versioned: whoever learnt
from one version refuses another. Nothing here keeps a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import log1p

import numpy as np

from routers.embedding import StaticEmbedding, Vector, shipped_embedding
from routers.types import Query

HEAD_CHARS = 3000
TAIL_CHARS = 5000
"""A longer text is read at both ends only: time stays bounded."""
CHARS_PER_TOKEN = 4.0

_OPTIONS = ("\nB", "\nC", "\nD", "\n(B", "\n(C")
_CODE = ("```", "def ", "return", "import ", "()")
_CLASSES = np.zeros((256, 11))
"""Which bytes count as which mark: ? newline : " _, code, maths, digits, capitals, blanks, beyond ASCII."""
for _column, _bytes in enumerate((b"?", b"\n", b":", b'"', b"_", b"{;", b"$\\^=+", b"0123456789")):
    _CLASSES[list(_bytes), _column] = 1.0
_CLASSES[65:91, 8] = _CLASSES[32, 9] = _CLASSES[128:, 10] = 1.0
STRUCTURE = 19


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each block of a vector lies."""

    whole: slice
    tail: slice
    structure: slice
    dims: int

    def blocks(self) -> tuple[tuple[slice, float], ...]:
        """Each block with the spread that it gets in a projection, relative to the meaning of the whole."""
        return ((self.whole, 1.0), (self.tail, 0.5), (self.structure, 0.7))


class Featurizer:
    """Turns a text and its structure into a `Query`. Pure but for the embedding's bounded memo of words."""

    def __init__(self, embedding: StaticEmbedding | None = None, tail_words: int = 48) -> None:
        self._embedding = embedding or shipped_embedding()
        self._tail_words = tail_words
        e = self._embedding.dims
        ends = 2 * e + STRUCTURE
        self.layout = Layout(slice(0, e), slice(e, 2 * e), slice(2 * e, ends), ends)
        self.version = f"static-{e}-{tail_words}-{STRUCTURE}.2"

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
        """The query as routers see it. `input_tokens` of the whole prompt; None: estimated from this text."""
        tokens = round(len(text) / CHARS_PER_TOKEN) + 1 if input_tokens is None else input_tokens
        ends = text if len(text) <= HEAD_CHARS + TAIL_CHARS else f"{text[:HEAD_CHARS]}\n{text[-TAIL_CHARS:]}"
        pieces = self._embedding.pieces(ends)
        vector = np.empty(self.layout.dims, np.float32)
        self._fill_meaning(vector, pieces)
        vector[self.layout.structure] = _structure(
            ends, len(pieces), (log1p(len(text)), log1p(tokens), log1p(turns), tools, images, wants_json)
        )
        return Query(ends, vector, self.version, tokens, max_output_tokens, turns, tools, images, wants_json, task)

    def embed(self, text: str) -> Vector:
        """The meaning alone, a unit vector: what a semantic cache compares."""
        return self._embedding.embed(text)

    def _fill_meaning(self, vector: Vector, pieces: list[tuple[int, ...]]) -> None:
        layout = self.layout
        whole = self._embedding.vector(pieces)
        vector[layout.whole] = whole
        short = len(pieces) <= self._tail_words
        vector[layout.tail] = whole if short else self._embedding.vector(pieces[-self._tail_words :])


def _structure(text: str, words: int, known: tuple[float, ...]) -> list[float]:
    """`STRUCTURE` numbers of about unit size: lengths, shares of characters, marks of code, maths and
    choices.
    """
    raw = text.encode("utf-8", "replace")
    seen = np.bincount(np.frombuffer(raw, np.uint8), minlength=256)
    *marks, code, maths, digits, capitals, blanks, foreign = (seen @ _CLASSES).tolist()
    n, count = max(len(raw), 1), text.count
    for sign in _CODE:
        code += count(sign)
    options = 0
    for sign in _OPTIONS:
        options += count(sign)
    share = 5.0 / n
    return [
        *[min(mark, 20.0) / 5 for mark in marks],
        min(code, 20.0) / 5, min(maths, 40.0) / 10, min(options, 20) / 5,
        digits * share, capitals * share, blanks * share, foreign * share, n / max(words, 1) / 10,
        known[0] / 4, known[1] / 4, known[2] / 4, min(known[3], 4.0), min(known[4], 4.0), float(known[5]),
    ]  # fmt: skip


@cache
def shipped_featurizer() -> Featurizer:
    """The one featurizer of the process."""
    return Featurizer()
