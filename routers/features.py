"""What is known of a query before any model has answered it, as numbers, in microseconds.

A vector is four blocks side by side: the meaning of the whole text, the meaning of its tail (prompts
often end in the question and begin with a template), hashed words and word pairs (which template, which
topic), and structure. Vectors are versioned: whoever learnt from one version refuses another. Nothing
here keeps a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from math import log1p
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from routers.embedding import StaticEmbedding, Vector, shipped_embedding, words_of
from routers.types import Query

HEAD_CHARS = 3000
TAIL_CHARS = 5000
"""A longer text is read at both ends only: time stays bounded."""
MEMO_WORDS = 65_536
CHARS_PER_TOKEN = 4.0

_OPTIONS = re.compile(r"(?:^|\n)\s*\(?[A-J][).:]")
_CODE = ("```", "def ", "return", "import ", "();", "</", "class ", " == ")
_MATHS = ("$", "\\", "^", "frac", "=")
_STRUCTURE = 24


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each block of a vector lies."""

    whole: slice
    tail: slice
    hashed: slice
    structure: slice
    dims: int


class Featurizer:
    """Turns a text and its structure into a `Query`. Pure but for a bounded memo of words already seen."""

    def __init__(
        self, embedding: StaticEmbedding | None = None, hashed: int = 512, tail_words: int = 48
    ) -> None:
        self._embedding = embedding or shipped_embedding()
        self._hashed = hashed
        self._tail_words = tail_words
        self._memo: dict[str, tuple[int, float]] = {}
        e = self._embedding.dims
        ends = 2 * e + hashed + _STRUCTURE
        self.layout = Layout(
            slice(0, e), slice(e, 2 * e), slice(2 * e, 2 * e + hashed), slice(2 * e + hashed, ends), ends
        )
        self.version = f"static-{e}-{hashed}-{tail_words}-{_STRUCTURE}.1"

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
        words = words_of(ends)
        vector = np.empty(self.layout.dims, np.float32)
        self._fill_meaning(vector, words)
        vector[self.layout.hashed] = self._hash(words)
        vector[self.layout.structure] = _structure(
            ends, len(words), (log1p(len(text)), log1p(tokens), log1p(turns), tools, images, wants_json)
        )
        return Query(
            ends, vector, self.version, tokens, max_output_tokens, turns, tools, images, wants_json, task
        )

    def embed(self, text: str) -> Vector:
        """The meaning alone, a unit vector: what a semantic cache compares."""
        return self._embedding.embed(text)

    def _fill_meaning(self, vector: Vector, words: list[str]) -> None:
        embedding, layout = self._embedding, self.layout
        ids = embedding.token_ids(words)
        vector[layout.whole] = embedding.vector(ids)
        if len(words) <= self._tail_words:
            vector[layout.tail] = vector[layout.whole]
        else:
            vector[layout.tail] = embedding.vector(embedding.token_ids(words[-self._tail_words :]))

    def _hash(self, words: list[str]) -> NDArray[np.float64]:
        """Signed counts of words and neighbouring pairs in `hashed` buckets, damped and of unit length."""
        if not words:
            return np.zeros(self._hashed)
        memo = self._memo
        found = [memo.get(word) or self._remember(word) for word in words]
        keys = np.array([key for key, _ in found], np.uint64)
        weights = np.array([weight for _, weight in found])
        pairs = keys[:-1] * np.uint64(0x9E3779B97F4A7C15) + keys[1:]
        mixed = np.concatenate([keys, pairs]) * np.uint64(0xBF58476D1CE4E5B9)
        buckets = ((mixed >> np.uint64(32)) % np.uint64(self._hashed)).astype(np.intp)
        signs = np.where((mixed >> np.uint64(31)) & np.uint64(1), 1.0, -1.0)
        both = np.concatenate([weights, np.sqrt(weights[:-1] * weights[1:])])
        counts = np.bincount(buckets, signs * both, self._hashed)
        damped = np.sign(counts) * np.log1p(np.abs(counts))
        length = float(np.sqrt(damped @ damped))
        return np.asarray(damped / length if length > 0 else damped)

    def _remember(self, word: str) -> tuple[int, float]:
        if len(self._memo) >= MEMO_WORDS:
            self._memo.clear()
        found = crc32(word.encode("utf-8")), self._embedding.rarity(word)
        self._memo[word] = found
        return found


def _structure(text: str, words: int, known: tuple[float, ...]) -> list[float]:
    """`_STRUCTURE` numbers of about unit size: lengths, shares of characters, marks of code, maths and
    choices.
    """
    n = max(len(text), 1)
    count = text.count
    marks = [min(count(mark), 20) / 5 for mark in ("?", "\n", ":", '"', "_")]
    code = [min(sum(map(count, _CODE)), 20) / 5, min(sum(map(count, _MATHS)), 40) / 10]
    digits = sum(map(count, "0123456789")) / n
    options = min(len(_OPTIONS.findall(text)), 20) / 5
    foreign = 0.0 if text.isascii() else 1 - len(text.encode("ascii", "ignore")) / n
    shares = [digits * 5, options, foreign * 5, count(" ") / n * 5, n / max(words, 1) / 5]
    kind = [float("code" in text or "function" in text), float("choice" in text or "option" in text)]
    fixed = [*(value / 4 for value in known[:3]), *(min(float(value), 4.0) for value in known[3:])]
    numbers = [*marks, *code, *shares, *kind, *fixed]
    return numbers + [1.0] * (_STRUCTURE - len(numbers))


@cache
def shipped_featurizer() -> Featurizer:
    """The one featurizer of the process."""
    return Featurizer()
