"""A query's features in a decision's record: half precision, and the meaning of a short text once.

The tail of a text of few words is the whole of it, so two blocks of its vector are the same numbers.
"""

from __future__ import annotations

import numpy as np

from gateway.journal.record import DecisionRecord
from routers.features import STRUCTURE
from routers.types import Vector

_HALF = np.dtype("<f2")


def packed(vector: Vector) -> tuple[bytes, int]:
    """What a record's `vector` and `doubled` hold: all that retraining needs of a query, without its text."""
    raw = vector.astype(_HALF).tobytes()
    block = (len(vector) - STRUCTURE) // 2
    end = block * _HALF.itemsize
    return (raw[end:], block) if block > 0 and raw[:end] == raw[end : 2 * end] else (raw, 0)


def vector_bytes(record: DecisionRecord) -> bytes:
    """float16, little-endian, every block as often as it stood; empty: none was kept."""
    return record.vector[: record.doubled * _HALF.itemsize] + record.vector


def unpacked(record: DecisionRecord) -> Vector:
    """As the router saw it, in half precision."""
    return np.frombuffer(vector_bytes(record), _HALF).astype(np.float32)
