from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from routers.embedding import (
    IDS,
    MEMO_CHARS,
    MEMO_STRETCHES,
    SHIPPED,
    StaticEmbedding,
    load_embedding,
    shipped_embedding,
)  # fmt: skip

EMBEDDING = shipped_embedding()
OLD_CHARACTERS = st.one_of(
    st.characters(max_codepoint=0x4FF, exclude_categories=["Cn", "Cc"]),
    st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5),
)
"""Characters that every version of Unicode puts into the same category."""


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    tokens = load_file(SHIPPED)["vocabulary"].tobytes().decode("utf-8").split("\n")
    tokenizer = Tokenizer(WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def assert_same_tokens(reference: Tokenizer, text: str) -> None:
    unknown = reference.token_to_id("[UNK]")
    expected = [i for i in reference.encode(text, add_special_tokens=False).ids if i != unknown]
    assert np.frombuffer(EMBEDDING.joined(text.split()), IDS).tolist() == expected


@settings(max_examples=300)
@given(st.text(OLD_CHARACTERS, max_size=80))
def test_tokens_are_those_of_the_reference(reference: Tokenizer, text: str) -> None:
    """Any text is split as the `tokenizers` library splits it, except that unknown words are left out."""
    assert_same_tokens(reference, text)


@pytest.mark.parametrize("text", ["Café naïve", "东京 tower", "don't stop!!", "x" * 120, "a\u00a0b\tc", "E=mc²"])
def test_tokens_of_hard_cases_are_those_of_the_reference(reference: Tokenizer, text: str) -> None:
    """These are accents, CJK, apostrophes, very long words and unusual white space."""
    assert_same_tokens(reference, text)


def test_similar_meanings_are_nearer_than_others() -> None:
    """The distilled table still separates words by meaning."""
    car, auto, soup = (
        EMBEDDING.embed(t) for t in ("How do I repair my car?", "fixing an automobile", "a recipe for tomato soup")
    )
    assert car @ auto > 0.3 + car @ soup


@given(st.text(max_size=60))
def test_a_vector_is_of_unit_length_or_zero(text: str) -> None:
    """A longer text has no longer vector."""
    length = float(np.linalg.norm(EMBEDDING.embed(text)))
    assert length == pytest.approx(1.0, abs=1e-4) or length == 0.0


def test_a_file_without_its_parts_is_refused(tmp_path: Path) -> None:
    """A table without a vocabulary is refused."""
    path = tmp_path / "e.safetensors"
    save_file({"rows": np.zeros((2, 2), np.int8)}, path)
    with pytest.raises(ValueError, match="no scales, vocabulary"):
        load_embedding(path)


def test_a_table_of_another_size_than_its_vocabulary_is_refused(tmp_path: Path) -> None:
    """Rows without a word are refused."""
    path = tmp_path / "e.safetensors"
    words = np.frombuffer(b"a\nb\nc", np.uint8).copy()
    save_file({"rows": np.zeros((2, 2), np.int8), "scales": np.ones(2, np.float16), "vocabulary": words}, path)
    with pytest.raises(ValueError, match="3 tokens, 2 rows"):
        load_embedding(path)


def test_the_memory_of_words_is_bounded() -> None:
    """Neither many words nor long ones fill the memory, and a word that was dropped is split as before."""
    embedding = shipped_embedding()
    before = embedding.joined(["the", "words", "come", "again"])
    long = "x" * (MEMO_CHARS + 1)
    assert embedding.joined([long]) == embedding.joined([long]) and long not in embedding._memo
    embedding.joined([f"w{number}" for number in range(MEMO_STRETCHES + 10)])
    assert len(embedding._memo) <= MEMO_STRETCHES
    assert embedding.joined(["the", "words", "come", "again"]) == before


@given(st.lists(st.sampled_from(["north", "river,", "unheardofword", "\u00fcber", "x" * 40, "?"]), max_size=9))
def test_the_tokens_of_stretches_are_in_order(stretches: list[str]) -> None:
    """That holds whether all stretches were in memory, some, or none."""
    embedding = StaticEmbedding(EMBEDDING._rows, EMBEDDING._scales, EMBEDDING._vocabulary)
    embedding.joined(["north", "?"])
    expected = b"".join(map(embedding.cut, stretches))
    assert embedding.joined(stretches) == embedding.joined(stretches) == expected
