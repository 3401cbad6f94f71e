"""A stored value can be read only under the key that it was written for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache.codec import pack, unpack
from tests.cache.entries import entry

BLOB = pack(b"key", "epoch", entry())


def test_what_was_packed_is_unpacked() -> None:
    """Epoch and entry come back equal under their own key, and under no other."""
    assert unpack(BLOB, key=b"key") == ("epoch", entry())
    assert unpack(BLOB, key=b"kex") is None


@given(st.integers(0, len(BLOB) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(place: int, change: int) -> None:
    """A value with one byte changed anywhere is not served."""
    changed = bytearray(BLOB)
    changed[place] ^= change
    assert unpack(bytes(changed), key=b"key") is None


@given(st.integers(0, len(BLOB) - 1))
def test_a_truncated_value_is_noticed(length: int) -> None:
    """A value cut short anywhere is not served."""
    assert unpack(BLOB[:length], key=b"key") is None


@given(st.binary(max_size=200))
def test_garbage_is_noticed(blob: bytes) -> None:
    """Bytes that another program wrote are not served, and raise nothing."""
    assert unpack(blob, key=b"key") is None
    assert unpack(b"hgc\x01" + blob, key=b"key") is None
