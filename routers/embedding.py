"""Text embeddings in microseconds: the normalised sum of static token vectors.

The tokens are BERT's WordPieces (a test compares with the `tokenizers` library; control characters alone are read
otherwise). Every stretch of text between blanks is cut once and remembered in a bounded memo, so a text costs one
split, one dictionary look-up per stretch and one gather. What is remembered is the tokens' numbers as bytes, for joined
bytes are an array at no cost. It loads what `routers.build_embedding` made and refuses a file without its parts. It
reads no network and no clock.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Matrix = NDArray[np.float32]

SHIPPED = Path(__file__).parent / "weights" / "minilm_static.safetensors"
MAX_WORD_CHARS = 100
"""BERT reads a longer word as unknown."""
MEMO_STRETCHES = 32_768
MEMO_CHARS = 32
"""Longer stretches are rarely repeated and are not remembered, so that the memo takes at most some 6 MB."""
IDS = np.intp
"""The integer type that `take` needs."""
_IDS, _FLOAT = np.dtype(IDS), np.dtype(np.float32)
"""Constants, because numpy would otherwise build a dtype object in every call."""

_ASCII_WORDS = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]")
_CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
        (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))  # fmt: skip


def words_of(text: str) -> list[str]:
    """Lower-case words and single punctuation marks, as BERT's uncased pre-tokeniser cuts them."""
    if text.isascii():
        return _ASCII_WORDS.findall(text.lower())
    return "".join(map(_spaced, unicodedata.normalize("NFD", text.lower()))).split()


@lru_cache(maxsize=65_536)
def _spaced(char: str) -> str:
    category = unicodedata.category(char)
    if char in "\t\n\r" or category == "Zs":
        return " "
    if category == "Mn" or category[0] == "C" or char == "\ufffd":
        return ""
    if category[0] == "P" or (char.isascii() and not char.isalnum()) or _is_cjk(ord(char)):
        return f" {char} "
    return char


def _is_cjk(point: int) -> bool:
    return point >= 0x3400 and any(low <= point <= high for low, high in _CJK)


class _Memo(dict[str, bytes]):
    """A bounded memo of how short stretches were cut; a missing one is cut on access."""

    def __init__(self, cut: Callable[[str], bytes]) -> None:
        super().__init__()
        self.cut = cut

    def __missing__(self, stretch: str) -> bytes:
        known = self.cut(stretch)
        if len(stretch) <= MEMO_CHARS:
            if len(self) >= MEMO_STRETCHES:
                self.clear()
            self[stretch] = known
        return known


class StaticEmbedding:
    """Token rows (int8 with a scale per row) and the vocabulary that names them."""

    def __init__(self, rows: NDArray[np.int8], scales: NDArray[np.float32], vocabulary: Mapping[str, int]) -> None:
        self.dims = rows.shape[1]
        self._rows = rows
        self._scales = scales
        self._vocabulary = vocabulary
        self._memo = _Memo(self.cut)
        self._lengths = _lengths(vocabulary)

    def joined(self, stretches: Sequence[str]) -> bytes:
        """Ids of the WordPieces of stretches between blanks, in order, as packed `IDS`. A word that can't be cut is
        left out.
        """
        return b"".join(map(self._memo.__getitem__, stretches))

    def total(self, pieces: bytes) -> Vector:
        """The tokens' weighted sum, shape (dims,)."""
        ids = np.frombuffer(pieces, _IDS)
        total: Vector = self._scales.take(ids).dot(self._rows.take(ids, 0).astype(_FLOAT))
        return total

    def totals(self, texts: Sequence[bytes]) -> Matrix:
        """`total` of many texts' joined pieces, shape (n, dims), by one sparse product."""
        from scipy.sparse import csr_array

        ends = np.cumsum([0, *(len(text) // IDS().itemsize for text in texts)])
        ids = np.frombuffer(b"".join(texts), IDS)
        once = np.ones(len(ids), np.float32)
        return np.asarray(csr_array((once, ids, ends), shape=(len(texts), len(self._rows))) @ self._weighted)

    @cached_property
    def _weighted(self) -> Matrix:
        """Every token's row times its scale, which takes four times the memory; used for many texts only."""
        return self._rows.astype(np.float32) * self._scales[:, None]

    def embed(self, text: str) -> Vector:
        """Unit vector of the text; zeros where it has no token."""
        return unit(self.total(self.joined(text.split())))

    def arrays(self) -> tuple[bytes, NDArray[np.int8], NDArray[np.float32]]:
        """Tokens in the order of their rows, a line feed behind each; rows; scales."""
        tokens = dict(zip(self._vocabulary.values(), self._vocabulary, strict=True))
        vocabulary = "".join(f"{tokens.get(row, '')}\n" for row in range(len(self._rows))).encode()
        return vocabulary, np.ascontiguousarray(self._rows), np.ascontiguousarray(self._scales, np.float32)

    def cut(self, stretch: str) -> bytes:
        """As `joined`, of one stretch and without the memo."""
        ids: list[int] = []
        for word in words_of(stretch):
            whole = self._vocabulary.get(word)
            ids += self._cut(word) if whole is None else (whole,)
        return array(_IDS.char, ids).tobytes()

    def _cut(self, word: str) -> list[int]:
        """Greedy longest match (WordPiece); empty where some part is not in the vocabulary."""
        vocabulary, lengths, ids = self._vocabulary, self._lengths, list[int]()
        start, prefix = 0, ""
        while start < len(word) <= MAX_WORD_CHARS:
            for length in lengths.get(prefix + word[start : start + 2], ()):
                known = vocabulary.get(prefix + word[start : start + length])
                if known is not None:
                    break
            else:
                length, known = 1, vocabulary.get(prefix + word[start])
                if known is None:
                    return []
            ids.append(known)
            start, prefix = start + length, "##"
        return ids


def _lengths(vocabulary: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The lengths of the tokens that begin with each two characters, longest first; keys of tokens that continue a word
    begin with `##`.
    """
    found: dict[str, set[int]] = {}
    for token in vocabulary:
        start = 2 if token.startswith("##") and len(token) > 2 else 0
        if len(token) >= start + 2:
            found.setdefault(token[: start + 2], set()).add(len(token) - start)
    return {begin: tuple(sorted(lengths, reverse=True)) for begin, lengths in found.items()}


def unit(total: Vector) -> Vector:
    """The vector scaled to length one; zeros stay zeros."""
    length = sqrt(total.dot(total))
    return total * (1.0 / length) if length > 0 else total


def units(totals: Matrix) -> Matrix:
    """Every row of length one; zeros stay zeros."""
    lengths = np.sqrt(np.einsum("ij,ij->i", totals, totals))[:, None]
    return np.asarray(totals / np.where(lengths > 0, lengths, 1.0), np.float32)


def load_embedding(path: Path = SHIPPED) -> StaticEmbedding:
    """ValueError where the file is not a distilled table."""
    from safetensors.numpy import load_file

    parts = load_file(path)
    missing = {"rows", "scales", "vocabulary"} - parts.keys()
    if missing:
        raise ValueError(f"{path}: no {', '.join(sorted(missing))}")
    tokens = parts["vocabulary"].tobytes().decode("utf-8").split("\n")
    if len(tokens) != len(parts["rows"]) or len(tokens) != len(parts["scales"]):
        raise ValueError(f"{path}: {len(tokens)} tokens, {len(parts['rows'])} rows, {len(parts['scales'])} scales")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return StaticEmbedding(parts["rows"], parts["scales"].astype(np.float32), vocabulary)


def shipped_dims() -> int:
    """Dimensions of the shipped table, read from its file's header."""
    from safetensors import safe_open

    with safe_open(SHIPPED, "np") as parts:
        return int(parts.get_slice("rows").get_shape()[1])


@cache
def shipped_embedding() -> StaticEmbedding:
    """The shipped table, 6 MB, read once per process."""
    return load_embedding()
