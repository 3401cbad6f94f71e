"""Texts embedded in bulk have the sums that each has alone, and the memory of stretches stays bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers import bulk
from routers.bulk import Places, Sums, Written, chunks
from routers.embedding import shipped_embedding

WORDS = 3


def alone(text: str) -> tuple[np.ndarray, np.ndarray, int]:
    """The sums of a text embedded alone: its tail, its head, and its number of stretches."""
    embedding = shipped_embedding()
    stretches = text.split()
    tail, head = (embedding.total(embedding.joined(part)) for part in (stretches[-WORDS:], stretches[:-WORDS]))
    return tail, head, len(stretches)


def same(sums: Sums, texts: list[str]) -> None:
    tail, head, words = sums.of(texts, Written(texts), WORDS)
    for row, text in enumerate(texts):
        own_tail, own_head, count = alone(text)
        np.testing.assert_allclose(tail[row], own_tail, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(head[row], own_head, rtol=1e-4, atol=1e-4)
        assert words[row] == count


@given(st.lists(st.text(alphabet=st.sampled_from("ab é\x85\xa0\u2003\ud800\t\n\x1c日")), max_size=8))
def test_sums_of_many_texts_are_those_of_each(texts: list[str]) -> None:
    """They agree for any white space and broken characters, with an empty memory and again from memory."""
    sums = Sums(shipped_embedding())
    same(sums, texts)
    same(sums, texts)


@given(st.lists(st.text(max_size=40), max_size=8))
def test_stretches_lie_between_blanks(texts: list[str]) -> None:
    """A stretch is the bytes between ASCII white space, text by text."""
    written = Written([text.encode("utf-8", "replace").decode() for text in texts])
    starts, ends, first = written.stretches()
    for row, text in enumerate(texts):
        found = [written.blob[starts[at] : ends[at]] for at in range(first[row], first[row + 1])]
        assert found == [part for line in [text.encode("utf-8", "replace")] for part in line.translate(SPACED).split()]


SPACED = bytes(32 if byte < 128 and chr(byte).isspace() else byte for byte in range(256))


def test_equal_stretches_share_a_number_and_others_do_not() -> None:
    """That holds among 60,000 stretches, wherever they are in the texts."""
    one = Written([f"{n} word{n} a{n}b" for n in range(20_000)])
    other = Written(["x " + " ".join(f"{n} word{n} a{n}b" for n in range(20_000))])
    numbers = one.numbers(*one.stretches()[:2])
    assert (other.numbers(*other.stretches()[:2])[1:] == numbers).all()
    assert len(np.unique(numbers)) == 60_000


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a thousand new stretches with room for fifty, no more are kept than those of one block, and the sums stay
    right.
    """
    monkeypatch.setattr(bulk, "MEMO", 50)
    sums = Sums(shipped_embedding())
    for start in range(0, 1_000, 20):
        same(sums, [f"token{n} is new" for n in range(start, start + 20)])
        assert sums.remembered <= 50
    same(sums, [f"token{n} is new" for n in range(80)])
    same(sums, ["a few"])


def test_numbers_without_a_free_place_are_not_found() -> None:
    """Of nine numbers in one slot, the table keeps four; the others are not found."""
    places = Places()
    numbers = np.arange(1, 10, dtype=np.uint64)
    places.add(numbers)
    found = places.find(numbers)
    assert found.tolist() == [0, 1, 2, 3, -1, -1, -1, -1, -1]
    assert places.find(np.array([77], np.uint64)).tolist() == [-1]
    places.clear()
    assert (places.find(numbers) == -1).all() and places.count == 0


@given(st.lists(st.integers(0, 60_000), max_size=30))
def test_chunks_hold_every_text_once_within_their_limit(sizes: list[int]) -> None:
    """They are in order, and only a single text may exceed the limit."""
    parts = list(chunks(sizes))
    assert [row for part in parts for row in range(len(sizes))[part]] == list(range(len(sizes)))
    for part in parts:
        assert part.stop - part.start == 1 or sum(sizes[part]) <= bulk.CHUNK_CHARS
