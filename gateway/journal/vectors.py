"""Packs a query's feature vector for its decision's record: in half precision, and equal blocks once.

The vector has one block for the whole text and one for its tail; for a short text both are equal.
"""

from __future__ import annotations

import numpy as np

from gateway.journal.record import DecisionRecord
from routers.features import STRUCTURE
from routers.types import Vector

_HALF = np.dtype("<f2")


def packed(vector: Vector) -> tuple[bytes, int]:
    """The values of a record's `vector` and `doubled`."""
    raw = vector.astype(_HALF).tobytes()
    block = (len(vector) - STRUCTURE) // 2
    end = block * _HALF.itemsize
    return (raw[end:], block) if block > 0 and raw[:end] == raw[end : 2 * end] else (raw, 0)


def vector_bytes(record: DecisionRecord) -> bytes:
    """The whole vector as little-endian float16; empty where none was stored."""
    return record.vector[: record.doubled * _HALF.itemsize] + record.vector


def unpacked(record: DecisionRecord) -> Vector:
    """The vector as the router saw it, but in half precision."""
    return np.frombuffer(vector_bytes(record), _HALF).astype(np.float32)
