"""Texts read together give what each gives alone, and what is remembered of them stays bounded."""

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
    """By the embedding of one text: its tail, its head, its stretches."""
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
    """Whatever blanks and halves of characters they hold, with nothing remembered and again from memory."""
    sums = Sums(shipped_embedding())
    same(sums, texts)
    same(sums, texts)


@given(st.lists(st.text(max_size=40), max_size=8))
def test_stretches_are_what_lies_between_blanks(texts: list[str]) -> None:
    """Bytes between ASCII blanks, text by text."""
    written = Written([text.encode("utf-8", "replace").decode() for text in texts])
    starts, ends, first = written.stretches()
    for row, text in enumerate(texts):
        found = [written.blob[starts[at] : ends[at]] for at in range(first[row], first[row + 1])]
        assert found == [part for line in [text.encode("utf-8", "replace")] for part in line.translate(SPACED).split()]


SPACED = bytes(32 if byte < 128 and chr(byte).isspace() else byte for byte in range(256))


def test_a_stretch_has_one_number_and_no_other_has_it() -> None:
    """Of 60,000 stretches wherever they stand, alike ones share a number and others don't."""
    one = Written([f"{n} word{n} a{n}b" for n in range(20_000)])
    other = Written(["x " + " ".join(f"{n} word{n} a{n}b" for n in range(20_000))])
    numbers = one.numbers(*one.stretches()[:2])
    assert (other.numbers(*other.stretches()[:2])[1:] == numbers).all()
    assert len(np.unique(numbers)) == 60_000


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand new stretches with room for fifty: never more than a block's own are kept, and sums stay right."""
    monkeypatch.setattr(bulk, "MEMO", 50)
    sums = Sums(shipped_embedding())
    for start in range(0, 1_000, 20):
        same(sums, [f"token{n} is new" for n in range(start, start + 20)])
        assert sums.remembered <= 50
    same(sums, [f"token{n} is new" for n in range(80)])
    same(sums, ["a few"])


def test_numbers_without_a_way_left_are_not_found() -> None:
    """Nine numbers of one slot: its ways hold a few, the others have no place and do no harm."""
    places = Places()
    numbers = np.arange(1, 10, dtype=np.uint64)
    places.add(numbers)
    found = places.find(numbers)
    assert found.tolist() == [0, 1, 2, 3, -1, -1, -1, -1, -1]
    assert places.find(np.array([77], np.uint64)).tolist() == [-1]
    places.clear()
    assert (places.find(numbers) == -1).all() and places.count == 0


@given(st.lists(st.integers(0, 60_000), max_size=30))
def test_chunks_hold_every_text_once_and_no_more_than_is_read_together(sizes: list[int]) -> None:
    """In order, each as large as may be."""
    parts = list(chunks(sizes))
    assert [row for part in parts for row in range(len(sizes))[part]] == list(range(len(sizes)))
    for part in parts:
        assert part.stop - part.start == 1 or sum(sizes[part]) <= bulk.CHUNK_CHARS
