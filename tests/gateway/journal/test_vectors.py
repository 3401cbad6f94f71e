"""A query's features are restored from a record to half precision, however few of their blocks are stored."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gateway.journal.record import DecisionRecord
from gateway.journal.vectors import packed, unpacked, vector_bytes
from routers.features import shipped_featurizer

SHORT, LONG = "what is the capital of France?", "tell me of " + " and of ".join(f"city {n}" for n in range(80))


def record(vector: bytes, doubled: int = 0) -> DecisionRecord:
    return DecisionRecord(id="dec_1", time_s=1.0, vector=vector, doubled=doubled)


@pytest.mark.parametrize("text", [SHORT, LONG, ""])
def test_features_are_restored(text: str) -> None:
    """That holds for short and long texts, through both codecs that a record passes."""
    vector = shipped_featurizer().describe(text).vector
    kept = record(*packed(vector))
    spooled = msgspec.msgpack.decode(msgspec.msgpack.encode(kept), type=DecisionRecord)
    stored = msgspec.json.decode(msgspec.json.encode(spooled), type=DecisionRecord)
    assert np.array_equal(unpacked(stored), vector.astype("<f2").astype(np.float32))
    assert vector_bytes(stored) == vector.astype("<f2").tobytes()


def test_a_short_texts_features_take_little_more_than_half() -> None:
    """The tail of a short text is the whole text; a long one has two blocks."""
    short, long = (shipped_featurizer().describe(text).vector for text in (SHORT, LONG))
    assert len(packed(short)[0]) < 0.55 * 2 * len(short) and packed(short)[1] > 0
    assert len(packed(long)[0]) == 2 * len(long) and packed(long)[1] == 0


def test_records_of_earlier_releases_are_read() -> None:
    """They hold every block."""
    vector = shipped_featurizer().describe(SHORT).vector.astype("<f2")
    assert np.array_equal(unpacked(record(vector.tobytes())), vector.astype(np.float32))
    assert not len(unpacked(record(b""))) and vector_bytes(record(b"")) == b""


@given(arrays(np.float32, st.integers(0, 70), elements=st.sampled_from([0.0, -0.0, 0.5, 1.0])))
def test_any_numbers_are_restored(vector: np.ndarray) -> None:
    """Vectors may have other widths, and blocks that are equal by chance."""
    assert vector_bytes(record(*packed(vector))) == vector.astype("<f2").tobytes()
