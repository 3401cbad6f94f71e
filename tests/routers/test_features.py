from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routers.features import _EACH, _KINDS, HEAD_CHARS, TAIL_CHARS, Featurizer, _counted, shipped_featurizer

FEATURES = shipped_featurizer()
LISTED = (
    "", "what " * 60, "x" * 9_000, "Which?\nA) one\nB) two\n(C) three", "def f():\n    return {1: '_'}; ```" * 9,
    "\u00fcber \ud800", "?" * 30 + "\n" * 30 + "$\\^=+" * 20,
)  # fmt: skip
"""Texts of every kind of character, of many words, and longer than what is read."""


@dataclass
class Described:
    text: str
    input_tokens: int = 0
    max_output_tokens: int | None = None
    turns: int = 1
    tools: int = 0
    images: int = 0
    wants_json: bool = False


@given(st.text(max_size=200))
def test_any_text_has_a_finite_vector_of_fixed_size(text: str) -> None:
    """No text makes the featurizer fail, the empty one included."""
    query = FEATURES.describe(text)
    assert query.vector.shape == (FEATURES.dims,)
    assert query.vector.dtype == np.float32
    assert np.isfinite(query.vector).all()
    assert query.features_version == FEATURES.version


@given(st.text(max_size=100))
def test_a_vector_depends_on_its_text_alone(text: str) -> None:
    """Texts described before make no difference."""
    fresh = Featurizer()
    assert (fresh.describe(text).vector == FEATURES.describe(text).vector).all()


@given(st.lists(st.text(max_size=300) | st.sampled_from(LISTED), max_size=12))
def test_features_in_bulk_are_those_one_by_one(texts: list[str]) -> None:
    """The vectors agree up to rounding, whatever the texts and their sizes."""
    asked = [
        Described(text, 3 * place, None, place, tools=place % 7, images=place % 6, wants_json=place % 2 > 0)
        for place, text in enumerate(texts)
    ]
    found = FEATURES.vectors(asked)
    assert found.shape == (len(texts), FEATURES.dims) and found.dtype == np.float32
    for one, vector in zip(asked, found, strict=True):
        query = FEATURES.describe(
            one.text, input_tokens=one.input_tokens, turns=one.turns, tools=one.tools, images=one.images,
            wants_json=one.wants_json,
        )  # fmt: skip
        np.testing.assert_allclose(vector, query.vector, rtol=1e-4, atol=2e-6)
        again = FEATURES.query_of(one, query.vector)
        assert again.vector is query.vector
        assert replace(again, vector=None) == replace(query, vector=None)  # type: ignore[arg-type]


@given(st.binary(max_size=400) | st.text(alphabet='?\n:"_{;$9A \u00fcab', max_size=200).map(str.encode))
def test_characters_are_counted_by_kind(raw: bytes) -> None:
    """Both ways of counting, for short and for long texts, find each kind except the plain one as often as it occurs.
    """
    found = np.bincount([_KINDS[byte] for byte in raw if byte != ord(" ")], minlength=len(_EACH))
    assert _counted(raw)[1:] == found[1:].tolist()


def test_a_vector_belongs_to_its_query() -> None:
    """Writing into one query's vector changes no other's."""
    one, other = FEATURES.describe("the same"), FEATURES.describe("the same")
    one.vector[:] = 0.0
    assert other.vector.any() and (FEATURES.describe("the same").vector == other.vector).all()


def test_the_requests_structure_is_kept_in_the_query() -> None:
    """What the caller knows about the request is stored in the query as given."""
    query = FEATURES.describe(
        "hi", input_tokens=7, max_output_tokens=9, turns=3, tools=2, images=1, wants_json=True, task="t"
    )
    known = (query.input_tokens, query.max_output_tokens, query.turns, query.tools, query.images)
    assert known == (7, 9, 3, 2, 1)
    assert (query.wants_json, query.task) == (True, "t")


def test_tokens_are_estimated_where_unknown() -> None:
    """Four characters count as one token."""
    assert 90 <= FEATURES.describe("word " * 80).input_tokens <= 110


def test_a_long_text_is_read_at_both_ends() -> None:
    """In a very long text the middle changes nothing, and either end does."""
    head, tail = "begin " * 600, "end " * 1500
    a = FEATURES.describe(head + "x " * 9_000 + tail)
    b = FEATURES.describe(head + "y " * 9_000 + tail)
    c = FEATURES.describe(head + "x " * 9_000 + "other " * 1000)
    layout = FEATURES.layout
    assert len(a.text) <= HEAD_CHARS + TAIL_CHARS + 1
    assert np.allclose(a.vector[layout.whole], b.vector[layout.whole])
    assert not np.allclose(a.vector[layout.tail], c.vector[layout.tail])


def test_the_tail_differs_from_the_whole_under_a_template() -> None:
    """Two questions after one long template differ more in their tails than as a whole."""
    template = "Answer the following question with one letter only. " * 20
    a, b = (FEATURES.describe(template + q).vector for q in ("How do plants grow? " * 5, "Who won the war? " * 5))
    whole, tail = FEATURES.layout.whole, FEATURES.layout.tail
    assert a[tail] @ b[tail] < a[whole] @ b[whole] - 0.1


def test_other_options_make_another_version() -> None:
    """Vectors of another layout can't be confused with these."""
    assert Featurizer(tail_words=16).version != FEATURES.version


def test_structure_counts_what_is_written() -> None:
    """Marks, code, maths and options are each counted in their own place, scaled to about 1."""
    text = 'Is {a} = "b"? $x^2$ def f():\nA 1\nB 2\n(C) 3é'
    marks = FEATURES.describe(text, turns=2, tools=1).vector[FEATURES.layout.structure]
    n = len(text.encode())
    expected = [1, 3, 1, 2, 0]
    assert marks[:5] * 5 == pytest.approx(expected)
    assert marks[5:8] * [5, 10, 5] == pytest.approx([3, 4, 2])
    assert marks[8:12] * n / 5 == pytest.approx([4, 4, text.count(" "), 2])
